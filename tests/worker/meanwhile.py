"""What is done beside a call that waits, at a moment that is waited for and not guessed."""

import contextlib
import time
from collections.abc import Callable, Iterator
from threading import Thread

from tests.conftest import Simulator


def until(holds: Callable[[], bool], within_s: float = 30) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.02)


@contextlib.contextmanager
def as_soon_as(holds: Callable[[], bool], act: Callable[[], object]) -> Iterator[None]:
    """Do `act` in a thread, as soon as it has come to that."""

    def wait_and_act() -> None:
        until(holds)
        act()

    thread = Thread(target=wait_and_act)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def has_struck(webui: Simulator) -> bool:
    """Return whether an A1111 has met each of its faults."""
    return not webui.get("/simulator/faults")["faults"]
