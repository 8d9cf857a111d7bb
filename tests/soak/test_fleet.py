"""What the fleet says of workers that were told to stop."""

import dataclasses
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import Simulator
from tests.e2e.conftest import World
from tests.e2e.container import Container
from tests.soak.fleet import STARTS_S, Berth, Fleet

Begin = Callable[[str], Berth]


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    nobody = Simulator("http://nowhere", subprocess.Popen(["true"], text=True))
    nobody.process.wait()
    return Fleet(World(nobody, nobody, tmp_path, {}, {}), concurrency=1)


@pytest.fixture
def begin(fleet: Fleet) -> Iterator[Begin]:
    """Put a program in the place of a worker that has begun just now."""
    with ExitStack() as stack:

        def begin(command: str) -> Berth:
            folder = fleet.world.folder / "worker0-0"
            for place in (folder, fleet.world.folder / "scratch0-0"):
                place.mkdir()
            worker = subprocess.Popen(["sh", "-c", command], stdout=subprocess.PIPE)
            stack.enter_context(worker)
            stack.callback(worker.kill)
            assert worker.stdout is not None
            assert worker.stdout.readline()
            at = vars(dataclasses.replace(fleet.world, folder=folder))
            fleet.berths = [Berth(0, Container(**at, worker=worker, port=1), ExitStack())]
            return fleet.berths[0]

        yield begin


def test_a_worker_that_is_told_to_stop_while_it_starts_may_end_by_the_signal(
    fleet: Fleet, begin: Begin
) -> None:
    begin("echo starts; exec sleep 60")

    fleet.end()

    assert (fleet.left, fleet.berths, fleet.leaving) == ([], [], [])


def test_a_worker_that_serves_ends_well_and_not_by_the_signal(fleet: Fleet, begin: Begin) -> None:
    begin("echo serves; exec sleep 60").begun -= STARTS_S

    fleet.end()

    assert fleet.left == [("worker0-0", "told to stop, it ended with -15")]


def test_a_worker_that_serves_and_ends_well_leaves_nothing(fleet: Fleet, begin: Begin) -> None:
    begin("trap 'exit 0' TERM; echo serves; while :; do sleep 0.05; done").begun -= STARTS_S

    fleet.end()

    assert fleet.left == []
