"""A whole worker: the real handler process under the real SDK loop, with simulators around it."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from simulator import models
from tests.conftest import ROOT, Simulator, running


class Places:
    """Where a worker's files are, all below one folder."""

    folder: Path

    @property
    def volume(self) -> Path:
        return self.folder / "volume"

    @property
    def links(self) -> Path:
        return self.folder / "links"


@dataclass
class World(Places):
    """What is round a worker: queue and model hosts, as processes, and the folders it is given."""

    queue: Simulator
    hub: Simulator
    folder: Path
    env: dict[str, str]
    digests: dict[str, str]

    @property
    def files(self) -> Path:
        """What the hub serves."""
        return self.folder / "hub"

    @property
    def log(self) -> Path:
        """What the worker says."""
        return self.folder / "worker.log"

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        url = self.env["RUNPOD_WEBHOOK_GET_JOB"].partition("/job-take/")[0] + path
        headers = {"Authorization": f"Bearer {self.env['RUNPOD_AI_API_KEY']}"}
        with requests.Session() as session:
            session.trust_env = False  # pytest changes the environment while threads wait here
            response = session.request(method, url, json=body, headers=headers, timeout=100)
        assert response.ok, response.text
        return response.json()

    def runsync(self, value: Any) -> dict[str, Any]:
        """Post `value` as a job's input and return the finished job."""
        job: dict[str, Any] = self._call("POST", "/runsync", {"input": value})
        return job

    def run(self, value: Any) -> str:
        return str(self._call("POST", "/run", {"input": value})["id"])

    def status(self, job_id: str) -> dict[str, Any]:
        job: dict[str, Any] = self._call("GET", f"/status/{job_id}")
        return job

    def cancel(self, job_id: str) -> None:
        self._call("POST", f"/cancel/{job_id}")

    def wait(self, job_id: str, *statuses: str, within_s: float = 30) -> dict[str, Any]:
        deadline = time.monotonic() + within_s
        while (job := self.status(job_id))["status"] not in statuses:
            assert time.monotonic() < deadline, job
            time.sleep(0.05)
        return job

    def said(self, words: str) -> list[str]:
        """Return the lines of the worker's log with these words."""
        lines = self.log.read_text(errors="replace").splitlines()
        return [line for line in lines if words in line]

    def until(self, holds: Callable[[], bool], what: str, within_s: float = 30) -> None:
        """Wait until `holds()`, looking every 20 ms; `what` is what is waited for, in words."""
        deadline = time.monotonic() + within_s
        while not holds():
            said = self.log.read_text(errors="replace")[-3000:]
            assert time.monotonic() < deadline, f"{what}: not within {within_s} s\n{said}"
            time.sleep(0.02)

    def stop_host(self) -> None:
        """Keep every model from coming, until `start_host`."""
        os.kill(self.hub.process.pid, signal.SIGSTOP)

    def start_host(self) -> None:
        os.kill(self.hub.process.pid, signal.SIGCONT)

    @contextlib.contextmanager
    def host_stopped(self) -> Iterator[None]:
        """Keep every model inside from coming."""
        self.stop_host()
        try:
            yield
        finally:
            self.start_host()

    def fetches(self) -> dict[str, float]:
        """Return how many times the bytes of each file were sent."""
        files = self.hub.get("/simulator/journal")["files"]
        return {name: seen["copies"] for name, seen in files.items()}

    def request(self, **changes: Any) -> dict[str, Any]:
        """Return the README's request, its URLs pointing at the hub."""
        return {
            "prompt": "a beautiful landscape with mountains and lake",
            "negative_prompt": "blurry, bad quality, low resolution",
            "steps": 25,
            "cfg_scale": 7.5,
            "width": 512,
            "height": 512,
            "sampler_name": "DPM++ 2M Karras",
            "seed": 42,
            "checkpoint": {
                "name": "deliberate_v6",
                "url": f"{self.hub.url}/Deliberate_v6.safetensors",
                "hash": self.digests["checkpoint"],
            },
            "loras": [
                {
                    "name": "landscape_enhancer",
                    "url": f"{self.hub.url}/api/download/models/12345",
                    "scale": 0.8,
                },
                {
                    "name": "detail_tweaker",
                    "url": f"{self.hub.url}/model.safetensors",
                    "scale": 0.5,
                },
            ],
            **changes,
        }


@dataclass
class Stack(World):
    """With an A1111 beside the worker; each can be spoken to and killed."""

    webui: Simulator
    worker: subprocess.Popen[bytes]

    def faults(self, **order: Any) -> None:
        """Make A1111 misbehave, see simulator/webui/faults.py."""
        self.webui.post("/simulator/faults", order)

    def until_struck(self) -> None:
        """Wait until A1111 has met each of its faults."""
        self.until(lambda: not self.webui.get("/simulator/faults")["faults"], "A1111 is struck")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One worker for all tests of a module: what one job does must not show in the next."""
    folder = tmp_path_factory.mktemp("stack")
    with make_stack(folder, A1111_CACHE_HF_ENDPOINT="{hub}") as made:
        yield made


@contextlib.contextmanager
def make_world(folder: Path, *queue_flags: object) -> Iterator[World]:
    """Start what is round a worker; an empty volume, three models on the hub."""
    files = folder / "hub"
    digests = {
        "checkpoint": models.write_checkpoint(files / "Deliberate_v6.safetensors", seed="d"),
        "civitai": models.write_lora(files / "civitai" / "12345" / "l.safetensors", seed="l"),
        "lora": models.write_lora(files / "model.safetensors", seed="m"),
    }
    (folder / "volume").mkdir()
    flags = queue_flags or ("--hold-s", 2)
    with running("queue", *flags) as queue, running("hub", "--root", files) as hub:
        yield World(queue, hub, folder, queue.get("/simulator/env"), digests)


@contextlib.contextmanager
def started(
    world: World, argv: list[str], port: int | str, environment: dict[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a worker by `argv`, whose A1111 listens at `port`, and end all of its processes after."""
    scratch = world.folder / "tmp"  # A1111 that is killed takes nothing away.
    scratch.mkdir(exist_ok=True)
    with world.log.open("wb") as out:
        worker = subprocess.Popen(
            argv,
            cwd=world.folder,
            env={
                **os.environ,  # noqa: TID251 - a child's PATH
                **world.env,
                "RUNPOD_LOG_LEVEL": "INFO",
                "TMPDIR": str(scratch),
                "A1111_CACHE_VOLUME": str(world.volume),
                "A1111_CACHE_ALLOW_PRIVATE_HOSTS": "true",
                "A1111_WEBUI_PORT": str(port),
                "A1111_WEBUI_LINKS": str(world.links),
                **{name: value.format(hub=world.hub.url) for name, value in environment.items()},
            },
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield worker
    finally:
        worker.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.wait(10)
        # The SDK's ping process would outlive a worker that had to be killed.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()


@contextlib.contextmanager
def make_stack(folder: Path, *webui_flags: object, **environment: str) -> Iterator[Stack]:
    """Start everything; in the values of `environment`, `{hub}` stands for the hub's URL."""
    with (
        make_world(folder) as world,
        running("webui", "--models-dir", world.links, *webui_flags) as webui,
        started(
            world,
            [sys.executable, "-u", str(ROOT / "rp_handler.py")],
            webui.url.rpartition(":")[2],
            environment,
        ) as worker,
    ):
        yield Stack(**vars(world), webui=webui, worker=worker)
