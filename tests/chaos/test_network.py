"""The store on a real network file system: MooseFS, which RunPod's volumes are, with two mounts."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from model_cache.volume import layout
from schemas.model_ref import Kind
from tests.chaos import moosefs
from tests.chaos.conftest import MIB, Chaos, Model, Worker, World, wait_until
from tests.chaos.moosefs import MooseFS
from tests.chaos.soundness import private, visible
from tests.chaos.worker import Pace

pytestmark = pytest.mark.slow

PATIENT = Pace(ttl_s=20.0, segment_bytes=8 * MIB)
# Less than that of a quota, and MooseFS refuses each write.
CHUNK = 64 * MIB


@dataclass
class Fleet:
    """A world whose volume is mounted twice."""

    world: World
    file_system: MooseFS
    volumes: tuple[Path, Path]

    def crew(self, number: int, pace: Pace = PATIENT) -> list[Worker]:
        """Start an even number of workers, on the one mount and the other by turns."""
        halves = [self.world.crew(number // 2, volume=str(v), pace=pace) for v in self.volumes]
        return [worker for pair in zip(*halves, strict=True) for worker in pair]

    def other(self, path: Path) -> Path:
        """Return where a file on the first mount is on the other one."""
        return self.volumes[1] / path.relative_to(self.volumes[0])

    def limit(self, free: int) -> None:
        """Leave so many bytes of a quota free."""
        used = sum(path.stat().st_size for path in visible(self.volumes[0]))
        self.file_system.limit(self.volumes[0], used + free)


@pytest.fixture(scope="module")
def file_system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MooseFS]:
    with moosefs.running(tmp_path_factory.mktemp("moosefs")) as mounted:
        yield mounted


@pytest.fixture
def fleet(world: World, file_system: MooseFS, request: pytest.FixtureRequest) -> Fleet:
    volumes = tuple(mount / request.node.name for mount in (file_system.one, file_system.other))
    volumes[0].mkdir()
    return Fleet(replace(world, volume=volumes[0]), file_system, (volumes[0], volumes[1]))


def test_workers_on_two_mounts_fetch_a_model_once_and_see_one_time_of_its_file(
    fleet: Fleet, chaos: Chaos
) -> None:
    world = fleet.world
    number = 2 * chaos.count(4, least=2)
    crew = fleet.crew(number, replace(PATIENT, save_every_s=60.0))
    for turn in chaos.times("rounds of workers on two mounts that want one model", 20, least=2):
        model = world.model(f"m{turn}", 8 * MIB)
        # For two seconds: of a file that is being written a mount knows a later time than others.
        world.spoil(rate=4 * MIB)

        for worker in crew:
            worker.ask(url=model.url)
        answers = [worker.answer() for worker in crew]

        assert [answer["read"] for answer in answers] == [model.sha256] * number
        assert Counter(answer["cached"] for answer in answers) == {False: 1, True: number - 1}
        assert world.sent(model) / model.size == 1.0
        world.mend()
        model.path.unlink()
        path = layout.published_path(world.volume, Kind.LORA, f"m{turn}")
        assert path.stat().st_mtime_ns == fleet.other(path).stat().st_mtime_ns
    assert [worker.wait() for worker in crew] == [0] * number
    assert private(world.volume) == []


def test_a_worker_that_is_killed_is_followed_by_one_on_the_other_mount(
    fleet: Fleet, chaos: Chaos
) -> None:
    world, size = fleet.world, 4 * MIB
    folder = layout.tmp_folder(world.volume)
    for number in chaos.times("kills of a worker on the other mount", 10, least=1):
        model = world.model(f"k{number}", size)
        # Two seconds for all of it: the first one is killed before it has it.
        world.spoil(rate=size // 8)
        pace = Pace(ttl_s=2.0, segment_bytes=size // 32)
        first, second = fleet.crew(2, pace=pace)
        first.ask(url=model.url)
        world.wait_until_sent(model, size // 2)
        wait_until(lambda: any(folder.glob("*.json")))
        second.ask(url=model.url)
        first.kill()
        before = world.sent(model)
        world.mend()

        done = second.answer()

        assert (done["read"], done["cached"]) == (model.sha256, False)
        assert world.sent(model) - before < size
        assert second.wait() == 0
    world.require_sound()


def olds(fleet: Fleet, size: int) -> list[Model]:
    """Fetch three models, whose worker is gone then."""
    models = [fleet.world.model(f"old{number}", size) for number in range(3)]
    worker = fleet.world.worker(pace=PATIENT)
    for model in models:
        assert "error" not in worker.ensure(url=model.url)
    assert worker.wait() == 0
    return models


def test_over_a_quota_room_is_made_once_and_what_another_mount_uses_by_then_stays(
    fleet: Fleet, chaos: Chaos
) -> None:
    world, size = fleet.world, 8 * MIB
    first, *_ = olds(fleet, size)
    new = world.model("new", size * 3 // 2)
    ours, theirs = fleet.crew(2)
    fleet.limit(CHUNK - MIB)
    with pytest.raises(OSError, match="quota"):
        (world.volume / "byte").write_bytes(b"x")

    # The least recently used one, and not a byte can be written to say so.
    assert theirs.ensure(url=first.url)["cached"]
    done = ours.ensure(url=new.url)

    assert done.get("read") == new.sha256, done
    assert {path.stem for path in visible(world.volume)} == {"old0", "new"}
    assert world.sent(new) <= 2 * new.size
    assert (ours.wait(), theirs.wait()) == (0, 0)
    (world.volume / "byte").unlink(missing_ok=True)
    world.require_sound()
    chaos.tell("quotas of a network volume under which room was made", 1, 1)


def test_a_model_of_more_than_half_of_a_quota_fits(fleet: Fleet, chaos: Chaos) -> None:
    world = fleet.world
    fleet.limit(2 * CHUNK + 16 * MIB)
    # A file with two names counts twice there.
    model = world.model("m", CHUNK + 12 * MIB)
    (worker,) = fleet.crew(2)[:1]

    done = worker.ensure(url=model.url)

    assert done.get("read") == model.sha256, done
    assert worker.wait() == 0
    chaos.tell("models of more than half of a quota", 1, 1)


def test_over_a_quota_a_model_that_many_want_is_still_fetched_once(fleet: Fleet) -> None:
    world = fleet.world
    olds(fleet, 8 * MIB)
    new = world.model("new", 12 * MIB)
    crew = fleet.crew(4)
    fleet.limit(CHUNK - MIB)

    for worker in crew:
        worker.ask(url=new.url)
    answers = [worker.answer() for worker in crew]

    assert [answer.get("read") for answer in answers] == [new.sha256] * 4, answers
    assert Counter(answer["cached"] for answer in answers) == {False: 1, True: 3}
    assert [worker.wait() for worker in crew] == [0] * 4
    world.require_sound()


def test_names_that_are_made_moved_and_taken_away_are_seen_on_the_other_mount_at_once(
    fleet: Fleet, chaos: Chaos
) -> None:
    one, other = fleet.volumes
    for number in chaos.times("names looked at from the other mount", 500, least=20):
        mine, name = one / "mine", one / f"n{number}"
        mine.write_text(str(number))
        assert not fleet.other(name).exists()

        os.link(mine, name)
        with pytest.raises(FileExistsError):
            os.link(other / "mine", fleet.other(name))
        assert fleet.other(name).read_text() == str(number)
        (one / "new").write_text(f"{number} again")
        (one / "new").replace(name)
        assert fleet.other(name).read_text() == f"{number} again"
        name.unlink()
        assert not fleet.other(name).exists()
