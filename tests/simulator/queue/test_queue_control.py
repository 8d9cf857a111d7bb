"""What stands around the routes: keys, the journal, faults, the environment of a worker."""

import time
from typing import Any

import pytest
import requests

from simulator.queue.platform import Options, Platform
from tests.simulator.queue.conftest import CLIENT, WORKER, Endpoint, endpoint_with


@pytest.mark.parametrize("key", ["", "Bearer wrong", "wrong", "Basic simulated-key"])
def test_a_client_without_the_key_is_401(key: str, endpoint: Endpoint) -> None:
    answer = endpoint.call("POST", "run", json={"input": 1}, headers={"Authorization": key})

    assert answer.status_code == 401
    assert endpoint.journal()["jobs"] == []
    assert endpoint.journal()["violations"] == []


def test_the_docs_way_of_a_bare_key_is_taken_too(endpoint: Endpoint) -> None:
    answer = endpoint.call("GET", "health", headers={"Authorization": "simulated-key"})

    assert answer.status_code == 200


def test_an_open_endpoint_asks_clients_for_no_key() -> None:
    with endpoint_with(Options(open=True, hold_s=0.1)) as endpoint:
        assert endpoint.call("GET", "health", headers={}).status_code == 200
        assert endpoint.call("GET", "job-take/w1?gpu=X", headers={}).status_code == 401


def test_a_worker_sends_its_key_bare(endpoint: Endpoint) -> None:
    answer = endpoint.call("GET", "job-take/w1?gpu=X", headers=CLIENT)

    assert answer.status_code == 401
    assert endpoint.journal()["violations"] == ["job-take: wrong key in Authorization"]


def test_another_jobs_request_id_is_noted(endpoint: Endpoint) -> None:
    job_id = endpoint.run()
    endpoint.take()

    endpoint.call(
        "POST",
        f"job-done/w1/{job_id}?gpu=X",
        headers=WORKER | {"X-Request-ID": "other"},
        json={"output": 1},
    )

    assert [v.split()[-1] for v in endpoint.journal()["violations"]] == ["'other'"]


def test_two_results_for_one_job_are_noted(endpoint: Endpoint) -> None:
    job_id = endpoint.run()
    endpoint.take()
    endpoint.done(job_id, {"output": 1})

    endpoint.done(job_id, {"output": 2})

    assert endpoint.status(job_id)["output"] == 1
    assert endpoint.journal()["violations"] == [
        f"job-done {job_id}: result after the job had ended"
    ]


def test_progress_after_the_result_is_noted(endpoint: Endpoint) -> None:
    job_id = endpoint.run()
    endpoint.take()
    endpoint.done(job_id, {"output": 1})

    endpoint.done(job_id, {"status": "IN_PROGRESS", "output": "late"})

    assert len(endpoint.journal()["violations"]) == 1
    assert endpoint.status(job_id)["status"] == "COMPLETED"


def test_a_result_that_crosses_a_cancel_is_late_but_no_violation(endpoint: Endpoint) -> None:
    job_id = endpoint.run()
    endpoint.take()
    endpoint.call("POST", f"cancel/{job_id}")

    assert endpoint.done(job_id, {"output": 1}) == 200

    journal = endpoint.journal()
    assert (journal["violations"], len(journal["late"])) == ([], 1)
    assert endpoint.status(job_id)["status"] == "CANCELLED"


def test_a_result_sent_again_because_its_receipt_was_lost_is_no_violation(
    endpoint: Endpoint,
) -> None:
    job_id = endpoint.run()
    endpoint.take()
    endpoint.fault(route="job-done", status=502, after=True)

    assert endpoint.done(job_id, {"output": 1}) == 502
    assert endpoint.status(job_id)["status"] == "COMPLETED"
    assert endpoint.done(job_id, {"output": 1}) == 200

    assert endpoint.journal()["violations"] == []


def test_a_fault_strikes_its_route_as_often_as_it_says(endpoint: Endpoint) -> None:
    endpoint.fault(route="status", status=503, times=2, skip=1)
    job_id = endpoint.run()

    codes = [endpoint.call("GET", f"status/{job_id}").status_code for _ in range(4)]

    assert codes == [200, 503, 503, 200]
    assert endpoint.call("GET", "health").status_code == 200


def test_a_fault_can_drop_or_delay_or_be_taken_back(endpoint: Endpoint) -> None:
    endpoint.fault(route="health", status=0)
    with pytest.raises(requests.ConnectionError):
        endpoint.call("GET", "health")

    endpoint.fault(route="health", status=None, delay_s=0.2)
    start = time.monotonic()
    assert endpoint.call("GET", "health").status_code == 200
    assert time.monotonic() - start >= 0.2

    endpoint.fault(route="health", status=500, times=-1)
    endpoint.session.delete(endpoint.url + "/simulator/faults", timeout=5)
    assert endpoint.call("GET", "health").status_code == 200


def test_jobs_that_are_delivered_twice_are_answered_twice_without_a_violation(
    endpoint: Endpoint,
) -> None:
    job_id = endpoint.run()
    endpoint.fault(route="job-take", twice=True)

    assert [endpoint.take()["id"], endpoint.take()["id"]] == [job_id, job_id]
    assert [endpoint.done(job_id, {"output": n}) for n in (1, 2)] == [200, 200]
    journal = endpoint.journal()
    assert journal["violations"] == []
    assert journal["late"] == [f"job-done {job_id}: result after the job had ended"]
    assert (journal["jobs"][0]["duplicates"], journal["jobs"][0]["takes"]) == (1, 2)


def test_what_ended_is_told_in_order_and_only_what_is_new(endpoint: Endpoint) -> None:
    ids = [endpoint.run(), endpoint.run()]
    for _ in ids:
        endpoint.done(endpoint.take()["id"], {"output": 1})
    url = f"{endpoint.url}/simulator/ended"

    told = endpoint.session.get(url, timeout=5).json()
    later = endpoint.session.get(f"{url}?after=1", timeout=5).json()

    assert [job["id"] for job in told["jobs"]] == ids
    assert [job["id"] for job in later["jobs"]] == ids[1:]
    assert [what for _, what, _ in told["jobs"][0]["history"]] == ["taken", "accepted", "COMPLETED"]
    assert told["jobs"][0]["output"] == 1
    assert 0 < told["now"] <= later["now"]


def test_jobs_that_are_lost_on_their_way_are_known(endpoint: Endpoint) -> None:
    endpoint.run()
    endpoint.fault(route="job-take", status=0, after=True)

    with pytest.raises(requests.ConnectionError):
        endpoint.take()

    (job,) = endpoint.journal()["jobs"]
    assert [(what, worker) for _, what, worker in job["history"]] == [
        ("taken", "w1"),
        ("unacknowledged", "w1"),
    ]


def test_only_what_a_worker_must_send_again_is_noted_as_unacknowledged(endpoint: Endpoint) -> None:
    job_id = endpoint.run()
    endpoint.take()
    endpoint.fault(route="job-done", status=502, after=True, times=2)
    endpoint.fault(route="job-stream", status=502, after=True)

    endpoint.done(job_id, {"status": "IN_PROGRESS", "output": 1})
    endpoint.call(
        "POST",
        f"job-stream/w1/{job_id}?gpu=X",
        headers=WORKER | {"X-Request-ID": job_id},
        json={"output": 1},
    )
    endpoint.done(job_id, {"output": 1})

    (job,) = endpoint.journal()["jobs"]
    told = [what for _, what, _ in job["history"]]
    assert told == ["taken", "unacknowledged piece", "accepted", "COMPLETED", "unacknowledged"]


def test_faults_are_listed_with_their_hits(endpoint: Endpoint) -> None:
    endpoint.fault(route="job-take", status=429)
    endpoint.call("GET", "job-take-batch/w1?gpu=X&batch_size=2", headers=WORKER)

    listed = endpoint.session.get(endpoint.url + "/simulator/faults", timeout=5).json()

    assert [(f["route"], f["hits"]) for f in listed] == [("job-take", 1)]


@pytest.mark.parametrize("wish", [{"route": "nowhere"}, {"route": "run", "statsu": 1}, {}])
def test_a_fault_that_cannot_be_meant_is_refused(wish: dict[str, Any], endpoint: Endpoint) -> None:
    assert endpoint.fault(**wish).status_code == 400


def test_the_journal_counts_requests_and_can_be_emptied(endpoint: Endpoint) -> None:
    job_id = endpoint.run()
    endpoint.take()
    endpoint.done(job_id, {"output": 1})

    journal = endpoint.journal()
    endpoint.session.post(endpoint.url + "/simulator/reset-journal", timeout=5)

    assert journal["counts"] == {"run": 1, "job-take": 1, "job-done": 1}
    assert [(r["route"], r["status"]) for r in journal["requests"]][-1] == ("job-done", 200)
    assert (journal["jobs"][0]["takes"], journal["jobs"][0]["answers"]) == (1, 1)
    assert endpoint.journal()["counts"] == {}


def test_an_unhealthy_worker_is_counted(endpoint: Endpoint) -> None:
    endpoint.call("GET", "ping/w1?status=unhealthy&check=gpu&reason=none", headers=WORKER)

    assert endpoint.call("GET", "health").json()["workers"]["unhealthy"] == 1


@pytest.mark.parametrize(
    ("scale", "interval_ms"), [(0.5, 20_000), (1, 10_000), (3, 3_000), (10, 1_000), (100, 1_000)]
)
def test_workers_ping_as_fast_as_the_clock_runs_but_not_below_a_second(
    scale: float, interval_ms: int
) -> None:
    assert Options(time_scale=scale).ping_interval_ms == interval_ms


@pytest.mark.parametrize("scale", [1, 10, 100])
def test_a_worker_is_not_lost_before_it_could_ping_three_times(scale: float) -> None:
    platform = Platform(Options(time_scale=scale))

    interval_s = platform.options.ping_interval_ms / 1000 * scale
    assert platform.queue.limits.lost_after_s >= 3 * interval_s
    assert platform.queue.limits.lost_after_s >= 30


def test_the_environment_is_what_a_worker_on_the_platform_has(endpoint: Endpoint) -> None:
    answer = endpoint.session.get(endpoint.url + "/simulator/env?worker=w7", timeout=5).json()

    assert answer["RUNPOD_WEBHOOK_GET_JOB"] == f"{endpoint.url}/v2/sim/job-take/$ID?gpu=SIMULATED"
    assert answer["RUNPOD_POD_ID"] == "w7"
    assert all(isinstance(value, str) for value in answer.values())
