import pytest

from benchmarks.overhead import (
    DIRECT,
    OLDER,
    QUICK_SIZES,
    SIZES,
    WORKER,
    best_direct,
    direct_body,
    images_of,
    job_input,
    own_times,
    rows_of,
)
from tests.benchmarks.quick import figures

TIMES = {
    WORKER: [0.110, 0.105, 0.120],
    DIRECT[0]: [0.100, 0.104, 0.105],
    DIRECT[1]: [0.101, 0.103, 0.104],
    OLDER[0]: [0.200, 0.206, 0.208],
    OLDER[1]: [0.100, 0.100, 0.100],
}


def test_the_worker_is_judged_against_the_better_direct_call() -> None:
    assert best_direct(TIMES) == DIRECT[1]


def test_own_time_is_compared_turn_by_turn() -> None:
    assert own_times(TIMES) == pytest.approx([0.009, 0.002, 0.016])


def test_every_way_has_a_row_with_its_ratio_to_the_direct_call() -> None:
    rows = {str(row["what"]).partition(", ")[2]: row for row in rows_of(SIZES[0], TIMES)}

    assert list(rows) == list(TIMES)
    assert rows[OLDER[0]] == {
        "what": f"512x512 x1, {OLDER[0]}",
        "runs": 3,
        "p50_ms": 206.0,
        "p99_ms": 208.0,
        "p50_ratio": 2.0,
        "p99_ratio": 2.0,
        "own_p50_ms": 103.0,
    }
    assert rows[WORKER]["own_p50_ms"] == 9.0


def test_both_forms_ask_for_the_same_picture() -> None:
    for size in SIZES:
        job, body = job_input("http://127.0.0.1:1", size), direct_body(size)

        assert job["seed"] == body["seed"]
        assert (job["width"], job["batch_size"]) == (body["width"], body["batch_size"])
        assert body["prompt"].endswith(f"> {job['prompt']}")
        for lora in job["loras"]:
            assert f"<lora:{lora['name']}:{lora['scale']}>" in body["prompt"]


def test_a_failed_job_ends_the_benchmark() -> None:
    with pytest.raises(RuntimeError, match="no GPU"):
        images_of({"error": "no GPU"})


@pytest.mark.slow
def test_a_quick_run_ends_with_figures_of_every_way() -> None:
    told = figures("overhead")

    assert len(told["rows"]) == 5 * len(QUICK_SIZES)
    assert all(row["p99_ms"] >= row["p50_ms"] > 0 for row in told["rows"])
    assert told["aims"][0]["limit"] == 5
