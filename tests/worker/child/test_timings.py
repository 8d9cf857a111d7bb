"""Where the time of a job went, against an A1111 whose times are known."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from model_cache.cache import ModelCache
from schemas.settings import CacheSettings, JobSettings, Settings, WebuiSettings
from simulator import models as files
from tests.conftest import Simulator, running
from tests.worker.keeping import kept
from worker.child.client import WebuiClient
from worker.run import Runner

pytestmark = pytest.mark.slow

LOAD_S = 1.2
DRAW_S = 0.3


@dataclass
class World:
    webui: Simulator
    runner: Runner

    def timed(self, *, loads: bool = False, **fields: Any) -> dict[str, Any]:
        """Return the timings of a job; one that `loads` draws on once it was seen to draw."""
        faults = [{"kind": "stall"}] if loads else []
        self.webui.post("/simulator/faults", {"faults": faults})
        given = {"prompt": "a cat", "steps": 8, "width": 64, "height": 64, "seed": 1, **fields}
        answer = self.runner.run({"id": "job-1", "input": given}, Event(), self._go_on)
        timings: dict[str, Any] = dict(answer["timings"])
        return timings

    def _go_on(self, progress: dict[str, Any]) -> None:
        if progress["stage"] == "sampling":
            self.webui.post("/simulator/faults", {"clear": True})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("timings")
    for name in ("a", "b"):
        files.write_checkpoint(folder / f"models/checkpoints/{name}.safetensors", seed=name)
    flags = ("--skip-load-model-at-start", "--step-ms", DRAW_S * 1000 / 8)
    with running("webui", "--models-dir", folder / "links", *flags) as webui:
        webui.post("/simulator/faults", {"load_s": LOAD_S})
        yield World(webui, made(folder, webui))


def made(folder: Path, webui: Simulator) -> Runner:
    settings = Settings(
        cache=CacheSettings(volume=folder),
        webui=WebuiSettings(port=int(webui.url.rpartition(":")[2]), links=folder / "links"),
        job=JobSettings(price_per_s=100),
    )
    client = WebuiClient(webui.url)
    runner = Runner(ModelCache(settings.cache), client, kept(client), settings)
    runner.show_models()
    return runner


def test_a_load_is_told_apart_from_what_is_drawn(world: World) -> None:
    """Of the first checkpoint, which is selected, and of another one, which a job overrides."""
    first = world.timed(loads=True, checkpoint="a")
    same = world.timed(checkpoint="a")
    other = world.timed(loads=True, checkpoint="b")

    for loaded in (first, other):
        assert loaded["load_s"] >= LOAD_S
        assert loaded["generate_s"] <= loaded["total_s"] - LOAD_S
    assert same["load_s"] == 0
    assert same["generate_s"] >= DRAW_S


def test_a_job_has_its_price_and_its_rate(world: World) -> None:
    timings = world.timed(checkpoint="b", batch_size=2)

    assert timings["cost"] == pytest.approx(timings["total_s"] * 100)
    assert timings["images_per_s"] == pytest.approx(2 / timings["generate_s"], abs=0.001)
