"""One request to A1111, watched: progress is told, a stall is noticed, a cancel interrupts.

A1111 has no time limit of its own and does not notice when a caller hangs up: a request is never left
behind, or the next one would queue up after it. So a request ends in one of three ways: A1111 answers;
it answers after an interrupt, and what it made is thrown away; or it is given up, which is to end the
process. Source: observed at A1111 1.10.1, "No server-side timeout; client disconnect does NOT stop the
job"; recorded: txt2img_interrupted.
"""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Event, Thread
from typing import Any

from schemas.errors import (
    BackendCrashedError,
    BackendFailedError,
    BackendStalledError,
    JobCancelledError,
    WorkerError,
)
from worker.child.client import WebuiClient
from worker.pictures.images import small_jpeg

log = logging.getLogger(__name__)

Report = Callable[[dict[str, Any]], None]

LOOK_S = 0.1
POLL_S = 1.0
_LOAD_POLL_S = 0.2
"""How often it is asked whether a load is over, so that the time of it is known."""
_INTERRUPT_EVERY_S = 0.5
_ASK_S = 2.0
# The connection breaks with the process; a process of its own may hold it open, though.
_GONE_S = 0.5
# After the process was killed, until its connection breaks.
_BROKEN_S = 10.0


@dataclass(frozen=True)
class Patience:
    """How long a request may take, in seconds."""

    total_s: float
    """From its start to its answer."""
    stall_s: float
    """Without any change of what A1111 says of it."""
    load_s: float
    """The same, besides, until the first step: A1111 says nothing of a checkpoint that it loads."""
    reload_s: float
    """The same, besides, from then on: a refiner is loaded in the midst of a job."""
    stop_s: float
    """To stop after an interrupt."""


@dataclass(frozen=True)
class Attendants:
    """Whoever has a say while a request runs."""

    cancelled: Event
    """The caller does not want the answer any more."""
    report: Report
    """Gets the progress; see `schemas.result.Progress`."""
    has_ended: Callable[[], bool] = lambda: False
    """Whether A1111's process is gone."""
    give_up: Callable[[str], None] = lambda _: None
    """Ends A1111's process, which breaks the connection; is told why, returns at once."""
    previews: bool = False
    """Whether the progress holds a small picture."""
    loads: str = ""
    """What is loaded before the first step, for people."""
    on_sampling: Callable[[], None] | None = None
    """Called once, when A1111 is first seen to sample; None where it has nothing to load before that."""
    draws: bool = True
    """Whether the request begins by clearing the flag that an interrupt sets, and ends early by it."""


@dataclass
class _Request:
    """A request on a thread of its own, and what came of it."""

    done: Event = field(default_factory=Event)
    answer: Any = None
    error: Exception | None = None

    def run(self, post: Callable[[], Any]) -> None:
        try:
            self.answer = post()
        except Exception as error:  # noqa: BLE001 - raised by whoever waits for it
            self.error = error
        self.done.set()


@dataclass
class _Signs:
    """What A1111 showed of a request last, and when that changed."""

    since: float
    seen: tuple[object, ...] | None = None
    is_sampling: bool = False
    has_sampled: bool = False

    def note(self, state: dict[str, Any]) -> None:
        """Take what /progress says."""
        names = ("job", "job_no", "job_count", "sampling_step", "sampling_steps", "job_timestamp")
        shown = tuple(state.get(name) for name in names)
        if shown != self.seen:
            self.seen, self.since = shown, time.monotonic()
        self.is_sampling = bool(state.get("job")) and not _is_preparing(state)
        self.has_sampled |= self.is_sampling


@dataclass
class _Ending:
    """A request that is to end: why, and until when it may take."""

    error: WorkerError
    deadline: float
    interrupt_at: float = 0.0


class Watcher:
    """Sends requests to one A1111, one at a time."""

    def __init__(self, client: WebuiClient) -> None:
        self._client = client
        self._has_interrupted = False

    def post(self, route: str, body: Any, patience: Patience, attendants: Attendants) -> Any:
        """Send `body` to `route`, wait for the answer and return it.

        Meanwhile A1111's progress is asked at most once a second.

        Raises:
            JobCancelledError: `cancelled` was set before the answer came.
            BackendStalledError: nothing changed for too long, or it took too long altogether.
            WorkerError: see WebuiClient.post.
        """
        request = _Request()

        def post() -> Any:
            return self._client.post(route, body, timeout_s=None)

        Thread(target=request.run, args=(post,), name="request", daemon=True).start()
        ending = self._attend(request, patience, attendants)
        if ending is not None:
            # What A1111 answered in the end tells what state it is in.
            raise ending from request.error
        if request.error is not None:
            raise request.error
        if self._has_interrupted and attendants.draws:
            self._require_whole()
        return request.answer

    def _attend(
        self, request: _Request, patience: Patience, attendants: Attendants
    ) -> WorkerError | None:
        """Return when the request is over: None, or why its answer is not wanted."""
        start = time.monotonic()
        signs, ending = _Signs(start), None
        next_poll = start + _wait_s(signs, attendants)
        while not request.done.wait(LOOK_S):
            now = time.monotonic()
            if attendants.has_ended() and not request.done.wait(_GONE_S):
                return BackendCrashedError("A1111's process ended.")
            if ending is None and now >= next_poll:
                self._poll(signs, attendants)
                next_poll = now + _wait_s(signs, attendants)
            ending = ending or self._due(now - start, now, signs, patience, attendants)
            if ending is None:
                continue
            if now > ending.deadline:
                attendants.give_up("it did not stop when it was interrupted")
                request.done.wait(_BROKEN_S)
                return ending.error
            if now >= ending.interrupt_at:
                # Again and again: an interrupt that comes before the first step is forgotten.
                ending.interrupt_at = now + _INTERRUPT_EVERY_S
                self._interrupt()
        if ending is None and attendants.cancelled.is_set():
            ending = _Ending(_cancelled(), 0)
        return ending.error if ending is not None else None

    def _due(
        self,
        passed_s: float,
        now: float,
        signs: _Signs,
        patience: Patience,
        attendants: Attendants,
    ) -> _Ending | None:
        """Return how the request is to end now, None if it may go on."""
        load_s = patience.reload_s if signs.is_sampling else patience.load_s
        still_s = now - signs.since
        left_s = max(0.0, load_s - still_s)
        if attendants.cancelled.is_set():
            # While a checkpoint is loaded nothing can stop it; the next job may well want it.
            return _Ending(_cancelled(), now + patience.stop_s + left_s)
        if passed_s > patience.total_s:
            error = BackendStalledError(
                f"A1111 gave no answer in {patience.total_s:g} s.",
                hint="Ask for less, or raise A1111_WEBUI_JOB_TIMEOUT_S.",
            )
            return _Ending(error, now + patience.stop_s + left_s)
        if still_s > patience.stall_s + load_s:
            error = BackendStalledError(
                f"A1111 showed no change for {still_s:.0f} s, in the midst of the job.",
                hint="Try again; A1111_WEBUI_STALL_S and A1111_WEBUI_LOAD_MB_S say how long it may.",
            )
            return _Ending(error, now + patience.stop_s)
        return None

    def _poll(self, signs: _Signs, attendants: Attendants) -> None:
        skip = "false" if attendants.previews else "true"
        try:
            answer = self._client.get(f"progress?skip_current_image={skip}", timeout_s=_ASK_S)
        except WorkerError as error:
            log.debug(f"progress: {error}")  # The request itself tells what became of A1111.
            return
        state = answer.get("state") if isinstance(answer, dict) else None
        if not isinstance(state, dict):
            return
        had_sampled = signs.has_sampled
        signs.note(state)
        if signs.has_sampled and not had_sampled and attendants.on_sampling is not None:
            attendants.on_sampling()
        if signs.is_sampling:
            attendants.report(_sampling(answer, state, previews=attendants.previews))
        elif signs.has_sampled:
            attendants.report({"stage": "encoding", "percent": 100})
        else:
            # While it loads a checkpoint, A1111 says what it says when idle.
            attendants.report({"stage": "loading", "percent": 0, "detail": attendants.loads})

    def _interrupt(self) -> None:
        self._has_interrupted = True
        try:
            self._client.post("interrupt", timeout_s=_ASK_S)
        except WorkerError as error:
            log.warning(f"A1111 did not take an interrupt: {error}")

    def _require_whole(self) -> None:
        """Raise if the picture is half made: a late interrupt of ours, or somebody else's.

        A1111 keeps the flag until the next job begins, and the picture does not show it.
        """
        state = self._client.get("progress?skip_current_image=true").get("state") or {}
        if state.get("interrupted"):
            raise BackendFailedError(
                "A1111 was interrupted while it made the picture; it is withheld.",
                hint="Send the job again.",
            )
        self._has_interrupted = False


def _is_preparing(state: dict[str, Any]) -> bool:
    """Return whether a picture is begun and its checkpoint is still on its way.

    Source: A1111 1.10.1, modules/shared_state.py, begin sets `job_count` to -1; modules/processing.py,
    process_images loads what the overrides name before process_images_inner counts.
    """
    return str(state.get("job")).startswith("scripts_") and state.get("job_count") == -1


def _wait_s(signs: _Signs, attendants: Attendants) -> float:
    """Return how long to wait until A1111's progress is asked again."""
    is_loading = attendants.on_sampling is not None and not signs.has_sampled
    return _LOAD_POLL_S if is_loading else POLL_S


def _cancelled() -> JobCancelledError:
    return JobCancelledError("The job was cancelled while it was being generated.")


def _sampling(answer: dict[str, Any], state: dict[str, Any], *, previews: bool) -> dict[str, Any]:
    """Return what callers are told; see `schemas.result.Progress`."""
    number, count = round(_number(state.get("job_no"))) + 1, round(_number(state.get("job_count")))
    told = {
        "stage": "sampling",
        "percent": round(100 * min(1.0, max(0.0, _number(answer.get("progress"))))),
        "eta_s": round(_number(answer.get("eta_relative")), 1),
        "step": state.get("sampling_step"),
        "steps": state.get("sampling_steps"),
        "detail": f"{number} of {count}" if count > 1 else "",
    }
    preview = small_jpeg(answer.get("current_image")) if previews else None
    return told | ({"preview": preview} if preview else {})


def _number(value: object) -> float:
    """Return a number of A1111's, 0 for anything else: progress is worth no failure."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else 0.0
