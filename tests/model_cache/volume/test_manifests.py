import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_cache.sharing.stillness import Stillness
from model_cache.volume import layout, manifests
from schemas.errors import VolumeError
from schemas.manifest import Manifest
from schemas.model_ref import Kind

SHA = "0123456789abcdef" * 4


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"weights")
    return path


def manifest_of(path: Path) -> Manifest:
    return manifests.new(SHA, path.stat(), "https://h/m", "sdxl", "alias")


def test_what_was_written_is_read(tmp_path: Path, model: Path) -> None:
    manifests.write(tmp_path, tmp_path / "folder" / "m.json", manifest_of(model))

    manifest = manifests.read(tmp_path / "folder" / "m.json", model.stat())

    assert manifest is not None
    assert (manifest.sha256, manifest.base, manifest.alias) == (SHA, "sdxl", "alias")


def test_nothing_but_the_manifest_is_left_behind(tmp_path: Path, model: Path) -> None:
    manifests.write(tmp_path, tmp_path / "m.json", manifest_of(model))

    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}

    assert left == {"m.json", "m.safetensors"}


@pytest.mark.parametrize("change", ["size", "time"])
def test_it_is_not_believed_once_the_file_changed(tmp_path: Path, model: Path, change: str) -> None:
    manifests.write(tmp_path, tmp_path / "m.json", manifest_of(model))
    status = model.stat()
    if change == "size":
        model.write_bytes(b"other weights")
        os.utime(model, ns=(status.st_atime_ns, status.st_mtime_ns))
    else:
        os.utime(model, ns=(0, 1))

    assert manifests.read(tmp_path / "m.json", model.stat()) is None
    assert manifests.stored(tmp_path / "m.json") is not None


@given(st.binary(max_size=300))
def test_a_damaged_manifest_is_one_that_is_not_there(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("m") / "m.json"
    path.write_bytes(content)

    assert manifests.stored(path) is None


def test_a_manifest_cut_anywhere_is_one_that_is_not_there(tmp_path: Path, model: Path) -> None:
    content = manifest_of(model).model_dump_json().encode()

    for length in range(len(content)):
        (tmp_path / "m.json").write_bytes(content[:length])
        assert manifests.stored(tmp_path / "m.json") is None


def test_a_digest_that_is_none_is_not_believed(tmp_path: Path, model: Path) -> None:
    bad = manifest_of(model).model_copy(update={"sha256": "../../x"})
    manifests.write(tmp_path, tmp_path / "m.json", bad)

    assert manifests.stored(tmp_path / "m.json") is None


def test_a_field_that_a_newer_worker_added_does_no_harm(tmp_path: Path, model: Path) -> None:
    text = manifest_of(model).model_dump_json().replace("{", '{"newer": [1], ', 1)
    (tmp_path / "m.json").write_text(text)

    stored = manifests.stored(tmp_path / "m.json")
    assert stored is not None
    assert (stored.sha256, stored.source, stored.alias) == (SHA, "https://h/m", "alias")


def test_further_sources_are_remembered_once_and_not_for_ever(model: Path) -> None:
    manifest = manifest_of(model).model_copy(update={"means": {"https://h/m": 1.0}})

    for number in range(100):
        manifest = manifests.with_sources(manifest, [f"https://h/{number}", ""], 2.0)
        manifest = manifests.with_sources(manifest, [f"https://h/{number}"], 2.0)

    assert manifest.source == "https://h/m"
    latest = {f"https://h/{number}": 2.0 for number in range(84, 100)}
    assert manifest.means == {"https://h/m": 1.0, **latest}


def test_a_source_is_known_by_the_last_time_that_it_was_seen(model: Path) -> None:
    manifest = manifest_of(model).model_copy(update={"means": {"https://h/m": 2.0}})

    assert manifests.with_sources(manifest, ["https://h/m"], 1.0) == manifest
    later = manifests.with_sources(manifest, ["https://h/m"], 3.0)
    assert later.means == {"https://h/m": 3.0}


def test_a_file_keeps_its_origin_though_the_source_has_another_by_now(model: Path) -> None:
    manifest = manifests.without_source(manifest_of(model), "https://h/m")

    assert (manifest.source, manifest.means) == ("https://h/m", {})


PLACE = "models/.worker/manifests/lora/x.json"


def test_a_manifest_goes_ahead_of_the_name_of_its_file(volume: Path, model: Path) -> None:
    place, manifest = volume / PLACE, manifest_of(model)
    seen: list[Manifest | None] = []

    def name() -> bool:
        seen.append(manifests.stored(place))
        return True

    assert manifests.ahead(volume, place, manifest, name)

    assert [*seen, manifests.stored(place)] == [manifest, manifest]
    assert list(layout.tmp_folder(volume).iterdir()) == []


@pytest.mark.parametrize("before", [True, False], ids=["over another", "where none was"])
def test_where_the_name_is_taken_the_manifest_of_before_is_back(
    volume: Path, model: Path, *, before: bool
) -> None:
    place, manifest = volume / PLACE, manifest_of(model)
    theirs = manifest.model_copy(update={"sha256": "b" * 64})
    if before:
        manifests.write(volume, place, theirs)

    assert not manifests.ahead(volume, place, manifest, lambda: False)

    assert manifests.stored(place) == (theirs if before else None)
    assert list(layout.tmp_folder(volume).iterdir()) == []


def test_a_manifest_that_another_wrote_since_is_not_taken_from_him(
    volume: Path, model: Path
) -> None:
    place, manifest = volume / PLACE, manifest_of(model)
    theirs = manifest.model_copy(update={"sha256": "b" * 64})
    manifests.write(volume, place, manifest.model_copy(update={"sha256": "c" * 64}))

    def name() -> bool:
        manifests.write(volume, place, theirs)
        return False

    assert not manifests.ahead(volume, place, manifest, name)

    assert manifests.stored(place) == theirs


# Manifests that go.


def manifest_at(volume: Path, name: str = "x.safetensors") -> Path:
    """Write the manifest of a published file that need not be there."""
    place = layout.manifest_path(volume, Kind.LORA, volume / "models" / "loras" / name)
    (volume / "any").write_bytes(b"weights")
    manifests.write(volume, place, manifest_of(volume / "any"))
    return place


def temporary(volume: Path) -> list[Path]:
    return list(layout.tmp_folder(volume).iterdir())


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def still(clock: Clock) -> Stillness:
    return Stillness(60, clock)


def test_a_manifest_is_dropped_if_it_is_the_one_that_is_meant(volume: Path) -> None:
    place = manifest_at(volume)
    believed = manifests.stored(place)

    assert manifests.drop(volume, place, believed)
    assert manifests.drop(volume, place, believed)

    assert not place.exists()
    assert temporary(volume) == []


def test_a_manifest_that_was_written_anew_is_not_dropped_for_the_old_one(volume: Path) -> None:
    place = manifest_at(volume)
    believed = manifests.stored(place)
    newer = manifest_at(volume).read_bytes()

    assert not manifests.drop(volume, place, believed)

    assert place.read_bytes() == newer
    assert temporary(volume) == []


def test_the_manifest_of_a_file_that_is_gone_is_pruned_after_a_minute(
    volume: Path, still: Stillness, clock: Clock
) -> None:
    place, cut_off = manifest_at(volume), manifest_at(volume, "y.safetensors")
    cut_off.write_bytes(b"{")

    assert manifests.prune(volume, [], still) == 0
    clock.now += 59
    assert manifests.prune(volume, [], still) == 0
    clock.now += 1
    assert manifests.prune(volume, [], still) == 2

    assert not place.exists()
    assert not cut_off.exists()


def test_the_manifest_of_a_file_that_is_there_stays(
    volume: Path, still: Stillness, clock: Clock
) -> None:
    there, listed = manifest_at(volume, "unlisted.pt"), manifest_at(volume, "listed.safetensors")
    file = volume / "models" / "loras" / "unlisted.pt"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"a pickle that this worker does not list")

    for _ in range(3):
        known = [(Kind.LORA, file.with_name("listed.safetensors"))]
        assert manifests.prune(volume, known, still) == 0
        clock.now += 60

    assert there.exists()
    assert listed.exists()


def test_a_file_that_was_back_in_between_has_its_minute_again(
    volume: Path, still: Stillness, clock: Clock
) -> None:
    place = manifest_at(volume)
    file = volume / "models" / "loras" / "x.safetensors"
    file.parent.mkdir(parents=True)
    manifests.prune(volume, [], still)
    clock.now += 30
    file.touch()
    manifests.prune(volume, [], still)
    file.unlink()
    clock.now += 30

    assert manifests.prune(volume, [], still) == 0
    assert place.exists()


def test_a_manifest_that_does_not_tell_its_file_is_kept_for_a_month(
    volume: Path, still: Stillness, clock: Clock
) -> None:
    place = layout.manifest_path(volume, Kind.LORA, volume / "ComfyUI/models/loras/x.safetensors")
    place.parent.mkdir(parents=True)
    place.write_bytes(manifest_at(volume).read_bytes())
    manifest_at(volume).unlink()
    for _ in range(3):
        assert manifests.prune(volume, [], still) == 0
        clock.now += 60

    os.utime(place, (0, 0))
    manifests.prune(volume, [], still)
    clock.now += 60

    assert manifests.prune(volume, [], still) == 1


def test_a_manifest_that_the_disk_does_not_let_go_is_left_for_another_time(
    volume: Path,
    still: Stillness,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = manifest_at(volume)
    manifests.prune(volume, [], still)
    clock.now += 60

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refuse)
        assert manifests.prune(volume, [], still) == 0
        with pytest.raises(VolumeError):
            manifests.drop(volume, place, None)

    assert manifests.prune(volume, [], still) == 1
    assert not place.exists()
