"""What the ledger is told of jobs: by a real queue, and a worker that does what each test wants."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests

from simulator.queue.platform import Options
from tests.simulator.queue.conftest import WORKER, Endpoint, endpoint_with
from tests.soak.fleet import MANNERS, PLAIN, STREAMING, manner_of, streams
from tests.soak.jobs import Jobs
from tests.soak.ledger import End, Ledger
from tests.soak.parts import Queue
from tests.soak.wishes import Oracle, Stock, Wish, Wishes

STREAMER, OTHER = "worker0-0", "worker1-0"
PICTURES = ["a", "bc"]
ANSWER: dict[str, Any] = {"images": [], "image_kinds": [], "timings": {"generate_s": 0.0}}
FIRST: dict[str, Any] = {"index": 0, "image": "a"}
SECOND: list[dict[str, Any]] = [
    {"index": 1, "image": "b", "part": 1, "parts": 2},
    {"index": 1, "image": "c", "part": 2, "parts": 2},
]
PIECES = [FIRST, *SECOND]
CRASHED = {"code": "BACKEND_CRASHED", "retryable": True}


class Fixed(Wishes):
    """Wishes for the same two pictures."""

    def wish(self, number: int) -> Wish:
        return Wish("txt2img", {"n": number}, lambda _: PICTURES, lambda output: output["images"])


@dataclass
class Desk:
    """One job, its caller, its worker and its judge."""

    endpoint: Endpoint
    jobs: Jobs
    job: str = field(default="", init=False)

    def take(self, worker: str) -> None:
        self.job = self.endpoint.take(worker)["id"]

    def show(self, worker: str, *pieces: Any) -> None:
        for piece in pieces:
            self.endpoint.call(
                "POST",
                f"job-stream/{worker}/{self.job}?gpu=X&isStream=false",
                headers=WORKER | {"X-Request-ID": self.job},
                json={"output": piece},
            )

    def done(self, worker: str, output: Any, **beside: Any) -> None:
        self.endpoint.done(self.job, {"output": output, **beside}, worker)

    def found(self) -> list[str]:
        """Return the findings, as a soak would print them, without the job's id."""
        self.jobs.look(0.0)
        ledger = Ledger()
        self.jobs.book(ledger)
        return [f"{finding.what}: {finding.text}" for finding in ledger.findings()]


@pytest.fixture
def desk() -> Iterator[Desk]:
    """A job that waits to be taken, number 1 of a soak."""
    stock = Stock("http://host", Path("hub"), 8)
    with endpoint_with(Options()) as endpoint, contextlib.ExitStack() as stack:
        jobs = Jobs(Queue(endpoint.url), Fixed(1, stock), Oracle("http://oracle"))
        stack.callback(jobs.close)
        jobs.send(1, 0.0)
        yield Desk(endpoint, jobs)


def test_two_workers_and_those_that_follow_them_are_of_all_manners() -> None:
    first = [manner_of(worker) for worker in (STREAMER, OTHER)]

    assert first == [f"prefetching and {STREAMING}", PLAIN]
    assert {*first, manner_of("worker0-1"), manner_of("worker1-1")} == set(MANNERS)
    assert {manner_of(f"worker{slot}-7") for slot in range(4)} == set(MANNERS)
    assert [streams(worker) for worker in (STREAMER, OTHER)] == [True, False]


def test_right_pictures_are_right_in_both_forms(desk: Desk) -> None:
    desk.take(STREAMER)
    desk.show(STREAMER, *PIECES)
    desk.done(STREAMER, [*PIECES, ANSWER])
    assert desk.found() == []

    desk.jobs.send(2, 0.0)
    desk.take(OTHER)
    desk.done(OTHER, {**ANSWER, "images": PICTURES})
    assert desk.found() == []
    assert desk.jobs.answered == {STREAMER: 1, OTHER: 1}
    assert len(desk.jobs.overheads_s) == 2


@pytest.mark.parametrize(
    ("worker", "output"),
    [
        pytest.param(STREAMER, [*SECOND, ANSWER], id="a picture missing"),
        pytest.param(STREAMER, [FIRST, *SECOND[:1], ANSWER], id="a part missing"),
        pytest.param(STREAMER, [FIRST, *PIECES, ANSWER], id="a piece twice"),
        pytest.param(STREAMER, [*SECOND, FIRST, ANSWER], id="out of order"),
        pytest.param(STREAMER, [ANSWER], id="no piece"),
        pytest.param(STREAMER, {**ANSWER, "images": PICTURES}, id="no stream"),
        pytest.param(OTHER, [*PIECES, ANSWER], id="a stream of who does not stream"),
    ],
)
def test_a_form_that_is_not_the_workers_is_wrong(worker: str, output: Any, desk: Desk) -> None:
    desk.take(worker)
    if isinstance(output, list):
        desk.show(worker, *output)
    desk.done(worker, output)

    assert {text.partition(":")[0] for text in desk.found()} == {"wrong"}


@pytest.mark.parametrize(
    "shown",
    [
        pytest.param([], id="nothing"),
        pytest.param([FIRST, *PIECES], id="one twice"),
        pytest.param(SECOND, id="one missing"),
        pytest.param([*SECOND, FIRST], id="out of order"),
    ],
)
def test_what_stream_showed_is_wrong(shown: list[Any], desk: Desk) -> None:
    desk.take(STREAMER)
    desk.show(STREAMER, *shown)
    desk.done(STREAMER, [*PIECES, ANSWER])

    assert any("/stream showed" in text for text in desk.found())


def test_a_piece_may_be_shown_twice_if_its_receipt_was_lost(desk: Desk) -> None:
    desk.take(STREAMER)
    desk.endpoint.fault(route="job-stream", status=500, after=True)
    desk.show(STREAMER, FIRST, *PIECES)
    desk.done(STREAMER, [*PIECES, ANSWER])

    assert desk.found() == []


def test_a_job_that_two_workers_had_may_be_shown_by_both(desk: Desk) -> None:
    desk.endpoint.fault(route="job-take", twice=True)
    desk.take(STREAMER)
    desk.show(STREAMER, FIRST)
    desk.take(OTHER)
    desk.done(OTHER, {**ANSWER, "images": PICTURES})
    desk.show(STREAMER, *SECOND)
    desk.done(STREAMER, [*PIECES, ANSWER])

    assert desk.found() == []
    assert desk.endpoint.journal()["violations"] == []


@pytest.mark.parametrize("output", [[], {"code": "INTERNAL"}, "text"])
def test_an_error_of_a_stream_that_is_none_is_wrong(output: Any, desk: Desk) -> None:
    desk.take(STREAMER)
    desk.done(STREAMER, output, error="it ended")

    (found,) = desk.found()
    assert found.startswith("wrong: txt2img: ")


@pytest.mark.parametrize("worker", [STREAMER, OTHER])
def test_the_code_of_an_error_is_read_in_both_forms(worker: str, desk: Desk) -> None:
    desk.take(worker)
    desk.show(worker, *[FIRST] * streams(worker))
    desk.done(worker, [FIRST, CRASHED] if streams(worker) else CRASHED, error="it ended")

    assert desk.found() == ["wrong: txt2img: BACKEND_CRASHED it ended"]


def test_an_error_that_forgets_what_was_streamed_is_wrong(desk: Desk) -> None:
    desk.take(STREAMER)
    desk.show(STREAMER, FIRST)
    desk.done(STREAMER, [CRASHED], error="it ended")

    (found,) = desk.found()
    assert "/stream showed ['0/1'] of ['the answer']" in found


def untold(desk: Desk, act: Callable[[], None], route: str) -> None:
    """Act, and lose the answer on its way."""
    desk.endpoint.fault(route=route, status=0, after=True)
    with pytest.raises(requests.ConnectionError):
        act()


def test_a_lost_receipt_of_progress_or_of_a_piece_excuses_no_loss(desk: Desk) -> None:
    desk.take(STREAMER)
    progress = {"status": "IN_PROGRESS", "output": {"percent": 3}}
    untold(desk, lambda: desk.done(STREAMER, **progress), "job-done")
    untold(desk, lambda: desk.show(STREAMER, FIRST), "job-stream")
    (told,) = desk.endpoint.journal()["jobs"]
    dropped = (*told["history"], (40.0, "given up", STREAMER))
    again = ((41.0, "taken", OTHER), (42.0, "accepted", OTHER))
    desk.jobs.look(0.0)
    ledger = Ledger()
    desk.jobs.book(ledger)
    (asked,) = ledger.asked.values()
    end = End(desk.job, "COMPLETED", asked.expected or "", history=(*dropped, *again))

    ledger.ends.append(end)

    assert [f.text for f in ledger.findings()] == [f"txt2img: {STREAMER} dropped it at 40.0"]
