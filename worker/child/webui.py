"""A1111 kept alive: one process after another, and whether the present one can be asked.

    STARTING ──answers──▶ READY ──ended, or to be replaced──▶ STARTING
        └──ended, or silent for too long──▶ LOST: nothing helps here but another worker

One thread does all of it for as long as the worker lives. Knows nothing of jobs.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from threading import Condition, Event, Thread

from schemas.errors import (
    BackendCrashedError,
    BackendError,
    BackendNotReadyError,
    JobCancelledError,
)
from worker.child.process import WebuiProcess

log = logging.getLogger(__name__)

_LOOK_S = 0.1
_ASK_S = 0.25
_MEASURE_S = 1.0
# It is of no use any more: the grace is for what it has to write, not for a job.
_REPLACE_GRACE_S = 2.0
# Processes that end or hang, one after the other, before any did anything.
_MOST_IN_VAIN = 3


class State(StrEnum):
    """What A1111 is at the moment."""

    STARTING = "starting"
    READY = "ready"
    LOST = "lost"


@dataclass(frozen=True, eq=False)
class Life:
    """One A1111 process, from its start to its end."""

    number: int
    """1 for the first one."""
    process: WebuiProcess | None
    """None if somebody else started it."""
    started: float
    """By the monotonic clock."""

    @property
    def has_ended(self) -> bool:
        """Whether the process is gone, as far as we can know."""
        return self.process is not None and self.process.exit_code() is not None


class Webui:
    """The one A1111 of this worker. Safe to use from several threads.

    Args:
        first: the process that was started already; None if A1111 is not ours.
        start: starts another one, called in a thread that lasts; None if A1111 is not ours: then
            nothing is killed, and it is only waited for.
        answers: asks a cheap route; True once it answers.
        ready_timeout_s: longest from a start to the first answer, in seconds.
        on_lost: called once when nothing helps any more.
    """

    def __init__(
        self,
        first: WebuiProcess | None,
        start: Callable[[], WebuiProcess] | None,
        answers: Callable[[], bool],
        *,
        ready_timeout_s: float,
        on_lost: Callable[[], None] = lambda: None,
    ) -> None:
        self._start = start
        self._answers = answers
        self._ready_timeout_s = ready_timeout_s
        self._on_lost = on_lost
        self._changed = Condition()
        self._state = State.STARTING
        self._life = Life(1, first, time.monotonic())
        self._reason: str | None = None
        """Why the present life is to end, once somebody said so."""
        self._error: BackendError | None = None
        self._served = False
        self._in_vain = 0
        self._stopping = Event()
        self._rss_bytes: int | None = None
        self._restarts: list[str] = []
        self._keeper = Thread(target=self._keep, name="webui", daemon=True)
        self._keeper.start()

    @property
    def state(self) -> State:
        """What it is at the moment."""
        return self._state

    @property
    def restarts(self) -> tuple[str, ...]:
        """Why it was started again, each time."""
        return tuple(self._restarts)

    @property
    def rss_bytes(self) -> int | None:
        """Memory that it occupies, at most a second old; None if not known."""
        return self._rss_bytes

    @property
    def life(self) -> Life:
        """The present process; it may be starting, or at its end."""
        return self._life

    def ready(self, cancelled: Event) -> Life:
        """Wait until it can be asked, and return which one it is.

        Raises:
            JobCancelledError: `cancelled` was set.
            BackendError: it is lost; `refresh_worker` is set.
        """
        with self._changed:
            while self._state is State.STARTING:
                if cancelled.is_set():
                    raise JobCancelledError("The job was cancelled while A1111 was starting.")
                self._changed.wait(_LOOK_S)
            if self._error is not None:
                raise _anew(self._error)
            return self._life

    def replace(self, life: Life, reason: str, *, is_broken: bool = False) -> None:
        """End this process and start another; returns at once, and does nothing the second time.

        Args:
            life: the one that is meant: it may have been replaced by now.
            reason: for people, as in "it did not stop".
            is_broken: it ended or hangs, as one does that ends by itself.
        """
        with self._changed:
            if self._life is life and self._state is State.READY:
                self._state, self._reason = State.STARTING, reason
                self._in_vain += is_broken and not self._served
                self._changed.notify_all()

    def served(self, life: Life) -> None:
        """Say that this process did something useful."""
        with self._changed:
            if self._life is life:
                self._served, self._in_vain = True, 0

    def stop(self, grace_s: float) -> None:
        """End the process, and start none any more: SIGTERM, then SIGKILL after `grace_s` seconds."""
        self._stopping.set()
        self._keeper.join()
        if self._life.process is not None:
            self._life.process.stop(grace_s)

    def _keep(self) -> None:
        while not self._stopping.is_set():
            error = self._until_ready()
            if error is not None:
                self._lose(error)
                return
            self._until_over()
            if self._stopping.is_set() or not self._again():
                return

    def _until_ready(self) -> BackendError | None:
        """Return None at the first answer, or when we are to stop; else what went wrong."""
        life, process = self._life, self._life.process
        deadline = time.monotonic() + self._ready_timeout_s
        while not self._stopping.is_set():
            if process is not None and (code := process.exit_code()) is not None:
                return BackendCrashedError(
                    f"A1111 ended with code {code} while starting. {process.last_lines()}".strip(),
                    exit_code=code,
                )
            if self._answers():
                log.info(f"A1111 answers after {time.monotonic() - life.started:.1f} s.")
                with self._changed:
                    self._state = State.READY
                    self._changed.notify_all()
                return None
            if time.monotonic() > deadline:
                words = process.last_lines() if process is not None else ""
                return BackendNotReadyError(
                    f"A1111 did not answer within {self._ready_timeout_s:g} s. {words}".strip()
                )
            self._stopping.wait(_ASK_S)
        return None

    def _until_over(self) -> None:
        """Return when the process has ended, or is to end."""
        process, measured = self._life.process, 0.0
        while not self._stopping.is_set():
            with self._changed:
                if self._reason is None:
                    self._changed.wait(_LOOK_S)
                if self._reason is not None:
                    return
            if process is None:
                continue
            if (code := process.exit_code()) is not None:
                with self._changed:
                    self._state, self._reason = State.STARTING, f"it ended with code {code}"
                    self._in_vain += not self._served
                return
            if time.monotonic() - measured >= _MEASURE_S:
                measured = time.monotonic()
                self._rss_bytes = process.rss_bytes()

    def _again(self) -> bool:
        """Start the next process in the place of this one; False if that is no use."""
        process, reason = self._life.process, (self._reason or "").rstrip(".")
        self._restarts.append(reason)
        log.warning(f"A1111 is started again: {reason}.")
        if process is not None:
            process.stop(_REPLACE_GRACE_S)
        if self._in_vain >= _MOST_IN_VAIN:
            words = process.last_lines() if process is not None else ""
            self._lose(BackendCrashedError(f"A1111 ends again and again. {words}".strip()))
            return False
        try:
            fresh = None if self._start is None else self._start()
        except OSError as error:
            self._lose(BackendCrashedError(f"A1111 cannot be started: {error.strerror}."))
            return False
        with self._changed:
            self._life = Life(self._life.number + 1, fresh, time.monotonic())
            self._reason, self._rss_bytes, self._served = None, None, False
        return True

    def _lose(self, error: BackendError) -> None:
        log.critical(f"{error.code}: {error}")
        error.refresh_worker = True
        with self._changed:
            self._state, self._error = State.LOST, error
            self._changed.notify_all()
        self._on_lost()


def _anew(error: BackendError) -> BackendError:
    """Return the error for one more caller: raising adds to the traceback of the object itself."""
    fresh = type(error)(str(error), hint=error.hint, **error.details)
    fresh.refresh_worker = error.refresh_worker
    return fresh
