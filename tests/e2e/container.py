"""A worker that the real start.sh started, so that A1111 is its own child: to be killed, hung, restarted.

    with make_container(folder, {"step_ms": 20, "starts": [{"faults": […]}, {}]}) as container:
        container.done({"prompt": "a cat"})
        os.kill(container.webui_pid, signal.SIGKILL)

What A1111 is told, at all of its starts and at each, is in simulator/webui/starts.py.
"""

import contextlib
import dataclasses
import os
import secrets
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from types import MappingProxyType
from typing import Any

import requests

from simulator.webui import starts
from tests.conftest import ROOT
from tests.e2e.conftest import World, make_world, started

# In place of A1111's interpreter: the simulator for A1111 itself, Python for whatever else is asked.
WEBUI_PYTHON = """#!/bin/sh
[ "$1 $2" = "-u launch.py" ] || exec {python} "$@"
shift 2
unset COVERAGE_PROCESS_CONFIG COVERAGE_PROCESS_START
cd {root} && exec {python} -m simulator webui --starts {starts} "$@"
"""
# What A1111 is told at a start at which it is to stand still, its port not open yet; see `let_start`.
HELD = {
    "faults": [
        {"kind": "die", "when": "booting", "signal": signal.SIGSTOP, "text": "A1111 is held"}
    ]
}


@dataclass
class Container(World):
    """A worker with its A1111 as a child. A1111's port stays the same through restarts."""

    worker: Popen[bytes]
    port: int

    def tell(self, **told: Any) -> None:
        """Set what A1111 is told at its next starts; `starts` counts from the very first one."""
        starts.tell(self.folder / "starts.json", told)

    @property
    def webui_pids(self) -> list[int]:
        """The process of each start of A1111, that of the last one last."""
        return starts.begun(self.folder / "starts.json")

    @property
    def webui_pid(self) -> int:
        """The process of the last start, alive or not, once there is one."""
        self.until(lambda: bool(self.webui_pids), "A1111 is started")
        return self.webui_pids[-1]

    def let_start(self) -> None:
        """Let an A1111 go on that is HELD, once it stands still."""
        self.until(lambda: _state_of(self.webui_pid) == "T", "A1111 stands still")
        os.kill(self.webui_pid, signal.SIGCONT)

    def faults(self, **order: Any) -> None:
        """Make the running A1111 misbehave, see simulator/webui/faults.py."""
        requests.post(f"{self._url}/simulator/faults", json=order, timeout=10).raise_for_status()

    def until_struck(self) -> None:
        """Wait until the running A1111 has met each of its faults."""

        def has_struck() -> bool:
            return not requests.get(f"{self._url}/simulator/faults", timeout=10).json()["faults"]

        self.until(has_struck, "A1111 is struck")

    def journal(self) -> dict[str, Any]:
        """Return what the running A1111 was asked and did since its start."""
        answer = requests.get(f"{self._url}/simulator/journal", timeout=10)
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        return found

    def sent(self) -> list[dict[str, Any]]:
        """Return what the running A1111 was asked to draw; without `status`, it is at it."""
        entries: list[dict[str, Any]] = self.journal()["requests"]
        return [entry for entry in entries if entry["path"].endswith(("/txt2img", "/img2img"))]

    @property
    def _url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def is_listening(self) -> bool:
        """Return whether an A1111 answers."""
        try:
            self.journal()
        except requests.RequestException:
            return False
        return True

    def done(self, value: Any, within_s: float = 30) -> dict[str, Any]:
        """Post `value` as a job's input and return the job once it has ended, well or not."""
        job_id = self.run(value)
        going = {"IN_QUEUE", "IN_PROGRESS"}
        self.until(lambda: self.status(job_id)["status"] not in going, "the job's end", within_s)
        return self.status(job_id)

    def until_ready(self, starts: int = 0) -> None:
        """Wait until the worker knows that A1111 answers, after so many starts, or those there were."""

        def is_ready() -> bool:
            number = max(starts, len(self.webui_pids), 1)
            return len(self.said("A1111 answers after")) >= number

        self.until(is_ready, "the worker knows that A1111 answers")

    @property
    def processes(self) -> list[int]:
        """Every process of the worker that is left: itself, A1111, what tells the queue that it lives."""
        found = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
        # The first A1111 has a session of its own.
        sessions = {self.worker.pid, *self.webui_pids}
        return [pid for pid in found if not has_ended(pid) and _session_of(pid) in sessions]

    @property
    def private(self) -> list[Path]:
        """What is on its way to the volume: models, and now and then a record."""
        return list((self.volume / "models" / ".worker" / "tmp").glob("*"))

    def until_fetching(self) -> None:
        """Wait until a model is on its way: what is a record has no key in its name."""
        self.until(
            lambda: any(path.name.count(".") > 1 for path in self.private), "a model is fetched"
        )


@contextlib.contextmanager
def make_container(
    folder: Path, told: Mapping[str, Any] = MappingProxyType({}), **environment: str
) -> Iterator[Container]:
    """Start everything; at the end no process is left, whatever the worker is by then.

    Args:
        folder: an empty one for hub, volume, links, A1111's data, logs.
        told: what A1111 is told at its starts.
        environment: the worker's, in whose values `{hub}` stands for the hub's URL.
    """
    with make_world(folder) as world, made_in(world, folder, told, **environment) as made:
        yield made


def hasty_world(folder: Path) -> contextlib.AbstractContextManager[World]:
    """Start what is round a worker, with a queue that gives a dead worker's job away after 6 s."""
    return make_world(folder, "--time-scale", 5)


@contextlib.contextmanager
def made_in(
    world: World,
    folder: Path,
    told: Mapping[str, Any] = MappingProxyType({}),
    **environment: str,
) -> Iterator[Container]:
    """Start a worker with a disk of its own in `folder`; see `make_container`.

    In another folder than the world's it is another worker, of the same volume.
    """
    if folder != world.folder:
        folder.mkdir()
        (folder / "volume").symlink_to(world.volume)
        (folder / "hub").symlink_to(world.files)
        world = dataclasses.replace(world, folder=folder)
        environment = {"RUNPOD_POD_ID": folder.name, **environment}
    (folder / "webui").mkdir()
    (folder / "webui" / "launch.py").touch()
    stand_in = folder / "webui-python"
    told_in = folder / "starts.json"
    stand_in.write_text(WEBUI_PYTHON.format(python=sys.executable, root=ROOT, starts=told_in))
    stand_in.chmod(0o755)
    starts.tell(told_in, told)
    environment = {
        "WORKER_PYTHON": sys.executable,
        "WORKER_CACHE_DIR": str(folder / "cache"),
        "WEBUI_DIR": str(folder / "webui"),
        "WEBUI_PYTHON": str(stand_in),
        "WEBUI_DATA_DIR": str(folder / "data"),
        "WEBUI_MALLOC": "",
        **environment,
    }
    with (
        _reserved_port() as port,
        started(world, [str(ROOT / "start.sh")], port, environment) as worker,
    ):
        yield Container(**vars(world), worker=worker, port=port)


def require_answers(world: World) -> None:
    """See that the queue got one answer for each job that ended, none for a cancelled one, none late."""
    journal = world.queue.get("/simulator/journal")
    assert journal["violations"] == []
    assert [line for line in journal["late"] if ": result " in line] == []
    expected = {"COMPLETED": 1, "FAILED": 1, "CANCELLED": 0}
    wrong = [job for job in journal["jobs"] if job["answers"] != expected.get(job["status"])]
    assert wrong == []


def has_ended(pid: int) -> bool:
    """Return whether there is no such process, or but its remains, which nobody has waited for."""
    return _state_of(pid) in {"", "Z"}


def _state_of(pid: int) -> str:
    """Return the letter of its state, "" if there is no such process. Source: proc(5), /proc/pid/stat."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])


def _session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


@contextlib.contextmanager
def _reserved_port() -> Iterator[int]:
    """Yield a port that nobody else gets who asks whether it is free, or for any.

    A1111 opens it a second later, and again after each restart; whoever were given it meanwhile would be
    asked in its place. Source: ip(7), ip_local_port_range begins at 32768; socket(7), SO_REUSEADDR: who
    sets it may bind, and listen, beside a socket that has it and does not listen.
    """
    with socket.socket() as reserved:
        while True:
            port = 20_000 + secrets.randbelow(12_768)
            with contextlib.suppress(OSError):
                reserved.bind(("127.0.0.1", port))
                break
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        yield port
