"""Cancelled, told to stop or killed, in each stage of a job: one answer, and nothing left.

A job stands still at its stage until a test has seen what it waits for; so nothing here depends on how
fast the machine is.
"""

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from simulator import models
from tests.conftest import running
from tests.e2e.conftest import World
from tests.e2e.container import (
    HELD,
    Container,
    has_ended,
    hasty_world,
    made_in,
    make_container,
    require_answers,
)

pytestmark = pytest.mark.slow

GOOD = {"prompt": "a cat", "seed": 1, "steps": 2, "width": 64, "height": 64, "checkpoint": "a"}
# An idle machine needs less than one second; what would hold a worker up holds it longer.
PROMPT_S = 20.0
HELD_UP_S = 3 * PROMPT_S
_numbers = count()


def new_model(world: World) -> dict[str, str]:
    """Return a reference to a checkpoint that nobody has fetched."""
    name = f"new-{next(_numbers)}"
    path = world.files / f"{name}.safetensors"
    digest = models.write_checkpoint(path, seed=name)
    return {"name": name, "url": f"{world.hub.url}/{path.name}", "hash": digest}


@dataclass(frozen=True)
class Stage:
    """A stage of a job, and what stands still at it."""

    name: str
    wish: Callable[[World], dict[str, Any]]
    stall: dict[str, Any] | None
    """Where A1111 stands still; None: the host of models does."""


FETCHING = Stage("fetching", lambda world: {"checkpoint": new_model(world)}, None)
LOADING = Stage("loading", lambda _: {"checkpoint": "b"}, {"kind": "stall", "when": "loading"})
SAMPLING = Stage(
    "sampling", lambda _: {}, {"kind": "stall", "when": "sampling", "interruptible": True}
)
STAGES = [FETCHING, LOADING, SAMPLING]


def begun(container: Container, stage: Stage) -> str:
    """Bring a job to where it stands still, until `go_on`, and return its id."""
    if stage.stall is None:
        container.stop_host()
    else:
        container.faults(faults=[stage.stall])
    job_id = container.run({**GOOD, **stage.wish(container)})
    if stage.stall is None:
        container.until_fetching()
    else:
        container.until_struck()
    return job_id


def go_on(container: Container, stage: Stage) -> None:
    if stage.stall is None:
        container.start_host()
    else:
        container.faults(clear=True)


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
    environment = {"A1111_WEBUI_EAGER": "true", "A1111_WEBUI_STOP_S": "5"}
    folder = tmp_path_factory.mktemp("eager")
    with make_container(folder, {"starts": [HELD]}, **environment) as container:
        write_models(container)
        yield container


def test_a_job_that_waits_for_a1111_to_start_can_be_cancelled(eager: Container) -> None:
    url = f"{eager.hub.url}/Deliberate_v6.safetensors"
    job_id = eager.run({**GOOD, "seed": 2, "checkpoint": {"name": "d", "url": url}})
    fetched = eager.volume / "models" / "checkpoints" / "d.safetensors"
    eager.until(fetched.is_file, "the job's model is there")

    eager.cancel(job_id)

    eager.until(lambda: bool(eager.said("cancelled: The job")), "the job ends")
    eager.let_start()
    pictures(eager, eager.run(GOOD))
    assert [entry["body"]["seed"] for entry in eager.sent()] == [1]


@pytest.fixture(scope="module")
def awake(eager: Container) -> Container:
    """The same worker, its A1111 started."""
    if not eager.is_listening():
        eager.let_start()
    eager.until_ready()
    return eager


@pytest.fixture(scope="module")
def expected(awake: Container) -> list[str]:
    """The pictures of GOOD, by an A1111 to which nothing happened."""
    made = pictures(awake, awake.run(GOOD))
    assert made == drawn_anew(awake)
    return made


@pytest.mark.parametrize(
    ("stage", "restarts"),
    [
        *(pytest.param(s, 0, id=s.name) for s in STAGES),
        pytest.param(
            Stage("deaf", lambda _: {}, {"kind": "stall", "when": "sampling"}),
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
    interrupts = eager.journal()["interrupts"]

    eager.cancel(job_id)
    if stage is LOADING:
        # No load heeds an interrupt: the job ends when it does.
        eager.until(lambda: eager.journal()["interrupts"] > interrupts, "A1111 is interrupted")
        go_on(eager, stage)
    after = pictures(eager, eager.run(GOOD))

    assert after == expected
    assert eager.status(job_id)["status"] == "CANCELLED"
    assert "images" not in (eager.status(job_id).get("output") or {})
    assert eager.private == []
    assert len(eager.webui_pids) - lives == restarts
    go_on(eager, stage)


def test_a_job_that_waits_in_the_queue_is_never_asked_of_a1111(
    eager: Container, expected: list[str]
) -> None:
    running_id = begun(eager, SAMPLING)
    waiting = eager.run({**GOOD, "seed": 77})

    eager.cancel(waiting)
    eager.cancel(running_id)

    assert pictures(eager, eager.run(GOOD)) == expected
    assert 77 not in [entry["body"]["seed"] for entry in eager.sent()]


def test_an_idle_worker_that_is_told_to_stop_does_so_at_once(awake: Container) -> None:
    routes = ["job-take", "job-stop"]
    for route in routes:
        order = {"route": route, "status": None, "delay_s": HELD_UP_S, "times": -1}
        awake.queue.post("/simulator/faults", order)

    def held() -> list[str]:
        return [fault["route"] for fault in awake.queue.get("/simulator/faults") if fault["hits"]]

    awake.until(lambda: held() == routes, "both polls are held")

    awake.worker.terminate()

    require_gone(awake, 0)
    require_answers(awake)


def test_a_worker_that_is_told_to_stop_while_a1111_boots_leaves_nothing(tmp_path: Path) -> None:
    with make_container(tmp_path, {"boot_s": 60}) as container:
        pid = container.webui_pid
        container.until((container.links / "health.json").is_file, "the worker waits for A1111")

        container.worker.terminate()

        require_gone(container, 128 + signal.SIGTERM)
        assert has_ended(pid)


def test_a_job_that_outlives_the_drain_is_told_to_come_again(tmp_path: Path) -> None:
    with make_container(tmp_path, A1111_JOB_DRAIN_S="1") as container:
        write_models(container)
        container.until_ready()
        job_id = begun(container, SAMPLING)

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
            self.present = self.stack.enter_context(made_in(self.world, folder))
        self.present.until_ready()
        return self.present


def killed(relay: Relay, stage: Stage) -> None:
    container = relay.worker()
    if stage is not LOADING:
        # One that the worker started itself is to die with it, too.
        starts = len(container.webui_pids)
        os.kill(container.webui_pid, signal.SIGKILL)
        container.until_ready(starts + 1)
    job_id = begun(container, stage)

    container.worker.kill()
    container.worker.wait()
    container.until(lambda: container.processes == [], "all of it has ended")
    if stage is FETCHING:
        go_on(container, stage)
    whole = {path.read_bytes() for path in container.files.glob("*.safetensors")}
    shown = (relay.world.volume / "models" / "checkpoints").glob("new-*")
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
    container.until(lambda: bool(container.said("The worker stops")), "the worker hears it")
    waiting = container.run(GOOD)
    go_on(container, stage)

    assert pictures(container, job_id)
    require_gone(container, 0)
    assert container.status(waiting)["status"] == "IN_QUEUE"
    container.cancel(waiting)


# Where the worker that follows a killed one is stopped: its A1111 has loaded what the first one was at.
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
