"""The jobs of a soak on their way: sent, cancelled, ended; each becomes an entry of the ledger."""

import contextlib
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from tests.soak.fleet import streams
from tests.soak.ledger import ACCEPTED, LOST, UNTOLD_PIECE, Asked, End, Ledger, digest
from tests.soak.parts import TIME_SCALE, Queue
from tests.soak.pieces import require_shown, whole
from tests.soak.wishes import Oracle, Wish, Wishes

# One job in so many is sent by /runsync.
_SYNC_EVERY = 7


@dataclass(frozen=True)
class Sent:
    """A job that was sent."""

    wish: Wish
    expected: "Future[str] | None"
    """The digest of what must be seen in its output; None: it must fail."""


@dataclass
class Jobs:
    """All jobs of a soak. Its methods belong to one thread; close it after `book`."""

    queue: Queue
    wishes: Wishes
    oracle: Oracle
    overheads_s: list[float] = field(default_factory=list)
    """Of pictures at a worker that took the job once: from take to answer, less what the answer says was
    fetching, waiting and A1111's time."""
    statuses: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    """By the worker's name."""
    _sent: dict[str, Sent] = field(default_factory=dict)
    _ends: list[dict[str, Any]] = field(default_factory=list)
    """Of jobs whose id is not known yet, because /runsync has not answered."""
    _calling: "dict[Future[str], Sent]" = field(default_factory=dict)
    _to_cancel: dict[str, float] = field(default_factory=dict)
    """When, in seconds."""
    _cancelled: set[str] = field(default_factory=set)
    _over: set[str] = field(default_factory=set)
    _booked: list[End] = field(default_factory=list)
    _judge: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))
    _callers: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(4))

    def close(self) -> None:
        """End the threads."""
        self._judge.shutdown()
        self._callers.shutdown()

    @property
    def open(self) -> int:
        """How many jobs have been sent and have not ended."""
        return len(self._sent) + len(self._calling) - len(self._over)

    def send(self, number: int, now_s: float) -> None:
        """Send the job with this number."""
        wish = self.wishes.wish(number)
        right, after_s = wish.right, wish.cancel_after_s
        sent = Sent(
            wish,
            None if right is None else self._judge.submit(lambda: digest(right(self.oracle))),
        )
        if number % _SYNC_EVERY == 0 and after_s is None:
            self._calling[self._callers.submit(self.queue.runsync, wish.value)] = sent
            return
        job = self.queue.run(wish.value)
        self._sent[job] = sent
        if after_s is not None:
            self._to_cancel[job] = now_s + after_s

    def look(self, now_s: float) -> None:
        """Write down what has ended, and cancel what is to be cancelled by now."""
        for future in [future for future in self._calling if future.done()]:
            self._sent[future.result()] = self._calling.pop(future)
        _, ends = self.queue.ended()
        self._ends += ends
        ended = [raw for raw in self._ends if raw["id"] in self._sent]
        self._ends = [raw for raw in self._ends if raw["id"] not in self._sent]
        self._booked += [self._end(raw) for raw in ended]
        self._over.update(end["id"] for end in ended)
        for job in [job for job, at_s in self._to_cancel.items() if at_s <= now_s]:
            del self._to_cancel[job]
            if job not in self._over and self.queue.cancel(job):
                self._cancelled.add(job)

    def book(self, ledger: Ledger) -> None:
        """Write all that is known into `ledger`, with what happened to jobs after their ends."""
        histories = {job["id"]: job["history"] for job in self.queue.journal()["jobs"]}
        for job, sent in self._sent.items():
            ledger.asked[job] = Asked(
                sent.wish.kind,
                None if sent.expected is None else sent.expected.result(),
                sent.wish.codes,
                job in self._cancelled,
            )
        ledger.ends += [
            End(**{**vars(end), "history": _events(histories[end.job])}) for end in self._booked
        ]
        ledger.ends += [End(raw["id"], raw["status"]) for raw in self._ends]

    def _end(self, raw: dict[str, Any]) -> End:
        told, worker = [what for _, what, _ in raw["history"]], raw.get("workerId")
        is_alone = told.count("taken") == 1 and LOST not in told
        self.statuses[raw["status"]] += 1
        if worker is not None and ACCEPTED in told:
            self.answered[worker] += 1
        seen = strange = ""
        try:
            answer = self._answer(raw, told.count(UNTOLD_PIECE) if is_alone else None)
        except (LookupError, TypeError, ValueError) as error:  # It has not the form of a stream.
            answer, strange = None, f"{type(error).__name__}: {error}"
        if raw["status"] == "COMPLETED":
            with contextlib.suppress(KeyError, TypeError):  # It is not what was asked for.
                seen = digest(self._sent[raw["id"]].wish.view(answer))
        if is_alone:
            self._note_overhead(raw, answer)
        return End(
            raw["id"],
            raw["status"],
            seen,
            answer.get("code", "") if isinstance(answer, dict) else "",
            str(raw.get("error", "")),
            _events(raw["history"]),
            raw["duplicates"],
            strange,
        )

    def _answer(self, raw: dict[str, Any], lost: int | None) -> Any:
        """Return a job's answer as a worker that does not stream would have given it.

        Args:
            raw: the job.
            lost: how many receipts of its pieces were; None: more than one worker may have sent some, so
                that there is no saying what /stream must have shown.

        Raises:
            ValueError, LookupError, TypeError: it has not the form of a stream, and should have.
        """
        output, worker = raw.get("output"), raw.get("workerId")
        if output is None or worker is None or not streams(worker):
            return output
        if lost is not None:
            require_shown(self.queue.stream(raw["id"]), output, lost)
        return whole(output) if raw["status"] == "COMPLETED" else output[-1]

    def _note_overhead(self, raw: dict[str, Any], answer: Any) -> None:
        if isinstance(answer, dict) and "timings" in answer:
            spent = {name: answer["timings"].get(name, 0.0) for name in _NOT_OURS}
            taken_s = raw["executionTime"] / 1000 / TIME_SCALE
            self.overheads_s.append(taken_s - sum(spent.values()))


_NOT_OURS = ("download_s", "webui_wait_s", "generate_s")


def _events(history: list[list[Any]]) -> tuple[tuple[float, str, str | None], ...]:
    return tuple((t, what, worker) for t, what, worker in history)
