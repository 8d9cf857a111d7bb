"""Many workers on one volume: what is fetched, evicted and renamed while others are at it."""

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from model_cache.volume import layout
from schemas.model_ref import Kind
from tests.chaos.conftest import MIB, Chaos, World, wait_until
from tests.chaos.soundness import digest, private, visible
from tests.chaos.worker import Pace

pytestmark = pytest.mark.slow

# All live, on a machine that may be busy: nobody is to be taken for dead.
PATIENT = Pace(ttl_s=20.0, segment_bytes=8 * MIB)


def test_many_workers_that_want_one_model_and_several_others_fetch_each_once(
    world: World, chaos: Chaos
) -> None:
    number = chaos.count(16, least=4)
    size = chaos.size(256 * MIB, least=8 * MIB)
    one = world.model("one", size)
    others = [world.model(f"other{n}", size // 8) for n in range(chaos.count(8, least=2))]
    crew = world.crew(number, pace=PATIENT)

    for worker in crew:
        worker.ask(name="one", url=one.url)
    for index, worker in enumerate(crew):
        other = index % len(others)
        worker.ask(name=f"other{other}", url=others[other].url)
    answers = [(worker.answer(), worker.answer()) for worker in crew]

    assert [first["read"] for first, _ in answers] == [one.sha256] * number
    assert [second["read"] for _, second in answers] == [
        others[index % len(others)].sha256 for index in range(number)
    ]
    assert Counter(first["cached"] for first, _ in answers) == {False: 1, True: number - 1}
    # Of each file its bytes, and not one more.
    assert [world.sent(model) / model.size for model in (one, *others)] == [1.0] * (1 + len(others))
    assert [worker.wait() for worker in crew] == [0] * number
    assert private(world.volume) == []
    world.require_sound()
    chaos.tell("workers that want one model", number, 16)
    chaos.tell("  MiB of it", size // MIB, 256)
    chaos.tell("  and different ones", len(others), 8)


def test_two_jobs_with_one_name_and_different_bytes_both_get_theirs(
    world: World, chaos: Chaos
) -> None:
    crew = world.crew(2, pace=PATIENT)
    for number in chaos.times("names that two jobs wanted for different bytes", 50, least=4):
        pair = [world.model(f"{side}{number}", MIB) for side in "ab"]
        name = f"x{number}"

        for worker, model in zip(crew, pair, strict=True):
            worker.ask(name=name, url=model.url)
        answers = [worker.answer() for worker in crew]

        assert [answer["read"] for answer in answers] == [model.sha256 for model in pair]
        beside = [f"{name}-{model.sha256[:8]}" for model in pair]
        names = {answer["name"] for answer in answers}
        assert names in ({name, beside[0]}, {name, beside[1]})
    assert [worker.wait() for worker in crew] == [0, 0]
    assert private(world.volume) == []
    world.require_sound()


def test_workers_whose_clocks_are_an_hour_apart_share_as_others_do(
    world: World, chaos: Chaos
) -> None:
    pace = Pace(ttl_s=20.0, keep_s=0.2)
    budget = 3 * MIB
    crew = [
        world.worker(pace=pace, clock_ahead_s=ahead_s, settings={"budget_gb": budget / 1e9})
        for ahead_s in (-3600.0, 0.0, 3600.0)
    ]
    for number in chaos.times("rounds of workers with clocks an hour apart", 50, least=4):
        model = world.model(f"m{number}", MIB)
        for worker in crew:
            worker.ask(name=f"x{number}", url=model.url)
        answers = [worker.answer() for worker in crew]
        time.sleep(pace.keep_s)

        assert [answer["read"] for answer in answers] == [model.sha256] * 3
        assert world.sent(model) == model.size
    assert len(visible(world.volume)) == 3
    assert [worker.wait() for worker in crew] == [0] * 3
    assert private(world.volume) == []
    world.require_sound()


def test_a_fetch_longer_than_a_lease_is_not_taken_over_for_what_a_clock_says(
    world: World,
) -> None:
    pace = Pace(ttl_s=2.0)
    model = world.model("m", MIB)
    world.spoil(rate=MIB // 20)
    holder = world.worker(pace=pace, clock_ahead_s=-3600.0)
    ahead = world.worker(pace=pace, clock_ahead_s=3600.0)
    holder.ask(name="x", url=model.url)
    world.wait_until_sent(model, 1)
    ahead.ask(name="x", url=model.url)
    time.sleep(1.5 * pace.ttl_s)
    assert world.sent(model) < model.size

    assert [holder.answer()["cached"], ahead.answer()["cached"]] == [False, True]

    assert world.sent(model) == model.size
    assert [holder.wait(), ahead.wait()] == [0, 0]
    world.require_sound()


def test_a_budget_holds_while_several_workers_fetch_and_no_model_in_use_goes(
    world: World, chaos: Chaos
) -> None:
    catalogue = [world.model(f"m{number}", MIB) for number in range(12)]
    budget = 6 * MIB
    pace = Pace(ttl_s=20.0, keep_s=0.2)
    number = 4
    crew = world.crew(number, pace=pace, settings={"budget_gb": budget / 1e9})
    wishes = chaos.count(100, least=6)
    codes = Counter[str]()

    def work(index: int) -> int:
        chance = random.Random(index)  # noqa: S311 - an order, no secret
        for _ in range(wishes):
            wanted = catalogue[chance.randrange(len(catalogue))]
            while "code" in (answer := crew[index].ensure(name=wanted.path.stem, url=wanted.url)):
                codes[answer["code"]] += 1
                time.sleep(pace.keep_s)
            # It was there to be read, whole, for as long as it was held.
            assert answer["read"] == wanted.sha256
            time.sleep(chance.uniform(0, pace.keep_s))
        return wishes

    with ThreadPoolExecutor(number) as jobs:
        had = sum(jobs.map(work, range(number)))

    assert had == number * wishes
    # All that is there may be in use at a moment; then a job is told so.
    assert set(codes) <= {"VOLUME_FULL", "VOLUME_BUSY"}
    assert [worker.wait() for worker in crew] == [0] * number
    assert private(world.volume) == []
    taken = sum(path.stat().st_size for path in visible(world.volume))
    # Those who make room at the same moment may pass the budget by what they fetch.
    assert taken <= budget + (number - 1) * MIB
    fetched = sum(world.sent(model) for model in catalogue) // MIB
    assert fetched > len(visible(world.volume))
    world.require_sound()
    chaos.tell("wishes of four workers under a budget", had, 400)
    chaos.tell("  told that all is in use, and tried again", codes.total(), 0)
    chaos.tell("  models fetched, of which six have room", fetched, 0)


def test_who_reads_a_model_keeps_its_bytes_while_it_is_evicted_and_fetched_again(
    world: World, chaos: Chaos, pace: Pace
) -> None:
    assert pace.ttl_s < 1
    old, new = world.model("old"), world.model("new")
    budget = 1.5 * MIB / 1e9
    for _ in chaos.times("readers of a model that is evicted", 20, least=2):
        shelf = world.shelf(budget_gb=budget)
        held = shelf.ensure(name="old", url=old.url).model.path
        shelf.cache.close()
        with held.open("rb") as reader:
            start = reader.read(1000)
            worker = world.worker(settings={"budget_gb": budget})
            assert worker.ensure(name="new", url=new.url)["read"] == new.sha256
            assert not held.exists()
            assert worker.wait() == 0
            again = world.shelf(budget_gb=budget)
            again.ensure(name="old", url=old.url)
            again.cache.close()

            assert start + reader.read() == old.path.read_bytes()

        assert digest(held) == old.sha256
    world.require_sound()


@contextmanager
def truncating(world: World) -> Iterator[Counter[str]]:
    """Cut the view of the volume short, or fill it with rubbish, again and again meanwhile."""
    view, done, over = layout.registry_path(world.volume), Counter[str](), threading.Event()

    def spoil() -> None:
        while not over.wait(0.005):
            try:
                size = view.stat().st_size
                with view.open("r+b") as file:
                    file.truncate(size // 2)
                    done["truncated"] += 1
                    file.write(b"\0{[")
            except FileNotFoundError:
                done["absent"] += 1

    spoiler = threading.Thread(target=spoil)
    spoiler.start()
    try:
        yield done
    finally:
        over.set()
        spoiler.join()


def test_a_view_that_is_truncated_while_others_rewrite_it_loses_nothing(
    world: World, chaos: Chaos
) -> None:
    number = chaos.count(8, least=2)
    each = chaos.count(20, least=3)
    crew = world.crew(number, pace=PATIENT, every_view=True)
    catalogue = {f"m{n}": world.model(f"m{n}", MIB // 2) for n in range(number * each)}
    names = iter(catalogue)

    with truncating(world) as spoilt:
        for _ in range(each):
            for worker in crew:
                name = next(names)
                worker.ask(name=name, url=catalogue[name].url)
        answers = [worker.answer() for worker in crew for _ in range(each)]
        wait_until(lambda: spoilt["truncated"] > each)
    spoilt_times = spoilt["truncated"]

    assert {answer["read"] for answer in answers} == {m.sha256 for m in catalogue.values()}
    assert spoilt_times > each
    assert [worker.wait() for worker in crew] == [0] * number
    shelf = world.shelf()
    listed = {model.name: model.sha256 for model in shelf.cache.models(Kind.LORA)}
    assert listed == {name: model.sha256 for name, model in catalogue.items()}
    assert shelf.cache.write_registry()
    view = json.loads(layout.registry_path(world.volume).read_text())
    assert {row["name"]: row["sha256"] for row in view["models"]} == listed
    assert sum(row["uses"] for row in view["models"]) == len(catalogue)
    before = len(world.hub.requests)
    assert all(shelf.ensure(name=n, url=m.url).cached for n, m in catalogue.items())
    assert len(world.hub.requests) == before
    shelf.cache.close()
    world.require_sound()
    chaos.tell("times that a view was truncated", spoilt_times, 0)
    chaos.tell("  views written meanwhile", len(answers), 160)
