"""From the pictures of an answer to a result that arrives: the size ladder.

    asked   the pictures in their format, in the way that was asked for
    ladder  upload | lossless_webp | volume | lossy, in the order that the settings or the request give

The answer is measured as the bytes that will travel; the first that fits goes out, and its warnings say what
was done. The SDK loses what is too large or not JSON.
Source: runpod-python 1.12.0, rp_http._handle_result gives up on a 4xx with a log line.
"""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from schemas.errors import BackendFailedError, OutputTooLargeError, UploadFailedError, VolumeError
from schemas.job import Generation
from worker.caller import Caller
from worker.delivery.parcel import Parcel, Sent
from worker.delivery.wish import Wish, is_lossy

log = logging.getLogger(__name__)

# What the SDK puts round a result: {"output": …}. Source: runpod-python 1.12.0, rp_job.run_job.
_ENVELOPE_BYTES = len('{"output": }')
_SHORT_CHARS = 4096
# Bytes per pixel of a picture that is nearly blank: a batch that is too large at this rate is not worth
# its GPU time. Ours to choose, well below what drawn pictures take.
_LEAST_LOSSLESS = 0.15
_LEAST_LOSSY = 0.01

Finish = Callable[[Sent], Any]
"""Makes the whole answer, JSON values, from what its pictures have become."""


def foresee(wish: Wish, job: Generation) -> None:
    """Raise if the pictures of `job` cannot arrive whatever is drawn, before a GPU is paid for them.

    Raises:
        OutputTooLargeError: even nearly blank pictures of that size would be too large.
    """
    leaves = "upload" in wish.ways or "volume" in wish.ways
    if leaves or not job.send_images or job.script_name:
        return
    per_pixel = _LEAST_LOSSY if "lossy" in wish.ways or is_lossy(wish.target) else _LEAST_LOSSLESS
    count = job.batch_size * job.n_iter
    least = int(count * job.final_pixels * per_pixel * 4 / 3)
    if least > wish.limit_bytes:
        raise OutputTooLargeError(
            f"{count} pictures of {job.final_pixels} pixels would have more than {least} bytes, however"
            f" they turn out; RunPod carries {wish.limit_bytes}. Nothing was drawn.",
            hint=_HINT,
            size_bytes=least,
            limit_bytes=wish.limit_bytes,
        )


def send(images: Sequence[str], wish: Wish, finish: Finish, caller: Caller) -> Any:
    """Return the answer that goes out, its pictures in the first way in which it fits.

    Args:
        images: A1111's, as base64.
        wish: what is to become of them.
        finish: makes the whole answer.
        caller: of whom.

    Raises:
        OutputTooLargeError: it fits in no way; `details` has `size_bytes`, `limit_bytes` and `tried`.
        BackendFailedError: an image is none, or the answer holds what JSON cannot say.
        JobCancelledError: the job was cancelled.
    """
    if not images:
        return fitting(finish(Sent([], None)), wish.limit_bytes)
    parcel = Parcel(images, wish, caller)
    sizes: list[int] = []
    told = [*wish.warnings]
    for way in wish.ways:
        try:
            for sent in parcel.by(way):
                explained = _explained(sent, sizes, wish)
                answer = finish(replace(sent, warnings=(*told, *explained, *sent.warnings)))
                sizes.append(_speakable_bytes(answer))
                if sizes[-1] <= wish.limit_bytes:
                    return answer
        except (UploadFailedError, VolumeError) as error:
            told.append(f"`{way}` failed for the pictures: {error.code}: {error}")
            log.warning(told[-1])
    raise _too_large(sizes[0], wish.limit_bytes, [*wish.ways], told)


def fitting(answer: Any, limit_bytes: int) -> Any:
    """Return `answer`, JSON values of which nothing can be made smaller.

    Raises:
        OutputTooLargeError: it has more than `limit_bytes`.
        BackendFailedError: A1111 answered something that JSON cannot say (NaN, half a character).
    """
    size = _speakable_bytes(answer)
    if size > limit_bytes:
        raise _too_large(size, limit_bytes, [], [])
    return answer


def size_bytes(result: Any) -> int:
    """Return the length of `result` as the SDK sends it: UTF-8, not escaped to ASCII.

    Raises:
        ValueError: it cannot be sent as JSON.
        TypeError: nor can this.
    """
    # What is long here is base64 of our own or A1111's making. It needs no escaping, so its length is
    # known without copying megabytes.
    listed = result.get("images") if isinstance(result, dict) else None
    images = listed if isinstance(listed, list) else []
    plain = [image for image in images if _is_plain(image)]
    if plain:
        others = [image for image in images if not _is_plain(image)]
        result = {**result, "images": ["" for _ in plain] + others}
    text = json.dumps(result, ensure_ascii=False, allow_nan=False)
    return _ENVELOPE_BYTES + len(text.encode()) + sum(len(image) for image in plain)


_HINT = (
    "Ask for fewer or smaller pictures, for `output.format` webp or jpeg, or for `output.allow_lossy`;"
    " use /runsync, whose limit is higher; or give the endpoint storage or a network volume."
)


def _explained(sent: Sent, sizes: Sequence[int], wish: Wish) -> tuple[str, ...]:
    """Return what was done, and why, if something was too large before."""
    if not sizes:
        return ()
    too_large = f"The answer would have {sizes[0]} bytes; RunPod carries {wish.limit_bytes}."
    return (f"{too_large} {sent.done}",)


def _speakable_bytes(answer: Any) -> int:
    try:
        return size_bytes(answer)
    except (ValueError, TypeError) as error:
        raise BackendFailedError("A1111 answered values that JSON cannot say.") from error


def _too_large(
    size: int, limit: int, tried: Sequence[str], told: Sequence[str]
) -> OutputTooLargeError:
    also = f" {' '.join(told)}" if told else ""
    return OutputTooLargeError(
        f"The result has {size} bytes; RunPod carries {limit}.{also}",
        hint=_HINT,
        size_bytes=size,
        limit_bytes=limit,
        tried=[*tried],
    )


def _is_plain(image: object) -> bool:
    return isinstance(image, str) and len(image) > _SHORT_CHARS and image.isascii()
