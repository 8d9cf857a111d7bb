"""Workers as containers that come and go, each by the real start.sh with an A1111 of its own.

A worker that is killed or told to stop is followed by another one, with a new disk and a new name, as on
the platform; the volume, the host of models and the queue are those of all.
"""

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from tests.e2e.conftest import World
from tests.e2e.container import Container, made_in

STALL_S, STOP_S, DRAIN_S = 2.0, 1.0, 20.0
# With the jobs that a worker may still have when it is told to stop.
ENDS_S = DRAIN_S + 15.0
# Until it serves, a signal ends a worker as it does any program.
STARTS_S = 10.0
# What is told to die with another process does so at once; a machine may be busy.
DIES_S = 5.0
STEP_MS = 8
TOLD = {"step_ms": STEP_MS, "load_s": 0.02}
# Pieces as small as may be, so that pictures of a few kilobytes come in several.
_STREAM = {"A1111_OUTPUT_STREAM": "true", "A1111_OUTPUT_MAX_CHUNK_BYTES": "10000"}
_PREFETCH = {"A1111_JOB_PREFETCH": "true", "A1111_JOB_CONCURRENCY": "2"}
PLAIN, STREAMING = "plain", "streaming"
MANNERS: Mapping[str, Mapping[str, str]] = {
    f"prefetching and {STREAMING}": {**_PREFETCH, **_STREAM},
    PLAIN: {},
    "prefetching": _PREFETCH,
    STREAMING: _STREAM,
}
"""How workers may be set up. Who prefetches takes two jobs, whatever the others take."""
# Of an idle worker: the loop's, A1111's and the queue's connections, and the log of its A1111.
MOST_FILES = 80


def manner_of(worker: str) -> str:
    """Return how the worker of this name is set up: two differ in all, and so do those that follow them."""
    slot, number = map(int, worker.removeprefix("worker").split("-"))
    return list(MANNERS)[(slot + 2 * number) % len(MANNERS)]


def streams(worker: str) -> bool:
    """Return whether the worker of this name hands out its pictures one by one."""
    return manner_of(worker).endswith(STREAMING)


@dataclass(frozen=True)
class Worn:
    """What a worker's memory grew by while it answered some jobs through the SDK's loop."""

    worker: str
    jobs: int
    before_bytes: int
    after_bytes: int

    @property
    def growth_mb(self) -> float:
        """Return the difference, negative if it became less."""
        return (self.after_bytes - self.before_bytes) / 1e6

    def as_json(self) -> dict[str, Any]:
        """Return it for people and programs."""
        return {
            "worker": self.worker,
            "manner": manner_of(self.worker),
            "jobs": self.jobs,
            "resident_mb": round(self.after_bytes / 1e6, 1),
            "growth_mb": round(self.growth_mb, 2),
        }


@dataclass
class Berth:
    """The place of one worker, and who has it."""

    slot: int
    container: Container
    stack: ExitStack
    number: int = 0
    begun: float = field(default_factory=time.monotonic)
    told_young: bool = False
    """It was told to stop while it may still have been starting."""

    @property
    def name(self) -> str:
        """The worker's name on the platform."""
        return self.container.folder.name


@dataclass
class Fleet:
    """All workers. What should be gone and is not is written down in `left`."""

    world: World
    concurrency: int
    berths: list[Berth] = field(default_factory=list)
    leaving: list[Berth] = field(default_factory=list)
    """Who was told to stop and is at its last jobs."""
    left: list[tuple[str, str]] = field(default_factory=list)
    last_kill: float = 0.0
    """When the last worker was killed, in Unix time."""
    _latest: dict[str, float] = field(default_factory=dict)
    """When each of these is to have ended."""

    def begin(self, slots: int) -> None:
        """Start so many workers, and return as soon as all have an A1111 that answers."""
        self.berths = [self._begun(slot, 0) for slot in range(slots)]
        for berth in self.berths:
            berth.container.until_ready()

    def _begun(self, slot: int, number: int) -> Berth:
        folder = self.world.folder / f"worker{slot}-{number}"
        scratch = self.world.folder / f"scratch{slot}-{number}"
        scratch.mkdir()
        at_once = {"A1111_JOB_CONCURRENCY": str(self.concurrency)}
        with ExitStack() as stack:
            container = stack.enter_context(
                made_in(
                    self.world,
                    folder,
                    TOLD,
                    TMPDIR=str(scratch),
                    A1111_WEBUI_FLAGS=f"--controlnet --controlnet-dir {folder}/links/ControlNet",
                    A1111_WEBUI_STALL_S=str(STALL_S),
                    A1111_WEBUI_STOP_S=str(STOP_S),
                    A1111_JOB_DRAIN_S=str(DRAIN_S),
                    **{**at_once, **MANNERS[manner_of(folder.name)]},
                )
            )
            return Berth(slot, container, stack.pop_all(), number)

    def signal(self, slot: int, number: int) -> None:
        """Send a worker SIGKILL or SIGTERM. Another one follows, also while this one is at its last jobs."""
        if number == signal.SIGKILL:
            self._kill(slot)
        else:
            self._stop(slot)

    def _kill(self, slot: int) -> None:
        berth = self.berths[slot]
        os.kill(berth.container.worker.pid, signal.SIGKILL)
        berth.container.worker.wait()
        self.last_kill = time.time()
        self._require_alone(berth)
        berth.stack.close()
        self.berths[slot] = self._begun(slot, berth.number + 1)

    def _stop(self, slot: int) -> None:
        berth = self.berths[slot]
        self._tell(berth)
        self.berths[slot] = self._begun(slot, berth.number + 1)

    def _tell(self, berth: Berth) -> None:
        """Tell a worker to stop."""
        berth.told_young = time.monotonic() < berth.begun + STARTS_S
        berth.container.worker.terminate()
        self._latest[berth.name] = time.monotonic() + ENDS_S
        self.leaving.append(berth)

    def look(self) -> None:
        """Take leave of the workers that have ended, and complain of those that should have."""
        for berth in list(self.leaving):
            code = berth.container.worker.poll()
            late = time.monotonic() > self._latest[berth.name]
            if code is None and not late:
                continue
            if not _ended_well(berth, code):
                said = "did not end" if code is None else f"ended with {code}"
                self.left.append((berth.name, f"told to stop, it {said}"))
            self._require_alone(berth)
            self._require_tidy(berth)
            self.leaving.remove(berth)
            berth.stack.close()
        for berth in self.berths:
            if (code := berth.container.worker.poll()) is not None:
                self.left.append((berth.name, f"it ended by itself, with {code}"))
                berth.stack.close()
                self.berths[berth.slot] = self._begun(berth.slot, berth.number + 1)

    def sizes(self) -> dict[str, int]:
        """Return the memory of each worker, in bytes, by its name."""
        return {berth.name: _resident(berth) for berth in self.berths}

    def end(self) -> None:
        """Stop all workers, with nothing to do any more, and look at what they leave."""
        for berth in self.berths:
            self._require_few_files(berth)
            self._tell(berth)
        self.berths = []
        while self.leaving:
            self.look()
            time.sleep(0.05)

    def close(self) -> None:
        """End all processes that are left, whatever they do."""
        for berth in (*self.berths, *self.leaving):
            berth.stack.close()

    def _require_alone(self, berth: Berth) -> None:
        deadline = time.monotonic() + DIES_S
        while (pids := berth.container.processes) and time.monotonic() < deadline:
            time.sleep(0.02)
        self.left += [(berth.name, f"process {pid} outlives it: {_command(pid)}") for pid in pids]

    def _require_tidy(self, berth: Berth) -> None:
        """See that a worker that ended by itself took its temporary files and sockets along."""
        scratch = self.world.folder / f"scratch{berth.container.folder.name.removeprefix('worker')}"
        # The simulator's own, of an A1111 that was killed.
        found = [path for path in scratch.iterdir() if "simulated-webui-" not in path.name]
        found += [path for path in berth.container.folder.rglob("*") if path.is_socket()]
        self.left += [(str(path), "a temporary file is left") for path in found]

    def _require_few_files(self, berth: Berth) -> None:
        with contextlib.suppress(FileNotFoundError):
            files = len(list(Path(f"/proc/{berth.container.worker.pid}/fd").iterdir()))
            if files > MOST_FILES:
                self.left.append((berth.name, f"{files} files and sockets are open"))

    def tell_webui(self, slot: int, **order: Any) -> bool:
        """Make a worker's A1111 misbehave; return whether there was one to be told."""
        try:
            self.berths[slot].container.faults(**order)
        except requests.RequestException:
            return False
        return True

    def kill_webui(self, slot: int) -> bool:
        """Kill a worker's A1111; return whether there was one that answered.

        Not before the worker knows that: one whose first A1111 ends gives up, and is no loss to the queue.
        """
        container = self.berths[slot].container
        if not (container.said("A1111 answers after") and container.is_listening()):
            return False
        os.kill(container.webui_pid, signal.SIGKILL)
        return True


def _resident(berth: Berth) -> int:
    """Return the memory of a worker, in bytes; 0 if it has ended."""
    try:
        status = Path(f"/proc/{berth.container.worker.pid}/status").read_text()
    except FileNotFoundError:
        return 0
    return next(
        (int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmRSS:")), 0
    )


def _ended_well(berth: Berth, code: int | None) -> bool:
    """Tell whether a worker that was told to stop did; while it starts, the signal itself ends it."""
    return code == 0 or (berth.told_young and code in {-signal.SIGTERM, 128 + signal.SIGTERM})


def _command(pid: int) -> str:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return "it has ended meanwhile"


@contextlib.contextmanager
def fleet(world: World, slots: int, concurrency: int) -> Iterator[Fleet]:
    """Yield so many workers that are ready; none is left after."""
    made = Fleet(world, concurrency)
    try:
        made.begin(slots)
        yield made
    finally:
        made.close()
