"""The slices of a job's time, and their sum."""

from decimal import Decimal
from typing import get_args

from hypothesis import given
from hypothesis import strategies as st

from worker.clock import Clock, Slice

SLICES = get_args(Slice)


class Hand:
    def __init__(self) -> None:
        self.s = 1e6

    def __call__(self) -> float:
        return self.s


laps = st.lists(st.tuples(st.sampled_from(SLICES), st.floats(0, 1e5)), max_size=12)


@given(laps=laps, rest_s=st.floats(0, 1e5))
def test_slices_add_up_exactly_and_to_the_time_that_passed(
    laps: list[tuple[Slice, float]], rest_s: float
) -> None:
    hand = Hand()
    clock = Clock(now=hand)
    for name, passed_s in laps:
        hand.s += passed_s
        clock.lap(name)
    hand.s += rest_s

    told: dict[str, float] = {**clock.timings()}  # type: ignore[dict-item]
    total = Decimal(str(told["total_s"]))

    assert sum(Decimal(str(told[name])) for name in SLICES) == total
    assert abs(float(total) - (hand.s - 1e6)) <= 0.0006


def test_a_slice_that_comes_again_is_added_to() -> None:
    hand = Hand()
    clock = Clock(now=hand)
    for passed_s in (1, 2):
        hand.s += passed_s
        clock.lap("encode_s")

    assert clock.timings()["encode_s"] == 3


def test_asking_ends_no_slice() -> None:
    hand = Hand()
    clock = Clock(now=hand)
    hand.s += 1
    assert clock.timings()["deliver_s"] == 1
    hand.s += 1
    clock.lap("encode_s")

    told = clock.timings()

    assert (told["encode_s"], told["deliver_s"], told["total_s"]) == (2, 0, 2)


def test_pictures_a_second_are_of_what_it_took_to_make_them() -> None:
    hand = Hand()
    clock = Clock(now=hand)
    hand.s += 10
    clock.lap("download_s")
    hand.s += 2
    clock.lap("generate_s")

    assert clock.timings(3)["images_per_s"] == 1.5
    assert "images_per_s" not in clock.timings()


def test_the_cost_is_there_if_somebody_said_the_price() -> None:
    hand = Hand()
    clock = Clock(0.00031, now=hand)
    hand.s += 10

    assert clock.timings()["cost"] == 0.0031
    assert "cost" not in Clock(now=hand).timings()
