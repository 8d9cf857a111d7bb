"""`python -m benchmarks.overhead`: the worker's own time per job.

One request, whose models are on the volume already (a checkpoint and two LoRAs, named by URL), goes to
the same simulated WebUI in five ways, in turn: through the worker's handler function; straight, over a
new and over a kept connection; and through both older workers' handlers. All five must give the same
pictures. The worker's own time is what its way takes longer than the faster of the direct ones. All run
in one process, with the memory settings that start.sh gives the worker.
"""

import argparse
import asyncio
import contextlib
import itertools
import logging
import os
import random
import re
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.direct import Direct
from benchmarks.older_worker import OlderWorker
from benchmarks.report import Aim, as_line, milliseconds, percentile, table
from benchmarks.simulators import ROOT, simulated, wired
from rp_jobs import Jobs
from rp_sdk import Handler
from schemas.settings import CacheSettings, Settings, WebuiSettings
from simulator import models

WARM_UPS = 3
QUICK_RUNS = 2
# The issue that asked for this: within 5 ms of the direct call at 512x512, by the median.
OWN_P50_LIMIT_MS = 5.0

CHECKPOINT, LORAS = "bench_checkpoint", {"bench_light": 0.8, "bench_detail": 0.5}
PROMPT, NEGATIVE_PROMPT = "a beautiful landscape with mountains and lake", "blurry, bad quality"

WORKER, DIRECT = "worker", ("direct, new connection", "direct, kept connection")
OLDER = ("older: runpod-worker-a1111", "older: worker-a1111")


@dataclass(frozen=True)
class Size:
    """The pictures of one series of jobs."""

    side_px: int
    images: int
    share: float
    """Of the runs that were asked for: larger pictures take longer to draw."""

    def __str__(self) -> str:
        return f"{self.side_px}x{self.side_px} x{self.images}"


SIZES = (Size(512, 1, share=1.0), Size(1024, 4, share=0.25))
QUICK_SIZES = (Size(64, 1, share=1.0), Size(64, 4, share=0.5))

Way = Callable[[], Awaitable[list[str]]]


def main() -> int:
    """Measure, print the table and the line of JSON; 0 means that it ran."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.overhead", description="The worker's own time per job."
    )
    parser.add_argument("--runs", type=int, default=200, help=f"jobs of {SIZES[0]} (default: 200)")
    parser.add_argument(
        "--quick", action="store_true", help="a few small pictures, to see that it runs"
    )
    options = parser.parse_args()
    if options.runs < 1:
        parser.error("--runs must be 1 or more")
    run_as_in_the_container()
    runs, sizes = (QUICK_RUNS, QUICK_SIZES) if options.quick else (options.runs, SIZES)
    logging.disable(logging.INFO)
    rows: list[dict[str, object]] = []
    own: list[float] = []
    with tempfile.TemporaryDirectory(prefix="a1111-bench-") as folder, world(Path(folder)) as made:
        for size in sizes:
            times = asyncio.run(measured(made, size, max(1, round(runs * size.share))))
            rows += rows_of(size, times)
            own.append(percentile(own_times(times), 50) * 1000)
    print(table(rows))
    print(f"\nown time at {sizes[0]}: {own[0]:.2f} ms by the median, aim: {OWN_P50_LIMIT_MS:g} ms")
    aim = Aim(f"own time p50 ms, {sizes[0]}, cache hit", own[0], OWN_P50_LIMIT_MS)
    print(as_line("overhead", runs, rows, [aim]))
    return 0


def run_as_in_the_container() -> None:
    """Start this program again, if need be, with the memory settings of start.sh.

    malloc reads them when a process begins. Source: glibc 2.36, mallopt(3), "Environment variables".
    """
    wanted = malloc_settings()
    environ = os.environ  # noqa: TID251 - an entry point
    if not wanted.items() <= environ.items():
        os.execve(sys.executable, sys.orig_argv, {**environ, **wanted})  # noqa: S606 - no shell here


def malloc_settings() -> dict[str, str]:
    """Return what start.sh tells the worker's malloc, as variables of the environment."""
    return dict(re.findall(r"\b(MALLOC_\w+)=(\d+)", (ROOT / "start.sh").read_text()))


@dataclass(frozen=True)
class World:
    """The simulators that run, and the worker's handler on them."""

    webui_port: int
    hub_url: str
    handler: Handler


@contextlib.contextmanager
def world(folder: Path) -> Iterator[World]:
    """Start a model host and a WebUI, wire a worker to them; end all with the context."""
    files, volume, links = folder / "hub", folder / "volume", folder / "links"
    for place in (files, volume, links):
        place.mkdir()
    models.write_checkpoint(files / "checkpoint.safetensors", seed="checkpoint")
    for name in LORAS:
        models.write_lora(files / f"{name}.safetensors", seed=name)
    with (
        simulated("hub", "--root", files) as hub_url,
        simulated("webui", "--models-dir", links) as webui_url,
    ):
        port = int(webui_url.rpartition(":")[2])
        settings = Settings(
            cache=CacheSettings(volume=volume, allow_private_hosts=True),
            webui=WebuiSettings(port=port, links=links),
        )
        with wired(settings) as runner:
            yield World(port, hub_url, Jobs(runner.run, settings.job, online=False).handle)


async def measured(made: World, size: Size, count: int) -> dict[str, list[float]]:
    """Return, for each way, the seconds that `count` jobs took; the ways take turns.

    Raises:
        RuntimeError: two ways gave different pictures, so that they are not to be compared.
    """
    order = random.Random(0)
    with ways_to(made, size) as ways:
        times: dict[str, list[float]] = {name: [] for name in ways}
        expected = await ways[WORKER]()  # the first one fetches the models
        for turn in range(-min(WARM_UPS, count - 1), count):
            # In another order each turn: what one way leaves behind is shared out among all.
            for name in order.sample(list(ways), len(ways)):
                started = time.perf_counter()
                images = await ways[name]()
                took = time.perf_counter() - started
                if images != expected or len(images) != size.images:
                    raise RuntimeError(f"'{name}' gave other pictures than the worker.")
                del images  # here, not in the time of the next one
                if turn >= 0:
                    times[name].append(took)
    return times


@contextlib.contextmanager
def ways_to(made: World, size: Size) -> Iterator[dict[str, Way]]:
    """Yield the five ways to the pictures of `size`; their connections end with the context."""
    body = direct_body(size)
    envelope = {"api": {"method": "POST", "endpoint": "/sdapi/v1/txt2img"}, "payload": body}
    numbers = itertools.count()

    async def through_worker() -> list[str]:
        job = {"id": f"sync-bench-{next(numbers)}", "input": job_input(made.hub_url, size)}
        return images_of(await made.handler(job))

    def blocking(call: Callable[[], list[str]]) -> Way:
        async def way() -> list[str]:
            return call()

        return way

    with (
        contextlib.closing(Direct(made.webui_port, body, keep=False)) as new,
        contextlib.closing(Direct(made.webui_port, body, keep=True)) as kept,
        contextlib.closing(OlderWorker(made.webui_port)) as older,
    ):
        yield {
            WORKER: through_worker,
            DIRECT[0]: blocking(new.images),
            DIRECT[1]: blocking(kept.images),
            OLDER[0]: blocking(lambda: images_of(older.envelope_handler({"input": envelope}))),
            OLDER[1]: blocking(lambda: images_of(older.flat_handler({"input": body}))),
        }


def images_of(result: Mapping[str, Any]) -> list[str]:
    """Return a result's pictures.

    Raises:
        RuntimeError: the job failed.
    """
    if "images" not in result:
        raise RuntimeError(f"A job failed: {result.get('error')}")
    images: list[str] = result["images"]
    return images


def job_input(hub_url: str, size: Size) -> dict[str, Any]:
    """Return what a caller sends to the worker."""
    return {
        "prompt": PROMPT,
        "negative_prompt": NEGATIVE_PROMPT,
        "steps": 25,
        "cfg_scale": 7.5,
        "width": size.side_px,
        "height": size.side_px,
        "batch_size": size.images,
        "sampler_name": "DPM++ 2M Karras",
        "seed": 42,
        "checkpoint": {"name": CHECKPOINT, "url": f"{hub_url}/checkpoint.safetensors"},
        "loras": [
            {"name": name, "url": f"{hub_url}/{name}.safetensors", "scale": scale}
            for name, scale in LORAS.items()
        ],
    }


def direct_body(size: Size) -> dict[str, Any]:
    """Return the same request as A1111 takes it."""
    tags = " ".join(f"<lora:{name}:{scale}>" for name, scale in LORAS.items())
    return {
        "prompt": f"{tags} {PROMPT}",
        "negative_prompt": NEGATIVE_PROMPT,
        "steps": 25,
        "cfg_scale": 7.5,
        "width": size.side_px,
        "height": size.side_px,
        "batch_size": size.images,
        "sampler_name": "DPM++ 2M",
        "scheduler": "karras",
        "seed": 42,
        "override_settings": {"sd_model_checkpoint": f"{CHECKPOINT}.safetensors"},
        "override_settings_restore_afterwards": False,
    }


def best_direct(times: Mapping[str, list[float]]) -> str:
    """Return the name of the direct way with the smaller median."""
    return min(DIRECT, key=lambda name: percentile(times[name], 50))


def own_times(times: Mapping[str, list[float]], way: str = WORKER) -> list[float]:
    """Return how much longer `way` took than the best direct call of the same turn, in seconds."""
    best = times[best_direct(times)]
    return [took - direct for took, direct in zip(times[way], best, strict=True)]


def rows_of(size: Size, times: Mapping[str, list[float]]) -> list[dict[str, object]]:
    """Return a row for each way: its times, its ratio to the best direct call, its own time."""
    best = times[best_direct(times)]
    return [
        {
            "what": f"{size}, {name}",
            "runs": len(taken),
            **milliseconds(taken),
            "p50_ratio": round(percentile(taken, 50) / percentile(best, 50), 3),
            "p99_ratio": round(percentile(taken, 99) / percentile(best, 99), 3),
            "own_p50_ms": round(percentile(own_times(times, name), 50) * 1000, 2),
        }
        for name, taken in times.items()
    ]


if __name__ == "__main__":
    sys.exit(main())
