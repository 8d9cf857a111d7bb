import itertools

import pytest

from benchmarks.link import (
    DISTANT,
    FIRST_WINDOW_BYTES,
    LARGEST_WINDOW_BYTES,
    MIB,
    THROTTLED,
    UNTHROTTLED,
    Flow,
)


def sent(flow: Flow, size: int, now: float) -> list[tuple[float, int]]:
    """Send an answer as a server does that is never late; return when how much left."""
    slices = []
    now = max(now, flow.first_byte_at(now))
    while size:
        piece = min(size, flow.slice_bytes)
        now = max(now, flow.leaves_at(piece, now))
        slices.append((now, piece))
        size -= piece
    return slices


def test_without_a_limit_all_leaves_at_once() -> None:
    slices = sent(Flow(UNTHROTTLED), 100 * MIB, now=5.0)

    assert {at for at, _ in slices} == {5.0}


def test_a_throttled_connection_sends_at_its_rate_from_the_first_byte() -> None:
    flow = Flow(THROTTLED)

    at, _ = sent(flow, 40 * MIB, now=5.0)[-1]

    assert at == pytest.approx(5.0 + 2.0)


def test_a_throttled_connection_saves_nothing_up_while_nobody_asks() -> None:
    flow = Flow(THROTTLED)
    sent(flow, MIB, now=0.0)

    at, _ = sent(flow, 20 * MIB, now=100.0)[-1]

    assert at == pytest.approx(101.0)


def test_a_server_that_was_late_catches_up_no_more_than_a_moment() -> None:
    flow = Flow(THROTTLED)
    flow.first_byte_at(0.0)

    left = [flow.leaves_at(MIB // 2, now=10.0) for _ in range(4)]

    assert left == pytest.approx([9.975, 10.0, 10.025, 10.05])


@pytest.mark.parametrize(
    ("set_up", "round_trips"), [pytest.param(1, 2, id="TCP"), pytest.param(2, 3, id="TLS")]
)
def test_a_new_connection_costs_round_trips_that_a_kept_one_does_not(
    set_up: int, round_trips: int
) -> None:
    flow = Flow(DISTANT, set_up_round_trips=set_up)

    assert flow.first_byte_at(1.0) == pytest.approx(1.0 + round_trips * 0.05)
    assert flow.first_byte_at(2.0) == pytest.approx(2.05)


def test_no_more_is_on_the_way_than_a_window_that_doubles_each_round_trip() -> None:
    slices = sent(Flow(DISTANT), 64 * MIB, now=0.0)
    begin, _ = slices[0]

    for number, window in enumerate(
        min(FIRST_WINDOW_BYTES << number, LARGEST_WINDOW_BYTES) for number in range(12)
    ):
        start = begin + number * 0.05
        in_round = sum(size for at, size in slices if start <= at + 1e-9 < start + 0.05)
        assert window * 0.7 <= in_round <= window


def test_a_distant_connection_comes_up_to_its_full_rate_and_stays_there() -> None:
    flow = Flow(DISTANT)
    first = sent(flow, 64 * MIB, now=0.0)
    begin = first[-1][0] + 1.0

    last, _ = sent(flow, 64 * MIB, now=begin)[-1]

    assert 64 * MIB / (last - begin) == pytest.approx(DISTANT.full_rate, rel=0.1)


def test_time_never_goes_back_within_an_answer() -> None:
    for link in (UNTHROTTLED, THROTTLED, DISTANT):
        times = [at for at, _ in sent(Flow(link), 32 * MIB, now=3.0)]

        assert all(before <= after for before, after in itertools.pairwise(times))


def test_the_full_rate_of_a_link_is_that_of_its_slowest_part() -> None:
    assert THROTTLED.full_rate == 20 * MIB
    assert DISTANT.full_rate == 80 * MIB
    assert UNTHROTTLED.full_rate == float("inf")
