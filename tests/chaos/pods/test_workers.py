"""Whole workers, each with its A1111 on a host of its own, on one volume and one queue."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.chaos import relay
from tests.chaos.conftest import Chaos
from tests.chaos.hosts import Host
from tests.chaos.pods.conftest import Volumes, a_host, one_number
from tests.chaos.soundness import require_sound
from tests.conftest import ROOT
from tests.e2e.conftest import World, started
from tests.e2e.container import hasty_world

pytestmark = pytest.mark.slow

# The same on each host.
PORT = 3000
STEP_MS = 25
JOBS = 4


@dataclass(frozen=True)
class Pod:
    """A host with a worker and its A1111."""

    host: Host
    worker: "subprocess.Popen[bytes]"
    log: Path


@contextmanager
def a_pod(world: World, volumes: Volumes, volume: Path, name: str) -> Iterator[Pod]:
    """Start one; whatever runs on it ends with it."""
    folder = world.folder / name
    folder.mkdir()
    own = replace(world, folder=folder)
    own.links.mkdir()
    webui = [sys.executable, "-m", "simulator", "webui", "--models-dir", str(own.links)]
    settings = {"A1111_CACHE_VOLUME": str(volume), "RUNPOD_POD_ID": name}
    with ExitStack() as stack:
        host = stack.enter_context(a_host(name, volumes))
        one_number([host])
        stack.enter_context(relay.reachable([world.queue.url, world.hub.url], [host]))
        beside = subprocess.Popen(
            [*host.inside, *webui, "--port", str(PORT), "--step-ms", str(STEP_MS)],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
        )
        stack.callback(beside.wait)
        handler = [*host.inside, sys.executable, "-u", str(ROOT / "rp_handler.py")]
        worker = stack.enter_context(started(own, handler, PORT, settings))
        stack.callback(host.kill)
        yield Pod(host, worker, own.log)


@contextmanager
def two_pods(folder: Path, volumes: Volumes) -> Iterator[tuple[World, Path, dict[str, Pod]]]:
    """Have a world, the volume in it, and two workers by their names."""
    volume = volumes.place / folder.name
    volume.mkdir()
    with hasty_world(folder) as world, ExitStack() as stack:
        names = ("pod-a", "pod-b")
        pods = {name: stack.enter_context(a_pod(world, volumes, volume, name)) for name in names}
        yield world, volume, pods


def wish(world: World, seed: int, steps: int) -> dict[str, Any]:
    """Return a job that wants a checkpoint and a LoRA."""
    lora = {"name": "tweak", "url": f"{world.hub.url}/model.safetensors"}
    size = {"width": 64, "height": 64}
    return world.request(seed=seed, steps=steps, loras=[lora], **size)


def worker_of(world: World, job_id: str) -> str:
    """Return which worker has a job, or had it last."""
    return str(world.status(job_id)["workerId"])


def test_workers_on_two_hosts_fetch_each_model_once_and_the_death_of_one_costs_no_job(
    tmp_path: Path, volumes: Volumes, chaos: Chaos
) -> None:
    with two_pods(tmp_path, volumes) as (world, volume, pods):
        ids = [world.run(wish(world, seed, 10)) for seed in range(JOBS)]
        done = [world.wait(job_id, "COMPLETED", "FAILED", within_s=60) for job_id in ids]
        assert {job["status"] for job in done} == {"COMPLETED"}, [job.get("output") for job in done]
        assert {worker_of(world, job_id) for job_id in ids} == set(pods)
        assert len({picture for job in done for picture in job["output"]["images"]}) == JOBS
        assert set(world.fetches().values()) == {1.0}

        last_id = world.run(wish(world, JOBS, 80))
        world.wait(last_id, "IN_PROGRESS")
        doomed = pods[worker_of(world, last_id)]
        doomed.host.kill()
        assert doomed.worker.wait(60) == -signal.SIGKILL
        last = world.wait(last_id, "COMPLETED", "FAILED", within_s=60)

        assert last["status"] == "COMPLETED", last
        assert worker_of(world, last_id) != doomed.host.name
        assert set(world.fetches().values()) == {1.0}
    chaos.tell("jobs of whole workers, of whose hosts one died", JOBS + 1, JOBS + 1)
    require_sound(volume, world.files)
