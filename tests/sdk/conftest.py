"""The real SDK loop in a process of its own, with a handler of a few lines, at the simulated queue."""

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.conftest import ROOT, Simulator, running

HERE = Path(__file__).parent
# Longer than any test waits: what ends a poll sooner is what the test is about.
HOLD_S = 60
TERMINAL = ("COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT")
NUMBERS = itertools.count(1)


class Door:
    """The only way from a worker to its queue."""

    def __init__(self, url: str) -> None:
        self._target = url.rpartition(":")[2]
        # Nobody else gets the number while the door is shut: it is held, and nothing listens there.
        self._held = socket.socket()
        self._held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._held.bind(("127.0.0.1", 0))
        self._port = str(self._held.getsockname()[1])
        self._process = self._opened()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def open(self) -> None:
        self._process = self._opened()

    def shut(self) -> None:
        """Drop all connections, and refuse new ones."""
        self._process.kill()
        with self._process:
            pass  # it waits, and closes the pipe

    def close(self) -> None:
        self.shut()
        self._held.close()

    def settle(self) -> None:
        """Return when the queue has learned of every connection that a worker has closed.

        The door and the queue each take events in the order in which they come.
        """
        requests.get(f"{self.url}/simulator/ended", timeout=30)

    def _opened(self) -> subprocess.Popen[str]:
        argv = [sys.executable, str(HERE / "door.py"), self._port, self._target]
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == f"{self._port}\n"
        return process


@dataclass
class Worker:
    """One worker and its queue."""

    queue: Simulator
    door: Door
    process: subprocess.Popen[bytes]
    closed: Path
    log_file: Path
    key: str
    # Tests ask often; a connection for each question takes more time than its answer.
    web: requests.Session = field(default_factory=requests.Session)

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def run(self, beside: dict[str, Any] | None = None, **wish: Any) -> str:
        return str(self._call("POST", "/run", {**(beside or {}), "input": wish})["id"])

    def cancel(self, job_id: str) -> None:
        self._call("POST", f"/cancel/{job_id}")

    def retry(self, job_id: str) -> None:
        self._call("POST", f"/retry/{job_id}")

    def status(self, job_id: str) -> dict[str, Any]:
        job: dict[str, Any] = self._call("GET", f"/status/{job_id}")
        return job

    def wait(self, job_id: str, *statuses: str, within_s: float = 30) -> dict[str, Any]:
        """Return the job once its status is one of these; by default: once it has ended."""
        job: dict[str, Any] = {}

        def ended() -> bool:
            job.update(self.status(job_id))
            return job["status"] in (statuses or TERMINAL)

        until(ended, within_s)
        return job

    def journal(self) -> dict[str, Any]:
        journal: dict[str, Any] = self.web.get(f"{self.queue.url}/simulator/journal").json()
        return journal

    def requests(self, route: str) -> list[dict[str, Any]]:
        return [request for request in self.journal()["requests"] if request["route"] == route]

    def takes(self) -> list[dict[str, Any]]:
        routes = ("job-take", "job-take-batch")
        return [request for request in self.journal()["requests"] if request["route"] in routes]

    def until_polling(self) -> None:
        """Wait until a poll is open, which gets the next job, whatever fault is set from now on."""

        def is_held() -> bool:
            takes = self.takes()
            return bool(takes) and takes[-1]["status"] is None

        until(is_held)

    def last_ping(self) -> str:
        """Return what the last ping said; nothing if there was none yet."""
        return str(next((ping["query"] for ping in self.requests("ping")[::-1]), ""))

    def tune(self, of: str, **values: float) -> None:
        """Set what the module `of` is to go by in the worker's process."""
        self.wait(self.run(do="tune", of=of, values=values))

    def fault(self, **fault: Any) -> None:
        self.queue.post("/simulator/faults", fault)

    def mend(self) -> None:
        response = self.web.delete(f"{self.queue.url}/simulator/faults", timeout=10)
        assert response.ok, response.text

    def clear(self) -> None:
        """Leave nothing in the queue for the next worker."""
        self.mend()
        for job in self.journal()["jobs"]:
            if job["status"] not in TERMINAL:
                self.cancel(job["id"])
        self.queue.post("/simulator/reset-journal")

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        url = f"{self.queue.url}/v2/sim{path}"
        headers = {"Authorization": self.key}
        response = self.web.request(method, url, json=body, headers=headers, timeout=10)
        assert response.ok, response.text
        return response.json()


def until(holds: Callable[[], bool], within_s: float = 30) -> None:
    deadline = time.monotonic() + within_s
    pause_s = 0.01
    while not holds():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(pause_s)
        pause_s = min(0.1, pause_s * 1.25)


def children(pid: int) -> set[int]:
    """Return the processes that `pid` started; empty once it has ended."""
    try:
        return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    except FileNotFoundError:
        return set()


def environment(folder: Path, **more: str) -> dict[str, str]:
    """Return variables for a worker, with a home that holds keys for quite another purpose."""
    home = folder / "home"
    (home / ".runpod").mkdir(parents=True, exist_ok=True)
    (home / ".runpod" / "config.toml").write_text('[default]\napi_key = "of-a-developer"\n')
    (home / ".netrc").write_text("default login somebody password of-a-developer\n")
    (home / ".netrc").chmod(0o600)
    inherited = dict(os.environ)  # noqa: TID251 - a child's PATH
    return {**inherited, "HOME": str(home), "PYTHONPATH": str(ROOT), **more}


@contextlib.contextmanager
def working(
    queue: Simulator, folder: Path, concurrency: int = 1, *flags: str, **more: str
) -> Iterator[Worker]:
    """Start a worker at `queue`, and yield once it asks for jobs; afterwards the queue is empty."""
    with contextlib.ExitStack() as stack:
        door = Door(queue.url)
        stack.callback(door.close)
        env = {
            name: value.replace(queue.url, door.url)
            for name, value in queue.get(f"/simulator/env?worker=worker-{next(NUMBERS)}").items()
        }
        log, closed = folder / "log", folder / "closed"
        process = subprocess.Popen(
            [sys.executable, str(HERE / "worker.py"), str(concurrency), str(closed), *flags],
            cwd=folder,
            env=environment(folder, **{**env, "RUNPOD_LOG_LEVEL": "INFO", **more}),
            stdout=stack.enter_context(log.open("wb")),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        worker = Worker(queue, door, process, closed, log, env["RUNPOD_AI_API_KEY"])
        stack.enter_context(worker.web)
        stack.callback(worker.clear)
        stack.callback(end, process)
        until(lambda: "job-stop" in worker.journal()["counts"])
        worker.until_polling()
        yield worker


def end(process: subprocess.Popen[bytes]) -> None:
    """End a worker, and its ping process where nothing else does."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


StartWorker = Callable[..., Worker]


@pytest.fixture(scope="session")
def queue() -> Iterator[Simulator]:
    """The queue of workers that serve one test each."""
    with running("queue", "--hold-s", HOLD_S) as queue:
        yield queue


@pytest.fixture(scope="module")
def own_queue() -> Iterator[Simulator]:
    """The queue of a worker that serves a whole module."""
    with running("queue", "--hold-s", HOLD_S) as queue:
        yield queue


@pytest.fixture
def start_worker(queue: Simulator, tmp_path: Path) -> Iterator[StartWorker]:
    """Start a worker for one test: `start_worker(concurrency, "--flag", …, NAME="value", …)`."""
    with contextlib.ExitStack() as stack:

        def start(concurrency: int = 1, *flags: str, **more: str) -> Worker:
            return stack.enter_context(working(queue, tmp_path, concurrency, *flags, **more))

        yield start


@pytest.fixture(scope="module")
def shared(own_queue: Simulator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """One worker for all tests of a module that leave it alive; it pings twice a second."""
    folder = tmp_path_factory.mktemp("worker")
    with working(own_queue, folder, 4, RUNPOD_PING_INTERVAL="500") as worker:
        yield worker
        assert worker.process.poll() is None, worker.log


@pytest.fixture
def worker(shared: Worker) -> Iterator[Worker]:
    yield shared
    shared.mend()
