"""`python -m benchmarks.surface`: what the worker adds to A1111's other routes, and to a large body.

Each route is asked through the worker's handler function and straight over a kept connection, in turn, and
must give the same answers: while A1111 is idle and, where it waits for nothing, beside another job of the
worker that makes a picture. Then an img2img body of 10 MB is read as every job's is: by the parser of
JSON, field by field, and its picture is decoded; with the memory that each takes.
"""

import argparse
import asyncio
import base64
import contextlib
import ctypes
import gc
import http.client
import io
import itertools
import json
import logging
import math
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.direct import HEADERS, TIMEOUT_S
from benchmarks.overhead import run_as_in_the_container
from benchmarks.report import Aim, as_line, milliseconds, percentile, table
from benchmarks.simulators import simulated, wired
from rp_jobs import Jobs
from rp_sdk import Handler
from schemas.errors import shown
from schemas.job import Generation
from schemas.request import parse
from schemas.routes import PREFIX, ROUTES
from schemas.settings import CacheSettings, JobSettings, Settings, WebuiSettings
from simulator import models
from worker.pictures import images

QUICK_RUNS = 2
BUSY_RUNS = 10
STEP_MS, QUICK_STEP_MS = 30, 10
"""Of the picture that is made meanwhile: six seconds, or two."""
IDLE, BUSY = "idle", "a picture is made"
# What the issue says of routes that only read: they do not wait behind a generation.
WAITED_LIMIT = 0

BODY_BYTES = 10_000_000
# Pixels of noise, which no compression makes smaller: 3 bytes each, and base64 makes 4 of 3.
NOISE_SIDE_PX = math.isqrt(BODY_BYTES // 4)

SMALL = {"prompt": "a lighthouse", "steps": 1, "width": 64, "height": 64, "seed": 1}
# What they answer differs from one moment to the next, or is as it was before any job.
CHANGING = frozenset({f"{PREFIX}memory", f"{PREFIX}progress", f"{PREFIX}options"})


@dataclass(frozen=True)
class Asked:
    """One request."""

    method: str
    path: str
    payload: Any = None

    @property
    def reads(self) -> bool:
        """Whether it waits for nothing."""
        return self.method == "GET" or self.path.endswith("/png-info")

    @property
    def envelope(self) -> dict[str, Any]:
        """The same as a job's input."""
        api = {"method": self.method, "endpoint": self.path}
        return {"api": api} if self.payload is None else {"api": api, "payload": self.payload}


@dataclass
class Times:
    """Seconds that one request took, in both ways."""

    asked: Asked
    worker: list[float]
    direct: list[float]

    @property
    def own(self) -> list[float]:
        """What the worker added, turn by turn."""
        return [ours - direct for ours, direct in zip(self.worker, self.direct, strict=True)]


Found = list[Times]


class World:
    """A simulated A1111, and the worker's handler on it."""

    def __init__(self, port: int, handler: Handler) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
        self._handler = handler
        self._numbers = itertools.count()

    async def through_worker(self, value: Mapping[str, Any]) -> Any:
        """Return the answer to a job.

        Raises:
            RuntimeError: it failed.
        """
        job = {"id": f"sync-bench-{next(self._numbers)}", "input": value}
        answer = await self._handler(job)
        if isinstance(answer, dict) and "error" in answer:
            raise RuntimeError(f"A job failed: {answer['error']}")
        return answer

    def direct(self, asked: Asked) -> Any:
        """Return what A1111 answers.

        Raises:
            RuntimeError: it did not answer 200.
        """
        body = None if asked.payload is None else json.dumps(asked.payload).encode()
        self._connection.request(asked.method, asked.path, body, HEADERS)
        response = self._connection.getresponse()
        data = response.read()
        if response.status != 200:
            raise RuntimeError(f"the WebUI answered {response.status}: {shown(data.decode())}")
        return json.loads(data)

    def close(self) -> None:
        """Close the kept connection."""
        self._connection.close()


def main() -> int:
    """Measure, print the tables and the line of JSON; 0 means that it ran."""
    parser = argparse.ArgumentParser("python -m benchmarks.surface", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--runs", type=int, default=100, help="requests of a route (default: 100)")
    parser.add_argument("--quick", action="store_true", help=f"--runs {QUICK_RUNS}")
    options = parser.parse_args()
    if options.runs < 1:
        parser.error("--runs must be 1 or more")
    run_as_in_the_container()
    runs = QUICK_RUNS if options.quick else options.runs
    logging.disable(logging.WARNING)
    step_ms = QUICK_STEP_MS if options.quick else STEP_MS
    with (
        tempfile.TemporaryDirectory(prefix="a1111-bench-") as folder,
        world(Path(folder), step_ms) as made,
    ):
        idle, busy, waited = asyncio.run(measured(made, runs))
    rows = [*rows_of(IDLE, idle), *rows_of(BUSY, busy)]
    read = read_body(large_body(NOISE_SIDE_PX), runs)
    print(table(rows))
    print(f"\n{table(read)}")
    print(f"\nread-only requests that waited for the picture: {waited}, aim: {WAITED_LIMIT}")
    aim = Aim("read-only requests that waited for a generation", waited, WAITED_LIMIT)
    print(as_line("surface", runs, [*rows, *read], [aim]))
    return 0


@contextlib.contextmanager
def world(folder: Path, step_ms: int) -> Iterator[World]:
    """Start a WebUI with one checkpoint, and wire a worker to it; end both with the context."""
    volume, links = folder / "volume", folder / "links"
    models.write_checkpoint(volume / "models" / "checkpoints" / "one.safetensors", seed="one")
    links.mkdir()
    with simulated("webui", "--models-dir", links, "--step-ms", step_ms) as url:
        port = int(url.rpartition(":")[2])
        settings = Settings(
            cache=CacheSettings(volume=volume), webui=WebuiSettings(port=port, links=links)
        )
        with wired(settings) as runner:
            handler = Jobs(runner.run, settings.job, online=False).handle
            with contextlib.closing(World(port, handler)) as made:
                yield made


async def measured(made: World, runs: int) -> tuple[Found, Found, int]:
    """Return the times while A1111 is idle and while it makes a picture, and how many reads waited.

    Raises:
        RuntimeError: a request failed, or a picture took no time.
    """
    (picture,) = (await made.through_worker(SMALL))["images"]
    idle = await alternately(made, requests(picture), runs)
    # As many as there may be, so that the picture is not done before all have been asked.
    steps = JobSettings().max_steps
    generation = asyncio.create_task(made.through_worker({**SMALL, "steps": steps}))
    progress = Asked("GET", f"{PREFIX}progress")
    while not (await made.through_worker(progress.envelope))["state"]["job"]:
        if generation.done():
            raise RuntimeError("The picture was done before anything was asked.")
    reads = [asked for asked in requests(picture) if asked.reads]
    waited = 0

    def count_waited() -> None:
        nonlocal waited
        waited += generation.done()

    busy = await alternately(made, reads, min(runs, BUSY_RUNS), count_waited)
    await generation
    return idle, busy, waited


def requests(picture: str) -> list[Asked]:
    """Return every route that only reads and that every A1111 has, and three that take a picture."""
    reads = [
        Asked(route.method, route.path)
        for route in ROUTES
        if route.method == "GET" and not route.brought_by
    ]
    upscaling = {"upscaler_1": "Lanczos", "upscaling_resize": 2}
    batch = [{"data": picture, "name": "a"}]
    return [
        *reads,
        Asked("POST", f"{PREFIX}png-info", {"image": picture}),
        Asked("POST", f"{PREFIX}extra-single-image", {**upscaling, "image": picture}),
        Asked("POST", f"{PREFIX}extra-batch-images", {**upscaling, "imageList": batch}),
    ]


async def alternately(
    made: World,
    requested: Sequence[Asked],
    runs: int,
    after: Callable[[], None] = lambda: None,
) -> Found:
    """Return the times of each request, made `runs` times in both ways; `after` each job is called.

    Raises:
        RuntimeError: the two ways gave different answers.
    """
    order = random.Random(0)
    found = [Times(asked, [], []) for asked in requested]
    for turn in range(-1, runs):
        for times in order.sample(found, len(found)):
            started = time.perf_counter()
            ours = await made.through_worker(times.asked.envelope)
            between = time.perf_counter()
            theirs = made.direct(times.asked)
            ended = time.perf_counter()
            after()
            if ours != theirs and times.asked.path not in CHANGING:
                raise RuntimeError(f"The worker answers {times.asked.path} in another way.")
            if turn >= 0:
                times.worker.append(between - started)
                times.direct.append(ended - between)
    return found


def rows_of(while_: str, found: Found) -> list[dict[str, object]]:
    """Return a row for each request: its times through the worker, and what that adds."""
    return [
        {
            "what": f"{times.asked.method} {times.asked.path}, {while_}",
            "runs": len(times.worker),
            **milliseconds(times.worker),
            "direct_p50_ms": milliseconds(times.direct)["p50_ms"],
            "own_p50_ms": round(percentile(times.own, 50) * 1000, 2),
        }
        for times in found
    ]


def large_body(side_px: int) -> bytes:
    """Return the JSON of an img2img job whose picture is noise of `side_px` x `side_px`."""
    noise = random.Random(0).randbytes(3 * side_px**2)
    output = io.BytesIO()
    Image.frombytes("RGB", (side_px, side_px), noise).save(output, "PNG", compress_level=1)
    picture = base64.b64encode(output.getvalue()).decode()
    return json.dumps({**SMALL, "init_images": [picture]}).encode()


def read_body(body: bytes, runs: int) -> list[dict[str, object]]:
    """Return a row for each step in which the worker reads `body`, before A1111 hears of it."""
    limits = JobSettings()
    value = json.loads(body)
    job = parse(value, limits).job
    if not isinstance(job, Generation):
        raise TypeError("The body is no generation.")
    size = f"img2img of {len(body) / 1e6:.1f} MB"
    steps: dict[str, Callable[[], object]] = {
        "JSON, as the SDK reads it": lambda: json.loads(body),
        "fields and types": lambda: parse(value, limits),
        "the picture decoded": lambda: images.checked(job, limits.max_input_pixels),
    }
    return [
        {"what": f"{size}, {name}", "runs": runs, **timed(step, runs), "peak_mb": peak_mb(step)}
        for name, step in steps.items()
    ]


def timed(work: Callable[[], object], runs: int) -> dict[str, float]:
    """Return how long `work` takes."""
    taken = []
    for _ in range(runs):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return milliseconds(taken)


def peak_mb(work: Callable[[], object]) -> float:
    """Return by how much the resident memory of this process grew at most during `work`, in MB.

    Source: proc(5), /proc/pid/clear_refs: 5 sets the peak, VmHWM, back to what is resident;
    malloc_trim(3): before that, what was freed is given back, which else would be taken again unseen.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident_kib("VmRSS")
    result = work()
    grown = _resident_kib("VmHWM") - before
    del result
    return round(grown * 1024 / 1e6, 1)


def _resident_kib(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    sys.exit(main())
