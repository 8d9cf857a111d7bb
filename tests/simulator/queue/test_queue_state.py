"""The state machine alone, with a clock that the test turns."""

from typing import Any

import pytest

from simulator.queue.job import Job, Status
from simulator.queue.state import DAY_S, JobQueue, Limits, Outcome


@pytest.fixture
def queue() -> JobQueue:
    return JobQueue(Limits())


def submit(queue: JobQueue, *, sync: bool = False, now: float = 0, **policy: int) -> Job:
    request: dict[str, Any] = {"input": {"prompt": "x"}}
    if policy:
        request["policy"] = policy
    return queue.submit(request, sync=sync, now=now)


def running(queue: JobQueue, *, sync: bool = False, now: float = 0, **policy: int) -> Job:
    job = submit(queue, sync=sync, now=now, **policy)
    assert queue.take("w1", 1, now) == [job]
    return job


def keep_pinging(queue: JobQueue, job: Job, start: int, end: int) -> None:
    for now in range(start, end, 10):
        queue.ping("w1", [job.id], now)
        queue.tick(now)


def test_a_job_goes_from_the_queue_to_a_worker_to_its_end(queue: JobQueue) -> None:
    job = submit(queue, now=1)
    assert job.as_json() == {"id": job.id, "status": "IN_QUEUE"}

    queue.take("w1", 1, 3)
    assert job.as_json() == {
        "id": job.id,
        "status": "IN_PROGRESS",
        "delayTime": 2000,
        "workerId": "w1",
    }

    assert queue.answer("w1", job.id, {"output": {"n": 1}}, 20, 7.5) is Outcome.ACCEPTED
    assert job.as_json() == {
        "id": job.id,
        "status": "COMPLETED",
        "delayTime": 2000,
        "executionTime": 4500,
        "workerId": "w1",
        "output": {"n": 1},
    }


def test_ids_tell_sync_from_async(queue: JobQueue) -> None:
    assert submit(queue, sync=True).id.startswith("sync-")
    assert not submit(queue).id.startswith("sync-")


def test_jobs_are_taken_in_the_order_they_came(queue: JobQueue) -> None:
    jobs = [submit(queue, now=i) for i in range(5)]

    assert queue.take("w1", 2, 9) == jobs[:2]
    assert queue.take("w2", 9, 9) == jobs[2:]
    assert queue.take("w1", 1, 9) == []


def test_a_worker_is_given_what_stands_beside_the_input_but_not_the_policy(
    queue: JobQueue,
) -> None:
    request = {"input": 1, "webhook": "https://x", "s3Config": {"a": 1}, "policy": {}}
    job = queue.submit(request, sync=False, now=0)

    assert job.for_worker() == {
        "id": job.id,
        "input": 1,
        "webhook": "https://x",
        "s3Config": {"a": 1},
    }


def test_an_error_fails_the_job_and_its_output_stays(queue: JobQueue) -> None:
    job = running(queue)

    queue.answer("w1", job.id, {"error": "X: no.", "output": {"code": "X"}}, 20, 1)

    assert job.as_json()["status"] == "FAILED"
    assert (job.as_json()["error"], job.as_json()["output"]) == ("X: no.", {"code": "X"})


def test_progress_shows_as_output_until_the_job_ends(queue: JobQueue) -> None:
    job = running(queue)
    queue.answer("w1", job.id, {"status": "IN_PROGRESS", "output": {"step": 1}}, 20, 1)
    queue.answer("w1", job.id, {"status": "IN_PROGRESS", "output": {"step": 2}}, 20, 2)
    assert (job.as_json()["status"], job.as_json()["output"]) == ("IN_PROGRESS", {"step": 2})

    queue.answer("w1", job.id, {}, 2, 3)

    assert job.as_json()["status"] == "COMPLETED"
    assert "output" not in job.as_json()


@pytest.mark.parametrize(("sync", "limit"), [(False, 10_000_000), (True, 20_000_000)])
def test_a_result_over_the_limit_of_its_kind_is_lost(
    sync: bool,  # noqa: FBT001 - a table's column
    limit: int,
    queue: JobQueue,
) -> None:
    fits, too_large = running(queue, sync=sync), running(queue, sync=sync)

    assert queue.answer("w1", fits.id, {"output": 1}, limit, 1) is Outcome.ACCEPTED
    assert queue.answer("w1", too_large.id, {"output": 1}, limit + 1, 1) is Outcome.TOO_LARGE

    assert too_large.status is Status.IN_PROGRESS
    queue.tick(599)
    assert (too_large.status, too_large.takes) == (Status.IN_PROGRESS, 1)
    queue.tick(600)
    assert too_large.as_json()["status"] == "TIMED_OUT"


def test_a_job_whose_worker_falls_silent_is_queued_once_more_and_then_fails(
    queue: JobQueue,
) -> None:
    job = running(queue)
    keep_pinging(queue, job, 0, 100)
    queue.tick(119)
    assert job.status is Status.IN_PROGRESS

    assert queue.tick(120)
    assert (job.status, job.as_json()["retries"]) == (Status.IN_QUEUE, 1)

    queue.take("w2", 1, 130)
    queue.tick(160)
    assert job.as_json() == {
        "id": job.id,
        "status": "FAILED",
        "delayTime": 130_000,
        "executionTime": 30_000,
        "workerId": "w2",
        "retries": 1,
        "error": "job timed out after 1 retries",
    }


def test_a_job_that_a_living_worker_no_longer_names_is_lost_too(queue: JobQueue) -> None:
    job = running(queue)
    for now in (10, 20, 30):
        queue.ping("w1", [], now)

    queue.tick(30)

    assert job.status is Status.IN_QUEUE


def test_another_workers_ping_does_not_keep_a_job(queue: JobQueue) -> None:
    job = running(queue)
    queue.ping("w2", [job.id], 29)

    queue.tick(30)

    assert job.status is Status.IN_QUEUE


def test_a_worker_that_lost_its_job_cannot_end_it(queue: JobQueue) -> None:
    job = running(queue)
    queue.tick(30)
    assert queue.answer("w1", job.id, {"output": 1}, 9, 31) is Outcome.NOT_THE_HOLDER
    queue.take("w2", 1, 32)

    assert queue.answer("w1", job.id, {"output": 1}, 9, 33) is Outcome.NOT_THE_HOLDER
    assert queue.answer("w2", job.id, {"output": 2}, 9, 34) is Outcome.ACCEPTED
    assert job.output == 2


def test_the_execution_timeout_stops_the_worker(queue: JobQueue) -> None:
    job = running(queue, executionTimeout=60_000)
    keep_pinging(queue, job, 0, 60)
    assert job.status is Status.IN_PROGRESS

    queue.tick(60)

    assert (job.status, job.error) == (Status.TIMED_OUT, "executionTimeout exceeded")
    assert queue.stop_signals("w1") == [job.id]
    assert queue.stop_signals("w1") == []


def test_a_job_that_waited_too_long_times_out(queue: JobQueue) -> None:
    job = submit(queue, ttl=20_000)
    queue.tick(19.9)
    assert job.status is Status.IN_QUEUE

    queue.tick(20)

    assert job.as_json()["status"] == "TIMED_OUT"
    assert queue.take("w1", 1, 21) == []


def test_a_running_job_vanishes_at_the_end_of_its_time_to_live(queue: JobQueue) -> None:
    job = running(queue, ttl=20_000)

    queue.tick(20)

    assert job.id not in queue.jobs
    assert queue.stop_signals("w1") == [job.id]
    assert queue.answer("w1", job.id, {"output": 1}, 9, 21) is Outcome.UNKNOWN_JOB


def test_a_job_lives_a_day_without_a_policy(queue: JobQueue) -> None:
    job = submit(queue)

    assert not queue.tick(DAY_S - 1)
    assert queue.tick(DAY_S)
    assert job.status is Status.TIMED_OUT


def test_cancelling_a_running_job_signals_its_worker(queue: JobQueue) -> None:
    job = running(queue)

    queue.cancel(job, 5)

    assert job.status is Status.CANCELLED
    assert queue.stop_signals("w2") == []
    assert queue.stop_signals("w1") == [job.id]
    assert queue.answer("w1", job.id, {"output": 1}, 9, 6) is Outcome.AFTER_THE_END
    assert job.output is None


def test_cancelling_a_queued_job_takes_it_out(queue: JobQueue) -> None:
    first, second = submit(queue), submit(queue)

    queue.cancel(first, 5)

    assert queue.take("w1", 2, 6) == [second]
    assert queue.stop_signals("w1") == []


def test_cancelling_what_has_ended_changes_nothing(queue: JobQueue) -> None:
    job = running(queue)
    queue.answer("w1", job.id, {"output": 1}, 9, 1)

    queue.cancel(job, 5)

    assert (job.status, job.ended_at) == (Status.COMPLETED, 1)


def test_a_purge_leaves_running_jobs_alone(queue: JobQueue) -> None:
    job = running(queue)
    queued = [submit(queue), submit(queue)]

    assert queue.purge(5) == 2

    assert job.status is Status.IN_PROGRESS
    assert {q.status for q in queued} == {Status.CANCELLED}


def test_only_failed_and_timed_out_jobs_can_be_retried(queue: JobQueue) -> None:
    failed, completed = running(queue), running(queue)
    queue.answer("w1", failed.id, {"error": "x", "output": 1}, 9, 1)
    queue.answer("w1", completed.id, {"output": 1}, 9, 1)

    assert not queue.retry(completed, 5)
    assert queue.retry(failed, 5)

    assert failed.as_json() == {"id": failed.id, "status": "IN_QUEUE"}
    assert queue.take("w2", 1, 6) == [failed]


@pytest.mark.parametrize(("sync", "kept_s"), [(False, 1800), (True, 60)])
def test_results_are_kept_for_a_while(
    sync: bool,  # noqa: FBT001 - a table's column
    kept_s: int,
    queue: JobQueue,
) -> None:
    job = running(queue, sync=sync)
    queue.answer("w1", job.id, {"output": 1}, 9, 100)

    queue.tick(100 + kept_s - 1)
    assert job.id in queue.jobs
    queue.tick(100 + kept_s)
    assert job.id not in queue.jobs
    assert [old.id for old in queue.forgotten] == [job.id]


def test_health_counts_jobs_and_workers(queue: JobQueue) -> None:
    queue.ping("w1", [], 95)
    queue.ping("w2", [], 95)
    queue.ping("gone", [], 0)
    done = running(queue)
    queue.answer("w1", done.id, {"output": 1}, 9, 1)
    running(queue, now=95)
    submit(queue)

    assert queue.health(100) == {
        "jobs": {"completed": 1, "failed": 0, "inProgress": 1, "inQueue": 1, "retried": 0},
        "workers": {"idle": 1, "running": 1, "unhealthy": 0},
    }


def test_a_job_that_is_taken_twice_goes_to_the_next_that_asks_and_then_no_more(
    queue: JobQueue,
) -> None:
    job = submit(queue)

    assert queue.take("w1", 1, 1, twice=True) == [job]
    assert queue.take("w2", 5, 2) == [job]
    assert queue.take("w3", 5, 3) == []
    assert (job.takes, job.duplicates, job.worker) == (2, 1, "w2")
    assert queue.answer("w1", job.id, {"output": 1}, 9, 4) is Outcome.NOT_THE_HOLDER
    assert queue.answer("w2", job.id, {"output": 1}, 9, 5) is Outcome.ACCEPTED


def test_a_job_that_is_taken_twice_by_the_same_waits_until_it_asks_again(queue: JobQueue) -> None:
    job = submit(queue)

    assert queue.take("w1", 1, 1, twice=True, same=True) == [job]
    assert queue.take("w2", 5, 2) == []
    assert queue.take("w1", 5, 3) == [job]
    assert queue.take("w1", 5, 4) == []
    assert (job.takes, job.duplicates, job.worker) == (2, 1, "w1")


def test_a_job_that_has_ended_is_not_handed_out_a_second_time(queue: JobQueue) -> None:
    job = submit(queue)
    queue.take("w1", 1, 1, twice=True)
    queue.answer("w1", job.id, {"output": 1}, 9, 2)

    assert queue.take("w2", 1, 3) == []
    assert job.duplicates == 0


def test_a_job_knows_its_history_and_the_queue_the_order_of_the_ends(queue: JobQueue) -> None:
    first, second = running(queue, now=1), running(queue, now=2)
    keep_pinging(queue, second, 2, 40)
    queue.take("w2", 1, 40)
    queue.answer("w2", first.id, {"error": "x"}, 9, 41)
    queue.cancel(second, 42)

    assert [what for _, what, _ in first.history] == [
        "taken",
        "given up",
        "taken",
        "accepted",
        "FAILED",
    ]
    assert first.history[-2:] == [(41, "accepted", "w2"), (41, "FAILED", "w2")]
    assert queue.ended == [first, second]
