"""From the SDK's jobs to answers: one thread for each, a deadline, a cancel, an end with the worker.

The handler is async because only an async handler can be cancelled.
Source: runpod-python 1.12.0, rp_scale.py cancels the task of a job that is to stop.
"""

import asyncio
import contextlib
import contextvars
import json
import logging
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
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
from worker import local, logs

log = logging.getLogger(__name__)

Run = Callable[[rp_sdk.Job, Event, Callable[[dict[str, Any]], None]], Any]
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
    """

    def __init__(
        self,
        run: Run,
        limits: JobSettings,
        *,
        online: bool,
        on_lost: Callable[[], None] = lambda: None,
    ) -> None:
        self._run = run
        self._limits = limits
        self._online = online
        self._on_lost = on_lost
        self._running: set[_Ending] = set()
        # The loop's own has four threads more than the machine has cores, which may be too few.
        self._threads = ThreadPoolExecutor(_MOST_AT_ONCE, thread_name_prefix="job")
        self._is_over = False

    async def handle(self, job: rp_sdk.Job) -> Any:
        """Return the answer to one job, JSON values, whatever exception there was.

        What is no `Exception`, such as SystemExit, becomes an answer in `rp_sdk`.

        A job that is cancelled is waited for, so that the next one does not find A1111 still at work.
        """
        logs.job_id.set(str(job.get("id", "")))
        ending = _Ending()
        self._running.add(ending)
        if self._is_over:
            ending.end(_stopped())
        deadline = asyncio.get_running_loop().call_later(
            self._limits.timeout_s, ending.end, self._timed_out()
        )
        progress = rp_sdk.ProgressSender(job, online=self._online)
        # No task of its own: a SystemExit in the thread would leave a task by way of the event loop,
        # and end the worker.
        work = asyncio.get_running_loop().run_in_executor(
            self._threads,
            contextvars.copy_context().run,
            self._run,
            job,
            ending.event,
            progress.put,
        )
        try:
            answer = await asyncio.shield(work)
            # The SDK takes keys out of what it gets; A1111 also answers lists, strings and null.
            return dict(answer) if isinstance(answer, Mapping) else answer
        except asyncio.CancelledError:
            ending.end(None)
            while not work.done():  # A second cancel must not free the slot sooner.
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait({work})
            log.info(f"cancelled: {work.exception()}")
            raise
        except WorkerError as error:
            return self._told(error, ending)
        except Exception:
            log.exception("a bug of this worker")
            return InternalError(
                "The worker failed unexpectedly.",
                hint=f"The log of job {job.get('id')} has the details.",
            ).as_response()
        finally:
            deadline.cancel()
            self._running.discard(ending)
            await progress.close()

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

    def _told(self, error: WorkerError, ending: _Ending) -> dict[str, Any]:
        if isinstance(error, JobCancelledError) and ending.error is not None:
            error = ending.error
        log.warning(f"{error.code}: {error}")
        if error.refresh_worker:
            self._on_lost()
        return error.as_response()


def _stopped() -> WorkerError:
    return WorkerStoppedError(
        "The platform stopped this worker before the job was done.", hint="Send it again."
    )


def saving(handler: rp_sdk.Handler, folder: Path) -> rp_sdk.Handler:
    """Return `handler` for a local test: pictures go to files, whose paths are printed.

    An answer without pictures is printed itself.
    """

    async def save(job: rp_sdk.Job) -> Any:
        result = await handler(job)
        if isinstance(result, dict) and "images" in result:
            files = local.save(result, folder, str(job["id"]))
            sys.stdout.write("".join(f"wrote {file}\n" for file in files))
            result["images"] = [str(file) for file in files[:-1]]
        elif not isinstance(result, dict) or "error" not in result:
            sys.stdout.write(f"{json.dumps(result, indent=2, ensure_ascii=False)}\n")
        return result

    return save
