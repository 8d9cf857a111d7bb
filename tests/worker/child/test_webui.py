"""A1111 kept alive; in its place small programs that open a port."""

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Timer

import pytest

from schemas.errors import BackendCrashedError, BackendNotReadyError, JobCancelledError
from worker.child.process import WebuiProcess, spawn
from worker.child.webui import Life, State, Webui

pytestmark = pytest.mark.slow

SERVER = """
import socket, sys, time
print("booting", flush=True)
time.sleep(float(sys.argv[2]))
listening = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True:
    listening.accept()[0].close()
"""
ENDS = "print('no CUDA here', flush=True); raise SystemExit(3)"
SILENT = "import time; time.sleep(60)"


class World:
    """A port, and programs that are started one after the other."""

    def __init__(self) -> None:
        # Nobody else gets the number between two programs: it is held, and nothing listens there.
        self.held = socket.socket()
        self.held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.held.bind(("127.0.0.1", 0))
        self.port = int(self.held.getsockname()[1])
        self.started: list[WebuiProcess] = []
        self.lost = 0

    def process(self, program: str = SERVER, boot_s: float = 0) -> WebuiProcess:
        made = spawn([sys.executable, "-c", program, str(self.port), str(boot_s)], Path.cwd())
        self.started.append(made)
        return made

    def answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True

    def note_loss(self) -> None:
        self.lost += 1

    @contextlib.contextmanager
    def webui(
        self, *, first: str = SERVER, again: str = SERVER, boot_s: float = 0, timeout_s: float = 60
    ) -> Iterator[Webui]:
        made = Webui(
            self.process(first, boot_s),
            lambda: self.process(again),
            self.answers,
            ready_timeout_s=timeout_s,
            on_lost=self.note_loss,
        )
        try:
            yield made
        finally:
            made.stop(1)
            assert all(process.exit_code() is not None for process in self.started)


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    with world.held:
        yield world


def wait_until(holds: Callable[[], bool], within_s: float = 30) -> None:
    start = time.monotonic()
    while not holds():
        assert time.monotonic() - start < within_s
        time.sleep(0.01)


def kill(webui: Webui, life: Life) -> None:
    """End this process, and wait until that is noticed; the next one may answer by then."""
    assert life.process is not None
    os.kill(life.process.pid, signal.SIGKILL)
    wait_until(lambda: webui.life is not life or webui.state is State.LOST)


def test_whoever_waits_goes_on_at_the_first_answer(world: World) -> None:
    with world.webui(boot_s=0.5) as webui:
        assert webui.state is State.STARTING

        life = webui.ready(Event())

        assert (life.number, webui.state, life.has_ended) == (1, State.READY, False)
        wait_until(lambda: (webui.rss_bytes or 0) > 1e6)


def test_a_cancel_ends_the_wait(world: World) -> None:
    cancelled = Event()
    with world.webui(first=SILENT) as webui:
        timer = Timer(0.2, cancelled.set)
        timer.start()

        with pytest.raises(JobCancelledError):
            webui.ready(cancelled)
        timer.join()


def test_one_that_ends_while_starting_is_lost_at_once_with_its_last_words(world: World) -> None:
    with world.webui(first=ENDS) as webui:
        with pytest.raises(BackendCrashedError, match=r"code 3 while starting(.|\n)*no CUDA here"):
            webui.ready(Event())
        with pytest.raises(BackendCrashedError) as told:
            webui.ready(Event())

        assert told.value.refresh_worker
        wait_until(lambda: world.lost == 1)
        assert (webui.state, len(world.started)) == (State.LOST, 1)


def test_one_that_never_answers_is_lost_in_time(world: World) -> None:
    with (
        world.webui(first=SILENT, timeout_s=0.5) as webui,
        pytest.raises(BackendNotReadyError, match=r"within 0\.5 s"),
    ):
        webui.ready(Event())


def test_one_that_is_killed_while_idle_is_started_again_though_nobody_asks(world: World) -> None:
    with world.webui() as webui:
        first = webui.ready(Event())
        kill(webui, first)

        second = webui.ready(Event())

        assert (second.number, first.has_ended, second.has_ended) == (2, True, False)
        assert webui.restarts == ("it ended with code -9",)
        assert world.lost == 0


def test_one_that_is_replaced_is_gone_before_the_next_answers(world: World) -> None:
    with world.webui() as webui:
        first = webui.ready(Event())

        webui.replace(first, "it did not stop")
        second = webui.ready(Event())
        webui.replace(first, "this one is gone already")

        assert first.has_ended
        assert webui.ready(Event()) is second
        assert webui.restarts == ("it did not stop",)


def test_a_restart_that_fails_is_the_end(world: World) -> None:
    with world.webui(again=ENDS) as webui:
        webui.replace(webui.ready(Event()), "it did not stop")

        with pytest.raises(BackendCrashedError, match="no CUDA here") as told:
            webui.ready(Event())

        assert told.value.refresh_worker
        assert len(world.started) == 2


def test_one_that_ends_again_and_again_before_it_did_anything_is_the_end(world: World) -> None:
    with world.webui() as webui:
        for number in range(3):
            life = webui.ready(Event())
            assert life.process is world.started[number]
            kill(webui, life)

        with pytest.raises(BackendCrashedError, match="again and again"):
            webui.ready(Event())
        assert len(world.started) == 3


def test_one_that_breaks_in_every_job_is_the_end_though_it_never_dies_by_itself(
    world: World,
) -> None:
    with world.webui() as webui:
        for _ in range(3):
            webui.replace(webui.ready(Event()), "its GPU is broken", is_broken=True)

        with pytest.raises(BackendCrashedError, match="again and again"):
            webui.ready(Event())


def test_one_that_did_something_may_end_more_often(world: World) -> None:
    with world.webui() as webui:
        for _ in range(4):
            life = webui.ready(Event())
            webui.served(life)
            kill(webui, life)

        assert webui.ready(Event()).number == 5


def test_one_that_somebody_else_started_is_waited_for_and_never_ended(world: World) -> None:
    webui = Webui(None, None, world.answers, ready_timeout_s=60)
    process = world.process()
    life = webui.ready(Event())

    webui.replace(life, "it did not answer")

    assert webui.ready(Event()).number == 2
    webui.stop(1)
    assert process.exit_code() is None
    process.stop(1)


def test_stopping_while_it_starts_leaves_nothing(world: World) -> None:
    with world.webui(first=SILENT):
        assert world.started[0].exit_code() is None
    assert world.started[0].exit_code() is not None
