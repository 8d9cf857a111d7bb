"""What was asked, what was answered and what was broken meanwhile; and what does not add up. No I/O.

Each job is to have one end. What it was answered is to be right, or an error that a fault explains which
was there while a worker was at it. Whatever else happened to it is to have a reason, too: that it was
handed out again, answered twice, answered after its end.

    lost         no end, or taken from a worker that lived and did not name it any more
    duplicated   two ends, or an answer that nobody was left to be given
    wrong        another picture, another error, a failure without a reason
    left         what should be gone: processes, files, leases, bytes that are not their name's

Times are of the queue's clock, in seconds.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tests.soak.fleet import STOP_S
from tests.soak.parts import TIME_SCALE

# How far the clocks of who writes down and who is asked may be apart.
SLACK_S = 5.0
# How long the worker that is told to stop a job may still answer it: its A1111 ends, an answer on its way
# is sent again.
CANCELS_S = (STOP_S + 5.0) * TIME_SCALE
# How long after a worker was told to stop a take of its may still bring a job: see rp_guards.UNDER_WAY_S.
TAKES_S = 3.0 * TIME_SCALE
LOST, UNTOLD, UNTOLD_PIECE = "given up", "unacknowledged", "unacknowledged piece"
STOPPED = "worker SIGTERM"
ACCEPTED = "accepted"
_ANSWERS = {
    ACCEPTED,
    "after the job had ended",
    "from a worker that no longer holds the job",
}


def digest(value: Any) -> str:
    """Return the digest of a JSON value, by which answers are compared."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Struck:
    """A fault, while it could be felt."""

    kind: str
    began: float
    ended: float
    codes: frozenset[str] = frozenset()
    """Errors of jobs that it explains."""
    worker: str | None = None
    """The only one that felt it; None: any."""
    most: int | None = None
    """How many jobs it may cost; None: any number."""
    is_end: bool = False
    """The worker was gone from `began` on."""


@dataclass(frozen=True)
class Asked:
    """A job as it was sent."""

    kind: str
    expected: str | None
    """The digest of what must be seen in its output; None: it must fail."""
    codes: frozenset[str] = frozenset()
    """How it must fail."""
    is_cancelled: bool = False
    """The platform took the order to cancel it."""


@dataclass(frozen=True)
class End:
    """What became of a job, as the platform says."""

    job: str
    status: str
    seen: str = ""
    """The digest of what was seen in its output."""
    code: str = ""
    """Of the error that it was answered."""
    error: str = ""
    history: Sequence[tuple[float, str, str | None]] = ()
    """When, what, and which worker: see simulator/queue/state.py."""
    duplicates: int = 0
    strange: str = ""
    """What is wrong with the form of its output, or with what /stream showed."""

    def stays(self) -> list[tuple[str, float, float]]:
        """Return at which workers it was, from when to when."""
        found, last = [], 0.0
        until = max((t for t, _, _ in self.history), default=0.0)
        for t, what, worker in reversed(self.history):
            if what == "taken" and worker is not None:
                found.append((worker, t, last or until))
            elif what == LOST:
                last = t
        return found


@dataclass(frozen=True)
class Finding:
    """Something that does not add up."""

    what: Literal["lost", "duplicated", "wrong", "left"]
    about: str
    """The job's id, or a path or process."""
    text: str

    def __str__(self) -> str:
        return f"{self.what}: {self.about}: {self.text}"


@dataclass
class Ledger:
    """All that was asked, answered and broken."""

    asked: dict[str, Asked] = field(default_factory=dict)
    ends: list[End] = field(default_factory=list)
    struck: list[Struck] = field(default_factory=list)
    left: list[tuple[str, str]] = field(default_factory=list)
    """What was found where nothing should be: about what, and what."""

    def findings(self) -> list[Finding]:
        """Return everything that does not add up; nothing if all is well."""
        by_job: dict[str, list[End]] = {job: [] for job in self.asked}
        for end in self.ends:
            by_job.setdefault(end.job, []).append(end)
        costs: Counter[Struck] = Counter()
        found = [Finding("left", about, text) for about, text in self.left]
        for job, ends in by_job.items():
            if (asked := self.asked.get(job)) is None:
                found.append(Finding("wrong", job, "nobody asked for it"))
            elif not ends:
                found.append(Finding("lost", job, f"{asked.kind}: no answer"))
            else:
                found += self._of_one(job, asked, ends, costs)
        return found + [
            Finding("wrong", fault.worker or "all", f"{fault.kind} cost {cost} jobs")
            for fault, cost in costs.items()
            if fault.most is not None and cost > fault.most
        ]

    def _of_one(
        self, job: str, asked: Asked, ends: list[End], costs: Counter[Struck]
    ) -> list[Finding]:
        found = []
        if len(ends) > 1:
            found.append(Finding("duplicated", job, f"{[end.status for end in ends]}"))
        end = ends[0]
        if wrong := end.strange or self._objection(asked, end, costs):
            found.append(Finding("wrong", job, f"{asked.kind}: {wrong}"))
        found += [
            Finding("lost", job, f"{asked.kind}: {worker} dropped it at {t:.1f}")
            for t, what, worker in end.history
            if what == LOST and not self._explains_loss(end, worker, t)
        ]
        found += [
            Finding("wrong", job, f"{asked.kind}: answered {late:.1f} s after its cancel")
            for late in self._ignored(end)
        ]
        found += [
            Finding("wrong", job, f"{asked.kind}: taken {late:.1f} s after its worker was to stop")
            for late in self._greedy(end)
        ]
        if (spare := _spare_answers(end)) > 0:
            text = f"{asked.kind}: {spare} answers too many: {list(end.history)}"
            found.append(Finding("duplicated", job, text))
        return found

    def _objection(self, asked: Asked, end: End, costs: Counter[Struck]) -> str | None:
        """Return what is wrong with how a job ended, or None."""
        if end.status == "CANCELLED" or asked.is_cancelled:
            well = end.status == "CANCELLED" and asked.is_cancelled
            return None if well else f"cancelled: {asked.is_cancelled}, {end.status}"
        if end.status == "COMPLETED":
            return _spoilt(asked, end)
        failed_well = end.status == "FAILED" and (
            end.code in asked.codes or self._explains(end, costs)
        )
        return None if failed_well else f"{end.code or end.status} {end.error}"

    def _explains(self, end: End, costs: Counter[Struck]) -> bool:
        """Tell whether a fault explains the error of a job, and charge it to that fault."""
        if not end.code:
            # The platform's own, after the second worker was lost: each loss is judged by itself.
            return [what for _, what, _ in end.history].count(LOST) > 1
        felt = [
            fault
            for fault in self.struck
            if end.code in fault.codes
            and any(
                fault.worker in {None, worker}
                and fault.began - SLACK_S <= until
                and since <= fault.ended + SLACK_S
                for worker, since, until in end.stays()
            )
        ]
        if felt:
            # To one that may still cost a job, if there is one.
            costs[min(felt, key=lambda fault: costs[fault] - (fault.most or 1_000_000))] += 1
        return bool(felt)

    def _explains_loss(self, end: End, worker: str | None, t: float) -> bool:
        """Tell whether a worker had a reason for not naming a job that it was given."""
        his = [(at, what) for at, what, of in end.history if of == worker and at <= t]
        taken = max((at for at, what in his if what == "taken"), default=0.0)
        if any(what == UNTOLD and at >= taken for at, what in his):
            return True
        return any(
            fault.is_end and fault.worker == worker and fault.began <= t + SLACK_S
            for fault in self.struck
        )

    def _ignored(self, end: End) -> list[float]:
        """Return how long after its cancel a job was answered, where that was too long.

        Only by the worker that held it then: no other one is told.
        """
        told = {of: at for at, what, of in end.history if what == "CANCELLED" and of is not None}
        return [
            at - told[of]
            for at, what, of in end.history
            if what in _ANSWERS and of in told and at > told[of] + CANCELS_S
        ]

    def _greedy(self, end: End) -> list[float]:
        """Return how long after it was told to stop a worker took a job, where that was too long."""
        stopped = {fault.worker: fault.began for fault in self.struck if fault.kind == STOPPED}
        return [
            at - stopped[of]
            for at, what, of in end.history
            if what == "taken" and of in stopped and at > stopped[of] + TAKES_S
        ]


def _spoilt(asked: Asked, end: End) -> str | None:
    """Return what is wrong with an output, or None."""
    if asked.expected is None:
        return f"it should have failed with {'|'.join(sorted(asked.codes))}"
    return None if end.seen == asked.expected else "another answer than the right one"


def _spare_answers(end: End) -> int:
    """Return how many answers to a job have no reason.

    Each worker has one for the job that it was handed, until it is given up, and one for each receipt of a
    result that never came. Handed what it is at already, it has none to add; nor has a take that was lost.
    """
    due: Counter[str | None] = Counter()
    answered: dict[str | None, bool] = {}
    spare = 0
    for _, what, worker in end.history:
        if what in _ANSWERS:
            spare += due[worker] == 0
            due[worker] = max(due[worker] - 1, 0)
            answered[worker] = True
        elif what == "taken":
            due[worker] = due[worker] + 1 if answered.get(worker, True) else 1
            answered[worker] = False
        elif what == UNTOLD:
            due[worker] += answered.get(worker, False)
        elif what == LOST:
            due[worker] = 0
    return spare
