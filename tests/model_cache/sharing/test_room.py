import errno
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from model_cache.engine.partial import Part
from model_cache.sharing import pins
from model_cache.sharing.room import Room
from model_cache.sharing.stillness import Stillness
from model_cache.sharing.uses import Use, Uses
from model_cache.volume import layout, manifests
from model_cache.volume.listing import Listing
from schemas.errors import VolumeError, VolumeFullError
from schemas.model_ref import Kind
from simulator import models
from tests.conftest import ROOT

SIZE = 200_000
# Arguments: volume, and the step before which the process kills itself. Evicts one model.
EVICTOR = """
import os, pathlib, signal, sys
from model_cache.volume import manifests
from model_cache.volume.listing import Listing
from model_cache.sharing.room import Room
from model_cache.sharing.uses import Uses
volume, step = pathlib.Path(sys.argv[1]), sys.argv[2]
def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
unlink, rename = pathlib.Path.unlink, pathlib.Path.rename
def unlink_or_die(path, **how):
    die() if path.suffix == {"bytes": ".evicted", "manifest aside": ".part"}.get(step) else None
    unlink(path, **how)
def rename_or_die(path, to):
    die() if step == "moved" else None
    rename(path, to)
    if step == "records":
        Uses.others_in_use = die
pathlib.Path.unlink, pathlib.Path.rename = unlink_or_die, rename_or_die
if step == "manifest":
    manifests.drop = die
print(Room(volume, None, Listing(volume), Uses(volume)).evict_for(1))
"""
# Arguments: volume. Uses models at random, as a job does; what is there when it is looked at must
# be there a while later.
USER = """
import pathlib, random, sys, time
from model_cache.sharing import uses
uses.KEEP_S = 0.02
volume = pathlib.Path(sys.argv[1])
mine, end, used = uses.Uses(volume), time.monotonic() + 2, 0
while time.monotonic() < end or used < 60:
    path = volume / "models" / "loras" / f"{random.randrange(8)}.safetensors"
    mine.note(path)
    if not path.exists():
        continue
    with mine.hold([path]):
        used += 1
        for _ in range(3):
            time.sleep(0.005)
            # Moved aside for the moment in which the evictor reads that we use it.
            if not any(path.exists() or time.sleep(0.002) for _ in range(9000)):
                sys.exit(f"{path} is gone while it is in use")
print(used)
"""
# Arguments: volume. Evicts what it can and puts models back where some are gone.
CHURN = """
import os, pathlib, sys, time
from model_cache.volume.listing import Listing
from model_cache.volume import layout, manifests
from model_cache.sharing.room import Room
from model_cache.sharing.uses import Uses
from schemas.errors import VolumeError
from schemas.model_ref import Kind
volume = pathlib.Path(sys.argv[1])
listing = Listing(volume)
room, end, evicted = Room(volume, None, listing, Uses(volume)), time.monotonic() + 2, 0
while time.monotonic() < end or evicted < 60:
    try:
        gone = room.evict_for(1)
    except VolumeError:
        continue
    evicted += len(gone)
    for path in gone:
        part = layout.tmp_folder(volume) / f"{os.getpid()}.part"
        part.write_bytes(bytes(100))
        manifest = manifests.new("0" * 64, part.stat(), "https://h/m", "sd1", "")
        manifests.write(volume, layout.manifest_path(volume, Kind.LORA, path), manifest)
        part.rename(path)
        listing.look_again(Kind.LORA, path)
print(evicted)
"""


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def publish(volume: Path, name: str, age: float, source: str = "https://h/m") -> Path:
    """Put a model there as if it had been fetched `age` seconds ago."""
    path = layout.published_path(volume, Kind.LORA, name)
    sha256 = models.write_lora(path, seed=name, size_bytes=SIZE)
    manifest = manifests.new(sha256, path.stat(), source, "sd1", "")
    manifest = manifest.model_copy(update={"created": manifest.created - age})
    manifests.write(volume, layout.manifest_path(volume, Kind.LORA, path), manifest)
    return path


def room_on(volume: Path, budget_files: float | None = None, **more: Any) -> Room:
    """Return the room of a worker that starts now, for that many models in all."""
    budget_gb = None if budget_files is None else budget_files * SIZE / 1e9
    return Room(volume, budget_gb, Listing(volume), Uses(volume), **more)


def names(paths: tuple[Path, ...]) -> list[str]:
    return [path.stem for path in paths]


def there(volume: Path) -> list[str]:
    """Return the models that are there, each of which has its manifest."""
    listed = Listing(volume).current.models(Kind.LORA)
    for model in listed:
        assert layout.manifest_path(volume, Kind.LORA, model.path).exists() or not model.source
    return [model.name for model in listed]


def temporary(volume: Path) -> list[str]:
    return sorted(path.name for path in layout.tmp_folder(volume).iterdir())


@pytest.fixture
def part(volume: Path) -> Path:
    """A private file of a fetch that begins."""
    path = layout.tmp_folder(volume) / "key.random.part"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


@pytest.fixture
def three(volume: Path) -> list[Path]:
    """Three models; the middle one is the oldest."""
    return [publish(volume, "b", 20), publish(volume, "a", 30), publish(volume, "c", 10)]


@pytest.mark.usefixtures("three")
def test_nothing_goes_while_there_is_room(volume: Path, part: Path) -> None:
    assert room_on(volume, 4).make(SIZE, part) == ()
    assert room_on(volume).make(10**15, part) == ()

    assert there(volume) == ["a", "b", "c"]


@pytest.mark.usefixtures("three")
def test_the_least_recently_used_goes_with_its_manifest(volume: Path, part: Path) -> None:
    room = room_on(volume, 3.5)

    assert names(room.make(SIZE, part)) == ["a"]

    assert there(volume) == ["b", "c"]
    assert manifests.names(volume, Kind.LORA) == {"b.safetensors.json", "c.safetensors.json"}
    assert temporary(volume) == [part.name]


def test_on_a_full_disk_all_that_may_goes_where_more_is_asked_for(
    volume: Path, three: list[Path]
) -> None:
    """A part of what is asked for may be free, so less may be enough."""
    pins.pin(volume, Kind.LORA, "c")
    here = room_on(volume)

    assert sorted(names(here.evict_for(100 * SIZE))) == ["a", "b"]
    with pytest.raises(VolumeFullError, match="no room on the disk") as raised:
        here.evict_for(100 * SIZE)

    assert there(volume) == ["c"]
    assert raised.value.details["pinned_bytes"] == SIZE
    assert three[2].exists()


def test_use_by_any_worker_makes_a_model_recent(volume: Path, three: list[Path]) -> None:
    for path in three[:2]:
        ended = Uses(volume)
        ended.note(path)
        ended.close()

    assert names(room_on(volume).evict_for(1)) == ["c"]


def test_a_model_fetched_again_is_not_old_for_what_was_before(volume: Path) -> None:
    uses = Uses(volume)
    publish(volume, "old", 50)
    again = publish(volume, "again", 0)
    uses._history["models/loras/again.safetensors"] = Use(1.0, 9)
    uses._history_saved = False
    uses.close()
    assert Uses(volume).history() == {again: Use(1.0, 9)}

    assert names(room_on(volume).evict_for(1)) == ["old"]
    assert again.exists()


def test_what_is_larger_than_the_budget_fails_before_anything_goes(
    volume: Path, three: list[Path], part: Path
) -> None:
    with pytest.raises(VolumeFullError, match=r"takes 0.0008 GB, and .* 0.0006 GB") as raised:
        room_on(volume, 3).make(4 * SIZE, part)

    assert raised.value.details == {"need_bytes": 4 * SIZE, "budget_bytes": 3 * SIZE}
    assert all(path.exists() for path in three)


def test_what_must_stay_stays_and_the_error_says_why(volume: Path, part: Path) -> None:
    for name in ("pinned", "ours", "theirs", "free"):
        publish(volume, name, 10)
    publish(volume, "by hand", 10, source="")
    models.write_lora(volume / "ComfyUI/models/loras/x.safetensors", seed="x", size_bytes=SIZE)
    pins.pin(volume, Kind.LORA, "pinned")
    Uses(volume).note(layout.published_path(volume, Kind.LORA, "theirs"))
    (layout.tmp_folder(volume) / "other.random.part").write_bytes(bytes(SIZE))
    listing, uses = Listing(volume), Uses(volume)
    uses.note(layout.published_path(volume, Kind.LORA, "ours"))
    ours = Room(volume, 7 * SIZE / 1e9, listing, uses)

    with pytest.raises(
        VolumeFullError, match=r"in use, .* pinned, .* people, .* fetched"
    ) as raised:
        ours.make(2 * SIZE, part)

    assert raised.value.details == {
        "free_bytes": 2 * SIZE,
        "budget_bytes": 7 * SIZE,
        "used_bytes": 7 * SIZE,
        "evictable_bytes": SIZE,
        "pinned_bytes": SIZE,
        "in_use_bytes": 2 * SIZE,
        "brought_bytes": 2 * SIZE,
        "fetching_bytes": SIZE,
    }
    assert there(volume) == ["by hand", "free", "ours", "pinned", "theirs", "x"]
    assert names(ours.make(SIZE, part)) == ["free"]


def test_models_in_the_image_take_no_room_and_stay(volume: Path, tmp_path: Path) -> None:
    baked = tmp_path / "baked"
    models.write_lora(baked / "loras/x.safetensors", seed="x", size_bytes=SIZE)
    here = Room(volume, None, Listing(volume, baked=baked), Uses(volume))

    assert here.account().models_bytes == 0
    with pytest.raises(VolumeFullError, match="nothing else is there"):
        here.evict_for(1)

    assert (baked / "loras/x.safetensors").exists()


def test_two_names_of_one_file_take_its_room_once_and_go_together(volume: Path) -> None:
    first = publish(volume, "first", 10)
    second = first.with_name("second.safetensors")
    os.link(first, second)
    manifest = manifests.stored(layout.manifest_path(volume, Kind.LORA, first))
    assert manifest is not None
    manifests.write(volume, layout.manifest_path(volume, Kind.LORA, second), manifest)
    here = room_on(volume)

    assert here.account().models_bytes == SIZE
    assert names(here.evict_for(1)) == ["first", "second"]
    assert there(volume) == []


def test_a_prune_leaves_the_most_recently_used(volume: Path, three: list[Path]) -> None:
    here = room_on(volume)

    assert names(here.prune(SIZE)) == ["a", "b"]
    assert here.prune(SIZE) == ()
    assert three[2].exists()
    with pytest.raises(VolumeFullError):
        here.prune(-1)


@pytest.mark.usefixtures("three")
def test_two_fetches_of_one_worker_do_not_count_on_the_same_room(volume: Path, part: Path) -> None:
    here = room_on(volume, 5)
    second = part.with_name("second.random.part")
    second.touch()
    here.make(2 * SIZE, part)

    assert names(here.make(SIZE, second)) == ["a"]
    part.unlink()

    assert here.account().fetching_bytes == SIZE


@pytest.mark.usefixtures("three")
def test_fetches_of_one_thing_count_once_and_dead_ones_not_at_all(volume: Path, part: Path) -> None:
    here = room_on(volume, 5)
    part.with_name("key.dead.part").write_bytes(bytes(5 * SIZE))
    others = [part.with_name(name) for name in ("other.1.part", "other.2.part")]
    for other in others:
        other.touch()
        os.truncate(other, SIZE)

    assert here.make(SIZE, part) == ()
    assert here.account().fetching_bytes == 6 * SIZE
    for other in others:
        os.utime(other, (time.time() - 180, time.time() - 180))

    assert here.account().fetching_bytes == 5 * SIZE


@pytest.mark.usefixtures("three")
def test_a_fetch_of_ours_that_ended_counts_with_what_it_takes_by_now(volume: Path) -> None:
    here = room_on(volume, 5)
    begun = Part(volume, "key")
    with here.kept_for(begun):
        here.make(2 * SIZE, begun.path)
        begun.begin(2 * SIZE, '"x"')
        begun.write(0, memoryview(bytes(4096)))
        assert here.account().fetching_bytes == 2 * SIZE
        begun.save([(0, 4096)])
        begun.close()

    assert here.account().fetching_bytes == 4096
    other = Part(volume, "other")
    assert here.make(int(1.9 * SIZE), other.path) == ()
    other.delete()


def dead_part(volume: Path, name: str, size: int) -> Path:
    """Leave what a fetch wrote that died five hours ago."""
    path = layout.tmp_folder(volume) / f"{name}.part"
    path.parent.mkdir(parents=True, exist_ok=True)
    for one, content in ((path, bytes(size)), (path.with_suffix(".json"), b"{}")):
        one.write_bytes(content)
        os.utime(one, (time.time() - 5 * 3600, time.time() - 5 * 3600))
    return path


def test_what_dead_fetches_left_goes_before_any_model(
    volume: Path, three: list[Path], part: Path
) -> None:
    dead_part(volume, "other.dead", SIZE)
    own = dead_part(volume, "key.dead", SIZE)
    here = room_on(volume, 4)

    assert here.make(SIZE, part) == ()

    assert temporary(volume) == ["key.dead.json", own.name, part.name]
    assert names(here.evict_for(2 * SIZE)) == ["a"]
    assert temporary(volume) == [part.name]
    assert three[0].exists()


def test_what_dead_fetches_left_stays_while_there_is_room(volume: Path, part: Path) -> None:
    dead_part(volume, "other.dead", SIZE)

    assert room_on(volume, 2.5).make(SIZE, part) == ()

    assert len(temporary(volume)) == 3


def refuse_all(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_nothing_goes_where_workers_cannot_write_down_what_they_use(
    volume: Path, three: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = room_on(volume)
    monkeypatch.setattr(Path, "write_text", refuse_all)
    monkeypatch.setattr(os, "symlink", refuse_all)

    with pytest.raises(VolumeFullError, match="cannot write down") as raised:
        here.evict_for(SIZE)

    assert raised.value.details["evictable_bytes"] == 3 * SIZE
    assert raised.value.details["free_bytes"] == SIZE
    assert all(path.exists() for path in three)


def test_on_a_disk_on_which_nothing_can_be_moved_a_model_goes_where_it_lies(
    volume: Path, three: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename
    theirs, replaced = Uses(volume), three[0]
    here = room_on(volume)

    def refuse_moves(path: Path, to: Path) -> None:
        if to.suffix == ".evicted":
            if path == three[1]:
                theirs.note(path)
            if path == replaced:
                path.write_bytes(b"what somebody uploads under that name")
            refuse_all()
        rename(path, to)

    monkeypatch.setattr(Path, "rename", refuse_moves)

    assert names(here.evict_for(1)) == ["c"]

    assert there(volume) == ["a", "b"]
    assert replaced.read_bytes() == b"what somebody uploads under that name"
    assert "c.safetensors.json" not in manifests.names(volume, Kind.LORA)


def test_a_manifest_that_cannot_be_moved_either_is_left_to_be_pruned(
    volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(volume, "x", 1)
    here = room_on(volume)
    monkeypatch.setattr(Path, "rename", refuse_all)

    assert names(here.evict_for(1)) == ["x"]

    assert there(volume) == []
    assert manifests.names(volume, Kind.LORA) == {"x.safetensors.json"}


def test_a_move_that_is_refused_for_another_reason_is_an_error(
    volume: Path, three: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    here = room_on(volume)
    monkeypatch.setattr(Path, "rename", refuse)

    with pytest.raises(VolumeError, match="Read-only"):
        here.evict_for(1)

    assert all(path.exists() for path in three)


# What happens in the moment of an eviction.


@contextmanager
def when_moved(monkeypatch: pytest.MonkeyPatch, act: Any) -> Iterator[None]:
    """Call `act` with the path of a model as soon as it was moved aside."""
    rename = Path.rename

    def rename_and_act(path: Path, to: Path) -> None:
        rename(path, to)
        if to.suffix == ".evicted":
            act(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename_and_act)
        yield


def test_a_model_that_a_job_takes_up_in_that_moment_is_put_back(
    volume: Path, three: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = three[1].stat()
    theirs = Uses(volume)

    def note_oldest(path: Path) -> None:
        if path == three[1]:
            theirs.note(path)

    with when_moved(monkeypatch, note_oldest):
        assert names(room_on(volume).evict_for(1)) == ["b"]

    after = three[1].stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert there(volume) == ["a", "c"]
    assert temporary(volume) == []


def test_it_is_put_back_without_hard_links_as_well(
    volume: Path, three: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    with when_moved(monkeypatch, Uses(volume).note), pytest.raises(VolumeFullError):
        room_on(volume).evict_for(3 * SIZE)

    assert all(path.exists() for path in three)
    assert temporary(volume) == []


def test_where_the_records_of_use_cannot_be_read_nothing_goes(
    volume: Path, three: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def hide_records(_: Path) -> None:
        if layout.uses_folder(volume).is_dir():
            layout.uses_folder(volume).rename(volume / "elsewhere")
            layout.uses_folder(volume).write_text("a file")

    with when_moved(monkeypatch, hide_records), pytest.raises(VolumeError):
        room_on(volume).evict_for(1)

    assert all(path.exists() for path in three)
    assert temporary(volume) == []


def test_a_file_that_was_replaced_since_it_was_listed_stays(
    volume: Path, three: list[Path]
) -> None:
    here = room_on(volume)
    three[1].write_bytes(b"what somebody uploads under that name")

    assert names(here.evict_for(1)) == ["b"]

    assert three[1].read_bytes() == b"what somebody uploads under that name"


def test_a_file_that_people_moved_elsewhere_leaving_a_link_stays(
    volume: Path, three: list[Path]
) -> None:
    three[1].rename(volume / "elsewhere")
    three[1].symlink_to("../../elsewhere")

    assert names(room_on(volume).evict_for(1)) == ["b"]

    assert three[1].read_bytes() == (volume / "elsewhere").read_bytes()


def test_a_name_that_is_taken_again_in_that_moment_keeps_the_new_file_and_its_manifest(
    volume: Path, three: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch_again(path: Path) -> None:
        if path == three[1]:
            publish(volume, "a", 0)
            Uses(volume).note(path)

    with when_moved(monkeypatch, fetch_again):
        assert names(room_on(volume).evict_for(1)) == ["b"]

    assert there(volume) == ["a", "c"]
    assert temporary(volume) == []


def test_what_another_worker_evicts_meanwhile_is_not_counted_twice(
    volume: Path, three: list[Path], monkeypatch: pytest.MonkeyPatch, part: Path
) -> None:
    here = room_on(volume, 3)

    def other_evicts(path: Path) -> None:
        if path == three[1] and three[0].exists():
            three[0].unlink()

    with when_moved(monkeypatch, other_evicts):
        assert names(here.make(2 * SIZE, part)) == ["a"]

    assert there(volume) == ["c"]


def test_a_reader_keeps_the_bytes_of_what_is_evicted(volume: Path) -> None:
    path = publish(volume, "x", 1)
    whole = path.read_bytes()

    with path.open("rb") as file:
        assert names(room_on(volume).evict_for(1)) == ["x"]

        assert file.read() == whole
    assert there(volume) == []


def test_an_evictor_that_was_stopped_until_another_swept_goes_on(
    volume: Path, three: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def sweep(path: Path) -> None:
        Uses(volume).note(path)
        for aside in layout.tmp_folder(volume).glob("*.evicted"):
            content = aside.read_bytes()
            aside.unlink()
            assert content

    with when_moved(monkeypatch, sweep), pytest.raises(VolumeError):
        room_on(volume).evict_for(1)

    assert there(volume) == ["b", "c"]
    assert not three[1].exists()


@pytest.mark.slow
def test_an_evictor_killed_at_any_step_leaves_a_whole_model_or_none(volume: Path) -> None:
    steps = ["moved", "records", "manifest", "manifest aside", "bytes"]
    for number, step in enumerate(steps):
        path = publish(volume, f"x{number}", 100 - number)
        run = [sys.executable, "-c", EVICTOR, str(volume), step]
        assert subprocess.run(run, cwd=ROOT, check=False).returncode == -9, step
        assert path.exists() is (step == "moved"), step
        path.unlink(missing_ok=True)
        if step == "moved":
            layout.manifest_path(volume, Kind.LORA, path).unlink()
        assert there(volume) == []
    clock = Clock()
    still = Stillness(60, clock)
    here = room_on(volume, clock=clock)
    evicted = len([name for name in temporary(volume) if name.endswith(".evicted")])
    assert evicted == 4

    for _ in range(3):
        here.sweep()
        manifests.prune(volume, [], still)
        clock.now += 30
    here.sweep()
    manifests.prune(volume, [], still)

    # A manifest that was aside is swept with the parts of fetches, after a day.
    assert [name for name in temporary(volume) if not name.endswith(".part")] == []
    assert len(temporary(volume)) == 1
    assert all(manifests.names(volume, kind) == frozenset() for kind in Kind)


def test_what_lies_aside_for_less_than_a_minute_may_yet_be_put_back(volume: Path) -> None:
    aside = layout.tmp_folder(volume) / "x.evicted"
    aside.parent.mkdir(parents=True)
    aside.touch()
    os.utime(aside, (0, 0))
    clock = Clock()
    here = room_on(volume, clock=clock)

    for _ in range(2):
        here.sweep()
        clock.now += 29
    here.sweep()

    assert aside.exists()


@pytest.mark.slow
def test_what_a_job_found_there_stays_there_while_the_job_lasts(volume: Path) -> None:
    for number in range(8):
        publish(volume, str(number), number)

    workers = [
        subprocess.Popen(
            [sys.executable, "-c", script, volume], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        for script in (USER, CHURN)
    ]
    used, evicted = (worker.communicate(timeout=60)[0] for worker in workers)

    assert [worker.returncode for worker in workers] == [0, 0]
    assert int(used) >= 60
    assert int(evicted) >= 60
