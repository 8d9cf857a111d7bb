"""One request to A1111, watched from beside: progress is forwarded, a cancel interrupts it."""

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from threading import Event
from typing import Any

from schemas.errors import BackendError, BackendStalledError, JobCancelledError
from worker.client import WebuiClient

log = logging.getLogger(__name__)

Report = Callable[[dict[str, Any]], None]

LOOK_S = 0.1
POLL_S = 1.0


class Watcher:
    """Sends generations, one at a time; its one thread is kept from job to job."""

    def __init__(self, client: WebuiClient) -> None:
        self._client = client
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="progress")

    def post(
        self,
        route: str,
        body: dict[str, Any],
        *,
        timeout_s: float,
        cancelled: Event,
        report: Report,
    ) -> Any:
        """Send `body` to `route`, wait for the answer and return it.

        Meanwhile A1111's progress is asked at most once a second and passed to `report` as
        `{"stage": "sampling", "percent", "eta_s", "step", "steps"}`. When `cancelled` is set, A1111
        is interrupted until it answers: an interrupted job ends with status 200 and a half-made
        picture (recorded: txt2img_interrupted), which is thrown away.

        Raises:
            JobCancelledError: `cancelled` was set before the answer came.
            WorkerError: see WebuiClient.post.
        """
        done = Event()
        watching = self._thread.submit(_watch, self._client, done, cancelled, report)
        try:
            answer = self._client.post(route, body, timeout_s=timeout_s)
        except BackendStalledError:
            # A1111 does not notice that we hung up, and the next job would queue behind this one.
            _interrupt(self._client)
            raise
        finally:
            done.set()
            wait([watching])
        if cancelled.is_set():
            raise JobCancelledError("The job was cancelled while it was being generated.")
        return answer


def _watch(client: WebuiClient, done: Event, cancelled: Event, report: Report) -> None:
    next_poll = time.monotonic() + POLL_S
    while not done.wait(LOOK_S):
        now = time.monotonic()
        if not cancelled.is_set() and now < next_poll:
            continue
        try:
            if cancelled.is_set():
                # Again and again: an interrupt that comes before the first step is forgotten.
                _interrupt(client)
                done.wait(0.5)
            else:
                next_poll = now + POLL_S
                _poll(client, report)
        except BackendError as error:
            # The request itself tells what became of A1111; a lost poll is not worth more.
            log.debug(f"progress: {error}")


def _interrupt(client: WebuiClient) -> None:
    try:
        client.post("interrupt", timeout_s=2)
    except BackendError as error:
        log.warning(f"A1111 did not take an interrupt: {error}")


def _poll(client: WebuiClient, report: Report) -> None:
    answer = client.get("progress?skip_current_image=true", timeout_s=2)
    state = answer.get("state") or {}
    if not state.get("job"):
        return  # loading a checkpoint looks exactly like idle
    report(
        {
            "stage": "sampling",
            "percent": round(100 * min(1.0, max(0.0, float(answer.get("progress") or 0)))),
            "eta_s": round(float(answer.get("eta_relative") or 0), 1),
            "step": state.get("sampling_step"),
            "steps": state.get("sampling_steps"),
        }
    )
