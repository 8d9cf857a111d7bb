"""What a worker under the SDK's loop hands out before its answer, one worker for nearly all of it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, Simulator
from tests.sdk.conftest import StartWorker, Worker, until, working

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def streaming(own_queue: Simulator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    with working(own_queue, tmp_path_factory.mktemp("streaming"), 4, "--stream") as worker:
        yield worker
        assert worker.process.poll() is None, worker.log


@pytest.fixture
def worker(streaming: Worker) -> Iterator[Worker]:
    yield streaming
    streaming.mend()


def read(worker: Worker, job_id: str) -> list[Any]:
    """Return what /stream has that nobody has read yet."""
    headers = {"Authorization": worker.key}
    url = f"{worker.queue.url}/v2/sim/stream/{job_id}"
    stream = worker.web.get(url, headers=headers, timeout=10).json()["stream"]
    return [entry["output"] for entry in stream]


def numbers(pieces: list[Any]) -> list[int]:
    return [piece["piece"] for piece in pieces if "piece" in piece]


def violations(worker: Worker, job_id: str) -> list[str]:
    return [line for line in worker.journal()["violations"] if job_id in line]


def test_pieces_come_one_by_one_and_all_of_them_at_the_end(worker: Worker, tmp_path: Path) -> None:
    go_on = tmp_path / "go on"
    job_id = worker.run(pieces=3, next=str(go_on))
    seen: list[Any] = []

    def has_begun() -> bool:
        seen.extend(read(worker, job_id))
        return bool(seen)

    until(has_begun)

    assert numbers(seen) == [0]
    assert worker.status(job_id)["status"] == "IN_PROGRESS"
    go_on.touch()
    job = worker.wait(job_id)
    seen += read(worker, job_id)
    assert numbers(seen) == [0, 1, 2]
    assert seen[-1]["echo"] == {"pieces": 3, "next": str(go_on)}
    assert (job["status"], job["output"]) == ("COMPLETED", seen)
    (done,) = (entry for entry in worker.requests("job-done") if entry["job"] == job_id)
    assert "isStream=true" in done["query"]
    assert violations(worker, job_id) == []


@pytest.mark.parametrize("answer", [None, [], [1, "\u00e9"], "text", True, 0])
def test_an_answer_without_pieces_is_the_only_one(worker: Worker, answer: Any) -> None:
    job_id = worker.run(answer=answer)

    job = worker.wait(job_id)

    assert (job["status"], job["output"]) == ("COMPLETED", [answer])
    assert read(worker, job_id) == [answer]


@pytest.mark.parametrize(
    ("status", "times"),
    [
        pytest.param(0, 2, id="dropped connections"),
        pytest.param(429, 2, id="429"),
        pytest.param(503, 4, id="503 more often than the SDK tries"),
    ],
)
def test_every_piece_arrives_in_order_in_spite_of(worker: Worker, status: int, times: int) -> None:
    worker.fault(route="job-stream", status=status, times=times, skip=1)
    job_id = worker.run(pieces=4)

    job = worker.wait(job_id)

    assert job["status"] == "COMPLETED"
    assert numbers(read(worker, job_id)) == numbers(job["output"]) == [0, 1, 2, 3]


def test_a_piece_whose_receipt_is_lost_comes_twice(worker: Worker) -> None:
    worker.fault(route="job-stream", status=0, after=True)
    job_id = worker.run(pieces=2)

    job = worker.wait(job_id)

    assert numbers(read(worker, job_id)) == [0, 0, 1]
    assert numbers(job["output"]) == [0, 1]


def test_a_piece_that_is_refused_is_in_the_result(worker: Worker) -> None:
    worker.fault(route="job-stream", status=400)
    job_id = worker.run(pieces=3)

    job = worker.wait(job_id)

    assert numbers(read(worker, job_id)) == [1, 2]
    assert numbers(job["output"]) == [0, 1, 2]
    assert len([entry for entry in worker.requests("job-stream") if entry["job"] == job_id]) == 4


def test_a_route_that_is_away_for_good_holds_the_result_up_for_one_piece(worker: Worker) -> None:
    worker.tune("rp_stream", PIECES_S=0.5)
    worker.fault(route="job-stream", status=503, times=-1)
    job_id = worker.run(pieces=5)

    job = worker.wait(job_id)
    worker.mend()
    worker.tune("rp_stream", PIECES_S=30)

    assert numbers(job["output"]) == [0, 1, 2, 3, 4]
    _, *after = worker.log.split(f"job {job_id}: a piece was not streamed")
    assert len(after) == 6
    assert not any(" bytes are sent again" in said for said in after)


def test_a_piece_that_is_too_large_is_in_the_result_alone(worker: Worker) -> None:
    job_id = worker.run(pieces=2, size=100_000)

    job = worker.wait(job_id)

    assert numbers(read(worker, job_id)) == []
    assert numbers(job["output"]) == [0, 1]
    assert len(job["output"][1]["text"]) == 100_000


@pytest.mark.parametrize("do", ["leave", "leave_in_a_thread", "interrupt", "cancel_itself", "fail"])
def test_whatever_a_handler_raises_the_pieces_stay_and_the_worker_lives(
    worker: Worker, do: str
) -> None:
    job_id = worker.run(pieces=2, do=do)

    job = worker.wait(job_id)

    assert job["status"] == "FAILED"
    assert job["error"].startswith("INTERNAL: ")
    assert "secret" not in job["error"]
    assert numbers(job["output"]) == [0, 1]
    assert job["output"][-1] == {"code": "INTERNAL", "retryable": False}
    assert numbers(read(worker, job_id)) == [0, 1]
    assert worker.process.poll() is None


def test_an_error_may_ask_for_a_new_worker(worker: Worker) -> None:
    told = {"error": "GONE: It is gone.", "code": "GONE", "refresh_worker": True}
    job_id = worker.run(pieces=1, answer=told)

    job = worker.wait(job_id)

    assert (job["status"], job["error"]) == ("FAILED", "GONE: It is gone.")
    assert job["output"][1:] == [{"code": "GONE"}]
    (entry,) = (entry for entry in worker.journal()["jobs"] if entry["id"] == job_id)
    assert entry["stop_pod"] is True
    assert len(read(worker, job_id)) == 1


@pytest.mark.parametrize("what", ["bytes", "nan", "half a character"])
def test_a_result_that_is_not_json_becomes_an_error(worker: Worker, what: str) -> None:
    job_id = worker.run(pieces=1, give=what)

    job = worker.wait(job_id)

    assert job["status"] == "FAILED"
    assert job["error"].startswith("INTERNAL: The result is not JSON: ")
    assert job["output"] == [{"code": "INTERNAL", "retryable": False}]
    assert numbers(read(worker, job_id)) == [0]


def test_results_are_sent_again_too(worker: Worker) -> None:
    worker.fault(route="job-done", status=503, times=4)

    job = worker.wait(worker.run(pieces=1))

    assert numbers(job["output"]) == [0]


@pytest.mark.parametrize("waits_for", ["the next piece", "the route"])
def test_a_stop_of_the_platform_ends_the_handler_and_then_the_job(
    worker: Worker, waits_for: str
) -> None:
    if waits_for == "the route":
        worker.fault(route="job-stream", status=503, times=-1)
    job_id = worker.run(pieces=1, do="sleep", s=60)
    until(lambda: f"sleeping {job_id}" in worker.log)

    worker.cancel(job_id)

    until(lambda: any(job_id in line and "Job stopped" in line for line in worker.log.splitlines()))
    assert worker.status(job_id)["status"] == "CANCELLED"
    worker.mend()
    assert worker.wait(worker.run(pieces=1))["status"] == "COMPLETED"
    assert "never retrieved" not in worker.log


def test_the_sdks_own_loop_takes_the_generator(start_worker: StartWorker, tmp_path: Path) -> None:
    metadata = tmp_path / "site" / "runpod-1.12.1.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: runpod\nVersion: 1.12.1\n")
    path = ":".join([str(metadata.parent.parent), str(ROOT)])
    worker = start_worker(2, "--stream", PYTHONPATH=path, HOME=str(tmp_path))
    cancelled = worker.run(pieces=1, do="sleep", s=60)

    job = worker.wait(worker.run(pieces=2))
    failed = worker.wait(worker.run(pieces=1, do="fail"))
    worker.cancel(cancelled)

    assert numbers(job["output"]) == [0, 1]
    assert job["output"][-1]["guarded"] is False
    assert failed["status"] == "FAILED"
    assert failed["error"].startswith("INTERNAL: ")
    until(lambda: "Job stopped" in worker.log)
