import pytest

from benchmarks.surface import (
    BODY_BYTES,
    IDLE,
    NOISE_SIDE_PX,
    Asked,
    Times,
    large_body,
    peak_mb,
    read_body,
    requests,
    rows_of,
)
from schemas.routes import ROUTES
from tests.benchmarks.quick import figures

SAMPLERS = Asked("GET", "/sdapi/v1/samplers")


def test_what_the_worker_adds_is_told_turn_by_turn() -> None:
    times = Times(SAMPLERS, worker=[0.005, 0.006, 0.009], direct=[0.001, 0.004, 0.004])

    assert times.own == pytest.approx([0.004, 0.002, 0.005])
    assert rows_of(IDLE, [times]) == [
        {
            "what": "GET /sdapi/v1/samplers, idle",
            "runs": 3,
            "p50_ms": 6.0,
            "p99_ms": 9.0,
            "direct_p50_ms": 4.0,
            "own_p50_ms": 4.0,
        }
    ]


def test_every_list_of_a1111_is_asked_for() -> None:
    asked = {one.path for one in requests("") if one.reads}

    free = {route.path for route in ROUTES if not route.in_turn and not route.brought_by}
    assert free - asked == set()
    assert not any(one.reads for one in requests("") if "extra" in one.path)


def test_the_large_body_has_the_size_that_it_is_named_by() -> None:
    assert len(large_body(64)) == pytest.approx(4 * 64**2, rel=0.05)
    assert abs(4 * NOISE_SIDE_PX**2 - BODY_BYTES) < BODY_BYTES / 1000


def test_each_step_of_reading_a_body_has_a_row() -> None:
    rows = read_body(large_body(256), 3)

    assert [str(row["what"]).partition(", ")[0] for row in rows] == ["img2img of 0.3 MB"] * 3
    assert all(row["runs"] == 3 for row in rows)


def test_the_peak_is_what_was_resident_for_a_moment() -> None:
    def work() -> int:
        return len(b"x" * 40_000_000)

    assert peak_mb(work) == pytest.approx(40, abs=4)
    assert peak_mb(lambda: None) == pytest.approx(0, abs=4)


@pytest.mark.slow
def test_a_quick_run_ends_with_figures_of_every_route() -> None:
    told = figures("surface")

    asked = requests("")
    assert len(told["rows"]) == len(asked) + sum(one.reads for one in asked) + 3
    assert all(row["p99_ms"] >= row["p50_ms"] > 0 for row in told["rows"])
    assert [aim["limit"] for aim in told["aims"]] == [0]
