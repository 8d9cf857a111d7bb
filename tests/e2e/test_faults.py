"""A1111 fails in every way there is: each job gets the one right answer, and the next one its picture."""

import os
import re
import signal
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from simulator import models
from tests.conftest import running
from tests.e2e.container import Container, has_ended, make_container, require_answers

pytestmark = pytest.mark.slow

TXT2IMG = "/sdapi/v1/txt2img"
SIZE = {"steps": 4, "width": 64, "height": 64}
# The weight of words is what a half loaded checkpoint does not understand.
GOOD = {"prompt": "(a cat:1.3)", "seed": 1, "checkpoint": "a", **SIZE}
# An idle machine needs a tenth of a second; a death is noticed within one.
PROMPT_S = 15.0
# More than a busy machine lets a process wait in the midst of a good job.
STALL_S, STOP_S = 4.0, 3.0
# Of an A1111 that never answers, which has to begin at least.
READY_S = 12
# Progress is looked at once a second; what heeds no interrupt has 2 s to end by itself.
STALLED_S = 1.0 + STALL_S + STOP_S + 2.0 + PROMPT_S
# To write, send and read 200 MB.
LARGE_S = 20.0
# Two workers, which wait side by side: a worker takes one job a second. Each has its own patience.
HASTY = {"A1111_WEBUI_STALL_S": str(STALL_S), "A1111_WEBUI_STOP_S": str(STOP_S)}
WEARING = {"A1111_WEBUI_MAX_RSS_GB": "0.8", "A1111_WEBUI_MAX_SWITCHES": "3"}
LANES = {"hasty": HASTY, "wearing": WEARING}


@dataclass(frozen=True)
class Case:
    """What A1111 does wrong, what the caller is told, and the words of why A1111 is started again, if it is."""

    name: str
    faults: list[dict[str, Any]]
    code: str
    reason: str = ""
    checkpoint: str = "a"


def spoilt(kind: str, **fields: Any) -> list[dict[str, Any]]:
    return [{"kind": kind, "path": TXT2IMG, **fields}]


def struck(kind: str, when: str, **fields: Any) -> list[dict[str, Any]]:
    return [{"kind": kind, "when": when, **fields}]


CRASHED, STALLED, FAILED = "BACKEND_CRASHED", "BACKEND_STALLED", "BACKEND_FAILED"
MEMORY, REFUSED = "BACKEND_OUT_OF_MEMORY", "INVALID_INPUT"
# Who sees a death first, the watch over the process or the request, is chance.
KILLED, CUT = "ended with code -9|closed the connection", "closed the connection|broke off"
DOUBT, DEAF = "half loaded", "did not stop"
WITHIN_S = {STALLED: STALLED_S, FAILED: LARGE_S}
HASTY_CASES = [
    Case("hangs", spoilt("hang"), STALLED, DEAF),
    Case("hangs while sampling", struck("stall", "sampling"), STALLED, DEAF),
    Case("hangs until interrupted", struck("stall", "sampling", interruptible=True), STALLED),
    Case("killed while loading", struck("die", "loading"), CRASHED, KILLED, "b"),
    Case("killed while sampling", struck("die", "sampling"), CRASHED, KILLED),
    Case(
        "killed in the midst of its answer",
        spoilt("half") + struck("die", "answering", path=TXT2IMG),
        CRASHED,
        f"{KILLED}|{CUT}",
    ),
    Case("half an answer", spoilt("half"), CRASHED, CUT),
    Case("no answer", spoilt("drop"), CRASHED, CUT),
]
WEARING_CASES = [
    Case("500", spoilt("fail"), FAILED),
    Case("404", spoilt("fail", status=404, shape="routing", text="Not Found"), REFUSED),
    Case("422", spoilt("fail", status=422, shape="validation"), REFUSED),
    Case("a web page", spoilt("not_json"), FAILED),
    Case("no memory while sampling", struck("oom", "sampling"), MEMORY),
    Case("no memory while loading", struck("oom", "loading"), MEMORY, DOUBT, "b"),
    Case("a broken GPU", struck("cuda", "sampling"), CRASHED, "state of the GPU"),
    Case("200 MB", spoilt("huge", bytes=200 << 20), FAILED),
]
CASES = {"hasty": HASTY_CASES, "wearing": WEARING_CASES}


@dataclass
class Lane:
    """One worker for many cases: what one does must not show in the next."""

    container: Container
    expected: list[str]
    """The picture of the good job, as an A1111 draws it that nothing has happened to."""

    def restarts(self) -> list[str]:
        """Return why A1111 was started again, each time."""
        lines = self.container.said("A1111 is started again: ")
        return [line.partition("again: ")[2] for line in lines]

    def require_right(self, job_id: str) -> None:
        """See that the good job succeeds, and has the right picture."""
        job = self.container.wait(job_id, "COMPLETED", "FAILED", within_s=30)
        assert job["status"] == "COMPLETED", job
        assert job["output"]["images"] == self.expected

    def run(self, case: Case) -> None:
        """Let the case happen to one job, and see what becomes of it and of the next."""
        self.container.until_ready()
        before = len(self.restarts())
        self.container.faults(faults=case.faults)
        wish = {**GOOD, "seed": 2, "checkpoint": case.checkpoint}
        first, second = self.container.run(wish), self.container.run(GOOD)

        job = self.container.wait(first, "FAILED", "COMPLETED", within_s=30)
        assert job["status"] == "FAILED", job
        assert job["output"]["code"] == case.code
        assert job["executionTime"] / 1000 < WITHIN_S.get(case.code, PROMPT_S), job
        self.require_right(second)
        reasons = self.restarts()[before:]
        assert len(reasons) == bool(case.reason), reasons
        assert all(re.search(case.reason, reason) for reason in reasons), reasons


def lane_in(folder: Path, environment: dict[str, str], stack: ExitStack) -> Lane:
    """Start a worker with two checkpoints, and draw its picture with an A1111 of its own."""
    folder.mkdir()
    container = stack.enter_context(make_container(folder, {"step_ms": 10}, **environment))
    for name in "ab":
        models.write_checkpoint(
            container.volume / "models" / "checkpoints" / f"{name}.safetensors", seed=name
        )
    job = container.runsync(GOOD)
    assert job["status"] == "COMPLETED", job
    with running("webui", "--models-dir", container.links) as fresh:
        answer = fresh.post(TXT2IMG, container.sent()[-1]["body"])
    assert job["output"]["images"] == answer["images"]
    return Lane(container, answer["images"])


@pytest.fixture(scope="module")
def lanes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Lane]]:
    """One worker for many tests: what one does must not show in the next."""
    folder = tmp_path_factory.mktemp("lanes")
    with ExitStack() as stack, ThreadPoolExecutor() as pool:
        begun = {
            name: pool.submit(lane_in, folder / name, environment, stack)
            for name, environment in LANES.items()
        }
        yield {name: future.result() for name, future in begun.items()}


def never_answers(folder: Path) -> None:
    fault = {"kind": "stall", "when": "booting", "text": "Loading weights [abc]"}
    patience = {"A1111_WEBUI_READY_TIMEOUT_S": str(READY_S)}
    with make_container(folder, {"faults": [fault]}, **patience) as container:
        pid = container.webui_pid
        assert container.worker.wait(READY_S + PROMPT_S) == 1

        said = container.log.read_text()
        (line,) = [line for line in said.splitlines() if "BACKEND_NOT_READY: " in line]
        assert f"A1111 did not answer within {READY_S} s. " in line
        assert "\\nLoading weights [abc]" in line
        assert has_ended(pid)
        assert container.processes == []


def dies_while_it_boots(folder: Path) -> None:
    with make_container(folder, {"boot_s": 60}, A1111_WEBUI_EAGER="true") as container:
        url = f"{container.hub.url}/Deliberate_v6.safetensors"
        job_id = container.run({**GOOD, "checkpoint": {"name": "d", "url": url}})
        container.until(
            (container.volume / "models" / "checkpoints" / "d.safetensors").is_file,
            "the job's model is fetched while A1111 boots",
        )
        os.kill(container.webui_pid, signal.SIGKILL)

        job = container.wait(job_id, "FAILED", "COMPLETED")

        assert job["output"]["code"] == CRASHED
        assert container.worker.wait(PROMPT_S) == 1
        assert container.processes == []
        require_answers(container)


Turns = dict[str, Future[None]]


@pytest.fixture(scope="module", autouse=True)
def booting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Turns]:
    """Two workers whose A1111 never gets ready, beside the others."""
    with ThreadPoolExecutor(1) as turns:
        yield {
            act.__name__: turns.submit(act, tmp_path_factory.mktemp("booting"))
            for act in (never_answers, dies_while_it_boots)
        }


@pytest.fixture(scope="module")
def done(lanes: dict[str, Lane]) -> Iterator[dict[str, Turns]]:
    """All cases, under way: those of one worker one after the other."""
    with ExitStack() as stack:
        begun: dict[str, Turns] = {}
        for name, lane in lanes.items():
            turns = ThreadPoolExecutor(1)
            stack.callback(turns.shutdown, cancel_futures=True)
            begun[name] = {case.name: turns.submit(lane.run, case) for case in CASES[name]}
        yield begun


@pytest.fixture
def hasty(lanes: dict[str, Lane], done: dict[str, Turns]) -> Lane:
    wait(done["hasty"].values())
    return lanes["hasty"]


@pytest.fixture
def wearing(lanes: dict[str, Lane], done: dict[str, Turns]) -> Lane:
    """The worker whose cases are short; what else it has to do, it does beside the other's."""
    wait(done["wearing"].values())
    return lanes["wearing"]


def test_a_checkpoint_that_goes_while_it_is_loaded_spoils_no_later_picture(
    wearing: Lane,
) -> None:
    container = wearing.container
    gone = container.volume / "models" / "checkpoints" / "gone.safetensors"
    models.write_checkpoint(gone, seed="gone")
    # The 200 MB of the last case may have worn A1111 out: the second job is the next one's then.
    for _ in range(2):
        wearing.require_right(container.run(GOOD))
    container.faults(faults=struck("stall", "loading"))
    job_id, second = container.run({**GOOD, "checkpoint": "gone"}), container.run(GOOD)
    # Not before: a load that has not found the file yet fails at once, and with it A1111 ends.
    container.until_struck()
    gone.unlink()
    container.faults(clear=True)

    job = container.wait(job_id, "FAILED", "COMPLETED")
    assert job["output"]["code"] == "BACKEND_FAILED"
    wearing.require_right(second)
    assert DOUBT in wearing.restarts()[-1]


def test_a_vae_that_fits_in_part_spoils_no_later_picture(wearing: Lane) -> None:
    container, before = wearing.container, len(wearing.restarts())
    vae = container.volume / "models" / "vae" / "flux_ae.safetensors"
    models.write_vae(vae, seed="ae", channels=16)
    wearing.require_right(container.run(GOOD))
    first, second = container.run({**GOOD, "vae": "flux_ae"}), container.run(GOOD)

    job = container.wait(first, "FAILED", "COMPLETED")
    assert job["output"]["code"] == FAILED
    assert "size mismatch" in job["error"]
    wearing.require_right(second)
    (reason,) = wearing.restarts()[before:]
    assert DOUBT in reason


def test_a_job_cancelled_while_its_load_runs_out_of_memory_costs_one_restart(
    wearing: Lane,
) -> None:
    container, before = wearing.container, len(wearing.restarts())
    wearing.require_right(container.run(GOOD))
    container.faults(faults=struck("stall", "loading"))
    job_id, second = container.run({**GOOD, "checkpoint": "b"}), container.run(GOOD)
    container.until_struck()
    interrupts = container.journal()["interrupts"]
    container.cancel(job_id)
    container.until(lambda: container.journal()["interrupts"] > interrupts, "it is interrupted")
    container.faults(clear=True, faults=struck("oom", "loading"))

    wearing.require_right(second)
    (reason,) = wearing.restarts()[before:]
    assert DOUBT in reason
    assert container.status(job_id)["status"] == "CANCELLED"


@pytest.mark.parametrize(
    ("order", "checkpoints", "reason"),
    [
        pytest.param({"leak_mb": 400}, "aaaa", "it occupies", id="memory"),
        pytest.param({}, "baba", "it loaded 3 checkpoints", id="switches"),
    ],
)
def test_an_a1111_that_is_worn_is_replaced_between_two_jobs(
    wearing: Lane, order: dict[str, Any], checkpoints: str, reason: str
) -> None:
    before, container = len(wearing.restarts()), wearing.container
    container.faults(**order)
    jobs = [container.run({**GOOD, "checkpoint": name}) for name in checkpoints]

    for job_id, name in zip(jobs, checkpoints, strict=True):
        job = container.wait(job_id, "COMPLETED", "FAILED")
        assert job["status"] == "COMPLETED", job
        assert (job["output"]["images"] == wearing.expected) is (name == "a")
    container.until(
        lambda: any(reason in why for why in wearing.restarts()[before:]), f"restarted: {reason}"
    )
    container.until_ready()


@pytest.mark.parametrize(
    ("lane", "name"),
    [
        pytest.param(lane, case.name, id=case.name)
        for lane, cases in CASES.items()
        for case in cases
    ],
)
def test_a_job_that_a1111_fails_is_told_why_and_the_next_is_right(
    done: dict[str, Turns], lane: str, name: str
) -> None:
    done[lane][name].result()


def test_an_a1111_that_is_killed_while_idle_is_there_again_before_any_job_asks(hasty: Lane) -> None:
    starts = len(hasty.container.webui_pids)
    os.kill(hasty.container.webui_pid, signal.SIGKILL)
    hasty.container.until_ready(starts + 1)

    hasty.require_right(hasty.container.run(GOOD))


def test_a_restart_that_fails_ends_the_worker_with_its_job_and_leaves_nothing(
    hasty: Lane,
) -> None:
    container = hasty.container
    words = "Torch is not able to use GPU"
    container.tell(faults=[{"kind": "die", "when": "booting", "exit_code": 1, "text": words}])
    models.write_checkpoint(container.files / "new.safetensors", seed="new")
    url = f"{container.hub.url}/new.safetensors"
    with container.host_stopped():
        job_id = container.run({**GOOD, "checkpoint": {"name": "new", "url": url}})
        container.until_fetching()
        os.kill(container.webui_pid, signal.SIGKILL)
        container.until(lambda: has_ended(container.webui_pid), "A1111 is gone")

    job = container.wait(job_id, "FAILED", "COMPLETED")

    assert job["error"].startswith(f"{CRASHED}: A1111 ended with code 1 while starting.")
    assert words in job["error"]
    jobs = container.queue.get("/simulator/journal")["jobs"]
    assert [entry["stop_pod"] for entry in jobs if entry["id"] == job_id] == [True]
    assert container.worker.wait(PROMPT_S) == 1
    assert container.processes == []
    assert container.private == []


def test_every_job_of_these_had_one_answer(hasty: Lane, wearing: Lane) -> None:
    for lane in (hasty, wearing):
        require_answers(lane.container)
        assert lane.container.private == []


def test_a_worker_whose_a1111_never_answers_ends_in_time_with_its_last_words(
    booting: Turns,
) -> None:
    booting["never_answers"].result()


def test_an_eager_workers_job_is_told_that_a1111_died_while_booting(booting: Turns) -> None:
    booting["dies_while_it_boots"].result()
