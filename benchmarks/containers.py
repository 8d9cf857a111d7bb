"""A container of ours or of the older kind, from its start to the picture of a job that waits for it.

Its A1111 is a simulator that boots and loads in given times, under the real start.sh, RunPod's queue is
one, too, and so is the host of the checkpoint that the job wants, which takes a given time to come. A
default checkpoint, which the job does not want, lies on the volume; each container has a new one.
"""

import contextlib
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from benchmarks.simulators import ROOT, STOP_S, simulated
from simulator import models

# So small that the store has no use for a second connection: all ways fetch it at the same rate.
SIZE_BYTES = 1_500_000
ANSWER_S = 120
_TOLD_BYTES = 4000
# Below those that Linux gives to whoever asks for any. Source: ip(7), ip_local_port_range.
_PORTS = (20_000, 32_768)
_OURS = ("A1111_", "RUNPOD_", "HF_", "CIVITAI_", "AWS_", "WEBUI_", "WORKER_", "COMMANDLINE_ARGS")
_PICTURE = {"prompt": "a lighthouse", "steps": 1, "width": 64, "height": 64, "seed": 1}

# In place of A1111's interpreter: the simulator for A1111 itself, Python for whatever else is asked.
_WEBUI_PYTHON = """#!/bin/sh
[ "$1 $2" = "-u launch.py" ] || exec {python} "$@"
shift 2
cd {root} && exec {python} -m simulator webui --boot-s {boot_s} --load-s {load_s} "$@"
"""


@dataclass(frozen=True)
class Scene:
    """How long what nobody can shorten takes, in seconds."""

    boot_s: float
    load_s: float
    download_s: float

    def __str__(self) -> str:
        return f"T {self.boot_s:g} L {self.load_s:g} D {self.download_s:g}"


@dataclass(frozen=True)
class Place:
    """One container's own, and what its job wants."""

    scene: Scene
    folder: Path
    """An empty one."""
    hub_url: str
    """A host that has `job.safetensors`."""

    @property
    def url(self) -> str:
        """Where the job's checkpoint comes from, in the time of the scene."""
        rate = round(SIZE_BYTES / self.scene.download_s)
        return f"{self.hub_url}/job.safetensors?fault-rate={rate}"

    def webui(self, port: int) -> list[str]:
        """Return the command line of an A1111 that sees the models below the folder."""
        return [
            *(sys.executable, "-m", "simulator", "webui", "--port", str(port)),
            *("--models-dir", str(self.folder / "models")),
            *("--boot-s", str(self.scene.boot_s), "--load-s", str(self.scene.load_s)),
        ]

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints of that A1111."""
        return self.folder / "models" / "Stable-diffusion"


@dataclass(frozen=True)
class Container:
    """What is started, and the job that waits for it."""

    argv: Sequence[str]
    environ: Mapping[str, str]
    job: Mapping[str, Any]
    port: int
    """Of its A1111."""


@dataclass(frozen=True)
class Cold:
    """What came of it."""

    s: float
    """From the start of the container to the answer with the picture."""
    loads: int
    """How many checkpoints A1111 loaded meanwhile."""


def ours(place: Place, *, eager: bool) -> Container:
    """Return a container as the image has it: start.sh, and A1111 as the worker's child."""
    folder, port = place.folder, free_port()
    models.write_checkpoint(
        folder / "volume" / "models" / "checkpoints" / "default.safetensors", seed="default"
    )
    (folder / "webui").mkdir()
    (folder / "webui" / "launch.py").touch()
    python = folder / "webui-python"
    python.write_text(
        _WEBUI_PYTHON.format(
            python=sys.executable,
            root=ROOT,
            boot_s=place.scene.boot_s,
            load_s=place.scene.load_s,
        )
    )
    python.chmod(0o755)
    environ = {
        "WORKER_PYTHON": sys.executable,
        "WORKER_CACHE_DIR": str(folder / "cache"),
        "WEBUI_DIR": str(folder / "webui"),
        "WEBUI_PYTHON": str(python),
        "WEBUI_DATA_DIR": str(folder / "data"),
        "WEBUI_MALLOC": "",
        "A1111_CACHE_VOLUME": str(folder / "volume"),
        "A1111_CACHE_ALLOW_PRIVATE_HOSTS": "true",
        "A1111_WEBUI_PORT": str(port),
        "A1111_WEBUI_LINKS": str(folder / "links"),
        "A1111_WEBUI_EAGER": str(eager).lower(),
    }
    job = {**_PICTURE, "checkpoint": {"name": "job", "url": place.url}}
    return Container([str(ROOT / "start.sh")], environ, job, port)


def older(place: Place, *, until_loaded: bool) -> Container:
    """Return a container of the older kind, see `older_container`."""
    port = free_port()
    models.write_checkpoint(place.checkpoints / "default.safetensors", seed="default")
    argv = [
        *(sys.executable, "-m", "benchmarks.older_container", "--port", str(port)),
        *(["--until-loaded"] if until_loaded else []),
        *("--", *place.webui(port)),
    ]
    job = {
        "source_url": place.url,
        "download_path": str(place.checkpoints / "job.safetensors"),
        "payload": {**_PICTURE, "override_settings": {"sd_model_checkpoint": "job.safetensors"}},
    }
    return Container(argv, {}, job, port)


def first_picture(container: Container) -> Cold:
    """Start the container while its job waits in the queue, and end it after the answer.

    Raises:
        RuntimeError: the job failed.
    """
    with simulated("queue", "--hold-s", 2) as queue_url:
        environ = environment_of(queue_url)
        with asked(environ, container.job) as answer:
            started = time.perf_counter()
            with running(container.argv, {**environ, **container.environ}):
                job = answer()
                took = time.perf_counter() - started
                if not (job.get("output") or {}).get("images"):
                    raise RuntimeError(f"A job failed: {job}")
                loads = get(f"http://127.0.0.1:{container.port}/simulator/journal")["loads"]
    return Cold(took, loads)


def alone(place: Place) -> Scene:
    """Return how long each thing takes by itself: no worker, one after the other."""
    started = time.perf_counter()
    with urllib.request.urlopen(place.url, timeout=ANSWER_S) as response:  # noqa: S310 - on loopback
        data = response.read()
    download_s = time.perf_counter() - started
    place.checkpoints.mkdir(parents=True)
    (place.checkpoints / "job.safetensors").write_bytes(data)
    port = free_port()
    started = time.perf_counter()
    with running([*place.webui(port), "--skip-load-model-at-start"], {}) as webui:
        while not _listens(port):
            if webui.poll() is not None or time.perf_counter() > started + ANSWER_S:
                raise RuntimeError("The simulator webui did not start.")
            time.sleep(0.01)
        boot_s = time.perf_counter() - started
        started = time.perf_counter()
        _post(f"http://127.0.0.1:{port}/sdapi/v1/txt2img", _PICTURE)
        return Scene(boot_s, time.perf_counter() - started, download_s)


@contextlib.contextmanager
def running(argv: Sequence[str], environ: Mapping[str, str]) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a process with these variables beside ours; it and all that it started end after.

    A RuntimeError in the context is given what they said.
    """
    inherited = {
        name: value
        for name, value in os.environ.items()  # noqa: TID251 - a child's PATH
        if not name.startswith(_OURS)
    }
    with tempfile.TemporaryFile() as said:
        child = subprocess.Popen(
            argv,
            cwd=ROOT,
            env={**inherited, **environ, "RUNPOD_LOG_LEVEL": "WARN"},
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield child
        except RuntimeError as error:
            said.seek(0)
            error.add_note(said.read()[-_TOLD_BYTES:].decode(errors="replace"))
            raise
        finally:
            child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(STOP_S)
            # The older ones leave A1111 behind, and the SDK its ping process.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()


@contextlib.contextmanager
def asked(
    environ: Mapping[str, str], value: Mapping[str, Any]
) -> Iterator[Callable[[], dict[str, Any]]]:
    """Put a job into the queue; yield what waits for its answer and returns it."""
    url = urlsplit(environ["RUNPOD_WEBHOOK_GET_JOB"].partition("/job-take/")[0])
    connection = http.client.HTTPConnection(url.netloc, timeout=ANSWER_S)
    headers = {"Authorization": environ["RUNPOD_AI_API_KEY"]}
    body = json.dumps({"input": value})
    connection.request("POST", f"{url.path}/runsync?wait={ANSWER_S * 1000}", body, headers)

    def answer() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(connection.getresponse().read())
        return found

    with contextlib.closing(connection):
        yield answer


def environment_of(queue_url: str) -> dict[str, str]:
    """Return the variables with which a worker takes jobs from the queue."""
    found: dict[str, str] = get(f"{queue_url}/simulator/env")
    return found


def get(url: str, environ: Mapping[str, str] = MappingProxyType({})) -> Any:
    """Return the JSON at a URL of a simulator; `environ` has the key if one is needed."""
    headers = {"Authorization": environ.get("RUNPOD_AI_API_KEY", "")}
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - on loopback
    with urllib.request.urlopen(request, timeout=STOP_S) as response:  # noqa: S310 - on loopback
        return json.loads(response.read())


def _post(url: str, body: Mapping[str, Any]) -> None:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)  # noqa: S310
    with urllib.request.urlopen(request, timeout=ANSWER_S) as response:  # noqa: S310 - on loopback
        response.read()


def free_port() -> int:
    """Return a port that nobody listens at now, nor is given by the system until A1111 has booted."""
    while True:
        port = random.randrange(*_PORTS)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
