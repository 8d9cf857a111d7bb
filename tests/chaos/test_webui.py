"""A1111 killed again and again at any moment: each job has one answer, and no picture is a wrong one."""

import os
import random
import signal
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from simulator import models
from tests.chaos.conftest import Chaos
from tests.conftest import running
from tests.e2e.container import Container, make_container, require_answers

pytestmark = pytest.mark.slow

SEED = 4
SIZE = {"steps": 10, "width": 64, "height": 64, "seed": 1}
WISHES = [
    {"prompt": f"({subject}:1.3)", "checkpoint": checkpoint, **SIZE}
    for subject in ("a cat", "a dog")
    for checkpoint in "ab"
]
# With ten steps and a load now and then, a job takes half a second.
TOLD = {"step_ms": 30, "load_s": 0.2}
MOST_S = 0.8


def struck(container: Container, chance: random.Random, wish: dict[str, Any]) -> str:
    """Kill A1111 at some moment of a job, or a little after its end; return the job's id."""
    container.until_ready()
    starts = len(container.webui_pids)
    job_id = container.run(wish)
    container.wait(job_id, "IN_PROGRESS", "COMPLETED")
    time.sleep(chance.uniform(0, MOST_S))
    os.kill(container.webui_pid, signal.SIGKILL)
    container.until_ready(starts + 1)
    return job_id


@dataclass
class Seen:
    """What came of all jobs: pictures and requests by the number of the wish, and errors."""

    pictures: defaultdict[int, set[str]] = field(default_factory=lambda: defaultdict(set))
    sent: dict[int, dict[str, Any]] = field(default_factory=dict)
    codes: Counter[str] = field(default_factory=Counter)

    def note(self, wish: int, job: dict[str, Any], container: Container) -> None:
        """Take the end of a job, whose A1111 lives on if it had pictures for the first time."""
        if job["status"] == "FAILED":
            self.codes[job["output"]["code"]] += 1
            return
        self.pictures[wish] |= set(job["output"]["images"])
        if wish not in self.sent and (sent := container.sent()):
            self.sent[wish] = sent[-1]["body"]

    def require_right(self, container: Container) -> None:
        """See that there is one picture for each wish: that of an A1111 to which nothing happened."""
        with running("webui", "--models-dir", container.links) as fresh:
            drawn = {
                wish: set(fresh.post("/sdapi/v1/txt2img", body)["images"])
                for wish, body in self.sent.items()
            }
        assert self.pictures == drawn
        assert len(set().union(*drawn.values())) == len(WISHES)


def test_no_job_is_lost_or_wrong_while_a1111_is_killed_again_and_again(
    tmp_path: Path, chaos: Chaos
) -> None:
    number = chaos.count(200, least=30)
    kills = max(6, number // 10)
    every = number // kills
    chance = random.Random(SEED)  # noqa: S311 - an order, no secret
    seen = Seen()
    with make_container(tmp_path, TOLD) as container:
        write_models(container)
        for turn in range(number):
            wish = turn if turn < len(WISHES) else chance.randrange(len(WISHES))
            is_struck = turn % every == every - 1
            begin = partial(struck, container, chance) if is_struck else container.run
            job = container.wait(begin(WISHES[wish]), "COMPLETED", "FAILED", within_s=60)
            assert is_struck or job["status"] == "COMPLETED", job
            seen.note(wish, job, container)

        seen.require_right(container)
        assert set(seen.codes) <= {"BACKEND_CRASHED"}
        assert len(container.webui_pids) == number // every + 1
        require_answers(container)
        container.worker.terminate()
        assert container.worker.wait(60) == 0
        assert container.processes == []
        assert container.private == []
    chaos.tell("jobs while A1111 is killed", number, 200)
    chaos.tell("  kills of A1111", number // every, 20)
    chaos.tell("  jobs that were told so", seen.codes.total(), 0)


def write_models(container: Container) -> None:
    for name in "ab":
        path = container.volume / "models" / "checkpoints" / f"{name}.safetensors"
        models.write_checkpoint(path, seed=name)
