import errno
import os
import time
from pathlib import Path

import pytest

from model_cache.sharing import leftovers
from model_cache.volume import layout
from schemas.errors import VolumeError
from simulator import models
from tests.model_cache.conftest import Hub, Shelf

HOURS_S = 3600.0


@pytest.fixture
def lora(model_hub: Hub) -> Path:
    path = model_hub.root / "m.safetensors"
    models.write_lora(path, seed="m")
    return path


def left(volume: Path, name: str, *, age_s: float, size: int = 5000) -> Path:
    path = layout.tmp_folder(volume) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    then = time.time() - age_s
    os.utime(path, (then, then))
    return path


def test_a_part_is_dead_when_neither_it_nor_its_journal_was_written_to(volume: Path) -> None:
    left(volume, "k.1.part", age_s=5 * HOURS_S)
    left(volume, "k.1.json", age_s=60)
    dead = [
        left(volume, "k.2.json", age_s=4 * HOURS_S),
        left(volume, "k.2.part", age_s=5 * HOURS_S),
    ]
    left(volume, "notes.txt", age_s=99 * HOURS_S)

    (found,) = leftovers.remains(volume)
    leftovers.clear(found)

    assert found.paths == tuple(dead)
    assert found.size_bytes >= 10_000
    assert sorted(path.name for path in layout.tmp_folder(volume).iterdir()) == [
        "k.1.json",
        "k.1.part",
        "notes.txt",
    ]


def test_the_folder_of_a_doctor_that_died_goes_as_a_whole(volume: Path) -> None:
    folder = layout.tmp_folder(volume) / "doctor-x"
    folder.mkdir(parents=True)
    (folder / "speed").write_bytes(b"x")
    os.utime(folder, (0, 0))

    for found in leftovers.remains(volume):
        leftovers.clear(found)

    assert not folder.exists()


def test_a_volume_on_which_nothing_was_fetched_has_no_leftovers(volume: Path) -> None:
    assert leftovers.remains(volume) == []
    assert leftovers.orphans(volume) == []


def test_a_folder_that_cannot_be_read_is_an_error(volume: Path) -> None:
    place = layout.tmp_folder(volume)
    place.parent.mkdir(parents=True)
    place.write_text("not a folder")

    with pytest.raises(VolumeError):
        leftovers.remains(volume)


def test_a_manifest_is_dropped_unless_it_was_written_anew(
    model_hub: Hub, shelf: Shelf, lora: Path
) -> None:
    url = f"{model_hub.url}/{lora.name}"
    shelf.ensure(name="gone", url=url).model.path.unlink()
    shelf.ensure(name="here", url=url)
    (orphan,) = leftovers.orphans(shelf.volume)
    shelf.ensure(name="gone", url=url)
    newer = orphan.place.read_bytes()

    kept = leftovers.drop(shelf.volume, orphan)

    assert (kept, orphan.place.read_bytes()) == (False, newer)
    assert leftovers.orphans(shelf.volume) == []
    (shelf.models / "loras" / "gone.safetensors").unlink()
    (orphan,) = leftovers.orphans(shelf.volume)
    assert leftovers.drop(shelf.volume, orphan)
    assert not orphan.place.exists()


def tmp_names(volume: Path) -> list[str]:
    return sorted(path.name for path in layout.tmp_folder(volume).iterdir())


def test_what_can_be_resumed_is_swept_after_a_day_and_the_rest_after_two_hours(
    volume: Path,
) -> None:
    for name, part_h, journal_h in (("k.1", 23, 23), ("k.2", 25, 23), ("k.3", 25, 25)):
        left(volume, f"{name}.part", age_s=part_h * HOURS_S)
        left(volume, f"{name}.json", age_s=journal_h * HOURS_S)
    left(volume, "k.4.part", age_s=1.9 * HOURS_S)
    left(volume, "k.5.part", age_s=2.1 * HOURS_S)
    left(volume, "notes.txt", age_s=99 * HOURS_S)
    scratch = layout.tmp_folder(volume) / "doctor-x"
    scratch.mkdir()
    os.utime(scratch, (0, 0))

    leftovers.sweep(volume)

    assert tmp_names(volume) == [
        "k.1.json",
        "k.1.part",
        "k.2.json",
        "k.2.part",
        "k.4.part",
        "notes.txt",
    ]


def test_a_model_that_was_moved_aside_just_now_is_young_however_old_its_bytes_are(
    volume: Path,
) -> None:
    old = left(volume, "published", age_s=99 * HOURS_S)
    old.rename(old.with_name("aside.evicted"))
    manifest = left(volume, "manifest", age_s=99 * HOURS_S)
    manifest.rename(manifest.with_name("aside.part"))

    leftovers.sweep(volume)

    assert leftovers.remains(volume) == []
    assert tmp_names(volume) == ["aside.evicted", "aside.part"]
    (found, again) = leftovers.remains(volume, older_than_s=-1)[0].paths
    assert (found.name, again.name) == ("aside.evicted", "aside.part")


def test_sweeping_where_there_is_no_volume_is_no_failure(tmp_path: Path) -> None:
    leftovers.sweep(tmp_path / "none")

    assert not (tmp_path / "none").exists()


def test_what_cannot_be_deleted_does_not_keep_the_rest_from_being_swept(
    volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.1.part", "b.1.part"):
        left(volume, name, age_s=5 * HOURS_S)
    unlink = Path.unlink

    def refuse_one(path: Path, *, missing_ok: bool = False) -> None:
        if path.name == "a.1.part":
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse_one)
    leftovers.sweep(volume)

    assert tmp_names(volume) == ["a.1.part"]
