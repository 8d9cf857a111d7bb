import json
from pathlib import Path

from model_cache import inventory, layout, registry
from model_cache.inventory import Inventory
from simulator import models


def test_the_view_shows_every_model(volume: Path) -> None:
    models.write_lora(volume / "models/loras/detail.safetensors", seed="a")
    models.write_vae(volume / "ComfyUI/models/vae/soft.safetensors", seed="b")

    registry.write(volume, Inventory(volume, inventory.scan(volume, {})))

    view = json.loads(layout.registry_path(volume).read_text())
    assert view["version"] == 1
    assert [(row["kind"], row["name"], row["file"]) for row in view["models"]] == [
        ("lora", "detail", "models/loras/detail.safetensors"),
        ("vae", "soft", "ComfyUI/models/vae/soft.safetensors"),
    ]
    assert view["models"][0] == {
        "kind": "lora",
        "name": "detail",
        "file": "models/loras/detail.safetensors",
        "size_bytes": (volume / "models/loras/detail.safetensors").stat().st_size,
        "sha256": None,
        "base": "unknown",
        "source": "",
    }


def test_a_view_that_cannot_be_written_stops_nobody(tmp_path: Path) -> None:
    registry.write(tmp_path / "none", Inventory(tmp_path / "none", {}))

    assert not (tmp_path / "none").exists()
