import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from model_cache.engine.download import Allowance
from model_cache.sharing.lease import Lease
from model_cache.turns import Errand, Turns, in_turn
from schemas.errors import DownloadBudgetExceededError, JobCancelledError


def errand(max_s: float = 60.0) -> Errand:
    return Errand(threading.Event(), Allowance(10**9, max_s))


class Work:
    """Something to be done once, by whoever comes first."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go_on = threading.Event()
        self.done: list[str] = []
        self.leases_held_while_looking = 0

    def seen(self) -> str | None:
        return self.done[0] if self.done else None

    def work(self) -> str:
        self.begun.set()
        assert self.go_on.wait(60)
        self.done.append("done")
        return "done"


@pytest.fixture
def busy(volume: Path) -> Iterator[tuple[Work, threading.Thread]]:
    """Somebody at work on "x"."""
    work = Work()
    thread = threading.Thread(
        target=lambda: in_turn(Lease(volume, "x"), errand(), "x", lambda _: work.seen(), work.work)
    )
    thread.start()
    assert work.begun.wait(30)
    yield work, thread
    work.go_on.set()
    thread.join()


def test_whoever_waits_sees_what_was_done_and_does_nothing(
    volume: Path, busy: tuple[Work, threading.Thread]
) -> None:
    work, thread = busy
    results: list[tuple[str, float]] = []

    def wait() -> None:
        lease = Lease(volume, "x")
        done = in_turn(
            lease, errand(), "x", lambda _: work.seen(), lambda: pytest.fail("done again")
        )
        results.append((done, time.monotonic()))

    waiters = [threading.Thread(target=wait) for _ in range(6)]
    for waiter in waiters:
        waiter.start()
    time.sleep(0.3)
    work.go_on.set()
    thread.join()
    ended = time.monotonic()
    for waiter in waiters:
        waiter.join()

    assert [done for done, _ in results] == ["done"] * 6
    assert max(at for _, at in results) - ended < 20


def test_nobody_looks_at_everything_while_others_wait_for_him(
    volume: Path, busy: tuple[Work, threading.Thread]
) -> None:
    work, thread = busy
    looked: list[bool] = []
    lease = Lease(volume, "x")

    def seen(at_once: bool) -> str | None:  # noqa: FBT001 - as `in_turn` calls it
        looked.append(at_once)
        probe = Lease(volume, "x")
        assert probe.try_acquire() is not at_once
        probe.release()
        return None

    def let_go() -> None:
        while lease.holder is None:  # until we wait for it
            time.sleep(0.01)
        time.sleep(0.2)
        work.go_on.set()

    threading.Thread(target=let_go).start()

    assert in_turn(lease, errand(), "x", seen, lambda: "mine") == "mine"

    thread.join()
    assert looked == [True, False, True]


@pytest.mark.parametrize(
    ("max_s", "error"), [(0.3, DownloadBudgetExceededError), (60.0, JobCancelledError)]
)
def test_whoever_waits_for_a_worker_can_be_stopped(
    volume: Path,
    busy: tuple[Work, threading.Thread],
    max_s: float,
    error: type[Exception],
) -> None:
    work, _ = busy
    mine = errand(max_s)
    if error is JobCancelledError:
        threading.Timer(0.3, mine.cancelled.set).start()
    started = time.monotonic()

    with pytest.raises(error):
        in_turn(Lease(volume, "x"), mine, "x", lambda _: work.seen(), lambda: "mine")

    assert time.monotonic() - started < 20


@pytest.mark.parametrize(
    ("max_s", "error"), [(0.1, DownloadBudgetExceededError), (60.0, JobCancelledError)]
)
def test_whoever_waits_for_a_thread_can_be_stopped(max_s: float, error: type[Exception]) -> None:
    turns, mine = Turns(), errand(max_s)
    if error is JobCancelledError:
        threading.Timer(0.2, mine.cancelled.set).start()

    with turns.of("x", errand(), "x"):
        started = time.monotonic()
        with pytest.raises(error), turns.of("x", mine, "x"):
            pytest.fail("two at once")

    assert time.monotonic() - started < 20


def test_what_fails_lets_others_in_at_once(volume: Path) -> None:
    def work() -> str:
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        in_turn(Lease(volume, "x"), errand(), "x", lambda _: None, work)

    assert Lease(volume, "x").try_acquire()
