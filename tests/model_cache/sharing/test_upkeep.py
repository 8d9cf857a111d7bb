import errno
import os
import threading
import time

import pytest

from model_cache.sharing.upkeep import Chore, Upkeep, _next
from schemas.errors import VolumeMissingError
from tests.model_cache.conftest import wait_until


def test_each_chore_is_done_again_and_again_at_its_own_pace() -> None:
    done: list[str] = []
    upkeep = Upkeep(
        [
            Chore("often", 0.02, lambda: done.append("often")),
            Chore("seldom", 0.2, lambda: done.append("seldom")),
            Chore("never", 3600, lambda: done.append("never")),
        ]
    )

    upkeep.start()
    upkeep.start()
    wait_until(lambda: done.count("seldom") >= 2)
    upkeep.stop()

    assert done.count("often") > 2 * done.count("seldom")
    assert "never" not in done


def test_once_it_is_stopped_nothing_is_done_until_it_is_started_again() -> None:
    done: list[float] = []
    upkeep = Upkeep([Chore("x", 0.01, lambda: done.append(0))])
    upkeep.start()
    wait_until(lambda: bool(done))
    upkeep.stop()
    upkeep.stop()
    count = len(done)

    time.sleep(0.05)
    assert len(done) == count
    assert all(thread.name != "upkeep" for thread in threading.enumerate())
    upkeep.start()
    wait_until(lambda: len(done) > count)
    upkeep.stop()


def test_a_chore_that_fails_is_tried_again_and_keeps_none_of_the_others_from_work(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tries: list[int] = []
    done: list[int] = []

    def fail() -> None:
        tries.append(0)
        if len(tries) % 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        raise VolumeMissingError("The volume went away.")

    upkeep = Upkeep([Chore("the view", 0.01, fail), Chore("fine", 0.01, lambda: done.append(0))])
    upkeep.start()
    wait_until(lambda: len(tries) > 6 and len(done) > 6)
    upkeep.stop()

    assert caplog.messages == [
        "the view failed, and will be tried again: [Errno 5] Input/output error",
        "the view failed, and will be tried again: The volume went away.",
    ]


def test_workers_that_start_together_do_not_march_in_step() -> None:
    chore = Chore("x", 100, lambda: None)

    start = time.monotonic()
    waits = [_next(chore) - start for _ in range(50)]
    took_s = time.monotonic() - start

    assert 69 < min(waits) < max(waits) <= 100 + took_s
    assert max(waits) - min(waits) > 5


def test_a_chore_may_be_done_soon_after_the_start_and_then_seldom() -> None:
    done: list[float] = []
    upkeep = Upkeep([Chore("x", 3600, lambda: done.append(0), first_s=0.02)])

    upkeep.start()
    wait_until(lambda: bool(done))
    time.sleep(0.1)
    upkeep.stop()

    assert len(done) == 1
