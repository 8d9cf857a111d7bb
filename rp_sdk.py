"""The RunPod SDK, as the worker uses it: its loop, its progress messages and its end. Knows nothing of jobs.

`rp_guards` puts right what version 1.12.0 of the SDK gets wrong. It is imported inside functions,
because it imports `runpod`, which takes half a second that can hide behind the start of A1111.
"""

import asyncio
import contextlib
import functools
import logging
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine
from importlib.metadata import version
from types import ModuleType
from typing import Any

from schemas.errors import InternalError

log = logging.getLogger(__name__)

Job = dict[str, Any]
Handler = Callable[..., Coroutine[Any, Any, Any]]
"""Takes a job and, where it is streamed, an `Emit`; returns the answer, JSON values."""
Emit = Callable[[Any], None]
"""Hands out one piece, JSON values, before the answer is there; from any thread, returns at once."""

GUARDED_VERSION = "1.12.0"
PROGRESS_EVERY_S = 1.0
LAST_PROGRESS_S = 2.0

_loading = threading.Lock()
_stop_asked = threading.Event()


def preload() -> None:
    """Begin to import the SDK in the background; `serve` waits for it.

    The SDK reads RUNPOD_LOG_LEVEL and its other variables while it is imported.
    """
    threading.Thread(target=_is_guarded, name="import-sdk", daemon=True).start()


def serve(
    handler: Handler,
    *,
    on_stop: Callable[[], None] = lambda: None,
    ready: Callable[[], bool] = lambda: True,
    concurrency: int = 1,
    chunk_bytes: int | None = None,
) -> None:
    """Hand `handler` to the SDK: queue loop, local test or local API, as flags and environment say.

    Returns when the queue loop has been stopped and the running jobs have been answered. A local test
    ends the process instead.

    Args:
        handler: called once per job; what it raises becomes an error answer.
        on_stop: called once, on the queue's event loop, as soon as the worker is told to stop
            (SIGTERM, SIGINT, `stop`); it must not block.
        ready: asked on the event loop before each take, and ten times a second until it is true. A take
            that is open already is not broken off: a job that it brings comes to the handler all the
            same, for what has been handed out cannot be given back.
        concurrency: how many jobs run at the same time.
        chunk_bytes: the largest piece that /stream gets. `handler` is then also given an `Emit`, and the
            job's output is a list: the pieces, and the answer last. None: no stream.

    Source: runpod-python 1.12.0, serverless/__init__.py, start.
    """
    guarded = _is_guarded()
    if not guarded:
        log.warning(
            f"runpod {version('runpod')} is installed, and what guards its queue loop is made for"
            f" {GUARDED_VERSION}: it runs without. Results and pieces of a stream can be lost, and"
            " progress is not sent."
        )
    import runpod  # noqa: PLC0415 - see the module's docstring

    runpod.serverless.start(
        {
            "handler": _answering(handler) if chunk_bytes is None else _streaming(handler),
            "return_aggregate_stream": True,
            "chunk_bytes": chunk_bytes,
            "concurrency_modifier": lambda _current: concurrency,
            "on_stop": on_stop,
            "ready": ready,
            "stop_asked": _stop_asked.is_set,
        }
    )


def stop() -> None:
    """Ask the queue loop to end as after SIGTERM: no new job, running ones first. From any thread."""
    _stop_asked.set()


def _is_guarded() -> bool:
    """Import the SDK with its guards, once, and return whether they fit its version."""
    with _loading:
        return _guarded()


@functools.cache
def _guarded() -> bool:
    if version("runpod") != GUARDED_VERSION:
        return False
    # At import the SDK asks for the name of the processor, for --rp_debugger alone; the answer takes a
    # child process and a second. Source: runpod-python 1.12.0, serverless/utils/rp_debugger.py.
    instant = ModuleType("cpuinfo")
    vars(instant)["get_cpu_info"] = dict
    missing = sys.modules.setdefault("cpuinfo", instant) is instant
    try:
        import rp_guards  # noqa: PLC0415 - see the module's docstring
    finally:
        if missing:
            del sys.modules["cpuinfo"]
    rp_guards.install()
    return True


def _answering(handler: Handler) -> Handler:
    """Return `handler` with an answer for everything that it raises, but for the SDK's own stop.

    SystemExit, KeyboardInterrupt and a CancelledError that nobody sent would end the whole worker, and
    any other exception would be shown to the caller with its traceback.
    Source: runpod-python 1.12.0, rp_job.run_job; asyncio.Task.cancelling tells who cancelled.
    """

    async def answering(job: Job, *emit: Emit) -> Any:
        try:
            answer = await handler(job, *emit)
        except BaseException as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise
            log.exception(f"job {job.get('id')} raised {type(error).__name__}")
            return InternalError(
                "The worker failed unexpectedly.",
                hint=f"The log of job {job.get('id')} has the details.",
            ).as_response()
        # Of an empty object the SDK keeps nothing, and its local API answers 500 for want of it.
        # Source: runpod-python 1.12.0, rp_job.run_job; rp_fastapi.py, _sim_runsync.
        if answer == {}:
            return None
        return _Answer(answer) if isinstance(answer, dict) else answer

    return answering


class _Answer(dict[str, Any]):
    """An answer that is not written out: the SDK has a text made of each, twice, which it logs at DEBUG.

    Source: runpod-python 1.12.0, rp_job.run_job.
    """

    def __repr__(self) -> str:
        return "{…}"


def _streaming(handler: Handler) -> Callable[[Job], AsyncGenerator[Any]]:
    """Return a generator of what `handler` hands out, its answer last, whatever it raises.

    Closed or cancelled before that, it ends when the handler has.
    """
    answering = _answering(handler)

    async def streaming(job: Job) -> AsyncGenerator[Any]:
        loop = asyncio.get_running_loop()
        pieces = asyncio.Queue[Any]()

        def emit(piece: Any) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

        work = asyncio.create_task(answering(job, emit))
        work.add_done_callback(lambda _: pieces.put_nowait(_END))
        try:
            while (piece := await pieces.get()) is not _END:
                yield piece
            yield work.result()
        finally:
            work.cancel()
            while not work.done():  # A second cancel must not free the slot sooner.
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait({work})

    return streaming


_END = object()


class ProgressSender:
    """Sends a job's progress in order, the newest only, and nothing after `close`.

    The SDK's own `progress_update` starts a thread and a connection for each call: updates overtake
    each other, and one that arrives after the result leaves the job IN_PROGRESS for ever.
    Source: runpod-python 1.12.0, rp_progress.py; runpod/runpod-python issue 250.
    """

    def __init__(self, job: Job, *, online: bool) -> None:
        self._job = job
        self._loop = asyncio.get_running_loop()
        self._newest: dict[str, Any] | None = None
        self._news = asyncio.Event()
        self._closed = asyncio.Event()
        guarded = online and _is_guarded()
        self._task = asyncio.create_task(self._send_all()) if guarded else None

    def put(self, progress: dict[str, Any]) -> None:
        """Note `progress` to be sent; from any thread, returns at once."""
        self._loop.call_soon_threadsafe(self._note, progress)

    def _note(self, progress: dict[str, Any]) -> None:
        self._newest = progress
        self._news.set()

    async def close(self) -> None:
        """Stop sending. An update that is on its way has 2 s to arrive, so that the result comes last."""
        self._closed.set()
        self._news.set()
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=LAST_PROGRESS_S)
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _send_all(self) -> None:
        from rp_guards import AsyncClientSession, send_progress  # noqa: PLC0415 - see the docstring

        async with AsyncClientSession() as session:
            while True:
                await self._news.wait()
                if self._closed.is_set():
                    return
                self._news.clear()
                await send_progress(session, self._job["id"], self._newest)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(PROGRESS_EVERY_S):
                        await self._closed.wait()
