"""One endpoint of the simulated platform while it runs: its clock, its long polls, its journal."""

import asyncio
import contextlib
import dataclasses
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from aiohttp import web

from simulator.queue.job import Job
from simulator.queue.state import JobQueue, Limits

if TYPE_CHECKING:
    from simulator.queue.faults import Fault

T = TypeVar("T")

PING_INTERVAL_S = 10.0
# Below 1000 ms the SDK's ping process dies. Source: runpod 1.12.0, serverless/modules/rp_ping.py,
# Heartbeat.__init__ divides by 1000 without a remainder.
_LEAST_PING_INTERVAL_MS = 1000
_PINGS_MISSED = 3


@dataclass
class Journal:
    """What workers and clients did, for tests to read. Times are of the platform's clock."""

    counts: Counter[str] = field(default_factory=Counter)
    requests: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=5000))
    violations: list[str] = field(default_factory=list)
    """What no correct worker does."""
    late: list[str] = field(default_factory=list)
    """Messages for jobs that had ended otherwise meanwhile: nobody's fault."""


@dataclass(frozen=True)
class Options:
    """How the endpoint is set up. `time_scale` is how many seconds of its clock pass in a real one."""

    endpoint: str = "sim"
    api_key: str = "simulated-key"
    open: bool = False
    """Clients need no key."""
    time_scale: float = 1.0
    hold_s: float = 30.0
    """How long a long poll stays open, by the platform's clock."""
    limits: Limits = field(default_factory=Limits)

    @property
    def ping_interval_ms(self) -> int:
        """The real interval between pings that workers are told to keep, in whole seconds."""
        scaled_s = round(PING_INTERVAL_S / self.time_scale)
        return max(_LEAST_PING_INTERVAL_MS, scaled_s * 1000)


class Platform:
    """The queue with a clock. Lives on one event loop; `faults` and `journal` are for tests to use."""

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or Options()
        # A worker cannot ping more often than once in a real second, however fast the clocks run.
        least_s = _PINGS_MISSED * self.options.ping_interval_ms / 1000 * self.options.time_scale
        limits = self.options.limits
        self.queue = JobQueue(
            dataclasses.replace(limits, lost_after_s=max(limits.lost_after_s, least_s))
        )
        self.journal = Journal()
        self.faults: list[Fault] = []
        self.unacknowledged: set[str] = set()
        """Jobs whose result was taken but whose worker was told otherwise, by a fault."""
        self._started = time.monotonic()
        self._changed = asyncio.Event()

    @property
    def now(self) -> float:
        """Seconds since the start, by the platform's clock."""
        return (time.monotonic() - self._started) * self.options.time_scale

    def notify(self) -> None:
        """Wake those who wait in `until`."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def until(self, ready: Callable[[], T | None], hold_s: float) -> T | None:
        """Return what `ready` returns as soon as it is true, or None after `hold_s`."""
        deadline = self.now + hold_s
        while True:
            changed = self._changed
            if value := ready():
                return value
            left_s = (deadline - self.now) / self.options.time_scale
            if left_s <= 0:
                return None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await changed.wait()

    async def keep_time(self) -> None:
        """Do what is due by the clock, until cancelled."""
        while True:
            if self.queue.tick(self.now):
                self.notify()
            await asyncio.sleep(0.05)

    def job(self, job_id: str) -> Job:
        """Return the job with this id, as it is now.

        Raises:
            web.HTTPNotFound: there is none, or none any more.
        """
        if self.queue.tick(self.now):
            self.notify()
        job = self.queue.jobs.get(job_id)
        if job is None:
            raise web.HTTPNotFound(
                text='{"error":"job not found"}', content_type="application/json"
            )
        return job

    def environment(self, url: str, worker: str) -> dict[str, str]:
        """Return the variables that a worker's process needs to take jobs from `url`.

        Names and shapes are those that the platform sets; the last two keep the SDK from looking for a
        GPU and for the internet. Source: runpod 1.12.0, serverless/modules/rp_job.py, rp_http.py,
        rp_ping.py, rp_fitness.py.
        """
        base = f"{url}/v2/{self.options.endpoint}"
        return {
            "RUNPOD_WEBHOOK_GET_JOB": f"{base}/job-take/$ID?gpu=SIMULATED",
            "RUNPOD_WEBHOOK_POST_OUTPUT": f"{base}/job-done/$RUNPOD_POD_ID/$ID?gpu=SIMULATED",
            "RUNPOD_WEBHOOK_POST_STREAM": f"{base}/job-stream/$RUNPOD_POD_ID/$ID?gpu=SIMULATED",
            "RUNPOD_WEBHOOK_PING": f"{base}/ping/$RUNPOD_POD_ID",
            "RUNPOD_PING_INTERVAL": str(self.options.ping_interval_ms),
            "RUNPOD_AI_API_KEY": self.options.api_key,
            "RUNPOD_POD_ID": worker,
            "RUNPOD_POD_HOSTNAME": f"{worker}-host",
            "RUNPOD_ENDPOINT_ID": self.options.endpoint,
            "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
            "RUNPOD_SKIP_GPU_CHECK": "true",
        }

    def journal_as_json(self) -> dict[str, Any]:
        """Return the journal, and what became of every job there ever was."""
        jobs = [*self.queue.forgotten, *self.queue.jobs.values()]
        return {
            "counts": dict(self.journal.counts),
            "violations": self.journal.violations,
            "late": self.journal.late,
            "pinged_at": self.queue.pinged_at,
            "unhealthy": self.queue.unhealthy,
            "requests": list(self.journal.requests),
            "jobs": [
                {
                    "id": job.id,
                    "status": job.status,
                    "worker": job.worker,
                    "takes": job.takes,
                    "retries": job.retries,
                    "answers": job.answers,
                    "stop_pod": job.stop_pod,
                    "progress": job.progress,
                    "duplicates": job.duplicates,
                    "history": job.history,
                    "forgotten": job.id not in self.queue.jobs,
                }
                for job in jobs
            ],
        }


PLATFORM = web.AppKey("platform", Platform)
