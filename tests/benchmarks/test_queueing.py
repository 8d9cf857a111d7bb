import pytest

from benchmarks.endpoints import Span
from benchmarks.queueing import (
    BARE,
    ONE_BY_ONE,
    PREFETCH,
    TIMES_ONE_BY_ONE,
    TWO,
    aim_of,
    gains_of,
    rows_of,
    whole_s,
)
from tests.benchmarks.quick import figures


def spans(*times: tuple[float, float]) -> list[Span]:
    return [Span(taken, answered) for taken, answered in times]


BUSY = {
    ONE_BY_ONE: spans((0, 4.5), (5, 9.5), (10, 15)),
    PREFETCH: spans((0, 4), (1, 6), (5, 7.5)),
}


def test_what_the_worker_adds_is_told_beside_the_bare_one_that_takes_as_many() -> None:
    rows = rows_of(
        {
            TWO: spans((0, 0.05), (0, 0.07), (1, 1.11)),
            BARE[2]: spans((0, 0.04), (0, 0.05), (1, 1.06)),
        }
    )

    assert [row["own_p50_ms"] for row in rows] == [20.0, 0.0]
    assert rows[0] == {
        "what": f"A1111 at once, {TWO}",
        "jobs": 3,
        "p50_ms": 70.0,
        "p99_ms": 110.0,
        "own_p50_ms": 20.0,
    }


def test_throughput_counts_from_the_first_job_to_the_last_answer() -> None:
    assert whole_s(BUSY[ONE_BY_ONE]) == 15
    assert [row["times_one_by_one"] for row in gains_of(BUSY)] == [1.0, 2.0]
    assert [row["s_per_job"] for row in gains_of(BUSY)] == [5.0, 2.5]


@pytest.mark.parametrize(("last_answer", "holds"), [(10.0, True), (10.1, False)])
def test_the_aim_holds_at_one_and_a_half_times_the_throughput(
    last_answer: float, *, holds: bool
) -> None:
    aim = aim_of({ONE_BY_ONE: spans((0, 15)), PREFETCH: spans((0, last_answer))})

    assert TIMES_ONE_BY_ONE == 1.5
    assert aim.as_json()["holds"] is holds


@pytest.mark.slow
def test_a_quick_run_ends_with_figures_of_both_parts() -> None:
    told = figures("queueing")

    at_once, busy = told["rows"][:2], told["rows"][2:]
    assert all(row["p99_ms"] >= row["p50_ms"] > 0 for row in at_once)
    assert [row["jobs"] for row in busy] == [2, 2]
    assert all(row["s_per_job"] > 0 for row in busy)
    assert [aim["limit"] for aim in told["aims"]] == [1.0]
