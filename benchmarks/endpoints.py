"""Workers at queues of their own, real processes under the real SDK loop, to be given jobs and timed.

Times are those of the queue's clock: from the moment that it handed a job out to that of its answer.
"""

import contextlib
import json
import sys
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks.containers import asked, environment_of, get, running
from benchmarks.simulators import ROOT, STOP_S, simulated
from simulator import models

CHECKPOINT = "default"
"""What lies on each worker's volume."""
_HOLD_S = 2


@dataclass(frozen=True)
class Span:
    """One job at its worker, in seconds of the queue's clock."""

    taken: float
    answered: float

    @property
    def s(self) -> float:
        """How long it was there."""
        return self.answered - self.taken


class Endpoint:
    """A queue with one worker, and the A1111 that it asks."""

    def __init__(self, queue_url: str, webui_url: str) -> None:
        self._queue_url = queue_url
        self._webui_url = webui_url
        self._environ = environment_of(queue_url)
        self._ended = 0

    def spans(self, values: Sequence[Mapping[str, Any]]) -> list[Span]:
        """Have jobs done that are in the queue at the same time; return them in the order of `values`.

        Raises:
            RuntimeError: one gave no picture.
        """
        with ExitStack() as stack:
            waiting = [stack.enter_context(asked(self._environ, value)) for value in values]
            jobs = [answer() for answer in waiting]
        for job in jobs:
            if not (job.get("output") or {}).get("images"):
                raise RuntimeError(f"A job failed: {job}")
        ended = get(f"{self._queue_url}/simulator/ended?after={self._ended}")["jobs"]
        self._ended += len(ended)
        spans = {job["id"]: _span(job["history"]) for job in ended}
        return [spans[job["id"]] for job in jobs]

    def slow_down(self, step_ms: float) -> None:
        """Let each sampling step of A1111 take so long."""
        body = json.dumps({"step_ms": step_ms}).encode()
        url = f"{self._webui_url}/simulator/faults"
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310 - on loopback
        with urllib.request.urlopen(request, timeout=STOP_S) as response:  # noqa: S310 - on loopback
            response.read()

    def seeds(self) -> list[int]:
        """Return the seeds of all that A1111 was asked to draw, in that order."""
        journal = get(f"{self._webui_url}/simulator/journal")
        sent = [one for one in journal["requests"] if one["path"] == "/sdapi/v1/txt2img"]
        return [one["body"]["seed"] for one in sent]


def _span(history: Sequence[tuple[float, str, str]]) -> Span:
    at = {what: when for when, what, _ in history}
    return Span(at["taken"], at["accepted"])


@contextlib.contextmanager
def worker(
    folder: Path, environ: Mapping[str, str] = MappingProxyType({})
) -> Iterator[tuple[Endpoint, int]]:
    """Start this worker; yield it, and the port of its A1111.

    Args:
        folder: an empty one, for the volume, with one checkpoint, and the links.
        environ: settings besides.
    """
    volume, links = folder / "volume", folder / "links"
    models.write_checkpoint(
        volume / "models" / "checkpoints" / f"{CHECKPOINT}.safetensors", seed=CHECKPOINT
    )
    with (
        simulated("queue", "--hold-s", _HOLD_S) as queue_url,
        simulated("webui", "--models-dir", links) as webui_url,
    ):
        port = webui_url.rpartition(":")[2]
        settings = {
            "A1111_CACHE_VOLUME": str(volume),
            "A1111_CACHE_ALLOW_PRIVATE_HOSTS": "true",
            "A1111_WEBUI_PORT": port,
            "A1111_WEBUI_LINKS": str(links),
            **environ,
        }
        argv = [sys.executable, "-u", str(ROOT / "rp_handler.py")]
        with running(argv, {**environment_of(queue_url), **settings}):
            yield Endpoint(queue_url, webui_url), int(port)


@contextlib.contextmanager
def bare(port: int, concurrency: int) -> Iterator[Endpoint]:
    """Start a `bare_worker` at a queue of its own, on the A1111 at `port`."""
    argv = [sys.executable, "-u", "-m", "benchmarks.bare_worker"]
    argv += ["--port", str(port), "--concurrency", str(concurrency)]
    with (
        simulated("queue", "--hold-s", _HOLD_S) as queue_url,
        running(argv, environment_of(queue_url)),
    ):
        yield Endpoint(queue_url, f"http://127.0.0.1:{port}")
