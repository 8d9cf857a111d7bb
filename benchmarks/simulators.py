"""The simulators as processes of their own, and a worker's parts wired to one of them."""

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from benchmarks.forks import Nursery
from model_cache.cache import ModelCache
from rp_handler import made, watched
from schemas.settings import Settings
from worker.child.client import WebuiClient
from worker.run import Runner

ROOT = Path(__file__).parent.parent
STOP_S = 10.0
_NURSERY = Nursery("simulator.webui", "simulator.hub", "simulator.queue")


@contextlib.contextmanager
def simulated(name: str, *options: object) -> Iterator[str]:
    """Run one simulator as a process of its own; yield its URL.

    Raises:
        RuntimeError: it did not start.
    """
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - a device
        argv = ("simulator", name, "--port", "0", *map(str, options))
        child = _NURSERY.start(*argv, stderr=nowhere.fileno())
    try:
        line = child.stdout.readline()
        if not line:
            raise RuntimeError(f"The simulator {name} did not start.")
        yield json.loads(line)["url"]
    finally:
        child.terminate()
        try:
            child.wait(STOP_S)
        except subprocess.TimeoutExpired:
            child.kill()
        child.communicate()


@contextlib.contextmanager
def wired(settings: Settings) -> Iterator[Runner]:
    """Yield a worker's path of a job, on the A1111 that listens at the port of `settings`."""
    client = WebuiClient(f"http://127.0.0.1:{settings.webui.port}")
    with contextlib.closing(ModelCache(settings.cache)) as cache:
        cache.start()
        webui = watched(settings, None, client)
        try:
            yield made(settings, cache, client, webui)
        finally:
            webui.stop(STOP_S)
