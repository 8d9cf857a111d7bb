"""A job whose handler is a generator: each piece goes out at once, and all of them once more at the end.

    generator ──yields──▶ piece ──▶ POST job-stream, which /stream shows      while the job goes on
    at its end  {"output": [piece, …, answer]}  ──▶ POST job-done, which /status shows
    on error    {"error": "CODE: …", "output": [piece, …, {"code": …}]}

The SDK's own loses a piece at a broken connection or a 4xx, forgets all pieces when an error comes, knows no
request for a new worker, and shows tracebacks.
Source: runpod-python 1.12.0, serverless/modules/rp_job.py, handle_job, and rp_http.py, stream_result.
"""

import contextlib
import logging
from typing import Any

import aiohttp
from runpod.serverless.modules import rp_http

import rp_post

log = logging.getLogger(__name__)

PIECES_S = 30.0
"""How long one piece is sent again and again. Once one was given up, the others are tried once."""


async def handle_job(
    session: aiohttp.ClientSession, config: dict[str, Any], job: dict[str, Any]
) -> None:
    """Do `job` with the generator `config["handler"]`, whose last piece is the answer or an error.

    A piece of more than `config["chunk_bytes"]` bytes is not streamed.
    """
    log.info("Started.", extra={"job": job["id"]})
    pieces: list[Any] = []
    way = _Way(session, job["id"], config["chunk_bytes"])
    async with contextlib.aclosing(config["handler"](job)) as generator:
        async for piece in generator:
            pieces.append(piece)
            if not _is_error(piece):
                await way.send(piece)
    await rp_post.send_result(session, _result(pieces), job, is_stream=True)


class _Way:
    """The way to the readers of /stream."""

    def __init__(self, session: aiohttp.ClientSession, job_id: str, chunk_bytes: int) -> None:
        self._session = session
        self._job_id = job_id
        self._chunk_bytes = chunk_bytes
        self._url = f"{rp_http.JOB_STREAM_URL.replace('$ID', job_id)}&isStream=false"
        self._patience_s = PIECES_S

    async def send(self, piece: Any) -> None:
        """Post `piece` until it is taken, or given up: it is in the result besides."""
        try:
            body = rp_post.encoded({"output": piece})
        except (TypeError, ValueError, RecursionError) as error:
            log.debug(f"job {self._job_id}: a piece is not JSON: {error}")  # as is the result
            return
        if len(body) > self._chunk_bytes:
            log.info(f"job {self._job_id}: {len(body)} bytes are not streamed, as too many.")
            return
        status = await rp_post.deliver(
            self._session, self._job_id, self._url, body, self._patience_s
        )
        if rp_post.is_taken(status):
            self._patience_s = PIECES_S
            return
        if rp_post.may_pass(status):  # Of a piece that is refused the route itself is well.
            self._patience_s = 0.0
        log.warning(f"job {self._job_id}: a piece was not streamed (status: {status or 'none'})")


def _is_error(piece: Any) -> bool:
    return isinstance(piece, dict) and bool(piece.get("error"))


def _result(pieces: list[Any]) -> dict[str, Any]:
    """Return what is posted in the end; of the last piece what the SDK takes out of an answer."""
    *handed_out, answer = pieces
    if not isinstance(answer, dict):
        return {"output": pieces}
    rest = {**answer}
    error, refresh = rest.pop("error", None), rest.pop("refresh_worker", None)
    return {
        "output": [*handed_out, rest],
        **({"error": error} if error else {}),
        **({"stopPod": True} if refresh else {}),
    }
