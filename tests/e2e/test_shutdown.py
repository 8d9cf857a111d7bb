"""Cancelled, told to stop or killed, in each stage of a job: one answer, and nothing left."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from simulator import models
from tests.conftest import running
from tests.e2e.conftest import World
from tests.e2e.container import (
    Container,
    has_ended,
    hasty_world,
    made_in,
    make_container,
    require_answers,
)

pytestmark = pytest.mark.slow

GOOD = {"prompt": "a cat", "seed": 1, "steps": 2, "width": 64, "height": 64, "checkpoint": "a"}
AT_ONCE = {"step_ms": 1, "load_s": 0}
# An idle machine needs less than one second.
PROMPT_S = 5.0
FETCH_S = 2.0
_numbers = count()


def new_model(world: World) -> dict[str, str]:
    """Return a reference to a checkpoint that comes slowly, and that nobody has fetched."""
    name = f"slow-{next(_numbers)}"
    path = world.files / f"{name}.safetensors"
    digest = models.write_checkpoint(path, seed=name)
    rate = round(path.stat().st_size / FETCH_S)
    return {"name": name, "url": f"{world.hub.url}/{path.name}?fault-rate={rate}", "hash": digest}


def is_drawing(container: Container) -> bool:
    """Return whether A1111 is at a request: it loads, or samples, whichever was made slow.

    The first checkpoint of an A1111 is loaded by selecting it, before the job is sent.
    """
    return any(
        "status" not in entry
        for entry in container.journal()["requests"]
        if entry["path"] in {"/sdapi/v1/options", "/sdapi/v1/txt2img"} and entry["method"] == "POST"
    )


@dataclass(frozen=True)
class Stage:
    """A stage of a job, made long enough to be met in it."""

    name: str
    wish: Callable[[World], dict[str, Any]]
    is_reached: Callable[[Container], bool]
    order: dict[str, Any] = field(default_factory=dict)
    """What A1111 is told."""


STAGES = [
    Stage("fetching", lambda world: {"checkpoint": new_model(world)}, lambda c: bool(c.private)),
    Stage("loading", lambda _: {"checkpoint": "b"}, is_drawing, {"load_s": 1}),
    Stage("sampling", lambda _: {"steps": 20}, is_drawing, {"step_ms": 100}),
]


def begun(container: Container, stage: Stage) -> str:
    """Bring a job to a stage and return its id."""
    container.faults(**AT_ONCE | stage.order)
    job_id = container.run({**GOOD, **stage.wish(container)})
    container.until(lambda: stage.is_reached(container), f"the job is {stage.name}")
    return job_id


def write_models(world: World) -> None:
    for name in "ab":
        path = world.volume / "models" / "checkpoints" / f"{name}.safetensors"
        models.write_checkpoint(path, seed=name)


def pictures(world: World, job_id: str) -> list[str]:
    """Wait for the pictures of a job; a worker may have to start first."""
    job = world.wait(job_id, "COMPLETED", "FAILED", within_s=40)
    assert job["status"] == "COMPLETED", job
    found: list[str] = job["output"]["images"]
    return found


def drawn_anew(container: Container) -> list[str]:
    """Return what an A1111 to which nothing happened draws for the last request of this worker's."""
    with running("webui", "--models-dir", container.links) as fresh:
        answer = fresh.post("/sdapi/v1/txt2img", container.sent()[-1]["body"])
    images: list[str] = answer["images"]
    return images


def require_gone(container: Container, code: int, within_s: float = PROMPT_S) -> None:
    """See the worker end with this code, and leave nothing."""
    assert container.worker.wait(within_s) == code
    assert container.processes == []
    assert container.private == []


@pytest.fixture(scope="module")
def eager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    """One worker for all the cancels. Its A1111 stands still until the first test lets it start."""
    told = {"starts": [{"boot_s": 3}]}
    environment = {"A1111_WEBUI_EAGER": "true", "A1111_WEBUI_STOP_S": "2"}
    with make_container(tmp_path_factory.mktemp("eager"), told, **environment) as container:
        os.kill(container.webui_pid, signal.SIGSTOP)
        write_models(container)
        yield container


def test_a_job_that_waits_for_a1111_to_start_can_be_cancelled(eager: Container) -> None:
    url = f"{eager.hub.url}/Deliberate_v6.safetensors"
    job_id = eager.run({**GOOD, "seed": 2, "checkpoint": {"name": "d", "url": url}})
    fetched = eager.volume / "models" / "checkpoints" / "d.safetensors"
    eager.until(fetched.is_file, "the job's model is there")

    eager.cancel(job_id)

    eager.until(lambda: bool(eager.said("cancelled: The job")), "the job ends", PROMPT_S)
    os.kill(eager.webui_pid, signal.SIGCONT)
    pictures(eager, eager.run(GOOD))
    assert [entry["body"]["seed"] for entry in eager.sent()] == [1]


@pytest.fixture(scope="module")
def expected(eager: Container) -> list[str]:
    """The pictures of GOOD, by an A1111 to which nothing happened."""
    made = pictures(eager, eager.run(GOOD))
    assert made == drawn_anew(eager)
    return made


@pytest.mark.parametrize(
    ("stage", "restarts"),
    [
        *(pytest.param(s, 0, id=s.name) for s in STAGES),
        pytest.param(
            Stage(
                "deaf",
                lambda _: {"steps": 150},
                is_drawing,
                {"step_ms": 100, "faults": [{"kind": "deaf", "times": 0}]},
            ),
            1,
            id="deaf to interrupts",
        ),
    ],
)
def test_a_cancelled_job_frees_a1111_for_the_next(
    eager: Container, expected: list[str], stage: Stage, restarts: int
) -> None:
    lives = len(eager.webui_pids)
    job_id = begun(eager, stage)

    eager.cancel(job_id)
    asked = time.monotonic()
    after = pictures(eager, eager.run(GOOD))

    assert after == expected
    assert eager.status(job_id)["status"] == "CANCELLED"
    assert "images" not in (eager.status(job_id).get("output") or {})
    assert eager.private == []
    assert len(eager.webui_pids) - lives == restarts
    assert time.monotonic() - asked < 3 * PROMPT_S


def test_a_job_that_waits_in_the_queue_is_never_asked_of_a1111(
    eager: Container, expected: list[str]
) -> None:
    running_id = begun(eager, STAGES[-1])
    waiting = eager.run({**GOOD, "seed": 77})

    eager.cancel(waiting)
    eager.cancel(running_id)

    assert pictures(eager, eager.run(GOOD)) == expected
    assert 77 not in [entry["body"]["seed"] for entry in eager.sent()]


def test_an_idle_worker_that_is_told_to_stop_does_so_at_once(eager: Container) -> None:
    for route in ("job-take", "job-stop"):
        order = {"route": route, "status": None, "delay_s": 20, "times": -1}
        eager.queue.post("/simulator/faults", order)
    time.sleep(2.5)  # the polls that are open already last 2 s

    eager.worker.terminate()

    require_gone(eager, 0)
    require_answers(eager)


def test_a_worker_that_is_told_to_stop_while_a1111_boots_leaves_nothing(tmp_path: Path) -> None:
    with make_container(tmp_path, {"boot_s": 60}) as container:
        pid = container.webui_pid
        container.until((container.links / "health.json").is_file, "the worker waits for A1111")

        container.worker.terminate()

        require_gone(container, 128 + signal.SIGTERM)
        assert has_ended(pid)


def test_a_job_that_outlives_the_drain_is_told_to_come_again(tmp_path: Path) -> None:
    with make_container(tmp_path, {"step_ms": 500}, A1111_JOB_DRAIN_S="1") as container:
        write_models(container)
        container.until_ready()
        job_id = container.run({**GOOD, "steps": 150})
        container.until(lambda: is_drawing(container), "the job is sampling")

        container.worker.terminate()

        job = container.wait(job_id, "FAILED", "COMPLETED", within_s=1 + PROMPT_S)
        assert (job["output"]["code"], job["output"]["retryable"]) == ("WORKER_STOPPED", True)
        require_gone(container, 0)
        require_answers(container)


@dataclass
class Relay:
    """Workers of one volume and one queue, one after the other."""

    world: World
    stack: ExitStack
    present: Container | None = None
    started: int = 0

    def worker(self) -> Container:
        """Return the one that is there, or the next."""
        if self.present is None or self.present.worker.poll() is not None:
            self.started += 1
            folder = self.world.folder / f"worker-{self.started}"
            made = made_in(self.world, folder, AT_ONCE)
            self.present = self.stack.enter_context(made)
        self.present.until_ready()
        return self.present


def killed(relay: Relay, stage: Stage) -> None:
    container = relay.worker()
    if stage.name != "loading":
        # One that the worker started itself is to die with it, too.
        starts = len(container.webui_pids)
        os.kill(container.webui_pid, signal.SIGKILL)
        container.until_ready(starts + 1)
    job_id = begun(container, stage)

    container.worker.kill()
    container.worker.wait()
    container.until(lambda: container.processes == [], "all of it has ended", within_s=1)
    whole = {path.read_bytes() for path in container.files.glob("*.safetensors")}
    shown = (relay.world.volume / "models" / "checkpoints").glob("slow-*")
    assert all(path.read_bytes() in whole for path in shown)
    following = relay.worker()

    made = pictures(following, job_id)
    assert following.status(job_id)["workerId"] == following.folder.name
    assert len(following.sent()) == 1
    assert made == drawn_anew(following)


def stopped(relay: Relay, stage: Stage) -> None:
    container = relay.worker()
    job_id = begun(container, stage)

    container.worker.terminate()
    waiting = container.run(GOOD)

    assert pictures(container, job_id)
    require_gone(container, 0)
    assert container.status(waiting)["status"] == "IN_QUEUE"
    container.cancel(waiting)


# Where the worker that follows a killed one is stopped: its A1111 has loaded what the first one was at.
FETCHING, LOADING, SAMPLING = STAGES
AFTER = [FETCHING, SAMPLING, LOADING]

Turns = dict[tuple[str, str], Future[None]]


@pytest.fixture(scope="module", autouse=True)
def relays(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Turns]:
    """What becomes of many workers, of three queues, beside the other tests: they wait, mostly."""
    begun: Turns = {}
    with ExitStack() as stack:
        for first, second in zip(STAGES, AFTER, strict=True):
            folder = tmp_path_factory.mktemp(first.name)
            world = stack.enter_context(hasty_world(folder))
            write_models(world)
            relay = Relay(world, stack.enter_context(ExitStack()))
            turns = ThreadPoolExecutor(1)
            stack.callback(turns.shutdown, cancel_futures=True)
            begun["killed", first.name] = turns.submit(killed, relay, first)
            begun["stopped", second.name] = turns.submit(stopped, relay, second)
            begun["answers", folder.name] = turns.submit(require_answers, world)
        yield begun


BY_NAME = pytest.mark.parametrize("name", [stage.name for stage in STAGES])


@BY_NAME
def test_a_killed_workers_job_is_done_by_the_next_and_its_a1111_dies_with_it(
    relays: Turns, name: str
) -> None:
    relays["killed", name].result()


@BY_NAME
def test_a_worker_that_is_told_to_stop_finishes_its_job_first(relays: Turns, name: str) -> None:
    relays["stopped", name].result()


def test_every_job_of_these_workers_had_one_answer(relays: Turns) -> None:
    checks = [turn for (what, _), turn in relays.items() if what == "answers"]
    assert [check.result() for check in checks] == [None] * 3
