from collections import Counter
from pathlib import Path

import pytest

from benchmarks.stock import stocked
from benchmarks.switch import (
    KNOWN,
    NEW_CHECKPOINT,
    NEW_LORA,
    OURS,
    PLAIN,
    REFRESHED,
    TOLD,
    UNWATCHED,
    WATCHED,
    aims_of_files,
    aims_of_switches,
    aims_of_watching,
    changes,
    jobs_of,
    known,
    names_of,
    request,
    rows_of,
    sequences,
)
from benchmarks.webuis import Series
from schemas.model_ref import Kind
from tests.benchmarks.quick import figures


def series(*times: float, least: int = 0, **counts: int) -> Series:
    return Series(least, list(times), Counter(counts))


@pytest.mark.parametrize(
    ("name", "least"),
    [
        pytest.param("two in turn", 6, id="each job another"),
        pytest.param("override and none in turn", 6, id="none means the default"),
        pytest.param("one override, again and again", 1, id="the same"),
    ],
)
def test_a_checkpoint_must_be_loaded_whenever_the_jobs_change_it(name: str, least: int) -> None:
    wanted = sequences("a", "b", 6)[name]

    assert len(wanted) == 6
    assert changes(wanted, "a") == least


def test_jobs_that_leave_it_to_the_default_and_that_name_it_change_nothing() -> None:
    assert changes([None, "a", None], "a") == 1


def test_a_request_names_a_checkpoint_or_none() -> None:
    assert request("a")["checkpoint"] == {"name": "a"}
    assert "checkpoint" not in request(None)


def test_the_jobs_of_a_turn_differ_in_what_is_new(tmp_path: Path) -> None:
    stock = stocked(tmp_path / "volume", 11)
    first = names_of(stock, Kind.CHECKPOINT)[0]

    jobs = dict(jobs_of(stock, "http://127.0.0.1:1", 7))

    assert jobs[KNOWN] == jobs[REFRESHED] == known(stock)
    assert jobs[KNOWN]["checkpoint"] == jobs[NEW_LORA]["checkpoint"] == {"name": first}
    assert jobs[NEW_LORA]["loras"][0]["url"] == "http://127.0.0.1:1/lora-7.safetensors"
    assert jobs[NEW_CHECKPOINT]["checkpoint"]["name"] == "checkpoint-7"


def test_a_load_too_many_and_a_second_hash_are_told() -> None:
    switches = {
        ("x", OURS): series(1.0, least=4, loads=5, hashed_bytes=7),
        ("x", PLAIN): series(1.0, least=4, loads=9, hashed_bytes=99),
    }
    hashes = {("first picture", TOLD): series(1.0, hashed_bytes=2)}

    loads, read = aims_of_switches(switches, hashes)

    assert (loads.value, loads.as_json()["holds"]) == (1.25, False)
    assert (read.value, read.limit) == (9, 0)


def test_watching_is_judged_by_the_medians() -> None:
    watches = {
        ("sampling", WATCHED): series(2.02, 9.0, 2.0),
        ("sampling", UNWATCHED): series(2.0, 2.0, 2.0),
    }

    (aim,) = aims_of_watching(watches)

    assert aim.value == pytest.approx(1.01)


def test_files_are_judged_where_there_are_most() -> None:
    few = {("10 models", what): series(0.01, 0.01) for what in (KNOWN, NEW_LORA, NEW_CHECKPOINT)}
    many = {
        ("200 models", KNOWN): series(0.015, 0.015),
        ("200 models", NEW_LORA): series(0.02, 0.02, refreshes=1),
        ("200 models", NEW_CHECKPOINT): series(0.03, 0.03, refreshes=2),
    }

    known_files, lora, checkpoint, growth = aims_of_files({**many, **few})

    assert [known_files.value, lora.value, checkpoint.value] == [0, 0.5, 1]
    assert [known_files.limit, lora.limit, checkpoint.limit] == [0, 0, 1]
    assert growth.value == pytest.approx(1.5)


def test_every_series_has_a_row_with_its_times_and_counts() -> None:
    (row,) = rows_of({("x", OURS): series(0.1, 0.2, 0.3, least=2, loads=3, polls=4)})

    assert row == {
        "what": "x, worker",
        "jobs": 3,
        "p50_ms": 200.0,
        "p99_ms": 300.0,
        "total_s": 0.6,
        "loads": 3,
        "least": 2,
        "hashed_bytes": 0,
        "refreshes": 0,
        "polls": 4,
    }


@pytest.mark.slow
def test_a_quick_run_counts_what_a1111_did() -> None:
    told = figures("switch")

    rows = {row["what"]: row for row in told["rows"]}
    assert told["bench"] == "switch"
    assert rows[f"two in turn, {PLAIN}"]["loads"] >= rows[f"two in turn, {OURS}"]["loads"] == 4
    assert rows["first picture, hash told"]["hashed_bytes"] == 0
    assert rows["first picture, hash not told"]["hashed_bytes"] > 0
    assert rows[f"40 models, {KNOWN}"]["refreshes"] == 0
    assert rows[f"40 models, {NEW_CHECKPOINT}"]["refreshes"] == 2
