"""The worker's handler with all that clients name on its volume, and the simulators round it."""

import asyncio
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from model_cache.cache import ModelCache
from rp_jobs import Jobs
from schemas.settings import CacheSettings, Settings, WebuiSettings
from simulator import models as files
from tests.conftest import Simulator, running
from tests.worker.keeping import kept
from worker.child.client import WebuiClient
from worker.machine.places import DATA
from worker.run import Runner

CANNY = "control_v11p_sd15_canny"
BASES = {
    "alpha": "sd1",
    "deliberate_v2": "sd1",
    "sd_xl_base_1.0": "sdxl",
    "sd_xl_refiner_1.0": "sdxl-refiner",
    "turboDiffusionXL_v112": "sdxl",
}
CONTROLNETS = {
    CANNY: "sd1",
    "diffusers_xl_canny_full": "sdxl",
    "ip-adapter_instant_id_sdxl": "sdxl",
    "control_instant_id_sdxl": "sdxl",
}


@dataclass
class Worker:
    """A handler, called as the SDK calls it."""

    jobs: Jobs
    webui: Simulator
    hub: Simulator
    folder: Path
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def run(self, value: dict[str, Any]) -> Any:
        """Return the answer to a job with `value` as its input."""
        job = {"id": f"sync-{next(self.numbers)}", "input": value}
        return asyncio.run(self.jobs.handle(job))

    def sent(self) -> dict[str, Any]:
        """Return the body of the last generation that A1111 received."""
        journal = self.webui.get("/simulator/journal")["requests"]
        asked = ("/txt2img", "/img2img")
        found: dict[str, Any] = [e["body"] for e in journal if e["path"].endswith(asked)][-1]
        return found


@contextmanager
def serving(folder: Path, *extensions: str) -> Iterator[Worker]:
    """Serve on `folder`, with an A1111 that has ControlNet and what the flags `extensions` name."""
    write_models(folder / "volume" / "models")
    write_hub(folder / "hub")
    # As preflight leaves it: so the weights of helpers are looked for, and found missing.
    (folder / "links" / DATA / "models").mkdir(parents=True)
    annotators = folder / "annotators"
    annotators.mkdir()
    flags = ("--controlnet", "--controlnet-annotator-models-path", annotators, *extensions)
    with (
        running("hub", "--root", folder / "hub") as hub,
        running("webui", "--models-dir", folder / "links", *flags) as webui,
    ):
        settings = Settings(
            cache=CacheSettings(
                volume=folder / "volume",
                allow_private_hosts=True,
                hf_endpoint=hub.url,
            ),
            webui=WebuiSettings(
                port=int(webui.url.rpartition(":")[2]), links=folder / "links", checkpoint="alpha"
            ),
        )
        client = WebuiClient(webui.url)
        runner = Runner(ModelCache(settings.cache), client, kept(client), settings)
        runner.show_models()
        yield Worker(Jobs(runner.run, settings.job, online=False), webui, hub, folder)


@pytest.fixture(scope="package")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    with serving(tmp_path_factory.mktemp("clients")) as made:
        yield made


def write_models(folder: Path) -> None:
    for name, base in BASES.items():
        files.write_checkpoint(folder / "checkpoints" / f"{name}.safetensors", seed=name, base=base)
    for name, base in CONTROLNETS.items():
        files.write_controlnet(folder / "controlnet" / f"{name}.safetensors", seed=name, base=base)
    files.write_lora(folder / "loras" / "detail.safetensors", seed="detail")
    for name in ("vae-ft-mse-840000-ema-pruned", "sdxl_vae"):
        files.write_vae(folder / "vae" / f"{name}.safetensors", seed=name)


def write_hub(folder: Path) -> None:
    """Write the repository that the requests download a model of, and then all of it."""
    for name in ("new", "other"):
        file = folder / "huggingface" / "someone" / "a1111" / "Lora" / f"{name}.safetensors"
        files.write_lora(file, seed=name)
