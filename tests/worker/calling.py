"""A runner beside the simulated A1111, and jobs that call A1111's routes in the envelope."""

import base64
import io
import json
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from PIL import Image

from model_cache.cache import ModelCache
from schemas.settings import CacheSettings, JobSettings, Settings, WebuiSettings
from simulator import models as files
from tests.conftest import Simulator
from tests.worker.keeping import kept
from worker.child.client import WebuiClient
from worker.run import Runner

SMALL = {"steps": 2, "width": 64, "height": 64, "seed": 1}


def ignore(progress: dict[str, Any]) -> None:
    del progress


def picture(side: int = 64, height: int | None = None, **saved: Any) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (side, height or side), "teal").save(buffer, "PNG", **saved)
    return base64.b64encode(buffer.getvalue()).decode()


@dataclass
class World:
    runner: Runner
    webui: Simulator
    volume: Path

    def run(self, value: dict[str, Any], cancelled: Event | None = None) -> Any:
        return self.runner.run({"id": "j", "input": value}, cancelled or Event(), ignore)

    def get(self, endpoint: str, **payload: Any) -> Any:
        return self.run({"api": {"method": "GET", "endpoint": endpoint}, "payload": payload})

    def post(self, endpoint: str, cancelled: Event | None = None, **payload: Any) -> Any:
        envelope = {"api": {"method": "POST", "endpoint": endpoint}, "payload": payload}
        return self.run(envelope, cancelled)

    def made(self, **fields: Any) -> tuple[str, list[str]]:
        """Make a small picture; return the checkpoint that made it, and the warnings."""
        answer = self.run({"prompt": "a cat", **SMALL, **fields})
        return json.loads(answer["info"])["sd_model_name"], answer["warnings"]

    def requests(self, path: str) -> int:
        """Return how many requests of `path` the WebUI got."""
        journal = self.webui.get("/simulator/journal")["requests"]
        return sum(entry["path"] == path for entry in journal)


def make_world(folder: Path, webui: Simulator, **sections: Any) -> World:
    cache = CacheSettings(volume=folder / "volume", allow_private_hosts=True)
    port = int(webui.url.rpartition(":")[2])
    sections.setdefault("job", JobSettings(options=("CLIP_stop_at_last_layers", "samples_format")))
    settings = Settings(
        cache=cache, webui=WebuiSettings(port=port, links=folder / "links"), **sections
    )
    client = WebuiClient(webui.url)
    runner = Runner(ModelCache(cache), client, kept(client), settings)
    runner.show_models()
    return World(runner, webui, folder / "volume")


def write_models(volume: Path) -> dict[str, str]:
    """Write two checkpoints and a VAE; return their digests."""
    models = volume / "models"
    digests = {
        name: files.write_checkpoint(models / "checkpoints" / f"{name}.safetensors", seed=name)
        for name in ("a", "b")
    }
    files.write_vae(models / "vae" / "soft.safetensors", seed="soft")
    return digests
