"""What reads bytes of strangers, each as a function of bytes: it tells whether they were taken.

    request     the JSON of a job's input
    header      of a safetensors file
    ranges      what connections bring, in any order and cut anywhere
    infotext    the text that travels in a picture
    image       a picture that a caller sends

A refusal that the caller is told is no fault: any other exception is one, and so is time without end.
"""

import base64
import json
from collections.abc import Callable, Mapping

import requests

from model_cache.engine.answers import Span, disposition_name, span
from model_cache.engine.ranges import Piece, Plan, Spans
from model_cache.weights import header
from schemas.errors import InvalidInputError, ModelCorruptError, WorkerError
from schemas.request import Request, parse
from schemas.settings import JobSettings
from worker.pictures import images

LIMITS = JobSettings()
MAX_PIXELS = 1 << 20
_SEGMENT_BYTES = 16


def _require_told(error: WorkerError) -> None:
    """Require that a caller can be told: JSON, in UTF-8, short, naming a field."""
    told = json.dumps(error.as_response(), allow_nan=False, ensure_ascii=False)
    assert len(told.encode()) < 100_000
    if isinstance(error, InvalidInputError):
        assert error.details["field"]


def _read(value: object) -> Request | None:
    try:
        return parse(value, LIMITS)
    except InvalidInputError as error:
        _require_told(error)
        return None


def request(data: bytes) -> bool:
    """Read a job's input; what is taken must be read as the same once more."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return False
    found = _read(value)
    assert found is None or _read(json.loads(data)) == found
    return found is not None


def infotext(data: bytes) -> bool:
    """Read an infotext; the first byte says for which of the two requests."""
    text = data[1:].decode("utf-8", "replace")
    image = {"init_images": ["x"]} if data[:1] > b"\x7f" else {}
    return _read({**image, "infotext": text}) is not None


def safetensors_header(data: bytes) -> bool:
    """Read the header of a file of which nothing else is known yet."""
    if len(data) >= 8:
        _header_end(data)
    try:
        found = header.parse(data, data_bytes=None)
    except header.FlawError as flaw:
        told = str(flaw)
    else:
        assert all(size >= 0 for shape in found.shapes.values() for size in shape)
        return True
    assert len(told) < 1000
    return False


def _header_end(data: bytes) -> None:
    try:
        end = header.end(data, "x")
    except ModelCorruptError as error:
        _require_told(error)
    else:
        assert 8 <= end <= 8 + 100_000_000


def ranges(data: bytes) -> bool:
    """Let connections bring a file of at most 255 bytes, as the bytes of `data` command."""
    size = data[0] if data else 0
    there = Spans((a, b) for a, b in zip(data[1:5:2], data[2:5:2], strict=False) if b <= size)
    plan, written = Plan(size, _SEGMENT_BYTES), bytearray(size)
    at_work: list[Piece] = plan.reserve(there)
    for command in data[5:]:
        _step(plan, at_work, written, command)
    for held in at_work:
        plan.give_back(held)
    while (piece := plan.take()) is not None:
        while _bring(plan, piece, written, 255):
            pass
    assert plan.is_finished()
    assert written == bytes([1]) * size
    return _content_range(data)


def _step(plan: Plan, at_work: list[Piece], written: bytearray, command: int) -> None:
    what, amount = command >> 6, command & 63
    if what == 0 or not at_work:
        piece = plan.take()
        if piece is not None:
            at_work.append(piece)
        return
    piece = at_work[amount % len(at_work)]
    if what == 1:
        at_work.remove(piece)
        plan.give_back(piece)
    else:
        _bring(plan, piece, written, amount)
    assert plan.done.total == sum(written)


def _bring(plan: Plan, piece: Piece, written: bytearray, size: int) -> int:
    """Write as much as is granted, each byte for the first time; return how much."""
    with plan.granted(piece, size) as (offset, granted):
        assert not any(written[offset : offset + granted]), "written twice"
        assert offset + granted <= len(written)
        written[offset : offset + granted] = bytes([1]) * granted
    return granted


def _content_range(data: bytes) -> bool:
    """Read the headers that say which bytes come."""
    response = requests.Response()
    response.status_code = 206
    length, _, text = data.decode("latin-1").partition("\n")
    response.headers.update({"Content-Length": length, "Content-Range": text})
    found = span(response)
    if found is not None:
        assert isinstance(found, Span)
        assert found.end is not None
        assert found.total is not None
        assert 0 <= found.start < found.end <= found.total
    assert isinstance(disposition_name(text), str)
    return found is not None


def image(data: bytes) -> bool:
    """Read a picture; what is taken must be what was sent, and its texts readable."""
    text = base64.b64encode(data).decode()
    try:
        taken = images.image(text, "mask", MAX_PIXELS)
    except InvalidInputError as error:
        _require_told(error)
        return False
    assert base64.b64decode(taken) == data
    width, height = images.size_px(taken)
    assert 0 < width * height <= MAX_PIXELS
    assert all(isinstance(found, str) for found in images.texts(taken))
    return True


TARGETS: Mapping[str, Callable[[bytes], bool]] = {
    "request": request,
    "header": safetensors_header,
    "ranges": ranges,
    "infotext": infotext,
    "image": image,
}
