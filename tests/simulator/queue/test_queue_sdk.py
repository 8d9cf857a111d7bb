"""The real `runpod.serverless.start` loop, in a process of its own, takes its jobs from the queue.

The clocks run twenty times as fast as ours: a second here is twenty of the platform's.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from simulator.queue.platform import Options
from tests.simulator.queue.conftest import Endpoint, endpoint_with

pytestmark = pytest.mark.slow

SCALE = 20
WORKER = Path(__file__).with_name("sdk_worker.py")
CLIENT = Path(__file__).with_name("sdk_client.py")
FINAL = {"COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"}


@contextlib.contextmanager
def worker(endpoint: Endpoint, name: str, home: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a worker; its group is killed at the end, for the SDK's ping process outlives it."""
    url = f"{endpoint.url}/simulator/env?worker={name}"
    environment = {
        "PATH": "/usr/bin:/bin",
        # Without a home of its own the SDK would read a developer's key from ~/.runpod/config.toml.
        "HOME": str(home),
        "RUNPOD_LOG_LEVEL": "ERROR",
        **endpoint.session.get(url, timeout=5).json(),
    }
    process = subprocess.Popen(
        [sys.executable, str(WORKER)],
        env=environment,
        cwd=home,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """A queue with one worker that all tests but the deadly ones share."""
    home = tmp_path_factory.mktemp("home")
    with (
        endpoint_with(Options(time_scale=SCALE)) as endpoint,
        worker(endpoint, "w1", home),
    ):
        yield endpoint


def eventually(true: Callable[[], bool], within_s: float = 30) -> None:
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.05)


def ended(endpoint: Endpoint, job_id: str) -> dict[str, Any]:
    eventually(lambda: endpoint.status(job_id)["status"] in FINAL)
    return endpoint.status(job_id)


def test_a_job_is_taken_run_and_answered(served: Endpoint) -> None:
    job_id = served.run({"op": "echo", "ünï": "日本"})

    shown = ended(served, job_id)

    assert (shown["status"], shown["workerId"]) == ("COMPLETED", "w1")
    assert shown["output"] == {"echo": {"op": "echo", "ünï": "日本"}}
    assert shown["delayTime"] >= 0
    assert shown["executionTime"] >= 0


def test_runsync_returns_the_result(served: Endpoint) -> None:
    answer = served.call("POST", "runsync", json={"input": {"op": "echo"}}).json()

    assert answer["id"].startswith("sync-")
    assert (answer["status"], answer["output"]) == ("COMPLETED", {"echo": {"op": "echo"}})


def test_an_error_fails_the_job_with_what_stands_beside_it(served: Endpoint) -> None:
    shown = ended(served, served.run({"op": "fail"}))

    assert shown["status"] == "FAILED"
    assert (shown["error"], shown["output"]) == ("CODE: what happened.", {"code": "CODE"})


def test_an_exception_fails_the_job(served: Endpoint) -> None:
    shown = ended(served, served.run({"op": "raise"}))

    assert shown["status"] == "FAILED"
    assert "raised on request" in shown["error"]


def test_progress_is_seen_while_the_job_runs(served: Endpoint, tmp_path: Path) -> None:
    may_end = tmp_path / "may end"
    job_id = served.run({"op": "progress", "until": str(may_end)})

    eventually(lambda: served.status(job_id).get("output") == {"step": 2})
    may_end.touch()

    assert ended(served, job_id)["output"] == {"steps": 3}


def test_a_cancelled_job_is_stopped_in_the_worker(served: Endpoint, tmp_path: Path) -> None:
    note = tmp_path / "note"
    job_id = served.run({"op": "sleep", "seconds": 60, "note": str(note)})
    eventually(note.exists)

    assert served.call("POST", f"cancel/{job_id}").json()["status"] == "CANCELLED"

    eventually(lambda: note.read_text() == "cancelled")
    assert ended(served, served.run({"op": "echo"}))["status"] == "COMPLETED"


def test_a_job_that_takes_too_long_is_stopped_in_the_worker(
    served: Endpoint, tmp_path: Path
) -> None:
    note = tmp_path / "note"
    wish = {"op": "sleep", "seconds": 60, "note": str(note)}
    job_id = served.run(wish, policy={"executionTimeout": 30_000})

    shown = ended(served, job_id)

    assert (shown["status"], shown["error"]) == ("TIMED_OUT", "executionTimeout exceeded")
    eventually(lambda: note.read_text() == "cancelled")


def test_a_result_over_the_limit_is_lost_and_the_job_times_out(served: Endpoint) -> None:
    job_id = served.run({"op": "big", "size": 10_000_000}, policy={"executionTimeout": 40_000})
    eventually(lambda: served.platform.queue.jobs[job_id].refused)
    assert served.status(job_id)["status"] == "IN_PROGRESS"

    shown = ended(served, job_id)

    assert shown["status"] == "TIMED_OUT"
    assert "output" not in shown
    assert "retries" not in shown


def test_the_same_result_fits_runsync(served: Endpoint) -> None:
    wish = {"input": {"op": "big", "size": 10_000_000}}

    answer = served.call("POST", "runsync?wait=300000", json=wish).json()

    assert answer["status"] == "COMPLETED"
    assert len(answer["output"]["text"]) == 10_000_000


def test_a_result_with_nan_is_lost_and_noted(served: Endpoint) -> None:
    job_id = served.run({"op": "nan"}, policy={"executionTimeout": 40_000})

    assert ended(served, job_id)["status"] == "TIMED_OUT"
    assert any(job_id in line and "NaN" in line for line in served.journal()["violations"])


def test_a_result_that_meets_a_5xx_is_sent_again(served: Endpoint) -> None:
    served.fault(route="job-done", status=503)
    job_id = served.run({"op": "echo"})

    assert ended(served, job_id)["status"] == "COMPLETED"
    posts = [
        r for r in served.journal()["requests"] if r["job"] == job_id and r["method"] == "POST"
    ]
    assert [post["status"] for post in posts] == [503, 200]


def test_jobs_are_taken_again_after_the_take_route_was_broken(served: Endpoint) -> None:
    served.fault(route="job-take", status=500, times=3)
    served.fault(route="job-take", status=0, times=2)

    assert ended(served, served.run({"op": "echo"}))["status"] == "COMPLETED"


def test_the_sdks_own_client_understands_every_answer(served: Endpoint, tmp_path: Path) -> None:
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
        "RUNPOD_ENDPOINT_BASE_URL": f"{served.url}/v2",
    }

    # What it says on stderr is left to be shown should it fail.
    out = subprocess.run(
        [sys.executable, str(CLIENT), "sim", str(tmp_path / "note"), "simulated-key"],
        env=environment,
        cwd=tmp_path,
        check=True,
        stdout=subprocess.PIPE,
        timeout=60,
    ).stdout

    seen = json.loads(out.splitlines()[-1])
    assert seen["run_sync"] == seen["output"] == {"echo": {"op": "echo"}}
    assert (seen["status"], seen["cancelled"]) == ("COMPLETED", "CANCELLED")
    assert seen["cancel"]["status"] == "CANCELLED"
    assert seen["stream"] == [0, 1]
    assert seen["purge"]["status"] == "completed"
    assert seen["health"]["workers"]["running"] + seen["health"]["workers"]["idle"] == 1


def test_a_correct_worker_breaks_no_rule_of_the_protocol(served: Endpoint) -> None:
    served.session.post(served.url + "/simulator/reset-journal", timeout=5)
    for op in ("echo", "fail"):
        ended(served, served.run({"op": op}))

    journal = served.journal()

    assert (journal["violations"], journal["late"]) == ([], [])
    assert list(journal["pinged_at"]) == ["w1"]


def test_a_job_is_handed_to_a_second_worker_and_no_third(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = tmp_path_factory.mktemp("home")
    note = tmp_path / "note"
    with endpoint_with(Options(time_scale=SCALE)) as endpoint:
        job_id = endpoint.run({"op": "sleep", "seconds": 60, "note": str(note)})
        for name in ("first", "second"):
            with worker(endpoint, name, home) as process:
                eventually(note.exists)
                assert endpoint.status(job_id)["workerId"] == name
                kill(process)
            note.unlink()
            eventually(lambda: endpoint.status(job_id)["status"] != "IN_PROGRESS")

        shown = endpoint.status(job_id)

    assert (shown["status"], shown["retries"]) == ("FAILED", 1)
    assert shown["error"] == "job timed out after 1 retries"


def test_a_worker_told_to_end_finishes_its_job_first(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    note = tmp_path / "note"
    with (
        endpoint_with(Options(time_scale=SCALE)) as endpoint,
        worker(endpoint, "w1", tmp_path_factory.mktemp("home")) as process,
    ):
        job_id = endpoint.run({"op": "sleep", "seconds": 0.5, "note": str(note)})
        eventually(note.exists)
        process.send_signal(signal.SIGTERM)

        assert process.wait(timeout=30) == 0
        assert endpoint.status(job_id)["output"] == {"slept": True}
