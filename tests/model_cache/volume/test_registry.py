import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from model_cache.sharing.uses import Use
from model_cache.volume import inventory, layout, manifests, registry
from model_cache.volume.inventory import Found, Inventory
from model_cache.volume.registry import Registry
from schemas.model_ref import Kind
from simulator import models

SHA = "0123456789abcdef" * 4


def listed(volume: Path) -> Inventory:
    return Inventory(volume, inventory.scan(volume, {}))


def view_of(volume: Path) -> Any:
    return json.loads(layout.registry_path(volume).read_text())


def test_the_view_shows_every_model(volume: Path) -> None:
    published = volume / "models/loras/detail.safetensors"
    brought = volume / "ComfyUI/models/vae/soft.safetensors"
    models.write_lora(published, seed="a")
    models.write_vae(brought, seed="b")
    manifest = manifests.new(SHA, published.stat(), "https://h/detail", "sdxl", "alias")
    manifests.write(volume, layout.manifest_path(volume, Kind.LORA, published), manifest)

    assert registry.write(
        volume, listed(volume), {published: Use(1700000000.5, 3)}, {(Kind.LORA, "detail")}
    )

    view = view_of(volume)
    assert view.keys() == {"version", "written", "models"}
    assert view["version"] == 1
    assert view["models"] == [
        {
            "kind": "lora",
            "name": "detail",
            "file": "models/loras/detail.safetensors",
            "source": "https://h/detail",
            "sha256": SHA,
            "size_bytes": published.stat().st_size,
            "base": "sdxl",
            "added": manifest.created,
            "last_used": 1700000000.5,
            "uses": 3,
            "pinned": True,
        },
        {
            "kind": "vae",
            "name": "soft",
            "file": "ComfyUI/models/vae/soft.safetensors",
            "source": "",
            "sha256": None,
            "size_bytes": brought.stat().st_size,
            "base": "unknown",
            "added": brought.stat().st_mtime_ns / 1e9,
            "last_used": None,
            "uses": 0,
            "pinned": False,
        },
    ]


def test_what_the_docstring_says_of_a_row_is_what_a_row_has(volume: Path) -> None:
    models.write_lora(volume / "models/loras/detail.safetensors", seed="a")
    registry.write(volume, listed(volume))

    (row,) = json.loads(layout.registry_path(volume).read_text())["models"]

    assert registry.__doc__ is not None
    assert all(f"`{field}`" in registry.__doc__ for field in row)


def test_a_model_in_the_image_is_not_in_the_view_of_the_volume(
    volume: Path, tmp_path: Path
) -> None:
    models.write_lora(tmp_path / "baked/loras/inside.safetensors", seed="a")
    seen = Inventory(volume, inventory.scan(volume, {}, baked=tmp_path / "baked"))
    assert len(seen.models(Kind.LORA)) == 1

    registry.write(volume, seen)

    assert view_of(volume)["models"] == []


def test_a_view_that_cannot_be_written_stops_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert not registry.write(tmp_path / "none", Inventory(tmp_path / "none", {}))

    assert not (tmp_path / "none").exists()
    assert "cache_registry.json was not written" in caplog.messages[0]


def test_whatever_lies_in_its_place_is_replaced_and_never_read(volume: Path) -> None:
    models.write_lora(volume / "models/loras/detail.safetensors", seed="a")
    registry.write(volume, listed(volume))
    whole = layout.registry_path(volume).read_bytes()

    for content in (b"", whole[: len(whole) // 2], b"\xff\x00"):
        layout.registry_path(volume).write_bytes(content)
        registry.write(volume, listed(volume))

        view = view_of(volume)
        assert [row["name"] for row in view["models"]] == ["detail"]


def test_a_reader_sees_one_view_or_another_while_several_write(volume: Path) -> None:
    models.write_lora(volume / "models/loras/detail.safetensors", seed="a")
    seen = listed(volume)
    registry.write(volume, seen)

    def write() -> None:
        for _ in range(20):
            registry.write(volume, seen)

    writers = [threading.Thread(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert len(view_of(volume)["models"]) == 1
    for writer in writers:
        writer.join()
    assert list(layout.tmp_folder(volume).iterdir()) == []


def test_it_is_written_when_it_says_something_new_and_not_too_often(volume: Path) -> None:
    text = "1"
    view = Registry(volume, lambda: text, every_s=3600)
    place = layout.registry_path(volume)

    view.refresh()
    assert view_of(volume)["models"] == [1]
    text = "2"
    view.refresh()
    assert view_of(volume)["models"] == [1]
    view._every_s = 0
    view.refresh()
    assert view_of(volume)["models"] == [2]
    place.unlink()
    view.refresh()

    assert not place.exists()


def test_a_view_that_was_refused_is_tried_again(volume: Path) -> None:
    view = Registry(volume / "late", lambda: "1")
    view.refresh()
    (volume / "late" / "models").mkdir(parents=True)

    view.refresh()

    assert view_of(volume / "late")["models"] == [1]


@pytest.mark.slow
def test_five_thousand_models_are_written_in_a_moment(volume: Path) -> None:
    models.write_lora(volume / "models/loras/x.safetensors", seed="a")
    status = (volume / "models/loras/x.safetensors").stat()
    folder = volume / "models/loras"
    paths = [folder / f"{number}.safetensors" for number in range(5000)]

    def found(number: int) -> Found:
        manifest = manifests.new(
            f"{number:04x}" * 16, status, f"https://h/{number}", "sdxl", "alias"
        )
        return Found(Kind.LORA, paths[number], folder, True, status, manifest, home=volume)

    seen = Inventory(volume, {path: found(number) for number, path in enumerate(paths)})
    history = {path: Use(1.0, 1) for path in paths}

    start = time.process_time()
    assert registry.write(volume, seen, history)

    # About 60 ms on one core of a small machine.
    assert time.process_time() - start < 1
    assert len(view_of(volume)["models"]) == 5000
