"""What a worker posts to RunPod, again and again until it is taken: results, pieces of a stream, progress.

Source of URLs, headers and shapes: runpod-python 1.12.0, serverless/modules/rp_http.py and rp_progress.py.
"""

import asyncio
import itertools
import json
import logging
import random
import time
from collections.abc import Iterator
from functools import partial
from typing import Any
from uuid import uuid4

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from runpod.serverless.modules import rp_http

from schemas.errors import InternalError, OutputTooLargeError, WorkerError

log = logging.getLogger(__name__)

RESULT_S = 180.0
"""How long a result is sent again and again; a platform that is away for longer has given the job up."""
INSTEAD_S = 30.0
"""What an error in place of a result has at least, where that has used up the time."""
POST_S = 60.0
"""Longest that one body may take, there or back: 20 MB at 3 Mbit/s."""
PROGRESS_S = 10.0
LEAST_S = 3.0
"""What the last try has at least: 1 MB at 3 Mbit/s."""
FIRST_WAIT_S = 0.25
MOST_WAIT_S = 5.0
LARGE_BYTES = 1_000_000
"""A larger body that is answered 400 is taken to be too large: RunPod gives no other status for it.

So is one that never arrives, where an error does.
"""
_SLICE = 1 << 18
# What JSON writes otherwise within a string. Source: RFC 8259, section 7.
_ESCAPED = bytes(range(0x20)) + b'"\\'


async def send_result(
    session: aiohttp.ClientSession,
    result: dict[str, Any],
    job: dict[str, Any],
    is_stream: bool = False,  # noqa: FBT001, FBT002 - the SDK's signature
) -> None:
    """Post a job's result until it arrives; what cannot be sent is replaced by an error that can.

    Ends within `RESULT_S` and `INSTEAD_S`, and the last try of each.
    """
    job_id = job["id"]
    deadline = time.monotonic() + RESULT_S
    url = _done_url(job_id, is_stream=is_stream)
    in_place = partial(_error_in_place_of, result, is_stream=is_stream)
    try:
        body = encoded(result)
    except (TypeError, ValueError, RecursionError) as error:
        log.error(f"job {job_id}: the result is not JSON: {error}")  # noqa: TRY400 - the message says it
        body = in_place(InternalError(f"The result is not JSON: {error}."))
    status = await deliver(session, job_id, url, body, RESULT_S)
    if (objection := _objection(status, len(body))) is not None:
        log.error(f"job {job_id}: {objection}")
        left_s = max(deadline - time.monotonic(), INSTEAD_S)
        status = await deliver(session, job_id, url, in_place(objection), left_s)
    if is_taken(status):
        log.info("Finished.", extra={"job": job_id})
    else:
        log.error(f"job {job_id}: no answer could be sent (last status: {status or 'none'})")


async def send_progress(session: aiohttp.ClientSession, job_id: str, progress: object) -> None:
    """Post one progress update; a failure is of no consequence and is not repeated."""
    try:
        body = encoded({"status": "IN_PROGRESS", "output": progress})
    except (TypeError, ValueError, RecursionError) as error:
        log.warning(f"progress is not JSON: {error}")
        return
    await _post(session, job_id, _done_url(job_id, is_stream=False), body, PROGRESS_S)


def encoded(message: dict[str, Any]) -> bytearray:
    """Return JSON that every parser takes: the SDK would send NaN, and drop half a character.

    Pictures are copied once, and not three times as `json.dumps` and `encode` do with a hundred megabytes.

    Raises:
        TypeError: there is something in it that JSON has no word for.
        ValueError: so there is.
        RecursionError: it is too deep.
    """
    pictures: list[str] = []
    mark = uuid4().hex
    text = json.dumps(_marked(message, mark, pictures), ensure_ascii=False, allow_nan=False)
    first, *rest = text.encode().split(mark.encode())
    body = bytearray(first)
    for picture, after in zip(pictures, rest, strict=True):
        for piece in _slices(picture):
            body += piece
        body += after
    return body


def _marked(message: dict[str, Any], mark: str, pictures: list[str]) -> dict[str, Any]:
    """Return `message` with `mark` in place of each large picture in it, which `pictures` gets."""
    output = message.get("output")
    if not isinstance(output, dict) or not isinstance(output.get("images"), list):
        return message
    shown = []
    for image in output["images"]:
        is_cut = isinstance(image, str) and _is_plain(image)
        pictures += [image] if is_cut else []
        shown.append(mark if is_cut else image)
    return {**message, "output": {**output, "images": shown}}


def _is_plain(text: str) -> bool:
    """Return whether `text` is long, and in JSON as it is."""
    return (
        len(text) > _SLICE
        and text.isascii()
        and all(len(piece.translate(None, _ESCAPED)) == len(piece) for piece in _slices(text))
    )


def _slices(text: str) -> Iterator[bytes]:
    for start in range(0, len(text), _SLICE):
        yield text[start : start + _SLICE].encode()


class _Sliced(aiohttp.Payload):
    """A body that is written in slices: of one that is given whole, asyncio makes a second one at once.

    A generator of them could not be sent again to where a 307 or 308 leads.
    """

    _value: bytearray

    def __init__(self, body: bytearray) -> None:
        super().__init__(body)
        self._size = len(body)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return self._value.decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        for start in range(0, len(self._value), _SLICE):
            await writer.write(bytes(self._value[start : start + _SLICE]))


async def deliver(
    session: aiohttp.ClientSession, job_id: str, url: str, body: bytearray, within_s: float
) -> int:
    """Post `body` until it is taken, refused or too late; return the last status, 0 for none.

    Args:
        session: of the queue loop.
        job_id: whose body it is.
        url: where to.
        body: JSON.
        within_s: how long to try again, in seconds; it is tried once at least.
    """
    deadline = time.monotonic() + within_s
    for failures in itertools.count(1):
        limit_s = min(POST_S, max(deadline - time.monotonic(), LEAST_S))
        status = await _post(session, job_id, url, body, limit_s)
        pause_s = wait_s(failures, MOST_WAIT_S)
        if not may_pass(status) or time.monotonic() + pause_s > deadline:
            break
        log.warning(f"job {job_id}: {len(body)} bytes are sent again (status: {status or 'none'})")
        await asyncio.sleep(pause_s)
    return status


def is_taken(status: int) -> bool:
    """Return whether a body that was answered with `status` has arrived."""
    return 200 <= status < 400


def wait_s(failures: int, most_s: float) -> float:
    """Return how long to wait after so many failures in a row, at least one."""
    pause_s = min(most_s, FIRST_WAIT_S * 2.0 ** min(failures - 1, 10))
    return pause_s * random.uniform(0.5, 1)  # noqa: S311 - hides nothing


def _done_url(job_id: str, *, is_stream: bool) -> str:
    return f"{rp_http.JOB_DONE_URL.replace('$ID', job_id)}&isStream={str(is_stream).lower()}"


def _error_in_place_of(result: dict[str, Any], error: WorkerError, *, is_stream: bool) -> bytearray:
    """Return the body that the SDK would make of `error`, with the request for a new worker kept."""
    rest = error.as_response()
    text = rest.pop("error")
    kept = {"stopPod": True} if result.get("stopPod") is True else {}
    return encoded({"error": text, "output": [rest] if is_stream else rest, **kept})


def _objection(status: int, size: int) -> WorkerError | None:
    """Return what is to be sent in place of a result of `size` bytes, if anything.

    A large one that did not arrive is replaced, too: a gateway that cuts large bodies, or fails over
    them, takes an error. Not before all of `RESULT_S` is over, however often it was cut: a platform that
    is about to come back looks the same from here, and pictures are worth more than the wait. A small one
    is not replaced: an error would have to go the way that was closed to it.
    """
    is_large = size > LARGE_BYTES
    if status == 413 or (status == 400 and is_large):
        return OutputTooLargeError(
            f"RunPod refused the result of {size} bytes.",
            hint="Ask for fewer or smaller pictures, or use /runsync, whose limit is higher.",
            size_bytes=size,
        )
    if not may_pass(status) and not is_taken(status):
        return InternalError(f"RunPod refused the result with status {status}.", status=status)
    if is_taken(status) or not is_large:
        return None
    how = f"was answered {status}" if status else "was cut off without an answer"
    return OutputTooLargeError(
        f"RunPod did not take the result of {size} bytes within {RESULT_S:g} s; the last try {how}.",
        hint="Ask for fewer or smaller pictures, or have them uploaded: see docs/storage.md.",
        size_bytes=size,
        status=status,
    )


async def _post(
    session: aiohttp.ClientSession, job_id: str, url: str, body: bytearray, limit_s: float
) -> int:
    """Post once and return the status; 0 when there was no answer within `limit_s` seconds.

    The job's id goes with the request: the SDK puts it on the session, which other jobs share.
    """
    headers = {
        "charset": "utf-8",
        "Content-Type": "application/x-www-form-urlencoded",
        "X-Request-ID": job_id,
    }
    timeout = aiohttp.ClientTimeout(total=limit_s)
    try:
        async with session.post(
            url, data=_Sliced(body), headers=headers, timeout=timeout
        ) as response:
            await response.read()
            return response.status
    except (aiohttp.ClientError, TimeoutError) as error:
        log.debug(f"posting: {type(error).__name__}: {error}")
        return 0


def may_pass(status: int) -> bool:
    """Return whether the same request may be taken later; 0 stands for no answer."""
    return status == 0 or status >= 500 or status in {408, 425, 429}
