from pathlib import Path

import pytest

from benchmarks.crowd import Crowd
from benchmarks.engines import ARIA2, CURL_AND_SHA, OURS, PEERS, Usage
from benchmarks.link import DISTANT, MIB, THROTTLED, UNTHROTTLED
from benchmarks.verdict import Model, Scene, Turn, aims_of, aims_of_crowd, rows_of

SIZE = 2048 * MIB


def turn(s: float, *, size: int = SIZE, cpu_s: float = 1.0, rss_mib: int = 100) -> Turn:
    usage = Usage(Path("/nowhere"), s, cpu_s, rss_mib * MIB)
    return Turn(usage, Model("m", size, "0" * 64), s, server_cpu_s=0.5)


def test_where_connections_are_throttled_ours_is_held_to_three_aims() -> None:
    scene = Scene(THROTTLED, tls=True)
    turns = {
        (scene, OURS): [turn(9.0), turn(7.4), turn(7.0)],
        (scene, PEERS): [turn(100.0)],
        (scene, ARIA2): [turn(12.0)],
    }

    aims = {aim.aim: (round(aim.value, 3), aim.limit) for aim in aims_of(turns, SIZE)}

    assert aims == {
        f"TLS, 20 MiB/s per connection: 10 x ours / {PEERS}": (0.74, 1.0),
        f"TLS, 20 MiB/s per connection: ours / {ARIA2}": (0.617, 1.0),
        # 2048 MiB over 16 connections of 20 MiB/s: 6.4 s.
        "TLS, 20 MiB/s per connection: ours after a ramp of 1 s / limit of 16 connections": (
            1.0,
            1.3,
        ),
        "peak memory of ours, MiB": (100.0, 150.0),
    }


def test_far_away_ours_is_to_be_three_times_as_fast() -> None:
    scene = Scene(DISTANT, tls=False)

    aim, _ = aims_of({(scene, OURS): [turn(10.0)], (scene, PEERS): [turn(25.0)]}, SIZE)

    assert aim.aim == f"plain, 50 ms round trip: 3 x ours / {PEERS}"
    assert aim.value == pytest.approx(1.2)
    assert not aim.as_json()["holds"]


def test_unthrottled_ours_is_compared_with_curl_and_sha256sum_where_that_is_plain() -> None:
    plain, tls = Scene(UNTHROTTLED, tls=False), Scene(UNTHROTTLED, tls=True)
    turns = {
        (scene, name): [turn(s)]
        for scene in (plain, tls)
        for name, s in ((OURS, 2.0), (CURL_AND_SHA, 4.0))
    }

    aims = aims_of(turns, SIZE)

    assert [(aim.aim, aim.value) for aim in aims[:-1]] == [
        (f"plain, unthrottled: ours / {CURL_AND_SHA}", 0.5)
    ]


def test_an_engine_that_is_not_here_leaves_its_aim_out() -> None:
    scene = Scene(UNTHROTTLED, tls=False)

    assert [aim.aim for aim in aims_of({(scene, OURS): [turn(2.0)]}, SIZE)] == [
        "peak memory of ours, MiB"
    ]


def test_the_most_memory_of_any_run_of_ours_counts_and_no_others() -> None:
    scene = Scene(UNTHROTTLED, tls=False)
    turns = {
        (scene, OURS): [turn(1.0, rss_mib=80), turn(1.0, rss_mib=151), turn(1.0, rss_mib=90)],
        (scene, PEERS): [turn(1.0, rss_mib=900)],
    }

    assert aims_of(turns, SIZE)[-1].as_json() == {
        "aim": "peak memory of ours, MiB",
        "value": 151.0,
        "limit": 150.0,
        "holds": False,
    }


def test_a_row_tells_the_median_of_the_whole_file_and_what_was_measured() -> None:
    scene = Scene(THROTTLED, tls=False)
    taken = [turn(s, size=256 * MIB, cpu_s=s / 100) for s in (104.0, 102.4, 103.0)]

    (row,) = rows_of({(scene, PEERS): taken}, SIZE)

    assert row == {
        "what": f"plain, 20 MiB/s per connection, {PEERS}",
        "runs": 3,
        "s": 103.0,
        "min_s": 102.4,
        "max_s": 104.0,
        "mib_per_s": 19.9,
        "measured_mib": 256,
        "cpu_s": 1.03,
        "host_cpu_s": 0.5,
        "peak_rss_mib": 100.0,
    }


def test_a_crowd_is_judged_by_the_run_that_served_most() -> None:
    usages = (turn(1.0).usage, turn(2.0).usage)

    (aim,) = aims_of_crowd([Crowd(usages, 1000), Crowd(usages, 1100)], 1000)

    assert aim.as_json() == {
        "aim": "2 workers at once: bytes served / size",
        "value": 1.1,
        "limit": 1.0,
        "holds": False,
    }
    assert aims_of_crowd([], 1000) == []
