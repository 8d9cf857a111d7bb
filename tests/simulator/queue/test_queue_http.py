"""What goes over the wire, spoken by hand; the real SDK is in test_queue_sdk.py."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests

from simulator.queue.platform import Options
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


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.02)


@pytest.fixture
def patient() -> Iterator[Endpoint]:
    """A queue that holds polls longer than any test waits."""
    with endpoint_with(Options(hold_s=30)) as served:
        yield served


def test_a_take_waits_for_a_job(patient: Endpoint) -> None:
    timer = threading.Timer(0.2, patient.run, args=({"late": 1},))
    start = time.monotonic()
    timer.start()

    job = patient.take()
    timer.join()

    assert job["input"] == {"late": 1}
    assert 0.15 < time.monotonic() - start < 10


def test_a_take_without_jobs_ends_with_204(endpoint: Endpoint) -> None:
    answer = endpoint.call("GET", "job-take/w1?gpu=X", headers=WORKER)

    assert (answer.status_code, answer.content) == (204, b"")


def test_a_batch_is_a_list(endpoint: Endpoint) -> None:
    ids = [endpoint.run() for _ in range(3)]

    answer = endpoint.call("GET", "job-take-batch/w1?gpu=X&batch_size=2", headers=WORKER)

    assert [job["id"] for job in answer.json()] == ids[:2]


def test_a_take_whose_worker_hung_up_takes_nothing(patient: Endpoint) -> None:
    with pytest.raises(requests.ReadTimeout):
        patient.session.get(
            f"{patient.url}/v2/sim/job-take/gone?gpu=X", headers=WORKER, timeout=0.5
        )
    until(lambda: patient.journal()["requests"][-1]["status"] == 0)
    job_id = patient.run()

    assert patient.take()["id"] == job_id


def test_runsync_answers_when_the_job_ends(patient: Endpoint) -> None:
    answers: list[dict[str, Any]] = []
    client = threading.Thread(
        target=lambda: answers.append(
            patient.call("POST", "runsync", json={"input": {"n": 1}}).json()
        )
    )
    client.start()
    job = patient.take()
    patient.done(job["id"], {"output": [1]})
    client.join()

    assert job["id"].startswith("sync-")
    assert (answers[0]["status"], answers[0]["output"]) == ("COMPLETED", [1])


def test_runsync_gives_up_waiting_and_the_job_goes_on() -> None:
    with endpoint_with(Options(time_scale=20)) as endpoint:
        start = time.monotonic()
        answer = endpoint.call("POST", "runsync?wait=5000", json={"input": {"n": 1}}).json()
        took_s = time.monotonic() - start

        assert answer["status"] == "IN_QUEUE"
        assert 0.2 <= took_s < 4
        assert endpoint.take()["id"] == answer["id"]


def test_runsync_waits_ninety_seconds_unless_told_otherwise() -> None:
    with endpoint_with(Options(time_scale=300)) as endpoint:
        start = time.monotonic()
        endpoint.call("POST", "runsync", json={"input": {"n": 1}})

        assert 0.3 <= time.monotonic() - start < 10


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


def hand_out(endpoint: Endpoint, job_id: str, item: object) -> int:
    headers = WORKER | {"X-Request-ID": job_id}
    path = f"job-stream/w1/{job_id}?gpu=X&isStream=false"
    return endpoint.call("POST", path, headers=headers, json={"output": item}).status_code


def test_a_stream_item_above_its_limit_is_refused_and_noted(endpoint: Endpoint) -> None:
    job_id = endpoint.run()
    endpoint.take()
    beside = len('{"output": ""}')

    assert hand_out(endpoint, job_id, "x" * (1_000_000 - beside)) == 200
    assert hand_out(endpoint, job_id, "x" * (1_000_001 - beside)) == 400

    assert len(endpoint.call("GET", f"stream/{job_id}").json()["stream"]) == 1
    (line,) = endpoint.journal()["violations"]
    assert line.endswith("over the size limit: 1000001 bytes")


@pytest.mark.parametrize(("ends", "noted"), [("result", "violations"), ("cancel", "late")])
def test_a_stream_item_after_the_end_does_not_count(
    ends: str, noted: str, endpoint: Endpoint
) -> None:
    job_id = endpoint.run()
    endpoint.take()
    if ends == "result":
        endpoint.done(job_id, {"output": 1})
    else:
        endpoint.call("POST", f"cancel/{job_id}")

    assert hand_out(endpoint, job_id, 2) == 200

    assert endpoint.call("GET", f"stream/{job_id}").json()["stream"] == []
    assert endpoint.journal()[noted] == [f"job-stream {job_id}: after the job had ended"]


def test_a_stream_item_of_a_second_delivery_may_come_after_the_end(endpoint: Endpoint) -> None:
    job_id = endpoint.run()
    endpoint.fault(route="job-take", twice=True)
    endpoint.take("w1")
    endpoint.take("w2")
    endpoint.done(job_id, {"output": 1}, "w2")

    assert hand_out(endpoint, job_id, 2) == 200

    journal = endpoint.journal()
    assert journal["violations"] == []
    assert journal["late"] == [f"job-stream {job_id}: after the job had ended"]


def test_a_result_for_a_job_that_never_was_is_404(endpoint: Endpoint) -> None:
    assert endpoint.done("never-was", {"output": 1}) == 404


def test_a_cancel_reaches_the_worker_that_waits_on_its_stop_channel(patient: Endpoint) -> None:
    job_id = patient.run()
    patient.take()
    timer = threading.Timer(0.2, patient.call, args=("POST", f"cancel/{job_id}"))
    timer.start()

    answer = patient.call("GET", "job-stop/w1?gpu=X", headers=WORKER)
    timer.join()

    assert answer.json() == {"jobsToStop": [job_id]}
    assert patient.status(job_id)["status"] == "CANCELLED"


def test_a_stop_channel_that_has_nothing_to_say_ends_with_204(endpoint: Endpoint) -> None:
    job_id = endpoint.run()
    endpoint.take()
    endpoint.call("POST", f"cancel/{job_id}")
    assert endpoint.call("GET", "job-stop/w1?gpu=X", headers=WORKER).status_code == 200

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


def test_a_job_that_no_worker_takes_times_out() -> None:
    with endpoint_with(Options(time_scale=100)) as endpoint:
        job_id = endpoint.run(policy={"ttl": 10_000})

        until(lambda: endpoint.status(job_id)["status"] == "TIMED_OUT")


def test_a_sync_result_is_forgotten_after_a_minute_of_the_platform() -> None:
    with endpoint_with(Options(time_scale=2)) as endpoint:
        endpoint.call("POST", "runsync?wait=1000", json={"input": 1})
        job_id = endpoint.take()["id"]
        endpoint.done(job_id, {"output": 1})
        assert endpoint.call("GET", f"status/{job_id}").status_code == 200

        endpoint.platform._started -= 31  # of a clock of twice the pace

        until(lambda: endpoint.call("GET", f"status/{job_id}").status_code == 404)
        assert endpoint.journal()["jobs"][0]["forgotten"] is True
