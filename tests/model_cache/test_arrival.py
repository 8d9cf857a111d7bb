import threading
from pathlib import Path

import pytest

from model_cache import layout, publish
from model_cache.architecture import Nature
from model_cache.arrival import Arrival, settle
from model_cache.listing import Listing
from schemas.errors import VolumeBusyError, VolumeMissingError
from schemas.model_ref import Kind
from simulator import models

NATURE = Nature(Kind.LORA, "sd1", "ali")


def arrival(volume: Path, seed: str = "ours") -> Arrival:
    """A verified file that wants to be called x."""
    part = layout.tmp_folder(volume) / f"{seed}.part"
    sha256 = models.write_lora(part, seed=seed)
    return Arrival(Kind.LORA, "x", part, sha256, f"https://h/{seed}", NATURE)


def settled(volume: Path, arrived: Arrival) -> tuple[str, str | None, str]:
    model = settle(arrived, volume, Listing(volume), threading.Event())
    return model.name, model.sha256, model.source


@pytest.mark.parametrize("theirs", ["ours", "theirs"])
def test_a_worker_that_publishes_in_the_same_moment_loses_nothing(
    volume: Path, monkeypatch: pytest.MonkeyPatch, theirs: str
) -> None:
    arrived = arrival(volume)
    place = publish.place
    final = layout.published_path(volume, Kind.LORA, "x")

    def overtaken(part: Path, wanted: Path) -> bool:
        if not final.exists():
            models.write_lora(final, seed=theirs)
        return place(part, wanted)

    monkeypatch.setattr(publish, "place", overtaken)

    name, sha256, source = settled(volume, arrived)

    assert name == ("x" if theirs == "ours" else f"x-{arrived.sha256[:8]}")
    assert (sha256, source) == (arrived.sha256, "https://h/ours")
    assert final.read_bytes() == model_bytes(volume, theirs)


def model_bytes(volume: Path, seed: str) -> bytes:
    models.write_lora(volume / "again", seed=seed)
    return (volume / "again").read_bytes()


def test_a_file_that_people_put_there_meanwhile_keeps_its_name(volume: Path) -> None:
    models.write_lora(volume / "models" / "Lora" / "x.safetensors", seed="theirs")
    arrived = arrival(volume)

    assert settled(volume, arrived)[0] == f"x-{arrived.sha256[:8]}"


def test_a_file_of_the_same_bytes_in_another_folder_is_taken(volume: Path) -> None:
    path = volume / "models" / "Lora" / "x.safetensors"
    models.write_lora(path, seed="ours")
    arrived = arrival(volume)

    assert settled(volume, arrived) == ("x", arrived.sha256, "https://h/ours")
    assert not layout.published_path(volume, Kind.LORA, "x").exists()


def test_where_every_name_is_taken_nothing_is_overwritten(volume: Path) -> None:
    arrived = arrival(volume)
    for name in ("x", *(f"x-{arrived.sha256[:digits]}" for digits in (8, 16, 64))):
        models.write_lora(layout.published_path(volume, Kind.LORA, name), seed=name)
    before = {path: path.read_bytes() for path in (volume / "models" / "loras").iterdir()}

    with pytest.raises(VolumeBusyError, match="Every name"):
        settled(volume, arrived)

    assert {path: path.read_bytes() for path in before} == before
    assert len(list((volume / "models" / "loras").iterdir())) == 4


def test_a_file_that_vanishes_at_once_is_an_error(
    volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "place", lambda *_: True)

    with pytest.raises(VolumeMissingError, match="vanished"):
        settled(volume, arrival(volume))
