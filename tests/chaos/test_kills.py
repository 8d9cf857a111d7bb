"""Workers that are killed: what others see afterwards, and what they still have to fetch."""

import json
import random
import signal
import time
from pathlib import Path

import pytest

from model_cache.engine.partial import key_of
from model_cache.volume import layout
from tests.chaos import syscalls
from tests.chaos.conftest import MIB, Chaos, Model, World, wait_until
from tests.chaos.soundness import require_right_bytes
from tests.chaos.syscalls import Fault
from tests.chaos.worker import Pace

pytestmark = pytest.mark.slow

QUICK = Pace()


def noted(world: World, model: Model) -> int:
    """Return how many bytes the journals of dead fetches of a model speak of."""
    journals = layout.tmp_folder(world.volume).glob(f"{key_of(f'lora:{model.url}')}.*.json")
    done = [json.loads(journal.read_text())["done"] for journal in journals]
    return max((sum(end - start for start, end in spans) for spans in done), default=0)


def test_a_worker_killed_at_a_random_point_of_a_download_is_resumed_by_another(
    world: World, chaos: Chaos
) -> None:
    chance = random.Random(3)  # noqa: S311 - points in time, no secrets
    size = chaos.size(16 * MIB, least=2 * MIB)
    segment = size // 32
    pace = Pace(segment_bytes=segment)
    sent_in_all = noted_in_all = 0

    for number in chaos.times("kills at random points of a download", 100):
        model = world.model(f"k{number}", size)
        # Four connections: two seconds for all of it, so that none is killed when it has it all.
        world.spoil(rate=size // 8)
        point = chance.randrange(size)
        first, second = world.crew(2, pace=pace)
        first.ask(name=f"k{number}", url=model.url)
        world.wait_until_sent(model, point)
        first.kill()
        require_right_bytes(world.volume, world.hub.root)
        before, kept = world.sent(model), noted(world, model)
        world.mend()

        done = second.ensure(name=f"k{number}", url=model.url)

        assert (done["name"], done["read"], done["cached"]) == (f"k{number}", model.sha256, False)
        assert second.wait() == 0
        # What the journal speaks of is not fetched again, but for the first answer, which may have
        # been on its way, and what two connections had of one piece at its end.
        assert world.sent(model) - before <= size - kept + 2 * segment
        sent_in_all += world.sent(model)
        noted_in_all += kept
        world.require_sound()
        (world.volume / f"models/loras/k{number}.safetensors").unlink()

    rounds = chaos.count(100)
    chaos.tell("  bytes sent, in % of the files", 100 * sent_in_all // (rounds * size), 0)
    chaos.tell("  bytes that were not sent twice, in %", 100 * noted_in_all // (rounds * size), 0)
    assert sent_in_all < 1.5 * rounds * size


STEPS = {
    "a download that is sized": Fault("ftruncate", ".part", after=True),
    "the last byte, before fsync": Fault("fsync", ".part"),
    "fsync": Fault("fsync", ".part", after=True),
    "a manifest that is not there yet": Fault("replace", ".safetensors.json"),
    "a manifest that is there": Fault("replace", ".safetensors.json", after=True),
    "a file about to be named": Fault("link", ".safetensors"),
    "a file that is named": Fault("link", ".safetensors", after=True),
}
MORE_STEPS = {
    "a first byte that is written": Fault("pwrite", ".part", after=True),
    "a journal that is not there yet": Fault("replace", ".json", "/tmp/"),
    "a journal that is there": Fault("replace", ".json", "/tmp/", after=True),
    "a manifest about to be written": Fault("fsync", ".part", skip=1),
    "a folder that is synced": Fault("fsync", "loras", after=True),
    "a part about to be deleted": Fault("unlink", ".part"),
    "a view that is not there yet": Fault("replace", "cache_registry.json"),
    "a lease about to be given back": Fault("unlink", ".lease"),
}


def test_a_worker_killed_at_a_step_leaves_all_of_a_file_or_nothing(
    world: World, chaos: Chaos, pace: Pace
) -> None:
    steps = [
        *chaos.some("kills at named steps", list(STEPS.items()), len(STEPS)),
        *chaos.some("kills at other named steps", list(MORE_STEPS.items())),
    ]
    for number, (step, fault) in enumerate(steps):
        model = world.model(f"m{number}", 2 * MIB)
        world.spoil(rate=4 * MIB)
        # A holder that was silent for longer than others bear gives nothing back.
        first = world.worker(pace=Pace(ttl_s=20.0), fault=fault)
        first.ask(name="x", url=model.url)
        assert first.wait() == -signal.SIGKILL, step
        require_right_bytes(world.volume, world.hub.root)
        named = world.volume / "models/loras/x.safetensors"
        was_named = named.exists()
        before, kept = world.sent(model), noted(world, model)

        done = world.shelf().ensure(name="x", url=model.url)

        assert (done.model.name, done.model.sha256) == ("x", model.sha256), step
        assert done.cached is was_named, step
        still_to_come = 0 if was_named else model.size - kept + pace.segment_bytes
        assert world.sent(model) - before <= still_to_come, step
        world.mend()
        world.require_sound()
        named.unlink()


@pytest.mark.usefixtures("pace")
def test_a_worker_killed_at_any_change_of_the_volume_leaves_all_of_a_file_or_nothing(
    world: World, chaos: Chaos, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = world.model("m", MIB)
    with monkeypatch.context() as counting:
        never = Fault("", skip=1_000_000)
        changes = syscalls.install(never, world.volume, counting.setattr)
        world.shelf().ensure(name="x", url=model.url)
        number_of_changes = changes()
    assert number_of_changes > 15
    (world.volume / "models/loras/x.safetensors").unlink()

    for skip in chaos.some("kills at every change of the volume", range(number_of_changes), 3):
        worker = world.worker(pace=QUICK, fault=Fault("", skip=skip))
        worker.ask(name="x", url=model.url)
        # A change more or less: the view is written every now and then.
        assert worker.wait() in {-signal.SIGKILL, 0}
        require_right_bytes(world.volume, world.hub.root)

        # What has its name has its manifest: nobody takes it for a file that people brought.
        assert world.shelf().ensure(name="x", url=model.url).model.sha256 == model.sha256

        world.require_sound()
        (world.volume / "models/loras/x.safetensors").unlink()


EVICTION = {
    "before it is moved aside": Fault("rename", ".evicted"),
    "after it was moved aside": Fault("rename", ".evicted", after=True),
    "before its manifest is moved aside": Fault("rename", ".part"),
    "after its manifest was moved aside": Fault("rename", ".part", after=True),
    "before its unlink": Fault("unlink", ".evicted"),
    "after its unlink": Fault("unlink", ".evicted", after=True),
}


@pytest.mark.usefixtures("pace")
@pytest.mark.parametrize("step", EVICTION)
def test_a_worker_killed_while_it_evicts_leaves_a_whole_model_or_none(
    world: World, chaos: Chaos, step: str
) -> None:
    old, new = world.model("old"), world.model("new")
    budget = 1.5 * MIB / 1e9
    before = world.shelf(budget_gb=budget)
    before.ensure(name="old", url=old.url)
    before.cache.close()
    worker = world.worker(pace=QUICK, fault=EVICTION[step], settings={"budget_gb": budget})
    worker.ask(name="new", url=new.url)
    assert worker.wait() == -signal.SIGKILL
    require_right_bytes(world.volume, world.hub.root)

    shelf = world.shelf(budget_gb=budget)
    assert shelf.ensure(name="new", url=new.url).model.sha256 == new.sha256
    assert not (world.volume / "models/loras/old.safetensors").exists()
    shelf.cache.close()
    world.require_sound()
    assert world.shelf().ensure(name="old", url=old.url).model.sha256 == old.sha256
    chaos.tell("kills at steps of an eviction", 1, 1)


TAKE_OVER = {
    "before it follows": Fault("link", ".next"),
    "once it may follow": Fault("link", ".next", after=True),
    "before the lease is its own": Fault("rename", ".lease"),
    "once the lease is its own": Fault("rename", ".lease", after=True),
    "at its first beat": Fault("replace", ".lease", after=True),
}


def test_a_worker_killed_while_it_takes_over_is_followed_as_well(
    world: World, chaos: Chaos
) -> None:
    steps = chaos.some("kills at steps of a take-over", list(TAKE_OVER.items()), 2)
    for number, (step, fault) in enumerate(steps):
        model = world.model(f"m{number}", MIB)
        world.spoil(stall=QUICK.segment_bytes // 2)
        dead, third = world.crew(2, pace=QUICK)
        follower = world.worker(pace=QUICK, fault=fault)
        dead.ask(name=f"x{number}", url=model.url)
        world.wait_until_sent(model, 1)
        dead.kill()
        follower.ask(name=f"x{number}", url=model.url)
        assert follower.wait() == -signal.SIGKILL, step
        world.mend()
        started = time.monotonic()

        assert third.ensure(name=f"x{number}", url=model.url)["read"] == model.sha256, step

        assert time.monotonic() - started < 20, step
        assert third.wait() == 0
        world.require_sound()


def test_of_five_that_wait_for_a_holder_that_is_killed_one_takes_over_within_seconds(
    world: World, chaos: Chaos
) -> None:
    size = chaos.size(64 * MIB, least=4 * MIB)
    # In full as it is in a worker: eight seconds of silence.
    pace = Pace(ttl_s=max(2.5, 8.0 * chaos.factor), segment_bytes=size // 32)
    model = world.model("m", size)
    world.spoil(skip=16, stall=0)
    holder, *waiting = world.crew(6, pace=pace)
    holder.ask(name="x", url=model.url)
    world.wait_until_sent(model, size // 2)
    for worker in waiting:
        worker.ask(name="x", url=model.url)
    time.sleep(0.5)  # So that all have seen who holds the lease, and it noted what it has.
    holder.kill()
    world.mend()
    before, kept = world.sent(model), noted(world, model)
    killed_at = time.monotonic()

    took_s = wait_until(lambda: world.sent(model) > before)
    answers = [worker.answer() for worker in waiting]

    assert took_s < pace.ttl_s + 10
    assert time.monotonic() - killed_at < 30
    assert [answer["read"] for answer in answers] == [model.sha256] * 5
    assert sorted(answer["cached"] for answer in answers) == [False, True, True, True, True]
    assert world.sent(model) - before <= size - kept + 2 * pace.segment_bytes
    assert [worker.wait() for worker in waiting] == [0] * 5
    world.require_sound()
    chaos.tell("waiters after a killed holder", 5, 5)


def test_a_holder_that_is_stopped_for_longer_than_its_lease_wakes_up_to_the_same_file(
    world: World, chaos: Chaos
) -> None:
    size = chaos.size(32 * MIB, least=4 * MIB)
    pace = Pace(ttl_s=1.0, segment_bytes=size // 32)
    for number in chaos.times("holders that were stopped and woke up", 10):
        model = world.model(f"m{number}", size)
        world.spoil(rate=size // 4)
        holder, other = world.crew(2, pace=pace)
        holder.ask(name=f"x{number}", url=model.url)
        world.wait_until_sent(model, (number % 4 + 1) * size // 5)
        holder.stop()
        other.ask(name=f"x{number}", url=model.url)
        woken_before_the_end = number % 2 == 1
        if woken_before_the_end:
            world.wait_until_sent(model, world.sent(model) + size // 8)
            holder.go_on()
        answers = [other.answer()]
        holder.go_on()
        answers.append(holder.answer())

        assert [answer.get("read", answer) for answer in answers] == [model.sha256] * 2
        assert [answer["name"] for answer in answers] == [f"x{number}"] * 2
        assert world.sent(model) <= 2 * size + 8 * pace.segment_bytes
        assert [other.wait(), holder.wait()] == [0, 0]
        assert not list(layout.tmp_folder(world.volume).iterdir())
        world.mend()
        world.require_sound()


@pytest.mark.usefixtures("pace")
def test_a_part_that_another_worker_deletes_at_any_moment_costs_no_job_its_model(
    world: World, chaos: Chaos, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = world.model("m", MIB)
    mine = f"{key_of(f'lora:{model.url}')}.*"

    def overtake() -> None:
        """Do as a worker that took this one for dead, and has the model by now."""
        for path in layout.tmp_folder(world.volume).glob(mine):
            path.unlink(missing_ok=True)

    moments = [(skip, after) for skip in range(40) for after in (False, True)]
    for skip, after in chaos.some("parts deleted at any change of the volume", moments, 4):
        world.spoil(rate=2 * MIB)
        with monkeypatch.context() as patch:
            fault = Fault("", skip=skip, after=after)
            syscalls.install(fault, world.volume, patch.setattr, overtake)
            shelf = world.shelf()
            assert shelf.ensure(name="x", url=model.url).model.sha256 == model.sha256
            shelf.cache.close()
        world.mend()
        assert not list(layout.tmp_folder(world.volume).iterdir())
        world.require_sound()
        (world.volume / "models/loras/x.safetensors").unlink()


def test_a_killed_worker_leaves_no_more_than_a_part_and_its_journal(world: World) -> None:
    model = world.model("m", 2 * MIB)
    world.spoil(rate=MIB // 8)
    worker = world.worker(pace=QUICK)
    worker.ask(name="x", url=model.url)
    wait_until(lambda: noted(world, model) > 0)
    worker.kill()

    left = sorted(Path(path).suffix for path in layout.tmp_folder(world.volume).iterdir())

    assert left in (
        [".json", ".part"],
        [".json", ".new", ".part"],
    )
    assert layout.tmp_folder(world.volume).stat().st_nlink == 2
    world.require_sound()
