from pathlib import Path

import pytest

from model_cache.sharing import pins
from model_cache.volume import layout
from schemas.errors import InvalidInputError, VolumeError
from schemas.model_ref import Kind


def test_what_is_pinned_stays_so_until_it_is_unpinned(volume: Path) -> None:
    pins.pin(volume, Kind.LORA, "x")
    pins.pin(volume, Kind.LORA, "x")
    pins.pin(volume, Kind.VAE, "é ß")

    assert pins.pinned(volume) == {(Kind.LORA, "x"), (Kind.VAE, "é ß")}
    assert pins.unpin(volume, Kind.LORA, "x")
    assert pins.pinned(volume) == {(Kind.VAE, "é ß")}


def test_what_is_not_pinned_cannot_be_unpinned(volume: Path) -> None:
    pins.pin(volume, Kind.LORA, "x")

    assert not pins.unpin(volume, Kind.VAE, "x")
    assert not pins.unpin(volume, Kind.LORA, "X")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../x", "a\0b", "x" * 256])
def test_a_name_that_no_model_can_have_leaves_no_file(volume: Path, name: str) -> None:
    for act in (pins.pin, pins.unpin):
        with pytest.raises(InvalidInputError, match="No model can be called"):
            act(volume, Kind.LORA, name)

    assert list(volume.rglob("*")) == []


def test_nothing_is_pinned_on_a_volume_that_is_not_there(tmp_path: Path) -> None:
    assert pins.pinned(tmp_path / "none") == frozenset()
    with pytest.raises(VolumeError):
        pins.pin(tmp_path / "none", Kind.LORA, "x")
    assert not (tmp_path / "none").exists()


def test_pins_that_cannot_be_read_are_not_none(volume: Path) -> None:
    layout.pins_folder(volume).parent.mkdir(parents=True)
    layout.pins_folder(volume).write_text("a file")

    with pytest.raises(VolumeError):
        pins.pinned(volume)
