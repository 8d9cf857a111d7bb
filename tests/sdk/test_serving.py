"""What a worker under the SDK's loop survives, one worker for all of it."""

import time
from pathlib import Path

import pytest

from tests.sdk.conftest import Worker, until

pytestmark = pytest.mark.slow
ONCE = "it is not done twice."


@pytest.mark.parametrize(
    ("status", "times"),
    [
        pytest.param(0, 1, id="a dropped connection"),
        pytest.param(429, 1, id="429"),
        pytest.param(503, 3, id="503 as often as the SDK tries"),
    ],
)
def test_a_result_arrives_in_spite_of(worker: Worker, status: int, times: int) -> None:
    worker.fault(route="job-done", status=status, times=times)

    job = worker.wait(worker.run(a=1))

    assert job["status"] == "COMPLETED"
    assert job["output"]["echo"] == {"a": 1}


def test_a_queue_that_is_away_loses_no_result_and_is_not_stormed(worker: Worker) -> None:
    job_id = worker.run(do="sleep", s=0.3)
    until(lambda: f"sleeping {job_id}" in worker.log)
    before, began = len(worker.log), time.monotonic()

    def noise() -> int:
        return worker.log[before:].count("Failed to get job")

    worker.door.shut()
    until(lambda: noise() > 0)
    time.sleep(1)
    heard, passed_s = noise(), time.monotonic() - began
    worker.door.open()

    assert worker.wait(job_id)["status"] == "COMPLETED"
    assert worker.wait(worker.run(a=1))["status"] == "COMPLETED"
    assert heard <= 6 * passed_s


@pytest.mark.parametrize("what", ["bytes", "nan", "half a character"])
def test_a_result_that_is_not_json_becomes_an_error(worker: Worker, what: str) -> None:
    job = worker.wait(worker.run(give=what))

    assert job["status"] == "FAILED"
    assert job["error"].startswith("INTERNAL: The result is not JSON: ")
    assert job["output"] == {"code": "INTERNAL", "retryable": False}


def test_a_result_that_is_too_large_becomes_an_error(worker: Worker) -> None:
    job = worker.wait(worker.run(give="large"))

    assert job["status"] == "FAILED"
    assert job["output"]["code"] == "OUTPUT_TOO_LARGE"
    assert job["output"]["details"]["size_bytes"] > 11_000_000


def test_a_result_that_is_refused_becomes_an_error(worker: Worker) -> None:
    worker.fault(route="job-done", status=422)

    job = worker.wait(worker.run(a=1))

    assert job["status"] == "FAILED"
    assert job["output"]["code"] == "INTERNAL"
    assert "422" in job["error"]


def test_results_sent_again_at_the_same_time_keep_their_own_ids(worker: Worker) -> None:
    worker.fault(route="job-done", status=503, times=4)

    jobs = [worker.run(do="sleep", s=0.3, number=number) for number in range(4)]

    assert {worker.wait(job)["status"] for job in jobs} == {"COMPLETED"}
    assert [line for line in worker.journal()["violations"] if "X-Request-ID" in line] == []


def test_a_result_is_not_sent_for_ever(worker: Worker) -> None:
    worker.tune("rp_post", RESULT_S=1)
    worker.fault(route="job-done", status=503, times=-1)
    lost = worker.run(a=1)

    until(lambda: f"job {lost}: no answer could be sent" in worker.log)

    worker.mend()
    worker.tune("rp_post", RESULT_S=60)
    assert worker.wait(worker.run(a=1))["status"] == "COMPLETED"


@pytest.mark.parametrize("status", [204, 401, 0])
def test_takes_that_fail_at_once_are_spaced_out(worker: Worker, status: int) -> None:
    worker.until_polling()
    before = len(worker.takes())
    worker.fault(route="job-take", status=status, times=-1)
    worker.wait(worker.run(a=1))  # by the poll that is open already

    until(lambda: len(worker.takes()) >= before + 3)

    first, _, third, *_ = (take["t"] for take in worker.takes()[before:])
    # A kept connection that was dropped is tried again at once, by aiohttp; then an eighth of a second is
    # the least.
    assert third - first > 0.1
    worker.mend()
    assert worker.wait(worker.run(a=1))["status"] == "COMPLETED"


@pytest.mark.parametrize("do", ["leave", "leave_in_a_thread", "interrupt", "cancel_itself", "fail"])
def test_nothing_that_a_handler_raises_ends_the_worker(worker: Worker, do: str) -> None:
    job = worker.wait(worker.run(do=do))

    assert job["status"] == "FAILED"
    assert job["error"].startswith("INTERNAL: ")
    assert "secret" not in job["error"]
    assert worker.process.poll() is None


def test_a_stop_of_the_platform_still_cancels(worker: Worker) -> None:
    job_id = worker.run(do="sleep", s=60)
    until(lambda: f"sleeping {job_id}" in worker.log)

    worker.cancel(job_id)

    until(lambda: any(job_id in line and "Job stopped" in line for line in worker.log.splitlines()))
    assert worker.status(job_id)["status"] == "CANCELLED"


def test_a_job_that_is_stopped_as_it_is_taken_does_not_run_on(worker: Worker) -> None:
    job_id = worker.run(do="sleep", s=60)
    worker.wait(job_id, "IN_PROGRESS")

    worker.cancel(job_id)

    until(lambda: any(job_id in line and "Job stopped" in line for line in worker.log.splitlines()))


def test_a_job_that_comes_again_while_it_is_under_way_is_done_once(
    worker: Worker, tmp_path: Path
) -> None:
    may_end = tmp_path / "may end"
    worker.until_polling()
    worker.fault(route="job-take", twice=True, times=-1)
    worker.wait(worker.run(a=1))  # by the poll that is open already
    done = worker.run(do="wait", until=str(may_end))
    until(lambda: f"{ONCE} {done}" in worker.log)
    stopped = worker.run(do="sleep", s=60)
    until(lambda: f"{ONCE} {stopped}" in worker.log)

    worker.mend()
    worker.until_polling()  # Neither comes again as it ends, which would be to do it again.
    may_end.touch()
    assert worker.wait(done)["status"] == "COMPLETED"
    until(lambda: worker.last_ping().startswith(f"job_id={stopped}&"))
    worker.cancel(stopped)

    until(lambda: "job_id" not in worker.last_ping())
    handed_out = {job["id"]: job["takes"] for job in worker.journal()["jobs"]}
    for job_id in (done, stopped):
        assert handed_out[job_id] > 1
        assert worker.log.count(f"sleeping {job_id}") == 1
        assert worker.log.count(f"{ONCE} {job_id}") == 1


def test_a_job_that_comes_again_while_it_stops_is_done_after_that(
    worker: Worker, tmp_path: Path
) -> None:
    may_end = tmp_path / "may end"
    policy = {"policy": {"executionTimeout": 5001}}  # the least that the platform takes
    job_id = worker.run(policy, do="linger", s=60, until=str(may_end))
    until(lambda: f"Stopping job. {job_id}" in worker.log)

    worker.retry(job_id)
    until(lambda: f"it is done again after that. {job_id}" in worker.log)
    may_end.touch()

    assert worker.wait(job_id)["status"] == "COMPLETED"
    first, again = worker.log.split(f"left {job_id}\n")
    assert first.count(f"Started. {job_id}") == again.count(f"Started. {job_id}") == 1


def test_progress_that_hangs_holds_the_result_up_for_two_seconds_at_most(worker: Worker) -> None:
    worker.fault(route="job-done", status=None, delay_s=30)

    job = worker.wait(worker.run(do="progress", s=0.2))

    assert job["status"] == "COMPLETED"
    assert job["executionTime"] < 8000  # The update itself has ten seconds: rp_post.PROGRESS_S.


def test_progress_on_its_way_arrives_before_the_result(worker: Worker) -> None:
    worker.tune("rp_sdk", LAST_PROGRESS_S=30)
    worker.fault(route="job-done", status=None, delay_s=0.8)
    job_id = worker.run(do="progress", s=0.2)
    worker.wait(job_id)
    worker.tune("rp_sdk", LAST_PROGRESS_S=2)

    journal = worker.journal()
    (job,) = (job for job in journal["jobs"] if job["id"] == job_id)
    assert job["progress"] == [{"percent": 2}]
    assert [line for line in journal["late"] if job_id in line] == []


def test_progress_that_fails_is_of_no_consequence(worker: Worker) -> None:
    worker.fault(route="job-done", status=500)

    assert worker.wait(worker.run(do="progress", s=0.2))["status"] == "COMPLETED"


def test_progress_comes_in_order_the_newest_only_and_none_after_the_result(
    worker: Worker, tmp_path: Path
) -> None:
    go_on, end = tmp_path / "go on", tmp_path / "end"
    job_id = worker.run(do="progress", until=str(go_on), end=str(end))
    for percent, file in ((2, go_on), (100, end)):
        until(lambda: worker.status(job_id).get("output") == {"percent": percent})  # noqa: B023 - called at once
        file.touch()
    worker.wait(job_id)

    journal = worker.journal()
    (job,) = (job for job in journal["jobs"] if job["id"] == job_id)
    assert job["progress"] == [{"percent": 2}, {"percent": 100}]
    assert [line for line in journal["late"] if job_id in line] == []


def test_no_job_is_taken_until_the_worker_is_ready(worker: Worker) -> None:
    worker.until_polling()
    worker.closed.touch()
    worker.wait(worker.run(a=1))  # the poll that is open already
    taken = len(worker.takes())
    job_id = worker.run(a=2)

    time.sleep(1.2)
    assert len(worker.takes()) == taken
    assert worker.status(job_id)["status"] == "IN_QUEUE"

    worker.closed.unlink()
    assert worker.wait(job_id)["status"] == "COMPLETED"


@pytest.mark.parametrize("key", ["self", "__class__", "__dict__"])
def test_a_key_that_the_sdk_trips_over_does_no_harm(worker: Worker, key: str) -> None:
    job_id = worker.run({key: 1}, do="sleep", s=60)
    until(lambda: f"sleeping {job_id}" in worker.log)
    until(lambda: job_id in worker.last_ping())

    worker.cancel(job_id)

    until(lambda: job_id not in worker.last_ping())


def test_an_interval_below_a_second_does_not_end_the_pings(worker: Worker) -> None:
    before = len(worker.requests("ping"))

    until(lambda: len(worker.requests("ping")) > before + 1)

    assert {request["status"] for request in worker.requests("ping")} == {200}


def test_no_key_but_the_platforms_is_ever_sent(worker: Worker) -> None:
    """The worker's home holds a ~/.runpod/config.toml and a .netrc: see conftest.py."""
    assert worker.wait(worker.run(a=1))["status"] == "COMPLETED"
    assert [line for line in worker.journal()["violations"] if "key" in line] == []


def test_what_the_sdk_says_comes_by_our_log_with_its_job(worker: Worker) -> None:
    job_id = worker.run(a=1)
    worker.wait(job_id)

    lines = worker.log.splitlines()
    assert f"OURS INFO Started. {job_id}" in lines
    assert not any(line.startswith(("INFO ", "---")) for line in lines)
