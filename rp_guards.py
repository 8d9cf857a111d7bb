"""What runpod 1.12.0 gets wrong in its queue loop, put right. `install` replaces parts of that version.

    rp_scale.JobScaler          QueueLoop: takes with back-off and no job twice, ends at once, hears stops
    rp_job.send_result          rp_post.send_result: retries, and answers in place of what cannot be sent
    rp_scale.handle_job         rp_stream.handle_job, for generators: a piece that is not taken is not lost
    rp_ping.Heartbeat           the ping process ends with the worker and survives short intervals
    http_client                 the platform's key only: no ~/.runpod/config.toml, no netrc
    RunPodLogger.log            _log: says by our log, which redacts, what it would print

Each has a test in tests/sdk that fails without it. Sources: the modules named, in runpod-python 1.12.0,
below runpod/serverless/modules; `http_client` is runpod/http_client.py.
"""

import asyncio
import contextlib
import ctypes
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
from runpod import http_client, serverless
from runpod.http_client import AsyncClientSession, TooManyRequests
from runpod.serverless.modules import rp_job, rp_logger, rp_ping, rp_scale

import rp_stream
from rp_post import MOST_WAIT_S, POST_S, send_progress, send_result, wait_s

__all__ = ["AsyncClientSession", "install", "send_progress"]

log = logging.getLogger(__name__)
_sdk_log = logging.getLogger("runpod")

BUSY_WAIT_S = 5.0
"""Shortest wait after a take that is answered 429: the SDK's own."""
HELD_S = 0.2
"""A long poll that brings nothing sooner than this was not held open; it is not repeated at once."""
MOST_EMPTY_WAIT_S = 1.0
POLL_S = 90.0
"""Longest that a long poll may take: the SDK's own limit."""
OVERTAKEN_S = 1.0
"""How much later than the order to stop it a job may come: they travel by two connections."""
UNDER_WAY_S = 0.5
"""Where jobs wait, a poll has its answer sooner than this; until then hanging up could lose them."""
LOOK_S = 0.05


def install() -> None:
    """Replace the parts of the SDK that this module puts right."""
    rp_scale.JobScaler = QueueLoop
    rp_job.send_result = send_result
    rp_ping.Heartbeat.process_loop = staticmethod(ping)
    rp_ping.SyncClientSession = http_client.SyncClientSession = _Session
    http_client.get_credentials = lambda: None
    rp_logger.RunPodLogger.log = _log
    vars(serverless)["print"] = _sdk_log.info  # Its first words, as plain text among JSON lines.
    _sdk_log.setLevel(logging.DEBUG)  # RUNPOD_LOG_LEVEL alone says what is said.


def _log(
    logger: rp_logger.RunPodLogger,
    message: object,
    message_level: str = "INFO",
    job_id: str | None = None,
) -> None:
    """Log what the SDK says. Its own prints whatever it holds, at DEBUG each answer."""
    levels = rp_logger.LOG_LEVELS
    least = levels.index(logger.level)
    if least and (message_level == "TIP" or levels.index(message_level) >= least):
        level = logging.getLevelNamesMapping().get(message_level, logging.INFO)
        _sdk_log.log(level, "%s", message, extra={"job": job_id or ""})


class QueueLoop(rp_scale.JobScaler):  # type: ignore[misc]  # the SDK has no types
    """The SDK's loop: takes jobs, runs each as a task, and drains when it is told to stop.

    The queue delivers at least once, so a job may come again while it is under way here. The SDK would run
    it beside itself, and at the end of either name neither in its pings. Here the order in which things
    come decides:

    - Before an order to stop it, it is the same job, and is not done twice.
    - After such an order, which means that it has ended for the platform, it is meant to be done again, as
      after a /retry. It is, once the first has left its slot.
    - An order to stop it is for all that came before, also for what still waits so.

    `config` holds what `rp_sdk.serve` puts there: `on_stop`, `ready`, `stop_asked`, `chunk_bytes`.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self.jobs_fetcher, self.jobs_fetcher_timeout = self._take, None
        if config.get("chunk_bytes") is not None:
            self.jobs_handler = rp_stream.handle_job
        self._signalled = False
        self._failures = 0
        self._again: dict[str, dict[str, Any] | None] = {}
        """Of jobs under way that came again: what is to be done after them, None for nothing."""
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
        """Run what is taken, also what comes while the SDK's own only waits for the last jobs to end.

        That is what a take brought together with the stop, and what came again. Until such a job had its
        task, an order to stop it would hold up those for the others.
        """
        async with asyncio.TaskGroup() as group:
            runs = [group.create_task(super().run_jobs(session))]
            await self._shutdown_event.wait()
            while not (self._takes_ended.is_set() and all(run.done() for run in runs)):
                if not self.jobs_queue.empty():
                    runs.append(group.create_task(super().run_jobs(session)))
                await asyncio.sleep(LOOK_S)
            await super().run_jobs(session)  # what came between the last two looks

    async def handle_job(self, session: aiohttp.ClientSession, job: dict[str, Any]) -> None:
        """Run one job, and then queue it once more if it came again after an order to stop it."""
        try:
            await super().handle_job(session, job)
        finally:
            if (again := self._again.pop(job["id"], None)) is not None:
                self.jobs_queue.put_nowait(again)  # into the slot that has just become free
                self.job_progress.add(again)

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
                await asyncio.sleep(wait_s(failures, MOST_WAIT_S))

    async def stop_job(self, job_id: str) -> bool:
        """Cancel the task of a job; one that is just being taken gets its task first.

        A task that is cancelled before its first step would leave its job in progress for ever.
        """
        self._again.pop(job_id, None)
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
        """Return new jobs, none or None when there are none; waits after what did not go well."""
        began = time.monotonic()
        try:
            while self.is_alive() and not self.config["ready"]():
                await self._rest(2 * LOOK_S)
            taken = await self._poll(session, count) if self.is_alive() else None
            once = {job["id"]: job for job in taken or ()}
            jobs = [job for job in once.values() if not self._is_under_way(job)]
        except TooManyRequests:
            self._failures += 1
            await self._rest(BUSY_WAIT_S * random.uniform(1, 1.25))  # noqa: S311 - hides nothing
            return None
        except Exception:  # the SDK logs it
            self._failures += 1
            await self._rest(wait_s(self._failures, MOST_WAIT_S))
            raise
        if jobs or _was_held(began):
            self._failures = 0
        else:
            self._failures += 1
            await self._rest(wait_s(self._failures, MOST_EMPTY_WAIT_S))
        return jobs

    def _is_under_way(self, job: dict[str, Any]) -> bool:
        """Return whether `job` is here already; if it is meant to be done again it is kept for then."""
        job_id = job["id"]
        if self.job_progress.get(job_id) is None:
            return False
        task = self.jobs_tasks.get(job_id)
        named = {"job": job_id}
        if task is not None and task.cancelling():
            log.info("The job came again while it stops: it is done again after that.", extra=named)
            self._again[job_id] = job
        elif job_id not in self._again:
            log.warning(
                "The job came again while it is under way: it is not done twice.", extra=named
            )
            self._again[job_id] = None
        return True

    async def _poll(self, session: aiohttp.ClientSession, count: int) -> list[Any] | None:
        """Ask for jobs, and hang up when told to stop, unless the answer may be under way."""
        self._answered.clear()
        latest = time.monotonic() + UNDER_WAY_S
        poll = asyncio.create_task(rp_job.get_job(session, count))
        told = asyncio.create_task(self._shutdown_event.wait())
        try:
            await asyncio.wait({poll, told}, timeout=POLL_S, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait({poll}, timeout=max(0.0, latest - time.monotonic()))
            if not poll.done() and not self._answered.is_set():
                return None
            async with asyncio.timeout(POST_S):
                jobs: list[dict[str, Any]] | None = await poll
        finally:
            poll.cancel()
            told.cancel()
            await asyncio.wait({poll, told})
        for job in jobs or ():
            # Whatever callers send is passed on as keywords to Job.__init__, which sets it as attributes.
            for name in [name for name in job if name == "self" or name.startswith("__")]:
                del job[name]
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


def _was_held(began: float) -> bool:
    return time.monotonic() - began >= HELD_S


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
