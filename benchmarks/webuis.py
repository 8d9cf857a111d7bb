"""A simulated A1111 with models from a volume: asked through a worker's path of a job, or as it comes."""

import contextlib
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

from benchmarks.containers import free_port, get
from benchmarks.simulators import simulated, wired
from benchmarks.stock import Stock
from schemas.settings import Settings, WebuiSettings
from worker.child.client import WebuiClient
from worker.machine import webui_flags
from worker.machine.places import DATA

TIMEOUT_S = 120.0
# What is no flag of A1111's own: an interpreter, `-u` and a script.
_START_WORDS = 3


@dataclass(frozen=True)
class Asked:
    """An A1111, and how to have a picture from it."""

    url: str
    picture: Callable[[dict[str, Any]], None]
    """Takes the fields of a request; `checkpoint` is the worker's, or a name for A1111's override."""


@dataclass
class Series:
    """What a number of calls came to."""

    least_loads: int = 0
    """How often a checkpoint must be loaded at least."""
    times: list[float] = field(default_factory=list)
    """In seconds."""
    counts: Counter[str] = field(default_factory=Counter)

    def take(self, url: str, call: Callable[[], object]) -> None:
        """Add a call, with what the A1111 at `url` did meanwhile."""
        before = counted(url)
        started = time.perf_counter()
        call()
        self.times.append(time.perf_counter() - started)
        self.counts += counted(url) - before


def counted(url: str) -> Counter[str]:
    """Return what an A1111 did since its start: loads, bytes hashed, refreshes, polls of its progress."""
    journal = get(f"{url}/simulator/journal")
    polls = sum(request["path"] == "/sdapi/v1/progress" for request in journal["requests"])
    return Counter(
        loads=journal["loads"],
        hashed_bytes=journal["hashed_bytes"],
        refreshes=sum(journal["refreshes"].values()),
        polls=polls,
    )


@contextlib.contextmanager
def through_worker(
    stock: Stock, folder: Path, *told: object, default: str = "", hashes: bool = True
) -> Iterator[Asked]:
    """Start an A1111 as start.sh does, for the worker's path of a job.

    Args:
        stock: the volume.
        folder: one that is made, for what the two keep.
        told: the simulator's own flags.
        default: the checkpoint of requests that name none.
        hashes: whether the worker can tell A1111 the hashes that it knows.

    Yields what raises RuntimeError for a job without a picture.
    """
    data, links, numbers = folder / "data", folder / "links", itertools.count()
    data.mkdir(parents=True)
    links.mkdir()
    if hashes:
        (links / DATA).symlink_to(data)
    webui = WebuiSettings(port=free_port(), links=links, checkpoint=default)
    cache = stock.settings.model_copy(update={"allow_private_hosts": True})
    machine = webui_flags.Machine(vram_bytes=None, xformers=False)
    flags = webui_flags.command(webui, Path("python"), data, machine, "")[_START_WORDS:]
    with (
        simulated("webui", *flags, *told) as url,
        wired(Settings(cache=cache, webui=webui)) as runner,
    ):

        def picture(request: dict[str, Any]) -> None:
            job = {"id": f"sync-bench-{next(numbers)}", "input": request}
            result = runner.run(job, Event(), lambda _: None)
            if not result["images"]:
                raise RuntimeError("A job gave no picture.")

        yield Asked(url, picture)


@contextlib.contextmanager
def as_it_comes(stock: Stock, folder: Path, *told: object) -> Iterator[Asked]:
    """Start an A1111 with its own defaults on the same checkpoints; it loads its first one by itself."""
    seen = folder / "models" / "Stable-diffusion"
    seen.parent.mkdir(parents=True)
    seen.symlink_to(stock.settings.models / "checkpoints")
    with simulated("webui", "--models-dir", folder / "models", *told) as url:
        client = WebuiClient(url)

        def picture(request: dict[str, Any]) -> None:
            fields = dict(request)
            checkpoint = fields.pop("checkpoint", None)
            if checkpoint is not None:
                override = {"sd_model_checkpoint": f"{checkpoint['name']}.safetensors"}
                fields["override_settings"] = override
            client.post("txt2img", fields, timeout_s=TIMEOUT_S)

        yield Asked(url, picture)
