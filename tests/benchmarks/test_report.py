import json

import pytest

from benchmarks.report import Aim, as_line, milliseconds, percentile, table


@pytest.mark.parametrize(
    ("count", "percent", "expected"),
    [
        pytest.param(100, 50, 50, id="median of an even number"),
        pytest.param(101, 50, 51, id="median of an odd number"),
        pytest.param(100, 99, 99, id="one in a hundred is above"),
        pytest.param(200, 99, 198, id="two in two hundred are above"),
        pytest.param(20, 99, 20, id="with few values the largest"),
        pytest.param(1, 50, 1, id="a single value"),
        pytest.param(10, 0, 1, id="the smallest"),
        pytest.param(10, 100, 10, id="the largest"),
    ],
)
def test_a_percentile_is_a_measured_value_by_nearest_rank(
    count: int, percent: float, expected: float
) -> None:
    assert percentile(list(range(count, 0, -1)), percent) == expected


def test_times_are_told_in_milliseconds() -> None:
    assert milliseconds([0.0012344, 0.5, 0.001]) == {"p50_ms": 1.23, "p99_ms": 500.0}


def test_an_aim_holds_up_to_its_limit() -> None:
    assert Aim("a", 5.0, 5.0).as_json() == {"aim": "a", "value": 5.0, "limit": 5.0, "holds": True}
    assert not Aim("a", 5.001, 5.0).as_json()["holds"]


def test_a_table_has_its_heads_on_top_and_its_numbers_to_the_right() -> None:
    rows = [{"what": "short", "p50_ms": 1.5}, {"what": "something longer", "p50_ms": 123.456}]

    assert table(rows).splitlines() == [
        "what              p50_ms",
        "short               1.50",
        "something longer  123.46",
    ]


def test_the_last_line_is_one_json_object() -> None:
    line = as_line("overhead", 7, [{"what": "a", "p50_ms": 1.0}], [Aim("own", 3.0, 5.0)])

    told = json.loads(line)
    assert "\n" not in line
    assert list(told) == ["bench", "machine", "runs", "rows", "aims"]
    assert (told["bench"], told["runs"]) == ("overhead", 7)
    assert told["rows"] == [{"what": "a", "p50_ms": 1.0}]
    assert told["aims"][0]["holds"] is True
    assert told["machine"]["cores"] >= 1
