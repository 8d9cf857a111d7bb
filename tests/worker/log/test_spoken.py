"""What A1111 prints, cut into lines and limited."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.log.spoken import BURST_LINES, LINES_PER_S, MAX_LINE_BYTES, Limit, Lines


def lines(*chunks: bytes) -> list[str]:
    cutter = Lines()
    return [line for chunk in chunks for line in cutter.feed(chunk)] + cutter.end()


def test_of_a_bar_its_last_state_is_passed_on() -> None:
    bar = b"".join(b"\r%3d%%|##  | %d/20 [00:01<00:00]" % (5 * n, n) for n in range(21))

    assert lines(b"begin\n", bar, b"\nend") == ["begin", "100%|##  | 20/20 [00:01<00:00]", "end"]


def test_a_second_bar_that_begins_lines_is_left_out_until_it_is_full() -> None:
    said = b"\n\rTotal:  45%|##  | 9/20\x1b[A\n\rTotal: 100%|####| 20/20\x1b[A\n"

    assert lines(said) == ["Total: 100%|####| 20/20"]


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_line_has_no_end_in_it(end: bytes) -> None:
    assert lines(b"one" + end + end + b"two" + end) == ["one", "two"]


def test_a_long_line_is_cut_and_the_next_one_is_whole() -> None:
    first, second = lines(b"x" * 5000 + b"y" * 100_000, b"\nnext\n")

    assert first == "x" * MAX_LINE_BYTES + f"… {105_000 - MAX_LINE_BYTES} bytes more"
    assert second == "next"


@given(said=st.binary(max_size=200), cuts=st.lists(st.integers(0, 200), max_size=5))
def test_where_the_pipe_cuts_does_not_matter(said: bytes, cuts: list[int]) -> None:
    ends = sorted({0, *cuts, len(said)})
    chunks = [said[begin:end] for begin, end in itertools.pairwise(ends)]

    assert lines(*chunks) == lines(said)


class Hand:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.s = 0.0

    def __call__(self) -> float:
        return self.s


def passed(limit: Limit, said: list[str]) -> list[str]:
    return [line for line in said if limit.passes(line)]


def test_a_flood_is_cut_to_a_few_lines_a_second_and_counted() -> None:
    hand = Hand()
    limit = Limit(hand)
    count = 0
    for _ in range(100):
        hand.s += 0.1
        count += len(passed(limit, ["again"] * 100))

    assert BURST_LINES <= count <= BURST_LINES + 10 * LINES_PER_S
    assert count + limit.left_out() == 10_000
    assert limit.left_out() == 0


def test_a_talkative_start_is_passed_on_whole() -> None:
    assert len(passed(Limit(Hand()), ["loading"] * int(BURST_LINES))) == BURST_LINES


TRACEBACK = lines(
    b"""    Traceback (most recent call last):
      File "a.py", line 1, in f
        g()
    KeyError: 'x'

    During handling of the above exception, another exception occurred:

    Traceback (most recent call last):
      File "b.py", line 2, in g
        raise ValueError
    ValueError: no
"""
)


@pytest.mark.parametrize("spare", [1, 2, 5, 9])
def test_a_traceback_is_passed_on_whole_or_not_at_all(spare: int) -> None:
    limit = Limit(Hand())
    passed(limit, ["x"] * (int(BURST_LINES) - spare))

    said = passed(limit, TRACEBACK * 3)

    assert said[: len(TRACEBACK)] == TRACEBACK
    assert len(said) % len(TRACEBACK) == 0


def test_a_traceback_without_end_is_limited_like_all_else() -> None:
    limit = Limit(Hand())
    endless = ["Traceback (most recent call last):", *["  deeper"] * 10_000]

    assert len(passed(limit, endless)) < BURST_LINES + 10
