"""A worker with the settings of an endpoint that strangers reach, and what of their jobs got through."""

import asyncio
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from model_cache.cache import ModelCache
from rp_jobs import Jobs
from schemas.model_ref import Kind
from schemas.settings import CacheSettings, JobSettings, Settings, WebuiSettings
from simulator import models as files
from tests.conftest import Simulator, running
from tests.e2e.conftest import Places
from tests.worker.keeping import kept
from worker.child.client import WebuiClient
from worker.machine.preflight import OPTIONS
from worker.run import Runner

SMALL = {"prompt": "a cat", "checkpoint": "a", "steps": 2, "width": 64, "height": 64, "seed": 1}
_ASKED = ("/txt2img", "/img2img")


@dataclass
class Worker(Places):
    """The handler that the SDK calls; only what A1111 and a private host received tells the truth."""

    jobs: Jobs
    webui: Simulator
    private: Simulator
    folder: Path

    @property
    def data(self) -> Path:
        """Where A1111 would keep pictures."""
        return self.folder / "data"

    def ask(self, value: Any) -> Any:
        """Return what the SDK would get for a job with this input."""
        return asyncio.run(self.jobs.handle({"id": "j", "input": value}))

    def call(self, method: str, endpoint: str, payload: Any = None) -> Any:
        return self.ask({"api": {"method": method, "endpoint": endpoint}, "payload": payload})

    def look_again(self) -> None:
        """Make the worker see what is on the volume now."""
        assert self.call("POST", "refresh-checkpoints") is None

    def generated(self) -> list[dict[str, Any]]:
        """Return the bodies of all generations that A1111 got."""
        entries = self.webui.get("/simulator/journal")["requests"]
        return [entry["body"] for entry in entries if entry["path"].endswith(_ASKED)]

    def posted(self) -> set[str]:
        """Return where anything was posted to at A1111."""
        entries = self.webui.get("/simulator/journal")["requests"]
        return {entry["path"] for entry in entries if entry["method"] == "POST"}

    def visible(self) -> list[Path]:
        """Return every file there is but for our own notes on the volume."""
        return sorted(path for path in self.folder.rglob("*") if ".worker" not in path.parts)

    def require_refused(self, value: Any, code: str = "INVALID_INPUT") -> dict[str, Any]:
        """Require that a job is refused in its own words, and that A1111 is not asked for it."""
        before = self.generated()
        answer = self.ask(value)
        assert answer["code"] == code, answer
        assert not answer["retryable"]
        assert "refresh_worker" not in answer
        assert self.generated() == before
        return dict(answer)

    def require_well(self) -> None:
        """Require that the next job gets its picture."""
        assert len(self.ask(SMALL)["images"]) == 1


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    folder = tmp_path_factory.mktemp("security")
    models = folder / "volume" / "models"
    for name in ("a", "b"):
        files.write_checkpoint(models / "checkpoints" / f"{name}.safetensors", seed=name)
    files.write_lora(models / "loras" / "detail.safetensors", seed="detail")
    (folder / "hub").mkdir()
    files.write_lora(folder / "hub" / "x.safetensors", seed="x")
    extensions = ("--controlnet", "--adetailer", "--reactor")
    argv = ("--models-dir", folder / "links", "--data-dir", folder / "data", *extensions)
    with (
        running("webui", *argv) as webui,
        running("hub", "--root", folder / "hub") as private,
    ):
        webui.post("/sdapi/v1/options", dict(OPTIONS))
        port = int(webui.url.rpartition(":")[2])
        settings = Settings(
            cache=CacheSettings(
                volume=folder / "volume",
                hf_endpoint="http://127.0.0.1:1",
                civitai_endpoint="http://127.0.0.1:1",
                allow_pickle=(Kind.VAE,),
                hf_token=SecretStr("hf_operators_own"),
            ),
            webui=WebuiSettings(port=port, links=folder / "links"),
        )
        client = WebuiClient(webui.url)
        runner = Runner(ModelCache(settings.cache), client, kept(client), settings)
        runner.show_models()
        yield Worker(Jobs(runner.run, JobSettings(), online=False), webui, private, folder)


@pytest.fixture
def memory() -> Iterator[None]:
    """Require that a test takes less than 100 MB at any time, as Python counts."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100_000_000
