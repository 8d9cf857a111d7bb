"""What a streamed job must look like, piece by piece: in its output, and at /stream. No I/O.

Source: docs/streaming.md.
"""

from collections.abc import Sequence
from typing import Any


def whole(output: Sequence[Any]) -> Any:
    """Return the answer that a job would have had in normal mode.

    Args:
        output: of a job that is COMPLETED: the pieces, and the answer last.

    Raises:
        ValueError: a piece is missing, there twice or not at its place.
        KeyError: what should be a piece is none.
        TypeError: likewise.
    """
    if not isinstance(output, list) or not output:
        raise ValueError("a stream without an answer")
    *pieces, answer = output
    if not pieces:
        return answer
    if answer["images"] or answer["image_kinds"]:
        raise ValueError("pictures in the answer of a stream that has pieces")
    images: list[str] = []
    part = parts = 1
    for piece in pieces:
        at = (piece["index"], piece.get("part", 1), piece.get("parts", 1))
        if part == parts:
            due, images = (len(images), 1, at[2]), [*images, ""]
        else:
            due = (len(images) - 1, part + 1, parts)
        if at != due:
            raise ValueError(f"a piece with index, part and parts {at} in place of {due}")
        images[-1] += piece["image"]
        _, part, parts = at
    if part != parts:
        raise ValueError(f"{part} of {parts} parts of the last picture")
    return {**answer, "images": images}


def require_shown(shown: Sequence[Any], output: Sequence[Any], lost: int) -> None:
    """See that /stream showed each piece of a job in its order, of a worker that had it alone and once.

    Args:
        shown: the pieces that came to the readers.
        output: of the job. Its answer may be too large for them; an error is for /status alone.
        lost: how many receipts of pieces were lost: so many may have come once more.

    Raises:
        ValueError: a piece is missing, not at its place, or there twice without a reason.
    """
    once = [piece for n, piece in enumerate(shown) if n == 0 or piece != shown[n - 1]]
    if once not in (list(output), list(output[:-1])) or len(shown) - len(once) > lost:
        raise ValueError(
            f"/stream showed {_names(shown)} of {_names(output)}, {lost} receipts were lost"
        )


def _names(pieces: Sequence[Any]) -> list[str]:
    return [
        f"{piece['index']}/{piece.get('part', 1)}"
        if isinstance(piece, dict) and "index" in piece
        else "the answer"
        for piece in pieces
    ]
