"""What runpod 1.12.0 gets wrong in its queue loop, put right. `install` replaces parts of that version.

    rp_scale.JobScaler          QueueLoop: takes with back-off, ends at once, hears stops to the end
    rp_job.send_result          send_result: retries, and answers in place of what cannot be sent
    rp_ping.Heartbeat           the ping process ends with the worker and survives short intervals
    http_client                 the platform's key only: no ~/.runpod/config.toml, no netrc

Each has a test in tests/sdk that fails without it. Sources: the modules named, in runpod-python 1.12.0,
below runpod/serverless/modules; `http_client` is runpod/http_client.py.
"""

import asyncio
import contextlib
import ctypes
import itertools
import json
import logging
import multiprocessing
import os
import random
import signal
import sys
import time
from types import FrameType, SimpleNamespace
from typing import Any

import aiohttp
import requests
from runpod import http_client
from runpod.http_client import AsyncClientSession, TooManyRequests
from runpod.serverless.modules import rp_http, rp_job, rp_ping, rp_scale

from schemas.errors import InternalError, OutputTooLargeError, WorkerError

__all__ = ["AsyncClientSession", "install", "send_progress"]

log = logging.getLogger(__name__)

RESULT_S = 180.0
"""How long a result is sent again and again; a platform that is away for longer has given the job up."""
POST_S = 60.0
"""Longest that one body may take, there or back: 20 MB at 3 Mbit/s."""
PROGRESS_S = 10.0
FIRST_WAIT_S = 0.25
MOST_WAIT_S = 5.0
BUSY_WAIT_S = 5.0
"""Shortest wait after a take that is answered 429: the SDK's own."""
HELD_S = 0.2
"""A long poll that brings nothing sooner than this was not held open; it is not repeated at once."""
MOST_EMPTY_WAIT_S = 1.0
POLL_S = 90.0
"""Longest that a long poll may take: the SDK's own limit."""
OVERTAKEN_S = 1.0
"""How much later than the order to stop it a job may come: they travel by two connections."""
LOOK_S = 0.05
LARGE_BYTES = 1_000_000
"""A larger body that is answered 400 is taken to be too large: RunPod gives no other status for it."""


def install() -> None:
    """Replace the parts of the SDK that this module puts right."""
    rp_scale.JobScaler = QueueLoop
    rp_job.send_result = send_result
    rp_ping.Heartbeat.process_loop = staticmethod(ping)
    rp_ping.SyncClientSession = http_client.SyncClientSession = _Session
    http_client.get_credentials = lambda: None


class QueueLoop(rp_scale.JobScaler):  # type: ignore[misc]  # the SDK has no types
    """The SDK's loop: takes jobs, runs each as a task, and drains when it is told to stop.

    `config` holds what `rp_sdk.serve` puts there: `on_stop`, `ready`, `stop_asked`.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self.jobs_fetcher, self.jobs_fetcher_timeout = self._take, None
        self._signalled = False
        self._failures = 0
        self._answered = asyncio.Event()
        self._takes_ended = asyncio.Event()

    def handle_shutdown(self, signum: int, frame: FrameType | None) -> None:
        """Note a signal. The SDK's own prints here, which fails when it interrupts another print."""
        del signum, frame
        self._signalled = True

    async def run(self) -> None:
        """Serve until told to stop and all jobs are answered; stops are heard until then."""
        trace = aiohttp.TraceConfig()
        trace.on_request_end.append(self._note_answer)
        async with AsyncClientSession(trace_configs=[trace]) as session:
            stop = asyncio.create_task(self._wait_for_stop())
            stops = asyncio.create_task(self.monitor_stop_signals(session))
            try:
                await asyncio.gather(self.get_jobs(session), self.run_jobs(session))
                await stop
            finally:
                stop.cancel()
                stops.cancel()
                await asyncio.wait({stop, stops})

    async def get_jobs(self, session: aiohttp.ClientSession) -> None:
        """Take jobs until told to stop."""
        try:
            await super().get_jobs(session)
        finally:
            self._takes_ended.set()

    async def run_jobs(self, session: aiohttp.ClientSession) -> None:
        """Run what is taken, also what a take brought together with the stop."""
        await super().run_jobs(session)
        await self._takes_ended.wait()
        await super().run_jobs(session)

    async def monitor_stop_signals(self, session: aiohttp.ClientSession) -> None:
        """Stop the jobs that the platform names, until cancelled: the SDK's own ends with the takes."""
        failures = 0
        while True:
            began = time.monotonic()
            stopped: list[str] | None = None
            try:
                async with asyncio.timeout(POLL_S):
                    stopped = await rp_job.get_stop_signals(session)
            except TooManyRequests:
                await asyncio.sleep(BUSY_WAIT_S)
            except (aiohttp.ClientError, TimeoutError) as error:
                log.debug(f"asking for stops: {type(error).__name__}: {error}")
            await asyncio.gather(*(self.stop_job(job_id) for job_id in stopped or ()))
            if stopped or (stopped is not None and _was_held(began)):
                failures = 0
            else:
                failures += 1
                await asyncio.sleep(_wait_s(failures, MOST_WAIT_S))

    async def stop_job(self, job_id: str) -> bool:
        """Cancel the task of a job; one that is just being taken gets its task first.

        A task that is cancelled before its first step would leave its job in progress for ever.
        """
        latest = time.monotonic() + OVERTAKEN_S
        while job_id not in self.jobs_tasks and (  # noqa: ASYNC110 - the SDK has no event for it
            self.job_progress.get(job_id) or time.monotonic() < latest
        ):
            await asyncio.sleep(LOOK_S)
        await asyncio.sleep(0)
        stopped: bool = await super().stop_job(job_id)
        return stopped

    async def _wait_for_stop(self) -> None:
        while self.is_alive() and not self._signalled and not self.config["stop_asked"]():  # noqa: ASYNC110 - set by signals and threads
            await asyncio.sleep(LOOK_S)
        self._shutdown_event.set()
        self.config["on_stop"]()

    async def _take(self, session: aiohttp.ClientSession, count: int) -> list[Any] | None:
        """Return jobs, or None when there are none; waits after what did not go well."""
        began = time.monotonic()
        try:
            while self.is_alive() and not self.config["ready"]():
                await self._rest(2 * LOOK_S)
            jobs = await self._poll(session, count) if self.is_alive() else None
        except TooManyRequests:
            self._failures += 1
            await self._rest(BUSY_WAIT_S * random.uniform(1, 1.25))  # noqa: S311 - hides nothing
            return None
        except Exception:  # the SDK logs it
            self._failures += 1
            await self._rest(_wait_s(self._failures, MOST_WAIT_S))
            raise
        if jobs or _was_held(began):
            self._failures = 0
        else:
            self._failures += 1
            await self._rest(_wait_s(self._failures, MOST_EMPTY_WAIT_S))
        return jobs

    async def _poll(self, session: aiohttp.ClientSession, count: int) -> list[Any] | None:
        """Ask for jobs, and hang up when told to stop, unless the answer has begun to arrive."""
        self._answered.clear()
        poll = asyncio.create_task(rp_job.get_job(session, count))
        told = asyncio.create_task(self._shutdown_event.wait())
        try:
            await asyncio.wait({poll, told}, timeout=POLL_S, return_when=asyncio.FIRST_COMPLETED)
            if not poll.done() and not self._answered.is_set():
                return None
            async with asyncio.timeout(POST_S):
                jobs: list[dict[str, Any]] | None = await poll
        finally:
            poll.cancel()
            told.cancel()
            await asyncio.wait({poll, told})
        for job in jobs or ():
            job.pop("self", None)  # whatever callers send is passed on as keywords to Job.__init__
        return jobs

    async def _note_answer(
        self,
        _session: aiohttp.ClientSession,
        _context: SimpleNamespace,
        params: aiohttp.TraceRequestEndParams,
    ) -> None:
        if "/job-take" in params.url.path:
            self._answered.set()

    async def _rest(self, wait_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._shutdown_event.wait()


async def send_result(
    session: aiohttp.ClientSession,
    result: dict[str, Any],
    job: dict[str, Any],
    is_stream: bool = False,  # noqa: FBT001, FBT002 - the SDK's signature
) -> None:
    """Post a job's result until it arrives; what cannot be sent is replaced by an error that can."""
    job_id = job["id"]
    try:
        body = _encoded(result)
    except (TypeError, ValueError, RecursionError) as error:
        log.error(f"job {job_id}: the result is not JSON: {error}")  # noqa: TRY400 - the message says it
        body = _error_in_place_of(result, InternalError(f"The result is not JSON: {error}."))
    status = await _deliver(session, job_id, body, is_stream=is_stream)
    if 400 <= status < 500 and not _may_pass(status):
        log.error(f"job {job_id}: RunPod answered {status} to a result of {len(body)} bytes")
        body = _error_in_place_of(result, _refusal(status, len(body)))
        status = await _deliver(session, job_id, body, is_stream=is_stream)
    if 200 <= status < 400:
        log.info("Finished.")
    else:
        log.error(f"job {job_id}: no answer could be sent (last status: {status or 'none'})")


async def send_progress(session: aiohttp.ClientSession, job_id: str, progress: object) -> None:
    """Post one progress update; a failure is of no consequence and is not repeated."""
    try:
        body = _encoded({"status": "IN_PROGRESS", "output": progress})
    except (TypeError, ValueError) as error:
        log.warning(f"progress is not JSON: {error}")
        return
    await _post(session, job_id, body, is_stream=False, limit_s=PROGRESS_S)


def _encoded(message: dict[str, Any]) -> bytes:
    """Return JSON that every parser takes: the SDK would send NaN, and drop half a character."""
    return json.dumps(message, ensure_ascii=False, allow_nan=False).encode()


def _error_in_place_of(result: dict[str, Any], error: WorkerError) -> bytes:
    """Return the body that the SDK would make of `error`, with the request for a new worker kept."""
    answer = error.as_response()
    kept = {"stopPod": True} if result.get("stopPod") is True else {}
    return _encoded({"error": answer.pop("error"), "output": answer, **kept})


def _refusal(status: int, size: int) -> WorkerError:
    if status == 413 or (status == 400 and size > LARGE_BYTES):
        return OutputTooLargeError(
            f"RunPod refused the result of {size} bytes.",
            hint="Ask for fewer or smaller pictures, or use /runsync, whose limit is higher.",
            size_bytes=size,
        )
    return InternalError(f"RunPod refused the result with status {status}.", status=status)


async def _deliver(
    session: aiohttp.ClientSession, job_id: str, body: bytes, *, is_stream: bool
) -> int:
    """Post `body` until it is taken, refused or too late; return the last status, 0 for none."""
    deadline = time.monotonic() + RESULT_S
    for failures in itertools.count(1):
        limit_s = min(POST_S, max(deadline - time.monotonic(), FIRST_WAIT_S))
        status = await _post(session, job_id, body, is_stream=is_stream, limit_s=limit_s)
        wait_s = _wait_s(failures, MOST_WAIT_S)
        if not _may_pass(status) or time.monotonic() + wait_s > deadline:
            break
        log.warning(f"job {job_id}: the result is sent again (status: {status or 'none'})")
        await asyncio.sleep(wait_s)
    return status


async def _post(
    session: aiohttp.ClientSession, job_id: str, body: bytes, *, is_stream: bool, limit_s: float
) -> int:
    """Post once and return the status; 0 when there was no answer within `limit_s` seconds.

    The job's id goes with the request: the SDK puts it on the session, which other jobs share.
    """
    url = rp_http.JOB_DONE_URL.replace("$ID", job_id) + f"&isStream={str(is_stream).lower()}"
    headers = {
        "charset": "utf-8",
        "Content-Type": "application/x-www-form-urlencoded",
        "X-Request-ID": job_id,
    }
    timeout = aiohttp.ClientTimeout(total=limit_s)
    try:
        async with session.post(url, data=body, headers=headers, timeout=timeout) as response:
            await response.read()
            return response.status
    except (aiohttp.ClientError, TimeoutError) as error:
        log.debug(f"posting: {type(error).__name__}: {error}")
        return 0


def _may_pass(status: int) -> bool:
    """Return whether the same request may be taken later; 0 stands for no answer."""
    return status == 0 or status >= 500 or status in {408, 425, 429}


def _was_held(began: float) -> bool:
    return time.monotonic() - began >= HELD_S


def _wait_s(failures: int, most_s: float) -> float:
    """Return how long to wait after so many failures in a row, at least one."""
    wait_s = min(most_s, FIRST_WAIT_S * 2.0 ** min(failures - 1, 10))
    return wait_s * random.uniform(0.5, 1)  # noqa: S311 - hides nothing


class _Session(requests.Session):
    """A session for pings that knows no netrc, whose entry would replace the platform's key."""

    def __init__(self) -> None:
        super().__init__()
        self.trust_env = False


def ping(mirror: object = None, test: bool = False) -> None:  # noqa: FBT001, FBT002 - the SDK's signature
    """Ping for as long as the worker lives: the main function of the SDK's ping process.

    The SDK's own outlives a worker that is killed and goes on to name its job, and dies of an interval
    below a second. The process is a fork of the main thread, so the kernel may end it with that.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    worker = multiprocessing.parent_process()
    if worker is None or os.getppid() != worker.pid:
        return  # it has gone already
    heartbeat = rp_ping.Heartbeat()
    heartbeat._mirror = mirror  # noqa: SLF001 - as the SDK's own does
    heartbeat.PING_INTERVAL = max(1, heartbeat.PING_INTERVAL)
    heartbeat.ping_loop(test)


_PR_SET_PDEATHSIG = 1
"""Source: prctl(2), linux/prctl.h."""
