"""One job: its states, what became of it, and how callers and workers see it. No I/O."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Status(StrEnum):
    """The states of a job, as `/status` spells them."""

    IN_QUEUE = "IN_QUEUE"
    IN_PROGRESS = "IN_PROGRESS"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMED_OUT = "TIMED_OUT"

    @property
    def is_final(self) -> bool:
        """Whether nothing more happens to the job by itself."""
        return self not in {Status.IN_QUEUE, Status.IN_PROGRESS}


@dataclass
class Job:
    """One job. Times are of the platform's clock; `progress` are the outputs of progress updates."""

    id: str
    request: dict[str, Any]
    sync: bool
    queued_at: float
    execution_s: float
    expires_at: float
    status: Status = Status.IN_QUEUE
    worker: str | None = None
    taken_at: float | None = None
    named_at: float = 0.0
    ended_at: float | None = None
    retries: int = 0
    takes: int = 0
    output: Any = None
    error: Any = None
    progress: list[Any] = field(default_factory=list)
    stream: list[Any] = field(default_factory=list)
    stream_read: int = 0
    answers: int = 0
    refused: bool = False
    """A result came and was refused; the worker thinks that it is done."""
    stop_pod: bool = False
    """The worker asked with its result to be replaced."""
    duplicates: int = 0
    """How often it was handed out while a worker was at it."""
    history: list[tuple[float, str, str | None]] = field(default_factory=list)
    """When what happened to it, and which worker had to do with it; see `JobQueue`."""

    def as_json(self) -> dict[str, Any]:
        """Return what `/status` shows. Times are milliseconds."""
        shown: dict[str, Any] = {"id": self.id, "status": self.status.value}
        if self.taken_at is not None:
            shown["delayTime"] = round((self.taken_at - self.queued_at) * 1000)
            shown["workerId"] = self.worker
            if self.ended_at is not None:
                shown["executionTime"] = round((self.ended_at - self.taken_at) * 1000)
        if self.retries:
            shown["retries"] = self.retries
        output = self.output
        if self.status is Status.IN_PROGRESS and self.progress:
            output = self.progress[-1]
        if output is not None:
            shown["output"] = output
        if self.error is not None:
            shown["error"] = self.error
        return shown

    def for_worker(self) -> dict[str, Any]:
        """Return what a worker takes: `id`, `input`, and what else the caller put beside it."""
        beside = {name: value for name, value in self.request.items() if name != "policy"}
        return {**beside, "id": self.id}
