import threading
from dataclasses import replace
from pathlib import Path

import pytest

from model_cache.models import Origin
from model_cache.volume import layout, publish
from model_cache.volume.arrival import Arrival, settle
from model_cache.volume.listing import Listing
from model_cache.weights import verify
from model_cache.weights.architecture import Nature
from schemas.errors import VolumeBusyError, VolumeMissingError
from schemas.model_ref import Kind
from simulator import models
from simulator.pickles import write_pickle

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


@pytest.mark.parametrize("there", ["X", "\uff58"], ids=["another case", "another width"])
def test_a_name_that_a_disk_could_take_for_another_is_not_given(volume: Path, there: str) -> None:
    theirs = layout.published_path(volume, Kind.LORA, there)
    models.write_lora(theirs, seed="theirs")
    arrived = arrival(volume)

    assert settled(volume, arrived)[0] == f"x-{arrived.sha256[:8]}"
    assert theirs.exists()


def test_the_same_bytes_under_a_name_in_another_case_are_taken(volume: Path) -> None:
    theirs = layout.published_path(volume, Kind.LORA, "X")
    models.write_lora(theirs, seed="ours")
    arrived = arrival(volume)

    assert settled(volume, arrived) == ("X", arrived.sha256, "https://h/ours")
    assert [path.name for path in theirs.parent.iterdir()] == ["X.safetensors"]


def test_a_pickle_and_a_safetensors_file_do_not_share_a_name(volume: Path) -> None:
    pickled = layout.published_path(volume, Kind.LORA, "x", ".pt")
    write_pickle(pickled, seed="theirs")
    arrived = arrival(volume)

    model = settle(arrived, volume, Listing(volume, allow_pickle=[Kind.LORA]), threading.Event())

    assert model.name == f"x-{arrived.sha256[:8]}"


def test_a_pickle_keeps_its_suffix(volume: Path) -> None:
    part = layout.tmp_folder(volume) / "p.part"
    sha256 = write_pickle(part, seed="p")
    nature = Nature(None, "unknown", "", pickle=True)
    arrived = Arrival(Kind.UPSCALER, "4x", part, sha256, "https://h/p", nature, suffix=".pth")

    model = settle(
        arrived, volume, Listing(volume, allow_pickle=[Kind.UPSCALER]), threading.Event()
    )

    assert model.path == volume / "models/upscalers/4x.pth"
    assert (model.name, model.is_pickle, model.sha256) == ("4x", True, sha256)


def test_a_file_of_another_size_is_not_hashed(
    volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models.write_checkpoint(layout.published_path(volume, Kind.LORA, "x"), seed="large")
    monkeypatch.setattr(verify, "digest", lambda *_, **__: pytest.fail("hashed"))
    arrived = arrival(volume)

    assert settled(volume, arrived)[0] == f"x-{arrived.sha256[:8]}"


def test_all_that_is_known_of_a_file_is_in_its_manifest(volume: Path) -> None:
    arrived = replace(
        arrival(volume), autov3="0123456789ab", also_from=("https://h/page", "https://h/ours")
    )
    listing = Listing(volume)

    settle(arrived, volume, listing, threading.Event())

    for known in (listing, Listing(volume)):
        [model] = known.current.with_digest(Kind.LORA, "0123456789ab")
        assert model.autov3 == "0123456789ab"
        assert model.origin is Origin.PUBLISHED
        assert known.current.from_source(Kind.LORA, "https://h/page") == (model,)
        assert known.current.from_source(Kind.LORA, "https://h/ours") == (model,)


def test_bytes_that_are_baked_are_not_published_once_more(tmp_path: Path, volume: Path) -> None:
    baked = tmp_path / "image/loras/x.safetensors"
    models.write_lora(baked, seed="ours")

    model = settle(
        arrival(volume), volume, Listing(volume, baked=tmp_path / "image"), threading.Event()
    )

    assert model.path == baked


def test_bytes_that_were_deleted_since_they_were_listed_are_published(volume: Path) -> None:
    theirs = volume / "models" / "Lora" / "X.safetensors"
    models.write_lora(theirs, seed="ours")
    listing = Listing(volume)
    theirs.unlink()

    model = settle(arrival(volume), volume, listing, threading.Event())

    assert model.path == layout.published_path(volume, Kind.LORA, "x")
    assert model.path.exists()
