"""The scale of the chaos, and the world in which it takes place: a host, a volume, processes."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest

from benchmarks.forks import Forked, Nursery
from simulator import hub as simulated_hub
from simulator import loopback, models
from simulator.hub.faults import Fault, Rule
from simulator.hub.site import Site
from tests.chaos import hosts
from tests.chaos.soundness import require_sound
from tests.chaos.worker import Order, Pace
from tests.conftest import ROOT
from tests.model_cache.conftest import Hub, Shelf, shelf_on

T = TypeVar("T")
MIB = 1 << 20
SECRET = "planted-secret"
# What a worker imports; what goes wrong in it is put in place by itself.
_NURSERY = Nursery("model_cache.cache", "tests.chaos.attributes", "tests.chaos.syscalls")


@dataclass
class Chaos:
    """How much of it there is: the counts and sizes that `make chaos` has, times a factor."""

    factor: float
    done: Counter[str] = field(default_factory=Counter)
    full: dict[str, int] = field(default_factory=dict)
    where: str = ""
    """What the summary says behind each figure."""

    def count(self, full: int, least: int = 1) -> int:
        """Return how many, where `full` are meant."""
        return max(least, round(full * self.factor))

    def size(self, full: int, least: int) -> int:
        """Return how many bytes, where `full` are meant."""
        return max(least, int(full * self.factor))

    def times(self, what: str, full: int, least: int = 1) -> Iterator[int]:
        """Yield numbers from 0, as many as there shall be, and count them for the summary."""
        for number in range(self.count(full, least)):
            yield number
            self.tell(what, 1, 0)
        self.tell(what, 0, full)

    def some(self, what: str, whole: Sequence[T], least: int = 1) -> Iterator[T]:
        """Yield as many of `whole` as there shall be, evenly spread, and count them."""
        number = min(len(whole), self.count(len(whole), least))
        for index in range(number):
            yield whole[index * len(whole) // number]
            self.tell(what, 1, 0)
        self.tell(what, 0, len(whole))

    def tell(self, what: str, done: int, full: int) -> None:
        """Note that `done` of `full` were done, for the summary."""
        what += self.where
        self.done[what] += done
        self.full[what] = self.full.get(what, 0) + full


_KEPT = pytest.StashKey[Chaos]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_KEPT] = Chaos(config.getoption("--chaos"))
    config.addinivalue_line("markers", "in_full: left out below factor 1 of `--chaos`")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.stash[_KEPT].factor < 1:
        left_out = [item for item in items if item.get_closest_marker("in_full")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    kept = terminalreporter.config.stash.get(_KEPT, Chaos(0))
    if kept.done:
        terminalreporter.section(f"chaos, factor {kept.factor:g}")
    for what, done in kept.done.items():
        of = f" of {kept.full[what]}" if kept.full.get(what) else ""
        terminalreporter.write_line(f"{what}: {done}{of}")


@dataclass
class Model:
    """A LoRA at the host."""

    url: str
    sha256: str
    size: int
    path: Path


@dataclass
class Worker:
    """A process that ensures models."""

    process: subprocess.Popen[str] | Forked
    is_inside: bool = False
    """The process is `nsenter`, and its child the worker."""

    @property
    def pid(self) -> int:
        """Its number, as seen from here, once it has answered."""
        return hosts.child_of(self.process.pid) if self.is_inside else self.process.pid

    def ask(self, **wish: str) -> None:
        """Tell it to ensure a model; the answer is read by `answer`."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"kind": "lora", **wish}) + "\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """Wait for the answer to the oldest wish."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the worker ended with {self.process.wait()}"
        reply: dict[str, Any] = json.loads(line)
        return reply

    def ensure(self, **wish: str) -> dict[str, Any]:
        """Let it ensure a model, and return its answer."""
        self.ask(**wish)
        return self.answer()

    def kill(self) -> None:
        """End it as the platform does."""
        os.kill(self.pid, signal.SIGKILL)
        self.wait()

    def stop(self) -> None:
        """Let it stand still until `go_on`."""
        os.kill(self.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)
        # nsenter stops with its child. Source: util-linux, sys-utils/nsenter.c.
        self.process.send_signal(signal.SIGCONT)

    def wait(self) -> int:
        """Let it finish what it was told, end, and say how."""
        self.process.communicate()
        code = self.process.returncode
        assert code is not None
        return code


@dataclass
class World:
    """A host with models, a volume, and workers that come and go."""

    hub: Hub
    volume: Path
    workers: ExitStack
    homes: Iterator[Sequence[str]] = field(default_factory=lambda: itertools.repeat(()))
    """What the command of each further worker begins with: nothing, or what enters a host."""
    order: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `Order` for all workers."""

    def model(self, seed: str, size: int = MIB) -> Model:
        """Put a model with its own bytes on the host."""
        path = self.hub.root / f"{seed}.safetensors"
        sha256 = models.write_lora(path, seed=seed, size_bytes=size)
        return Model(f"{self.hub.url}/{path.name}", sha256, size, path)

    def worker(self, **order: Any) -> Worker:
        """Start a worker and wait until it listens; `order` names fields of `Order`."""
        return self.crew(1, **order)[0]

    def crew(self, number: int, **order: Any) -> list[Worker]:
        """Start several workers."""
        fields = {"volume": str(self.volume), **self.order, **order}
        argument = Order(**fields).as_json()
        begun = [self._begun(argument) for _ in range(number)]
        for worker in begun:
            assert worker.answer() == {}
        return begun

    def _begun(self, argument: str) -> Worker:
        inside, module = next(self.homes), "tests.chaos.worker"
        process = (
            _begun_inside(inside, module, argument) if inside else _NURSERY.start(module, argument)
        )
        worker = Worker(process, is_inside=bool(inside))
        self.workers.callback(self._end, worker)
        return worker

    @staticmethod
    def _end(worker: Worker) -> None:
        if worker.process.poll() is None:
            with suppress(OSError, ValueError):  # It ended at this moment.
                os.kill(worker.pid, signal.SIGKILL)
        worker.process.kill()
        worker.process.communicate()

    def shelf(self, **settings: Any) -> Shelf:
        """Open the volume in this process, as a worker does that starts now."""
        return shelf_on(self.volume, **settings)

    def sent(self, model: Model) -> int:
        """Return how many bytes of a model the host has sent."""
        name = model.path.relative_to(self.hub.root).as_posix()
        entries = list(self.hub.requests)
        return sum(entry.bytes_sent for entry in entries if entry.file == name)

    def spoil(self, *, skip: int = 0, **how: Any) -> None:
        """Make all answers go wrong, but for the first `skip`; `how` names fields of `Fault`."""
        self.hub.site.faults.rules.append(Rule(Fault(**how), times=-1, skip=skip))

    def mend(self) -> None:
        """Let the host answer rightly from now on."""
        self.hub.site.faults.rules.clear()

    def wait_until_sent(self, model: Model, size: int) -> None:
        """Wait until the host has sent so many bytes of a model."""
        wait_until(lambda: self.sent(model) >= size)

    def require_sound(self) -> None:
        """See `soundness.require_sound`; every worker must have ended."""
        require_sound(self.volume, self.hub.root)


def _begun_inside(inside: Sequence[str], module: str, argument: str) -> "subprocess.Popen[str]":
    """Start a worker on a host; it imports all by itself, as nothing else runs there."""
    return subprocess.Popen(
        [*inside, sys.executable, "-m", module, argument],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def wait_until(is_so: Callable[[], bool], at_most_s: float = 30.0) -> float:
    """Return how many seconds it took until something was so."""
    start = time.monotonic()
    while not is_so():
        assert time.monotonic() - start < at_most_s
        time.sleep(0.002)
    return time.monotonic() - start


@pytest.fixture
def chaos(request: pytest.FixtureRequest) -> Chaos:
    return request.config.stash[_KEPT]


@contextmanager
def make_world(tmp_path: Path, volume: Path) -> Iterator[World]:
    """Have a host of models in `tmp_path`, and the volume at an empty folder."""
    site = Site(tmp_path / "hub")
    site.root.mkdir()
    with (
        loopback.in_background(lambda: simulated_hub.hosts(site)) as url,
        ExitStack() as workers,
    ):
        yield World(Hub(url, site), volume, workers)
    # Gigabytes, in the full form; pytest keeps the folders of three runs.
    shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    volume = tmp_path / "volume"
    volume.mkdir()
    with make_world(tmp_path, volume) as made:
        yield made


@pytest.fixture
def shelf(world: World) -> Iterator[Shelf]:
    """The volume, opened here; for its store the host of models is every host."""
    shelf = world.shelf(
        hf_endpoint=world.hub.url,
        civitai_endpoint=world.hub.url,
        hf_token=SECRET,
        civitai_token=SECRET,
        stall_s=0.6,
    )
    yield shelf
    shelf.cache.close()


@pytest.fixture
def pace(monkeypatch: pytest.MonkeyPatch) -> Pace:
    """Let this process go at the pace of the others."""
    pace = Pace()
    pace.set(monkeypatch.setattr)
    return pace
