"""From the SDK's jobs to answers: one thread for each, a deadline, a cancel, an end with the worker.

The handler is async because only an async handler can be cancelled.
Source: runpod-python 1.12.0, rp_scale.py cancels the task of a job that is to stop.
"""

import asyncio
import contextlib
import contextvars
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from threading import Event
from typing import Any

import rp_sdk
from schemas.errors import (
    InternalError,
    JobCancelledError,
    JobTimedOutError,
    WorkerError,
    WorkerStoppedError,
)
from schemas.settings import JobSettings
from worker.log import logs, redact
from worker.summary import Summary

log = logging.getLogger(__name__)

Run = Callable[..., Any]
"""Takes a job, the event that ends it, what gets its progress and, if it is streamed, what gets its pieces."""
_MOST_AT_ONCE = 32
"""The most that A1111_JOB_CONCURRENCY may be. A thread is started only when a job finds none idle."""


class _Ending:
    """The way to end one job before it is done; its thread looks at the event."""

    def __init__(self) -> None:
        self.event = Event()
        self.error: WorkerError | None = None
        """What the caller is told; None if the caller asked for it."""

    def end(self, error: WorkerError | None) -> None:
        if not self.event.is_set():
            self.error = error
            self.event.set()


class Jobs:
    """The jobs that run now. Its methods belong to the event loop.

    Args:
        run: does a job, in a thread; ends soon after its event is set.
        limits: how long a job may take, and how long after the worker is told to stop.
        online: whether progress can be sent.
        on_lost: called when an error says that this worker is of no use any more.
        arrived: is entered for as long as a job is here, in the order in which jobs come.
    """

    def __init__(
        self,
        run: Run,
        limits: JobSettings,
        *,
        online: bool,
        on_lost: Callable[[], None] = lambda: None,
        arrived: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        self._run = run
        self._limits = limits
        self._online = online
        self._on_lost = on_lost
        self._arrived = arrived
        self._running: set[_Ending] = set()
        # The loop's own has four threads more than the machine has cores, which may be too few.
        self._threads = ThreadPoolExecutor(_MOST_AT_ONCE, thread_name_prefix="job")
        self._is_over = False

    async def handle(self, job: rp_sdk.Job, emit: rp_sdk.Emit | None = None) -> Any:
        """Return the answer to one job, JSON values, whatever exception there was.

        With `emit`, which gets its pictures, the answer has none. What is no `Exception`, such as SystemExit, becomes an answer in `rp_sdk`.

        A job that is cancelled is waited for, so that the next one does not find A1111 still at work.
        """
        logs.job_id.set(str(job.get("id", "")))
        with self._arrived(), redact.knowing(job):
            summary = Summary(job, self._limits.price_per_s)
            try:
                return await self._answer(job, summary, emit)
            finally:
                summary.say()

    async def _answer(self, job: rp_sdk.Job, summary: Summary, emit: rp_sdk.Emit | None) -> Any:
        ending = _Ending()
        self._running.add(ending)
        if self._is_over:
            ending.end(_stopped())
        deadline = asyncio.get_running_loop().call_later(
            self._limits.timeout_s, ending.end, self._timed_out()
        )
        progress = rp_sdk.ProgressSender(job, online=self._online)
        try:
            # No task of its own: a SystemExit in the thread would leave a task by way of the event
            # loop, and end the worker.
            work = asyncio.get_running_loop().run_in_executor(
                self._threads,
                contextvars.copy_context().run,
                self._measured,
                job,
                ending.event,
                progress.put,
                summary,
                emit,
            )
            answer = await asyncio.shield(work)
            # The SDK takes keys out of what it gets; A1111 also answers lists, strings and null.
            return dict(answer) if isinstance(answer, Mapping) else answer
        except asyncio.CancelledError:
            ending.end(None)
            while not work.done():  # A second cancel must not free the slot sooner.
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait({work})
            summary.failed(_cancelled(work.exception()))
            raise
        except WorkerError as error:
            return self._told(error, ending, summary)
        except Exception:
            log.exception("a bug of this worker")
            bug = InternalError(
                "The worker failed unexpectedly.",
                hint=f"The log of job {job.get('id')} has the details.",
            )
            return self._told(bug, ending, summary)
        finally:
            deadline.cancel()
            self._running.discard(ending)
            await progress.close()

    def _measured(
        self,
        job: rp_sdk.Job,
        ended: Event,
        put: Callable[[dict[str, Any]], None],
        summary: Summary,
        emit: rp_sdk.Emit | None,
    ) -> Any:
        """Do a job in its thread, with a summary of it."""
        pieces: list[dict[str, Any]] = []

        def report(told: dict[str, Any]) -> None:
            summary.note(told)
            put(redact.answer(told))

        def hand_out(piece: dict[str, Any]) -> None:
            pieces.append(piece)
            if emit is not None:
                emit(piece)

        answer = self._run(job, ended, report, *([] if emit is None else [hand_out]))
        summary.done(_whole(answer, pieces))
        return answer

    def drain(self) -> None:
        """Give the running jobs the time that they have when the worker is told to stop."""
        log.info(f"The worker stops; {len(self._running)} running.")
        asyncio.get_running_loop().call_later(self._limits.drain_s, self._end_all)

    def _end_all(self) -> None:
        self._is_over = True
        for ending in self._running:
            ending.end(_stopped())

    def _timed_out(self) -> WorkerError:
        return JobTimedOutError(
            f"The job took longer than {self._limits.timeout_s:g} s.",
            hint="Ask for less, or raise A1111_JOB_TIMEOUT_S.",
        )

    def _told(self, error: WorkerError, ending: _Ending, summary: Summary) -> dict[str, Any]:
        if isinstance(error, JobCancelledError) and ending.error is not None:
            error = ending.error
        summary.failed(error)
        if error.refresh_worker:
            self._on_lost()
        told: dict[str, Any] = redact.answer(error.as_response())
        return told


def _whole(answer: Any, pieces: Sequence[dict[str, Any]]) -> Any:
    """Return `answer` with the pictures that were handed out before it."""
    if not pieces:
        return answer
    images: dict[int, str] = {}
    kinds: dict[int, str] = {}
    for piece in pieces:
        images[piece["index"]] = images.get(piece["index"], "") + piece["image"]
        kinds.setdefault(piece["index"], piece.get("image_kind", "unknown"))
    handed_out = {"images": list(images.values()), "image_kinds": list(kinds.values())}
    return {**answer, **handed_out, "output": pieces[0]["output"]}


def _cancelled(error: BaseException | None) -> WorkerError:
    """Return what a cancelled job ended with, for the log; nobody gets it as an answer."""
    if isinstance(error, JobCancelledError):
        return error
    end = "it was done already" if error is None else f"{type(error).__name__}: {error}"
    return JobCancelledError(f"The job was cancelled; {end}.")


def _stopped() -> WorkerError:
    return WorkerStoppedError(
        "The platform stopped this worker before the job was done.", hint="Send it again."
    )
