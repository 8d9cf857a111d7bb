"""What is round the workers of a soak: the host of models, the queue as its clients see it, the volume."""

import contextlib
import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests

from benchmarks.containers import free_port
from tests.conftest import ROOT

TIME_SCALE = 5.0
"""Seconds of the queue's clock in a real one: a dead worker's job is given away after 6 s."""
_ANSWER_S = 30
# The volume of a soak: some hundred small models, and room to see it full.
_VOLUME = "size=192m"


class Hub:
    """The host of models, which can be killed and comes back at the same address."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self.process = self._started()

    def _started(self) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "simulator", "hub"),
                *("--root", str(self._root), "--port", str(self._port)),
            ],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["url"] == self.url
        return process

    def kill(self) -> None:
        """End it at once, with all its connections."""
        with self.process:
            self.process.kill()

    def revive(self) -> None:
        """Start it again."""
        self.process = self._started()

    def spoil(self, **rule: Any) -> None:
        """Let answers go wrong, see simulator/hub/faults.py."""
        requests.post(
            f"{self.url}/simulator/faults", json=rule, timeout=_ANSWER_S
        ).raise_for_status()

    def mend(self) -> None:
        """Let all answers be right again."""
        requests.delete(f"{self.url}/simulator/faults", timeout=_ANSWER_S).raise_for_status()


class Queue:
    """The endpoint as a caller sees it, and what only the simulator can tell."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.env: dict[str, str] = requests.get(f"{url}/simulator/env", timeout=_ANSWER_S).json()
        self._base = self.env["RUNPOD_WEBHOOK_GET_JOB"].partition("/job-take/")[0]
        self._session = requests.Session()
        self._key = {"Authorization": f"Bearer {self.env['RUNPOD_AI_API_KEY']}"}
        self._seen = 0

    def _call(self, path: str, body: Any = None) -> dict[str, Any]:
        answer = self._session.post(
            self._base + path, json=body, headers=self._key, timeout=_ANSWER_S
        )
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        return found

    def run(self, value: Any) -> str:
        """Send a job, and return its id."""
        return str(self._call("/run", {"input": value})["id"])

    def runsync(self, value: Any) -> str:
        """Send a job and wait for the shortest time there is; return its id. From any thread."""
        url = f"{self._base}/runsync?wait=1000"
        answer = requests.post(url, json={"input": value}, headers=self._key, timeout=_ANSWER_S)
        answer.raise_for_status()
        return str(answer.json()["id"])

    def stream(self, job: str) -> list[Any]:
        """Return the pieces that readers of /stream were shown and have not been returned yet."""
        return [message["output"] for message in self._call(f"/stream/{job}")["stream"]]

    def cancel(self, job: str) -> bool:
        """Cancel a job; return whether it had not ended."""
        return bool(self._call(f"/cancel/{job}")["status"] == "CANCELLED")

    def spoil(self, **fault: Any) -> None:
        """Let answers to workers go wrong, see simulator/queue/faults.py."""
        url = f"{self._url}/simulator/faults"
        self._session.post(url, json=fault, timeout=_ANSWER_S).raise_for_status()

    def mend(self) -> None:
        """Let all answers be right again."""
        self._session.delete(f"{self._url}/simulator/faults", timeout=_ANSWER_S).raise_for_status()

    def ended(self) -> tuple[float, list[dict[str, Any]]]:
        """Return the time of the queue's clock, in its seconds, and the jobs that ended since the last call."""
        url = f"{self._url}/simulator/ended?after={self._seen}"
        told = self._session.get(url, timeout=_ANSWER_S).json()
        self._seen += len(told["jobs"])
        return float(told["now"]), told["jobs"]

    def now(self) -> float:
        """Return the time of the queue's clock."""
        url = f"{self._url}/simulator/ended?after={1 << 40}"
        return float(self._session.get(url, timeout=_ANSWER_S).json()["now"])

    def journal(self) -> dict[str, Any]:
        """Return what there is to say of all jobs, see simulator/queue/platform.py."""
        journal: dict[str, Any] = self._session.get(
            f"{self._url}/simulator/journal", timeout=_ANSWER_S
        ).json()
        return journal


def may_mount() -> bool:
    """Return whether a process may have mounts of its own here."""
    tried = ["unshare", "--mount", "--map-root-user", "mount", "-t", "tmpfs", "tmpfs", "/tmp"]
    try:
        return subprocess.run(tried, check=False, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def unshare() -> None:
    """Give this process, which has one thread, mounts of its own and the right to make some.

    To start Python once more by the program of this name would cost a second.

    Raises:
        OSError: it may not.
    """
    user, group = os.geteuid(), os.getegid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS | _CLONE_NEWUSER) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    # Source: user_namespaces(7): who may not set groups may map his own.
    for file, text in (
        ("setgroups", "deny"),
        ("uid_map", f"0 {user} 1"),
        ("gid_map", f"0 {group} 1"),
    ):
        Path(f"/proc/self/{file}").write_text(text)


# Source: linux/sched.h.
_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000


@contextlib.contextmanager
def mounted(volume: Path) -> Iterator[None]:
    """Make `volume` a small file system of its own; it ends with the context, or with this process."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", _VOLUME, "tmpfs", str(volume)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(volume)], check=True)


class Ballast:
    """What fills a volume until it is taken away."""

    def __init__(self, volume: Path) -> None:
        self._file = volume / "ballast"

    def drop(self) -> None:
        """Take it away."""
        self._file.unlink(missing_ok=True)

    def load(self) -> bool:
        """Leave no page free; return whether there was any."""
        status = os.statvfs(self._file.parent)
        with contextlib.suppress(OSError), self._file.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, status.f_bavail * status.f_frsize)
        return status.f_bavail > 0
