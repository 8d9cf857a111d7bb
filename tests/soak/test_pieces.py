"""The pieces of a streamed job: put together where they are right, and found where they are not."""

import re
from typing import Any

import pytest

from tests.soak.pieces import require_shown, whole

Piece = dict[str, Any]
ANSWER: Piece = {"images": [], "image_kinds": [], "timings": {}}
ONE: list[Piece] = [{"index": 0, "image": "a"}]
TWO = [*ONE, {"index": 1, "image": "b"}]
PARTS: list[Piece] = [
    {"index": 0, "image": "a"},
    {"index": 1, "image": "b", "part": 1, "parts": 3},
    {"index": 1, "image": "c", "part": 2, "parts": 3},
    {"index": 1, "image": "d", "part": 3, "parts": 3},
    {"index": 2, "image": "e"},
]


@pytest.mark.parametrize(
    ("pieces", "images"),
    [
        pytest.param(ONE, ["a"], id="one picture"),
        pytest.param(TWO, ["a", "b"], id="two pictures"),
        pytest.param(PARTS, ["a", "bcd", "e"], id="a picture in parts"),
    ],
)
def test_pieces_make_the_answer_of_normal_mode(pieces: list[Piece], images: list[str]) -> None:
    assert whole([*pieces, ANSWER]) == {**ANSWER, "images": images}


@pytest.mark.parametrize("answer", [None, [1], {"jobs": 1}, {"images": ["a"]}])
def test_an_answer_without_pieces_is_itself(answer: Any) -> None:
    assert whole([answer]) == answer


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([*ONE, *ONE], id="a picture twice"),
        pytest.param([TWO[1], TWO[0]], id="pictures out of order"),
        pytest.param(TWO[1:], id="the first picture missing"),
        pytest.param([PARTS[0], *PARTS[4:]], id="a picture between missing"),
        pytest.param([PARTS[0], *PARTS[2:]], id="the first part missing"),
        pytest.param([*PARTS[:2], *PARTS[3:]], id="a part between missing"),
        pytest.param([*PARTS[:3], PARTS[4]], id="the last part missing"),
        pytest.param(PARTS[:3], id="the last part of the last picture missing"),
        pytest.param([*PARTS[:2], *PARTS[1:]], id="a part twice"),
        pytest.param([PARTS[0], PARTS[2], PARTS[1], *PARTS[3:]], id="parts out of order"),
        pytest.param([*PARTS[:2], {**PARTS[2], "parts": 4}], id="another number of parts"),
    ],
)
def test_pieces_that_are_not_at_their_place_are_found(pieces: list[Piece]) -> None:
    with pytest.raises(ValueError, match=r"in place of|parts of the last picture"):
        whole([*pieces, ANSWER])


@pytest.mark.parametrize(
    ("output", "said"),
    [
        pytest.param([], "without an answer", id="nothing"),
        pytest.param({"images": ["a"]}, "without an answer", id="an answer of normal mode"),
        pytest.param([*ONE, {**ANSWER, "images": ["a"]}], "in the answer", id="pictures twice"),
        pytest.param([*ONE, {**ANSWER, "image_kinds": ["x"]}], "in the answer", id="kinds twice"),
    ],
)
def test_what_is_no_stream_is_found(output: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        whole(output)


def test_every_piece_was_shown_once_and_the_answer_perhaps() -> None:
    output = [*PARTS, ANSWER]

    require_shown(output, output, lost=0)
    require_shown(PARTS, output, lost=0)
    require_shown([], [ANSWER], lost=0)


def test_a_piece_whose_receipt_was_lost_may_be_shown_twice() -> None:
    require_shown([TWO[0], TWO[0], TWO[1]], [*TWO, ANSWER], lost=1)
    require_shown([TWO[0], TWO[0], TWO[0], TWO[1]], [*TWO, ANSWER], lost=2)


@pytest.mark.parametrize(
    ("shown", "lost"),
    [
        pytest.param([TWO[0], TWO[0], TWO[1]], 0, id="twice without a reason"),
        pytest.param([TWO[0], TWO[0], TWO[1], TWO[1]], 1, id="more often than there is reason"),
        pytest.param([TWO[0], TWO[1], TWO[0]], 1, id="again after another one"),
        pytest.param(TWO[::-1], 0, id="out of order"),
        pytest.param(ONE, 0, id="missing"),
        pytest.param([], 2, id="nothing"),
    ],
)
def test_what_stream_must_not_have_shown_is_found(shown: list[Piece], lost: int) -> None:
    of = re.escape("of ['0/1', '1/1', 'the answer']")
    with pytest.raises(ValueError, match=rf"{of}, {lost} receipts"):
        require_shown(shown, [*TWO, ANSWER], lost)
