"""RunPod's job queue as a state machine: jobs, workers, and the clocks that move them. No I/O.

    IN_QUEUE ──take──▶ IN_PROGRESS ──answer──▶ COMPLETED | FAILED
       │  ▲                │ ├─ cancel ──▶ CANCELLED          (and a stop signal to the worker)
       │  └─ not pinged ───┘ ├─ execution timeout ──▶ TIMED_OUT   (likewise)
       │     (once; then     └─ time to live ──▶ gone: 404        (likewise)
       │      FAILED)
       ├─ cancel, purge ──▶ CANCELLED
       └─ time to live ──▶ TIMED_OUT

A job that has ended is forgotten when its retention is over. Every method is given `now`, in seconds
of the platform's time; nothing happens between two calls, so `tick` is called often.

Sources: RunPod docs, serverless/endpoints/operation-reference, send-requests, job-states (limits,
policies, retention, states); the error texts and `retries` as users quote the live platform. That a
job is given up because its worker no longer names it in its pings, and after how long, is inferred from
reports of "job timed out after 1 retries" for jobs that a living worker had dropped.
"""

import uuid
from collections import defaultdict, deque
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from simulator.queue.job import Job, Status

MB = 1_000_000
DAY_S = 86_400.0


class Outcome(StrEnum):
    """What became of a message from a worker."""

    ACCEPTED = "accepted"
    UNKNOWN_JOB = "for a job that does not exist"
    TOO_LARGE = "over the size limit"
    AFTER_THE_END = "after the job had ended"
    NOT_THE_HOLDER = "from a worker that no longer holds the job"


@dataclass(frozen=True)
class Limits:
    """The platform's limits. Seconds of platform time, bytes in decimal megabytes."""

    async_bytes: int = 10 * MB
    sync_bytes: int = 20 * MB
    chunk_bytes: int = MB
    execution_s: float = 600.0
    ttl_s: float = DAY_S
    async_retention_s: float = 1800.0
    sync_retention_s: float = 60.0
    lost_after_s: float = 30.0
    """A job whose worker has not named it in a ping for so long is taken away from it."""
    retries: int = 1

    def body(self, *, sync: bool) -> int:
        """Return how many bytes a request's or a result's body may have."""
        return self.sync_bytes if sync else self.async_bytes


class JobQueue:
    """The jobs of one endpoint.

    In their histories are: `taken`; for each result the value of an `Outcome`; `given up` when their
    worker is taken to be lost; the status in which they end; and what `note` adds.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.jobs: dict[str, Job] = {}
        self.forgotten: list[Job] = []
        self.waiting: deque[Job] = deque()
        self.stops: defaultdict[str, list[str]] = defaultdict(list)
        self.pinged_at: dict[str, float] = {}
        self.unhealthy: dict[str, str] = {}
        self.retried = 0
        self.ended: list[Job] = []
        """In the order of their ends; a job that was retried is there again."""
        self._again: list[tuple[Job, str | None]] = []
        """What is handed out once more, and to which worker; None: to any."""

    def submit(self, request: dict[str, Any], *, sync: bool, now: float) -> Job:
        """Queue a job. `request` is the body of `/run`; its policy must be valid.

        `/runsync` ids begin with `sync-`, by which a worker may know how large its result may be.
        """
        policy = request.get("policy") or {}
        job = Job(
            id=f"{'sync-' if sync else ''}{uuid.uuid4()}-u1",
            request=request,
            sync=sync,
            queued_at=now,
            execution_s=policy.get("executionTimeout", self.limits.execution_s * 1000) / 1000,
            expires_at=now + policy.get("ttl", self.limits.ttl_s * 1000) / 1000,
        )
        self.jobs[job.id] = job
        self.waiting.append(job)
        return job

    def take(
        self, worker: str, count: int, now: float, *, twice: bool = False, same: bool = False
    ) -> list[Job]:
        """Hand up to `count` jobs to `worker`, oldest first.

        Those that are taken `twice` are handed out once more, to whoever asks next or to the `same`
        worker, unless they have ended by then: as a queue does that delivers at least once. The result
        that counts is that of the worker that was handed the job last.
        """
        again = [(job, to) for job, to in self._again if job.status is Status.IN_PROGRESS]
        taken = [job for job, to in again if to in {None, worker}][:count]
        self._again = [(job, to) for job, to in again if job not in taken]
        for job in taken:
            job.duplicates += 1
        while self.waiting and len(taken) < count:
            taken.append(self.waiting.popleft())
        if twice:
            self._again += [(job, worker if same else None) for job in taken]
        for job in taken:
            self.note(job, "taken", worker, now)
            job.status, job.worker, job.taken_at, job.named_at = (
                Status.IN_PROGRESS,
                worker,
                now,
                now,
            )
            job.takes += 1
        return taken

    def stop_signals(self, worker: str) -> list[str]:
        """Return, once, the ids of the jobs that `worker` shall stop."""
        return self.stops.pop(worker, [])

    def ping(self, worker: str, job_ids: list[str], now: float) -> None:
        """Note that `worker` lives and works on the jobs that it names."""
        self.pinged_at[worker] = now
        self.unhealthy.pop(worker, None)
        for job_id in job_ids:
            job = self.jobs.get(job_id)
            if job is not None and job.worker == worker:
                job.named_at = now

    def answer(
        self, worker: str, job_id: str, message: dict[str, Any], size: int, now: float
    ) -> Outcome:
        """Take a result, or a progress update (`"status": "IN_PROGRESS"`), of `size` bytes.

        A result that is too large is refused and lost: the worker does not send it again, and the job
        stays IN_PROGRESS until its execution timeout.
        """
        job = self.jobs.get(job_id)
        if job is None:
            return Outcome.UNKNOWN_JOB
        is_progress = message.get("status") == Status.IN_PROGRESS
        job.answers += not is_progress
        objection = self._objection(job, worker, size)
        if not is_progress:
            self.note(job, objection or Outcome.ACCEPTED, worker, now)
        if objection is None:
            if is_progress:
                job.progress.append(message.get("output"))
            else:
                job.output, job.error = message.get("output"), message.get("error")
                job.stop_pod = message.get("stopPod") is True
                self._end(job, Status.FAILED if job.error else Status.COMPLETED, now)
        elif objection is Outcome.TOO_LARGE and not is_progress:
            job.refused = True
        return objection or Outcome.ACCEPTED

    def hand_out(self, worker: str, job: Job, message: dict[str, Any], size: int) -> Outcome | None:
        """Take a piece of a stream, of `size` bytes; return why it does not count, or None when it does."""
        objection = self._objection(job, worker, 0)
        if objection is None and size > self.limits.chunk_bytes:
            objection = Outcome.TOO_LARGE
        if objection is None:
            job.stream.append(message)
        return objection

    def _objection(self, job: Job, worker: str, size: int) -> Outcome | None:
        """Return why a message for `job` does not count, or None when it does."""
        if job.status.is_final:
            return Outcome.AFTER_THE_END
        if job.worker != worker:
            return Outcome.NOT_THE_HOLDER
        return Outcome.TOO_LARGE if size > self.limits.body(sync=job.sync) else None

    @staticmethod
    def note(job: Job, what: str, worker: str | None, now: float) -> None:
        """Write down what happened to a job."""
        job.history.append((now, str(what), worker))

    def refuse(self, job_id: str) -> None:
        """Note that a result for the job came that cannot be read, and so is lost."""
        if (job := self.jobs.get(job_id)) is not None:
            job.refused = True

    def cancel(self, job: Job, now: float) -> None:
        """End a job that has not ended; the worker that runs it is told to stop."""
        if not job.status.is_final:
            self._leave(job)
            self._end(job, Status.CANCELLED, now)

    def purge(self, now: float) -> int:
        """Cancel all jobs that no worker has taken and return how many these were."""
        purged = list(self.waiting)
        for job in purged:
            self.cancel(job, now)
        return len(purged)

    def retry(self, job: Job, now: float) -> bool:
        """Queue a job that failed or timed out again, without its output; False for any other."""
        if job.status not in {Status.FAILED, Status.TIMED_OUT}:
            return False
        lifetime = job.expires_at - job.queued_at
        job.queued_at, job.expires_at, job.ended_at = now, now + lifetime, None
        job.output = job.error = None
        job.answers, job.retries = 0, 0
        self._requeue(job)
        return True

    def tick(self, now: float) -> bool:
        """Do what is due by the clock, and say whether anything was."""
        before = [(job.id, job.status) for job in self.jobs.values()]
        for job in list(self.jobs.values()):
            if job.status.is_final:
                self._forget(job, now)
            elif now >= job.expires_at:
                self._expire(job, now)
            elif job.status is Status.IN_PROGRESS:
                self._watch(job, now)
        return before != [(job.id, job.status) for job in self.jobs.values()]

    def health(self, now: float) -> dict[str, dict[str, int]]:
        """Return the counts that `/health` shows."""
        counts = dict.fromkeys(Status, 0)
        for job in self.jobs.values():
            counts[job.status] += 1
        alive = {w for w, at in self.pinged_at.items() if now - at <= self.limits.lost_after_s}
        busy = {job.worker for job in self.jobs.values() if job.status is Status.IN_PROGRESS}
        return {
            "jobs": {
                "completed": counts[Status.COMPLETED],
                "failed": counts[Status.FAILED] + counts[Status.TIMED_OUT],
                "inProgress": counts[Status.IN_PROGRESS],
                "inQueue": counts[Status.IN_QUEUE],
                "retried": self.retried,
            },
            "workers": {
                "idle": len(alive - busy),
                "running": len(alive & busy),
                "unhealthy": len(self.unhealthy),
            },
        }

    def _watch(self, job: Job, now: float) -> None:
        """End a job that has run too long; take it from a worker that is lost."""
        if job.taken_at is not None and now - job.taken_at >= job.execution_s:
            self._leave(job)
            job.error = "executionTimeout exceeded"
            self._end(job, Status.TIMED_OUT, now)
        elif now - job.named_at >= self.limits.lost_after_s and not job.refused:
            self.note(job, "given up", job.worker, now)
            if job.retries >= self.limits.retries:
                job.error = f"job timed out after {job.retries} retries"
                self._end(job, Status.FAILED, now)
            else:
                job.retries += 1
                self.retried += 1
                self._requeue(job)

    def _expire(self, job: Job, now: float) -> None:
        """Apply the time to live, which runs from submission on, also while a worker is at it."""
        if job.status is Status.IN_PROGRESS:
            self._leave(job)
            self._remove(job)
        else:
            self._leave(job)
            job.error = "job expired before a worker took it"
            self._end(job, Status.TIMED_OUT, now)

    def _forget(self, job: Job, now: float) -> None:
        kept_s = self.limits.sync_retention_s if job.sync else self.limits.async_retention_s
        if job.ended_at is not None and now - job.ended_at >= kept_s:
            self._remove(job)

    def _remove(self, job: Job) -> None:
        """Make the job unknown to callers; what is left serves the journal, without the payloads."""
        del self.jobs[job.id]
        job.request, job.output = {}, None
        job.stream.clear()
        self.forgotten.append(job)

    def _leave(self, job: Job) -> None:
        """Take a job out of the queue, or tell the worker that runs it to stop."""
        if job.status is Status.IN_QUEUE:
            self.waiting.remove(job)
        elif job.worker is not None:
            self.stops[job.worker].append(job.id)

    def _requeue(self, job: Job) -> None:
        job.status, job.worker, job.taken_at = Status.IN_QUEUE, None, None
        job.refused = False
        job.progress.clear()
        self.waiting.append(job)

    def _end(self, job: Job, status: Status, now: float) -> None:
        job.status, job.ended_at = status, now
        self.note(job, status, job.worker, now)
        self.ended.append(job)
