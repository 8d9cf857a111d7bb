"""A worker that takes two jobs at a time, through the real SDK loop: one generates, the other asks."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.conftest import Stack, make_stack

pytestmark = pytest.mark.slow

JOB = {"prompt": "a cat", "steps": 20, "width": 64, "height": 64, "checkpoint": "c"}
STALL = {"kind": "stall", "when": "sampling", "interruptible": True}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("pair")
    with make_stack(folder, "--step-ms", 20, A1111_JOB_CONCURRENCY="2") as made:
        url = f"{made.hub.url}/Deliberate_v6.safetensors"
        first = {"steps": 1, "checkpoint": {"name": "c", "url": url}}
        assert made.runsync(first)["output"]["images"]
        yield made


def asked(method: str, endpoint: str, **payload: object) -> dict[str, object]:
    return {"api": {"method": method, "endpoint": endpoint}, "payload": payload}


def begun(pair: Stack, wish: dict[str, Any]) -> str:
    """Bring a job to where A1111 stands still at it, until faults are cleared; return its id."""
    pair.faults(faults=[STALL])
    job_id = pair.run(wish)
    pair.until_struck()
    return job_id


def test_read_only_routes_do_not_wait_behind_a_generation(pair: Stack) -> None:
    job_id = begun(pair, JOB)

    samplers = pair.runsync(asked("GET", "/sdapi/v1/samplers"))
    health = pair.runsync(asked("GET", "/v1/health"))

    assert pair.status(job_id)["status"] == "IN_PROGRESS"
    assert samplers["output"] == pair.webui.get("/sdapi/v1/samplers")
    assert job_id in [job["id"] for job in health["output"]["jobs"]]
    pair.faults(clear=True)
    assert pair.wait(job_id, "COMPLETED")["output"]["images"]


def test_two_generations_are_made_one_after_the_other(pair: Stack) -> None:
    ids = [pair.run({**JOB, "seed": seed}) for seed in (1, 2)]

    pictures = [pair.wait(job_id, "COMPLETED")["output"]["images"] for job_id in ids]

    alone = pair.runsync({**JOB, "seed": 2})["output"]["images"]
    assert pictures[0] != pictures[1] == alone


def test_a_model_that_is_set_has_no_output_and_holds_for_the_next_job(pair: Stack) -> None:
    job = pair.runsync(asked("POST", "/sdapi/v1/options", sd_model_checkpoint="c"))

    assert job["status"] == "COMPLETED"
    assert job.get("output") is None
    made = pair.runsync({"prompt": "a cat", "steps": 1})["output"]
    assert any("POST options" in warning for warning in made["warnings"])


def test_a_job_that_would_interrupt_is_told_of_cancel(pair: Stack) -> None:
    job = pair.runsync(asked("POST", "/sdapi/v1/interrupt"))

    assert job["status"] == "FAILED"
    assert "/cancel/" in job["error"]


def test_a_waiting_job_that_is_cancelled_leaves_the_running_one_alone(pair: Stack) -> None:
    running_id = begun(pair, JOB)
    waiting_id = pair.run({**JOB, "steps": 1})
    pair.wait(waiting_id, "IN_PROGRESS")

    pair.cancel(waiting_id)
    # It takes the place that the other one gave back.
    changed = pair.runsync(asked("POST", "/sdapi/v1/options", sd_vae="None"))

    assert changed["status"] == "COMPLETED"
    assert pair.status(waiting_id)["status"] == "CANCELLED"
    assert pair.status(running_id)["status"] == "IN_PROGRESS"
    pair.faults(clear=True)
    made = pair.wait(running_id, "COMPLETED")["output"]
    assert made["images"]
    assert not [text for text in made["warnings"] if "sd_vae" in text or "The vae" in text]
