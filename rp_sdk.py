"""What the RunPod SDK needs put right. Knows its internals, and nothing of jobs.

`runpod` is imported inside functions: the import costs over a second (cpuinfo sleeps one), which
hides behind the start of A1111.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

log = logging.getLogger(__name__)

Job = dict[str, Any]
Handler = Callable[[Job], Coroutine[Any, Any, dict[str, Any]]]

INTERVAL_S = 1.0


def serve(handler: Handler) -> None:
    """Hand `handler` to the SDK: queue loop, local test or local API, as flags and environment say.

    Source: runpod-python 1.12.0, serverless/__init__.py, start.
    """
    import runpod  # noqa: PLC0415 - see the module's docstring

    runpod.serverless.start({"handler": handler})


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
        self._task = asyncio.create_task(self._send_all()) if online else None

    def put(self, progress: dict[str, Any]) -> None:
        """Note `progress` to be sent; from any thread, returns at once."""
        self._loop.call_soon_threadsafe(self._note, progress)

    def _note(self, progress: dict[str, Any]) -> None:
        self._newest = progress
        self._news.set()

    async def close(self) -> None:
        """Stop sending; an update that is on its way is ended first."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _send_all(self) -> None:
        from runpod.http_client import AsyncClientSession  # noqa: PLC0415 - see the docstring
        from runpod.serverless.modules import rp_progress  # noqa: PLC0415

        async with AsyncClientSession() as session:
            while True:
                await self._news.wait()
                self._news.clear()
                progress, self._newest = self._newest, None
                await rp_progress._async_progress_update(session, self._job, progress)  # noqa: SLF001 - the public one is unordered
                await asyncio.sleep(INTERVAL_S)
