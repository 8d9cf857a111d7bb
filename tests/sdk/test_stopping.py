"""How a worker under the SDK's loop starts and ends; one worker for each test."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.sdk.conftest import HERE, StartWorker, Worker, children, environment, until

pytestmark = pytest.mark.slow

# An idle machine needs half a second. The SDK waits for its long polls, a minute here.
PROMPT_S = 20.0
# A younger poll is waited for: see rp_guards.UNDER_WAY_S.
UNDER_WAY_S = 0.5


def terminate(worker: Worker) -> None:
    worker.process.send_signal(signal.SIGTERM)


def age_of_poll(worker: Worker) -> float:
    """Return for how many seconds the last poll for jobs has been open."""
    polls = worker.requests("job-take")
    now = worker.queue.get("/simulator/ended")["now"]
    return float(now - polls[-1]["t"]) if polls else 0.0


def told(worker: Worker) -> bool:
    return "told to stop in MainThread" in worker.log


def has_hung_up(worker: Worker) -> bool:
    """Return whether a worker that says all has left its poll since it was told to stop."""
    return "No jobs acquired" in worker.log.partition("told to stop")[2]


def test_an_idle_worker_ends_at_once_and_takes_no_job_with_it(start_worker: StartWorker) -> None:
    worker = start_worker(RUNPOD_LOG_LEVEL="DEBUG")
    until(lambda: age_of_poll(worker) > UNDER_WAY_S)

    terminate(worker)
    until(lambda: has_hung_up(worker))
    worker.door.settle()
    job_id = worker.run(a=1)

    assert worker.process.wait(PROMPT_S) == 0
    assert worker.status(job_id)["status"] == "IN_QUEUE"
    assert worker.log.count("told to stop") == 1
    assert worker.log.rstrip().endswith("served")


def test_running_jobs_are_answered_or_cancelled_and_no_other_is_taken(
    start_worker: StartWorker, tmp_path: Path
) -> None:
    worker = start_worker(4, RUNPOD_LOG_LEVEL="DEBUG")
    may_end = tmp_path / "may end"
    answered = worker.run(do="wait", until=str(may_end))
    cancelled = [worker.run(do="sleep", s=60) for _ in range(2)]
    until(lambda: worker.log.count("sleeping ") == 3)
    worker.until_polling()

    terminate(worker)
    until(lambda: told(worker))
    terminate(worker)
    until(lambda: has_hung_up(worker))
    worker.door.settle()
    waiting = worker.run(a=1)
    for number, job_id in enumerate(cancelled, 1):  # the second by a poll that began after the stop
        worker.cancel(job_id)
        until(lambda: worker.log.count("Job stopped.") == number)  # noqa: B023 - called at once

    may_end.touch()
    assert worker.process.wait(PROMPT_S) == 0
    assert worker.status(answered)["status"] == "COMPLETED"
    assert {worker.status(job_id)["status"] for job_id in cancelled} == {"CANCELLED"}
    assert worker.status(waiting)["status"] == "IN_QUEUE"
    assert worker.log.count("told to stop") == 1
    assert worker.log.index("told to stop") < worker.log.index("OURS INFO Finished.")


def test_a_job_whose_answer_has_begun_to_arrive_is_run(start_worker: StartWorker) -> None:
    worker = start_worker(RUNPOD_LOG_LEVEL="DEBUG")
    worker.fault(route="job-take", status=None, body_s=0.6)
    worker.wait(worker.run(a=1))  # by the poll that is open already
    job_id = worker.run(a=2)
    until(lambda: worker.log.count("Response: ClientResponse 200") >= 2)

    terminate(worker)

    assert worker.process.wait(PROMPT_S) == 0
    assert worker.status(job_id)["status"] == "COMPLETED"


def test_a_job_that_is_on_its_way_when_a_poll_has_just_begun_is_run(
    start_worker: StartWorker,
) -> None:
    worker = start_worker()
    worker.tune("rp_guards", UNDER_WAY_S=PROMPT_S)
    worker.fault(route="job-take", status=None, late_s=0.3)
    job_id = worker.run(a=2)
    until(lambda: worker.status(job_id)["status"] != "IN_QUEUE")

    terminate(worker)

    assert worker.process.wait(PROMPT_S) == 0
    assert worker.status(job_id)["status"] == "COMPLETED"


def test_a_busy_queue_is_left_alone_and_does_not_hold_up_a_stop_from_a_thread(
    start_worker: StartWorker, tmp_path: Path
) -> None:
    worker = start_worker(2)
    may_stop = tmp_path / "may stop"
    worker.tune("rp_guards", BUSY_WAIT_S=60)
    worker.until_polling()
    worker.fault(route="job-take", status=429, times=-1)
    job_id = worker.run(do="stop", until=str(may_stop))  # by the poll that is open already

    def refused() -> int:
        return [take["status"] for take in worker.takes()].count(429)

    until(lambda: refused() > 0)
    time.sleep(1)  # After another failure it would be asked three times by then.
    may_stop.touch()
    until(lambda: told(worker))

    assert worker.process.wait(PROMPT_S) == 0
    assert worker.status(job_id)["status"] == "COMPLETED"
    assert refused() == 1


def test_the_ping_process_ends_with_a_worker_that_is_killed(start_worker: StartWorker) -> None:
    worker = start_worker()
    until(lambda: "ping" in worker.journal()["counts"])
    (pings,) = children(worker.process.pid)

    worker.process.kill()
    worker.process.wait()

    until(lambda: not is_alive(pings))


def is_alive(pid: int) -> bool:
    """Return whether a process runs; one that has ended may wait for init to notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_another_version_of_the_sdk_is_reported_and_left_alone(
    start_worker: StartWorker, tmp_path: Path
) -> None:
    metadata = tmp_path / "site" / "runpod-1.12.1.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: runpod\nVersion: 1.12.1\n")

    path = f"{metadata.parent.parent}{os.pathsep}{ROOT}"
    worker = start_worker(PYTHONPATH=path, HOME=str(tmp_path))

    assert "OURS WARNING runpod 1.12.1 is installed" in worker.log
    assert worker.wait(worker.run(do="progress", s=0))["output"]["guarded"] is False


def run(folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *argv],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_the_sdk_is_imported_in_the_background_and_without_the_processors_name(
    tmp_path: Path,
) -> None:
    program = """
import sys, threading, rp_sdk
with rp_sdk._loading:  # so that it is not done before it is looked for
    rp_sdk.preload()
    print([thread.name for thread in threading.enumerate()][1:])
assert rp_sdk._is_guarded()
from runpod.serverless.utils import rp_debugger
print(rp_debugger.PROCESSOR)
import cpuinfo
print(cpuinfo.__file__.endswith(".py"))
"""
    done = run(tmp_path, "-c", program)

    assert done.stderr == ""
    assert done.stdout == "['import-sdk']\nUnable to get processor info.\nTrue\n"


def test_a_local_test_of_a_handler_that_leaves_fails_in_words(tmp_path: Path) -> None:
    job = json.dumps({"input": {"do": "leave"}})

    done = run(tmp_path, str(HERE / "worker.py"), "1", "none", "--test_input", job)

    assert done.returncode == 1, done.stderr
    assert "INTERNAL: The worker failed unexpectedly." in done.stdout
