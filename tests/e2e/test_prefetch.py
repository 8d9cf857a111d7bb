"""A worker that fetches for the next job while one is made, through the real SDK loop.

A1111 stands still in the midst of a picture, or the host of models is stopped, until a test has seen
what shall happen meanwhile; so nothing here depends on how fast the machine is.
"""

import os
import signal
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest

from model_cache.cache import ModelCache
from schemas.errors import VolumeFullError
from schemas.settings import CacheSettings
from simulator import models
from tests.e2e.container import HELD, Container, make_container, require_answers

pytestmark = pytest.mark.slow

GOOD = {"prompt": "a cat", "steps": 2, "width": 64, "height": 64, "checkpoint": "a"}
EARLY = [90_001, 90_002, 90_003]
STALL = {"kind": "stall", "when": "sampling", "interruptible": True}
# An idle machine needs less than two seconds: the drain, and what ends then.
PROMPT_S = 20.0
_numbers = count(1)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    """One worker for all tests; the last one stops it. Its first jobs wait in the queue until A1111 starts."""
    folder = tmp_path_factory.mktemp("prefetch")
    with make_container(
        folder, {"starts": [HELD]}, A1111_WORKER_PREFETCH="1", A1111_JOB_DRAIN_S="1"
    ) as container:
        file = container.volume / "models" / "checkpoints" / "a.safetensors"
        models.write_checkpoint(file, seed="a")
        ids = [container.run({**GOOD, "seed": seed}) for seed in EARLY]
        container.let_start()
        for job_id in ids:
            require_picture(container, job_id)
        yield container


def test_jobs_that_are_taken_together_are_made_in_the_order_of_the_queue(pair: Container) -> None:
    takes = [job["history"][0][0] for job in pair.queue.get("/simulator/journal")["jobs"][:2]]

    assert takes[0] == takes[1]
    assert seeds(pair)[: len(EARLY)] == EARLY


class Model:
    """A checkpoint that nobody has fetched."""

    def __init__(self, container: Container) -> None:
        self.name = f"new-{next(_numbers)}"
        file = container.files / f"{self.name}.safetensors"
        digest = models.write_checkpoint(file, seed=self.name)
        url = f"{container.hub.url}/{file.name}"
        self.reference = {"name": self.name, "url": url, "hash": digest}
        self.path = container.volume / "models" / "checkpoints" / file.name


def new_seed() -> int:
    return next(_numbers)


def seeds(container: Container) -> list[int]:
    """Return the seeds of what this A1111 was asked to draw, in that order."""
    return [entry["body"]["seed"] for entry in container.sent()]


def begun(container: Container) -> tuple[str, int]:
    """Bring a job to where A1111 stands still at it; return its id and its seed."""
    seed = new_seed()
    container.faults(faults=[STALL])
    job_id = container.run({**GOOD, "seed": seed})
    container.until(lambda: seed in seeds(container), "A1111 is asked")
    return job_id, seed


def waiting(container: Container, **wish: Any) -> tuple[str, int]:
    """Bring a second job, with a model of its own, to where it waits for its turn."""
    seed, model = new_seed(), Model(container)
    job_id = container.run({**GOOD, "seed": seed, "checkpoint": model.reference, **wish})
    container.until(model.path.is_file, "the model of the second job is there")
    return job_id, seed


def go_on(container: Container) -> None:
    container.faults(clear=True)


def require_picture(container: Container, job_id: str) -> dict[str, Any]:
    job = container.wait(job_id, "COMPLETED", "FAILED")
    assert job["status"] == "COMPLETED", job
    answer: dict[str, Any] = job["output"]
    assert len(answer["images"]) == 1
    return answer


def test_models_of_the_second_job_come_while_the_first_is_made(pair: Container) -> None:
    first, first_seed = begun(pair)
    second, second_seed = waiting(pair)

    assert pair.status(first)["status"] == pair.status(second)["status"] == "IN_PROGRESS"
    assert second_seed not in seeds(pair)
    go_on(pair)

    require_picture(pair, first)
    answer = require_picture(pair, second)
    assert answer["models"][0]["cached"] is False
    assert seeds(pair)[-2:] == [first_seed, second_seed]


def test_the_job_that_came_first_is_made_first_though_the_second_is_ready_sooner(
    pair: Container,
) -> None:
    first_seed, second_seed = new_seed(), new_seed()
    model = Model(pair)
    with pair.host_stopped():
        first = pair.run({**GOOD, "seed": first_seed, "checkpoint": model.reference})
        pair.wait(first, "IN_PROGRESS")
        second = pair.run({**GOOD, "seed": second_seed})
        pair.wait(second, "IN_PROGRESS")

    require_picture(pair, second)
    require_picture(pair, first)
    assert seeds(pair)[-2:] == [first_seed, second_seed]


def test_what_only_asks_and_what_is_wrong_is_answered_while_a_picture_is_made(
    pair: Container,
) -> None:
    first, _ = begun(pair)

    samplers = pair.runsync({"api": {"method": "GET", "endpoint": "/sdapi/v1/samplers"}})
    bad = pair.runsync({**GOOD, "steps": -1})

    assert samplers["status"] == "COMPLETED"
    assert bad["output"]["code"] == "INVALID_INPUT"
    assert pair.status(first)["status"] == "IN_PROGRESS"
    go_on(pair)
    require_picture(pair, first)


@pytest.mark.parametrize("endpoint", ["/v1/download", "/sdapi/v1/options"])
def test_what_fetches_for_long_and_needs_no_turn_does_not_hold_up_the_picture_after_it(
    pair: Container, endpoint: str
) -> None:
    model = Model(pair)
    payloads: dict[str, Any] = {
        "/v1/download": {"kind": "checkpoint", **model.reference},
        "/sdapi/v1/options": {"sd_model_checkpoint": model.reference},
    }
    value = {"api": {"method": "POST", "endpoint": endpoint}, "payload": payloads[endpoint]}
    with pair.host_stopped():
        fetching = pair.run(value)
        pair.wait(fetching, "IN_PROGRESS")

        require_picture(pair, pair.run({**GOOD, "seed": new_seed()}))

        assert pair.status(fetching)["status"] == "IN_PROGRESS"
    assert pair.wait(fetching, "COMPLETED", "FAILED")["status"] == "COMPLETED"
    assert model.path.is_file()


def test_a_waiting_job_that_is_cancelled_frees_its_place(pair: Container) -> None:
    first, _ = begun(pair)
    second, second_seed = waiting(pair)

    pair.cancel(second)
    third, third_seed = waiting(pair)

    assert pair.status(first)["status"] == "IN_PROGRESS"
    go_on(pair)
    require_picture(pair, first)
    require_picture(pair, third)
    assert pair.status(second)["status"] == "CANCELLED"
    assert second_seed not in seeds(pair)
    assert seeds(pair)[-1] == third_seed


def test_the_waiting_job_begins_when_the_first_is_cancelled(pair: Container) -> None:
    first, _ = begun(pair)
    second, _ = waiting(pair)

    pair.cancel(first)

    require_picture(pair, second)
    assert pair.status(first)["status"] == "CANCELLED"
    go_on(pair)


def test_a_first_job_without_memory_leaves_the_second_its_picture(pair: Container) -> None:
    first, _ = begun(pair)
    second, _ = waiting(pair)
    # What stands still goes on, to a step for which the memory does not suffice.
    pair.faults(clear=True, faults=[{"kind": "oom", "when": "sampling"}])

    job = pair.wait(first, "FAILED", "COMPLETED")
    assert job["output"]["code"] == "BACKEND_OUT_OF_MEMORY"
    require_picture(pair, second)


def test_what_a_waiting_job_needs_is_not_evicted(pair: Container) -> None:
    first, _ = begun(pair)
    second, _ = waiting(pair)

    other = ModelCache(CacheSettings(volume=pair.volume))
    with pytest.raises(VolumeFullError):
        other.prune(0)

    go_on(pair)
    require_picture(pair, first)
    require_picture(pair, second)


def test_a_waiting_job_whose_model_is_deleted_by_hand_is_told_so(pair: Container) -> None:
    first, _ = begun(pair)
    model = Model(pair)
    second = pair.run({**GOOD, "seed": new_seed(), "checkpoint": model.reference})
    pair.until(lambda: any(pair.links.rglob(model.path.name)), "A1111 is shown the model")

    model.path.unlink()
    go_on(pair)

    require_picture(pair, first)
    job = pair.wait(second, "FAILED", "COMPLETED")
    assert (job["output"]["code"], job["output"]["details"]["field"]) == (
        "MODEL_NOT_FOUND",
        "checkpoint",
    )


def test_a_waiting_job_is_made_by_the_next_a1111_when_the_first_ones_dies(pair: Container) -> None:
    first, _ = begun(pair)
    second, second_seed = waiting(pair)

    os.kill(pair.webui_pid, signal.SIGKILL)

    job = pair.wait(first, "FAILED", "COMPLETED")
    assert (job["output"]["code"], job["output"]["retryable"]) == ("BACKEND_CRASHED", True)
    require_picture(pair, second)
    assert seeds(pair) == [second_seed]


def test_both_jobs_are_told_to_come_again_when_the_worker_is_stopped(pair: Container) -> None:
    first, _ = begun(pair)
    second, _ = waiting(pair)
    third = pair.run({**GOOD, "seed": new_seed()})

    pair.worker.terminate()

    for job_id in (first, second):
        job = pair.wait(job_id, "FAILED", "COMPLETED", within_s=PROMPT_S)
        assert (job["output"]["code"], job["output"]["retryable"]) == ("WORKER_STOPPED", True)
    assert pair.worker.wait(PROMPT_S) == 0
    assert pair.processes == []
    assert pair.status(third)["status"] == "IN_QUEUE"
    pair.cancel(third)
    require_answers(pair)
