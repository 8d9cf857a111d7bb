"""From A1111's answer to a result that arrives: measured as the bytes that will travel."""

import json
from typing import Any

from schemas.errors import BackendFailedError, OutputTooLargeError
from schemas.settings import OutputSettings

# What the SDK puts round a result: {"output": …}. Source: runpod-python 1.12.0, rp_job.run_job.
_ENVELOPE_BYTES = len('{"output": }')


def require_fitting(result: Any, job_id: str, limits: OutputSettings) -> None:
    """Raise unless RunPod will carry `result`, JSON values; the SDK loses what is too large or not JSON.

    Raises:
        OutputTooLargeError: `details` has `size_bytes` and `limit_bytes`.
        BackendFailedError: A1111 answered something that JSON cannot say (NaN, half a character).

    Source: runpod-python 1.12.0, rp_http._handle_result gives up on a 4xx with a log line; RunPod's
    limits are 10 MB for /run and 20 MB for /runsync, whose job ids begin with `sync-`.
    """
    limit = limits.max_runsync_bytes if job_id.startswith("sync-") else limits.max_run_bytes
    try:
        size = size_bytes(result)
    except (ValueError, TypeError) as error:
        raise BackendFailedError("A1111 answered values that JSON cannot say.") from error
    if size > limit:
        raise OutputTooLargeError(
            f"The result has {size} bytes; RunPod carries {limit}.",
            hint="Ask for fewer or smaller pictures, or use /runsync, whose limit is higher.",
            size_bytes=size,
            limit_bytes=limit,
        )


def size_bytes(result: Any) -> int:
    """Return the length of `result` as the SDK sends it: UTF-8, not escaped to ASCII.

    Raises:
        ValueError: it cannot be sent as JSON.
    """
    # Base64 needs no escaping, so its length is known without copying megabytes.
    listed = result.get("images") if isinstance(result, dict) else None
    images = listed if isinstance(listed, list) else []
    plain = [image for image in images if _is_plain(image)]
    if plain:
        others = [image for image in images if not _is_plain(image)]
        result = {**result, "images": ["" for _ in plain] + others}
    text = json.dumps(result, ensure_ascii=False, allow_nan=False)
    return _ENVELOPE_BYTES + len(text.encode()) + sum(len(image) for image in plain)


def _is_plain(image: object) -> bool:
    return isinstance(image, str) and image.isascii()
