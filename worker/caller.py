"""Whoever waits for a job, and what is kept for it until it ends."""

from contextlib import ExitStack
from dataclasses import dataclass, field
from threading import Event

from worker.child.watch import Report
from worker.clock import Clock


@dataclass(frozen=True)
class Caller:
    """Whoever waits for a job."""

    cancelled: Event
    report: Report
    """Gets its progress, from any thread."""
    held: ExitStack
    """Of models: none is evicted by any worker while the job lasts."""
    clock: Clock = field(default_factory=Clock)
    """Where its time is noted."""
