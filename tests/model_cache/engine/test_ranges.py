import hashlib
import random
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_cache.engine import ranges
from model_cache.engine.ranges import Piece, Plan, Spans
from model_cache.weights.digests import Digests

SPANS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=12)


@given(SPANS)
def test_spans_are_the_set_of_their_bytes(spans: list[tuple[int, int]]) -> None:
    every = {byte for start, end in spans for byte in range(start, end)}

    found = Spans(spans)

    assert {byte for start, end in found for byte in range(start, end)} == every
    assert found.total == len(every)
    assert found.prefix == next(byte for byte in range(61) if byte not in every)
    flat = [edge for span in found for edge in span]
    assert flat == sorted(set(flat))


@given(SPANS, st.integers(0, 70))
def test_what_is_missing_is_all_that_is_not_there(spans: list[tuple[int, int]], size: int) -> None:
    found = Spans(spans)

    missing = {byte for start, end in found.missing(size) for byte in range(start, end)}

    there = {byte for start, end in found for byte in range(start, end)}
    assert missing == set(range(size)) - there


def write(plan: Plan, piece: Piece, file: bytearray, data: bytes, size: int) -> int:
    """Write at most `size` bytes of `data`, the true file, where `piece` is; return how many."""
    with plan.granted(piece, size) as (offset, granted):
        assert file[offset : offset + granted] == bytes(granted), "written twice"
        file[offset : offset + granted] = data[offset : offset + granted]
    return granted


@given(
    st.binary(max_size=300).map(lambda data: bytes(byte or 1 for byte in data)),
    st.integers(1, 64),
    SPANS,
    st.randoms(use_true_random=False),
)
def test_any_split_order_cut_and_repetition_gives_the_same_bytes_and_digest(
    data: bytes, segment: int, left: list[tuple[int, int]], chance: random.Random
) -> None:
    plan, file, digests = Plan(len(data), segment), bytearray(len(data)), Digests()
    at_work = plan.reserve(Spans((min(a, len(data)), min(b, len(data))) for a, b in left))
    hashed = 0

    while not plan.is_finished():
        if not at_work or chance.random() < 0.4:
            piece = plan.take()
            if piece is not None:
                at_work.append(piece)
        if at_work:
            piece = chance.choice(at_work)
            piece.moved -= chance.choice((0, 100))  # It was silent, perhaps.
            write(plan, piece, file, data, chance.randint(0, 40))
            if piece.is_empty or chance.random() < 0.2:
                at_work.remove(piece)
                plan.give_back(piece)
        prefix = plan.done.prefix
        digests.update(bytes(file[hashed:prefix]))
        hashed = prefix

    assert bytes(file) == data
    assert digests.sha256 == hashlib.sha256(data).hexdigest()
    assert plan.take() is None


def test_segments_are_taken_in_order() -> None:
    plan = Plan(25, 10)

    pieces = [plan.take() for _ in range(3)]

    assert [(piece.at, piece.end) for piece in pieces if piece] == [(0, 10), (10, 20), (20, 25)]
    assert plan.take() is None


@pytest.mark.parametrize(
    ("size", "segment"),
    [(ranges.LARGE_FROM_BYTES - 1, ranges.SEGMENT_BYTES), (10**10, ranges.LARGE_SEGMENT_BYTES)],
)
def test_large_files_are_asked_for_in_larger_segments(size: int, segment: int) -> None:
    piece = Plan(size).take()

    assert piece is not None
    assert piece.end == segment


def test_requests_get_smaller_towards_the_end() -> None:
    plan = Plan(64 << 20)
    sizes = []

    while (piece := plan.take()) is not None:
        sizes.append((piece.end or 0) - piece.at)

    assert sizes[:3] == [8 << 20] * 3
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-2] == 2 << 20
    assert sum(sizes) == 64 << 20


def test_the_end_of_a_slow_piece_is_given_to_whoever_is_idle() -> None:
    plan = Plan(8 << 20)
    slow = plan.take()
    assert slow is not None
    with plan.granted(slow, 1 << 20):
        pass
    slow.since -= 10

    helper = plan.take()

    assert helper is not None
    assert (slow.end, helper.at, helper.end) == (helper.at, 9 << 19, 8 << 20)


def test_a_silent_piece_is_taken_away_and_its_owner_gets_nothing_more() -> None:
    plan = Plan(100)
    silent = plan.take()
    assert silent is not None
    silent.moved -= 3

    helper = plan.take()

    assert helper is not None
    assert (helper.at, helper.end) == (0, 100)
    assert helper.quiet_s == 2 * silent.quiet_s
    with plan.granted(silent, 10) as (_, size):
        assert size == 0


def test_a_piece_is_neither_silent_nor_slow_for_a_disk_that_is() -> None:
    plan = Plan(64 << 20, 64 << 20)
    piece = plan.take()
    assert piece is not None
    with plan.granted(piece, 1 << 20):
        piece.moved, piece.since = piece.moved - 300, piece.since - 300
        assert plan.take() is None
    # As if the write had taken those seconds.
    piece.since += 300
    assert plan.take() is None


def test_a_closed_plan_grants_nothing_and_waits_for_the_last_write() -> None:
    plan = Plan(100)
    piece = plan.take()
    assert piece is not None
    closer = threading.Thread(target=plan.close)

    with plan.granted(piece, 10):
        closer.start()
        time.sleep(0.05)
        assert closer.is_alive()
    closer.join(5)

    assert not closer.is_alive()
    with plan.granted(piece, 10) as (_, size):
        assert size == 0
    assert plan.wait_prefix(0) == (10, False)


def test_bytes_whose_writing_failed_do_not_count() -> None:
    plan = Plan(100)
    piece = plan.take()
    assert piece is not None

    with pytest.raises(OSError, match="full"), plan.granted(piece, 10):
        raise OSError("full")

    assert plan.spans() == []


def test_a_file_of_unknown_size_is_one_piece_to_its_end() -> None:
    plan = Plan(None)
    piece = plan.take()
    assert piece is not None

    with plan.granted(piece, 70):
        pass
    assert not plan.is_finished()
    plan.ended(piece)

    assert (plan.size, plan.is_finished(), plan.take()) == (70, True, None)
