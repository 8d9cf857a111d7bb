"""A minute of `make soak`."""

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.soak.fleet import MANNERS
from tests.soak.plan import KINDS

pytestmark = pytest.mark.slow

# Both workers give way to others in the first third of it, so that there are some of all manners.
SEED = 411
ARGUMENTS = ("--seed", SEED, "--jobs", 1000, "--minutes", 0.42, "--workers", 2, "--at-once", 8)
PACE = ("--concurrency", 3, "--every-s", 0.75, "--calm-jobs", 40, "--memory-jobs", 50)
# Those that find nothing to break, or wait for another one at the same place, are not injected: 25 s are
# enough for 20. With six busy loops beside it a machine of two cores got 15 done.
LEAST_KINDS = len(KINDS) // 3
LEAST_JOBS = 40


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    """What a short soak says at its end."""
    argv = [sys.executable, "-m", "tests.soak", *map(str, ARGUMENTS + PACE)]
    done = subprocess.run(argv, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert done.stdout.startswith(f"seed {SEED}\n")
    last: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return last


def test_no_job_is_lost_duplicated_or_wrong_and_nothing_is_left(told: dict[str, Any]) -> None:
    assert [told[what] for what in ("lost", "duplicated", "wrong", "left")] == [0, 0, 0, 0]
    assert told["jobs"] > LEAST_JOBS
    assert [aim["holds"] for aim in told["aims"]] == [True] * 7


def test_faults_of_many_kinds_struck_everywhere_meanwhile(told: dict[str, Any]) -> None:
    struck = {name for name, count in told["faults"].items() if count}

    assert len(struck) >= LEAST_KINDS
    assert {"webui", "worker", "hub", "queue"} <= {name.partition(" ")[0] for name in struck}


def test_workers_of_all_manners_answered_jobs(told: dict[str, Any]) -> None:
    answered = {
        row["what"].removeprefix("jobs answered by: ") for row in told["rows"] if row["count"]
    }

    assert answered >= set(MANNERS)


def test_the_last_line_has_the_figures_of_a_benchmark(told: dict[str, Any]) -> None:
    assert told["bench"] == "soak"
    assert told["seed"] == SEED
    assert 0 < told["overhead"]["p50_ms"] <= told["overhead"]["p99_ms"]
    assert told["memory_growth_mb"] < 20
    assert told["memory"]["late"]["files"] <= told["memory"]["early"]["files"] + 5
    assert [worker["jobs"] > 0 for worker in told["workers"]] == [True, True]
    assert all(worker["growth_mb"] < 20 < worker["resident_mb"] for worker in told["workers"])
    assert {row["what"] for row in told["rows"]} >= {"jobs COMPLETED", "jobs FAILED", "lost"}
