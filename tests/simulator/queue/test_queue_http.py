"""What goes over the wire, spoken by hand; the real SDK is in test_queue_sdk.py."""

import threading
import time
from typing import Any

import pytest
import requests

from simulator.queue.platform import Options, Platform
from tests.simulator.queue.conftest import CLIENT, WORKER, Endpoint, endpoint_with


def test_a_job_travels_from_run_to_status(endpoint: Endpoint) -> None:
    answer = endpoint.call("POST", "run", json={"input": {"n": 1}, "webhook": "https://x"})
    job_id = answer.json()["id"]
    assert answer.json() == {"id": job_id, "status": "IN_QUEUE"}

    assert endpoint.take() == {"id": job_id, "input": {"n": 1}, "webhook": "https://x"}
    assert endpoint.status(job_id)["status"] == "IN_PROGRESS"
    assert endpoint.done(job_id, {"output": {"n": 2}}) == 200

    shown = endpoint.status(job_id)
    assert (shown["status"], shown["output"], shown["workerId"]) == ("COMPLETED", {"n": 2}, "w1")
    assert endpoint.journal()["violations"] == []


def test_a_take_waits_for_a_job(endpoint: Endpoint) -> None:
    timer = threading.Timer(0.2, endpoint.run, args=({"late": 1},))
    timer.start()
    start = time.monotonic()

    job = endpoint.take()
    timer.join()

    assert job["input"] == {"late": 1}
    assert 0.15 < time.monotonic() - start < 0.55


def test_a_take_without_jobs_ends_with_204(endpoint: Endpoint) -> None:
    answer = endpoint.call("GET", "job-take/w1?gpu=X", headers=WORKER)

    assert (answer.status_code, answer.content) == (204, b"")


def test_a_batch_is_a_list(endpoint: Endpoint) -> None:
    ids = [endpoint.run() for _ in range(3)]

    answer = endpoint.call("GET", "job-take-batch/w1?gpu=X&batch_size=2", headers=WORKER)

    assert [job["id"] for job in answer.json()] == ids[:2]


def test_a_take_whose_worker_hung_up_takes_nothing(endpoint: Endpoint) -> None:
    with pytest.raises(requests.ReadTimeout):
        endpoint.session.get(
            f"{endpoint.url}/v2/sim/job-take/gone?gpu=X", headers=WORKER, timeout=0.1
        )
    time.sleep(0.1)
    job_id = endpoint.run()
    time.sleep(0.1)

    assert endpoint.status(job_id)["status"] == "IN_QUEUE"


def test_runsync_answers_when_the_job_ends(endpoint: Endpoint) -> None:
    answers: list[dict[str, Any]] = []
    client = threading.Thread(
        target=lambda: answers.append(
            endpoint.call("POST", "runsync", json={"input": {"n": 1}}).json()
        )
    )
    client.start()
    job = endpoint.take()
    endpoint.done(job["id"], {"output": [1]})
    client.join()

    assert job["id"].startswith("sync-")
    assert (answers[0]["status"], answers[0]["output"]) == ("COMPLETED", [1])


def test_runsync_gives_up_waiting_and_the_job_goes_on() -> None:
    with endpoint_with(Options(time_scale=20)) as endpoint:
        start = time.monotonic()
        answer = endpoint.call("POST", "runsync?wait=5000", json={"input": {"n": 1}}).json()
        took_s = time.monotonic() - start

        assert answer["status"] == "IN_QUEUE"
        assert 0.2 <= took_s < 1
        assert endpoint.take()["id"] == answer["id"]


def test_runsync_waits_ninety_seconds_unless_told_otherwise() -> None:
    with endpoint_with(Options(time_scale=300)) as endpoint:
        start = time.monotonic()
        endpoint.call("POST", "runsync", json={"input": {"n": 1}})

        assert 0.3 <= time.monotonic() - start < 1


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"{}", id="no input"),
        pytest.param(b"[1]", id="no object"),
        pytest.param(b"{", id="no JSON"),
        pytest.param(b'{"input": NaN}', id="NaN"),
        pytest.param(b'{"input": 1, "policy": {"executionTimeout": 5000}}', id="short timeout"),
        pytest.param(b'{"input": 1, "policy": {"ttl": 9999}}', id="short ttl"),
        pytest.param(b'{"input": 1, "policy": {"ttl": 604800001}}', id="long ttl"),
        pytest.param(b'{"input": 1, "policy": [1]}', id="no policy"),
    ],
)
def test_a_request_that_cannot_be_meant_is_400(body: bytes, endpoint: Endpoint) -> None:
    answer = endpoint.call("POST", "run", data=body)

    assert answer.status_code == 400
    assert answer.json()["error"]
    assert endpoint.journal()["jobs"] == []


@pytest.mark.parametrize(
    ("route", "limit"), [("run", 10_000_000), ("runsync?wait=1000", 20_000_000)]
)
def test_a_request_over_the_limit_of_its_kind_is_400(
    route: str, limit: int, endpoint: Endpoint
) -> None:
    def body(size: int) -> bytes:
        return b'{"input": "' + b"x" * (size - 13) + b'"}'

    assert endpoint.call("POST", route, data=body(limit)).status_code == 200
    assert endpoint.call("POST", route, data=body(limit + 1)).status_code == 400


def test_a_result_over_the_limit_is_refused(endpoint: Endpoint) -> None:
    job_id = endpoint.run()
    endpoint.take()

    assert endpoint.done(job_id, {"output": "x" * 10_000_000}) == 400

    assert endpoint.status(job_id)["status"] == "IN_PROGRESS"
    assert endpoint.journal()["violations"] == []


@pytest.mark.parametrize(
    "body", [b'{"output": NaN}', b'{"output": Infinity}', b"x", b"[]", b"\xff"]
)
def test_a_result_that_is_not_json_is_lost_and_noted(body: bytes, endpoint: Endpoint) -> None:
    job_id = endpoint.run()
    endpoint.take()

    assert endpoint.done(job_id, body) == 400

    assert endpoint.status(job_id)["status"] == "IN_PROGRESS"
    assert len(endpoint.journal()["violations"]) == 1


def test_progress_and_stream_reach_the_client(endpoint: Endpoint) -> None:
    job_id = endpoint.run()
    endpoint.take()
    endpoint.done(job_id, {"status": "IN_PROGRESS", "output": {"step": 3}})
    for item in (1, 2):
        endpoint.call(
            "POST",
            f"job-stream/w1/{job_id}?gpu=X&isStream=false",
            headers=WORKER | {"X-Request-ID": job_id},
            json={"output": item},
        )

    assert endpoint.status(job_id)["output"] == {"step": 3}
    assert endpoint.call("POST", f"status/{job_id}").json()["output"] == {"step": 3}
    first = endpoint.call("GET", f"stream/{job_id}").json()
    assert first == {"status": "IN_PROGRESS", "stream": [{"output": 1}, {"output": 2}]}
    assert endpoint.call("GET", f"stream/{job_id}").json()["stream"] == []


@pytest.mark.parametrize("body", [b"x", b'{"output": NaN}'])
def test_a_stream_item_that_is_not_json_is_refused_and_noted(
    body: bytes, endpoint: Endpoint
) -> None:
    job_id = endpoint.run()
    endpoint.take()
    headers = WORKER | {"X-Request-ID": job_id}

    path = f"job-stream/w1/{job_id}?gpu=X&isStream=false"
    answer = endpoint.call("POST", path, headers=headers, data=body)

    assert answer.status_code == 400
    assert endpoint.call("GET", f"stream/{job_id}").json()["stream"] == []
    assert len(endpoint.journal()["violations"]) == 1


def test_a_result_for_a_job_that_never_was_is_404(endpoint: Endpoint) -> None:
    assert endpoint.done("never-was", {"output": 1}) == 404


def test_a_cancel_reaches_the_worker_that_waits_on_its_stop_channel(endpoint: Endpoint) -> None:
    job_id = endpoint.run()
    endpoint.take()
    timer = threading.Timer(0.2, endpoint.call, args=("POST", f"cancel/{job_id}"))
    timer.start()

    answer = endpoint.call("GET", "job-stop/w1?gpu=X", headers=WORKER)
    timer.join()

    assert answer.json() == {"jobsToStop": [job_id]}
    assert endpoint.status(job_id)["status"] == "CANCELLED"
    assert endpoint.call("GET", "job-stop/w1?gpu=X", headers=WORKER).status_code == 204


def test_purge_retry_and_health(endpoint: Endpoint) -> None:
    failed = endpoint.run()
    endpoint.take()
    endpoint.done(failed, {"error": "no"})
    endpoint.run()
    endpoint.call("GET", "ping/w1?runpod_version=1.12.0", headers=WORKER)

    assert endpoint.call("POST", "purge-queue").json() == {"removed": 1, "status": "completed"}
    health = endpoint.call("GET", "health").json()
    assert (health["jobs"]["failed"], health["workers"]["idle"]) == (1, 1)
    assert endpoint.call("POST", f"retry/{failed}").json()["status"] == "IN_QUEUE"
    assert endpoint.call("POST", f"retry/{failed}").status_code == 400


@pytest.mark.parametrize("route", ["status/x", "stream/x", "cancel/x", "retry/x"])
def test_an_unknown_job_is_404(route: str, endpoint: Endpoint) -> None:
    method = "GET" if route.startswith("st") else "POST"

    assert endpoint.call(method, route).status_code == 404


def test_an_unknown_endpoint_is_404(endpoint: Endpoint) -> None:
    answer = endpoint.session.get(f"{endpoint.url}/v2/other/health", headers=CLIENT, timeout=5)

    assert answer.status_code == 404


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


def test_a_job_that_no_worker_takes_times_out() -> None:
    with endpoint_with(Options(time_scale=100)) as endpoint:
        job_id = endpoint.run(policy={"ttl": 10_000})
        time.sleep(0.25)

        assert endpoint.status(job_id)["status"] == "TIMED_OUT"


def test_a_sync_result_is_forgotten_after_a_minute_of_the_platform() -> None:
    with endpoint_with(Options(time_scale=200)) as endpoint:
        endpoint.call("POST", "runsync?wait=1000", json={"input": 1})
        job_id = endpoint.take()["id"]
        endpoint.done(job_id, {"output": 1})
        assert endpoint.call("GET", f"status/{job_id}").status_code == 200
        time.sleep(0.4)

        assert endpoint.call("GET", f"status/{job_id}").status_code == 404
        assert endpoint.journal()["jobs"][0]["forgotten"] is True
