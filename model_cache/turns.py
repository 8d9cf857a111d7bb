"""Who does what many want, and how the others wait: threads of a process, and workers of a fleet.

Knows nothing of models: what is to be done, and how to see that another did it, is handed in.
"""

import logging
import random
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from model_cache.engine.download import Allowance
from model_cache.models import Progress
from model_cache.sharing.lease import Lease

log = logging.getLogger(__name__)

_WAIT_S = 0.05
# How often a worker that waits for another asks whether it is its turn; not in step with others.
_ASK_EVERY_S = (0.1, 0.25)
Result = TypeVar("Result")


@dataclass(frozen=True)
class Errand:
    """The job that wants a model, as far as the store is concerned."""

    cancelled: threading.Event
    allowance: Allowance
    progress: Callable[[Progress], None] | None = None

    def require_time(self, what: str) -> None:
        """Raise if the job was cancelled, or its time is over; see `Allowance.require_time`."""
        self.allowance.require_time(self.cancelled, what)


class Turns:
    """Lets one thread at a time do what a key stands for."""

    def __init__(self) -> None:
        """Begin with nobody at work."""
        self._changed = threading.Condition()
        self._busy: set[Hashable] = set()

    @contextmanager
    def of(self, key: Hashable, errand: Errand, what: str) -> Iterator[None]:
        """Have the turn for the lines inside; `what` names the file in messages.

        Raises:
            JobCancelledError: the job was cancelled while another thread was at it.
            DownloadBudgetExceededError: its time was over.
        """
        with self._changed:
            while key in self._busy:
                self._changed.wait(_WAIT_S)
                errand.require_time(what)
            self._busy.add(key)
        try:
            yield
        finally:
            with self._changed:
                self._busy.discard(key)
                self._changed.notify_all()


def in_turn(
    lease: Lease,
    errand: Errand,
    what: str,
    seen: Callable[[bool], Result | None],
    work: Callable[[], Result],
) -> Result:
    """Return the result of `work`, done when it is our turn, or what `seen` returns of another's.

    Whoever waits looks as soon as the claim that it waited for is gone or is another's, and holds no
    lease while it does more than glance; so any number of workers see a result at once, and not one
    after another.

    Args:
        lease: says whose turn it is.
        errand: the job that waits.
        what: names the file in messages.
        seen: looks for the result of another worker, None if there is none. With True it must be
            done in milliseconds, as others may be waiting; with False it looks at everything. No
            result is false.
        work: returns a result, after any time.

    Raises:
        JobCancelledError: the job was cancelled.
        DownloadBudgetExceededError: its time was over.
        WorkerError: whatever `seen` and `work` raise.
    """
    awaited: str | None = None
    """The claim that we wait for; None once we have looked at all that was there without one."""
    while True:
        claim = None
        if lease.try_acquire():
            result = _done(lease, seen, work if awaited is None else None)
            if result is None:
                result = seen(False)
        else:
            claim = _claim(lease, told=awaited is not None)
            result = None if awaited in {None, claim} else seen(True) or seen(False)
        if result is not None:
            return result
        awaited = claim
        if claim is not None:
            errand.cancelled.wait(random.uniform(*_ASK_EVERY_S))  # noqa: S311 - hides nothing
        errand.require_time(what)


def _done(
    lease: Lease, seen: Callable[[bool], Result | None], work: Callable[[], Result] | None
) -> Result | None:
    """Look, and work if there is something to do, with the lease in hand; then let others in."""
    try:
        result = seen(True)
        return work() if result is None and work is not None else result
    finally:
        lease.release()


def _claim(lease: Lease, *, told: bool) -> str:
    """Return whose turn it is, and tell people once."""
    if lease.holder is None:
        return ""
    if not told:
        log.info("Waiting: %s.", lease.holder.note or "another worker is at it")
    return lease.holder.token
