"""The one line that says at its end what a job was: what it asked for, what it cost, what became of it."""

import logging
import time
from collections.abc import Mapping
from typing import Any

from schemas.convenience import names_image
from schemas.envelope import GENERATIONS
from schemas.errors import (
    InternalError,
    JobCancelledError,
    JobTimedOutError,
    WorkerError,
    WorkerStoppedError,
)
from schemas.routes import PREFIX
from worker.delivery.output import size_bytes
from worker.log import logs

log = logging.getLogger(__name__)

_OUTCOMES: Mapping[type[WorkerError], str] = {
    JobCancelledError: "cancelled",
    JobTimedOutError: "timed out",
    WorkerStoppedError: "stopped",
}
_OF_A_MODEL = ("kind", "name", "cached", "fetched_bytes", "download_s")
# The others were made of these: grids, masks, maps.
_PICTURES = ("picture", "unknown")
_MAX_ENDPOINT_CHARS = 100


class Summary:
    """What is known of one job so far. `note` and `done` may be called from another thread.

    Args:
        job: as RunPod gives it.
        price_per_s: what a second costs, in any currency; None if nobody said.
    """

    def __init__(self, job: Mapping[str, Any], price_per_s: float | None = None) -> None:
        """Start the job's time."""
        self._start = time.monotonic()
        self._price_per_s = price_per_s
        self._kind, self._endpoint = _asked(job.get("input"))
        self._stage = ""
        self._known: dict[str, Any] = {}
        # Of what nobody foresaw there is no other word.
        self._error: WorkerError | None = InternalError("It ended by no way that is known.")

    def note(self, progress: Mapping[str, Any]) -> None:
        """Note how far the job is, see `schemas.result.Progress`."""
        self._stage = str(progress.get("stage", ""))

    def done(self, answer: Any) -> None:
        """Note the answer. It is measured, so call this where nobody waits for the event loop."""
        self._error = None
        self._known["result_bytes"] = _size(answer)
        is_drawn = self._kind in GENERATIONS and isinstance(answer, Mapping)
        if is_drawn and "timings" in answer:
            output = answer.get("output") or {}
            self._known |= {
                "pictures": sum(kind in _PICTURES for kind in answer["image_kinds"]),
                "delivery": output.get("delivery", "base64"),
                "format": output.get("format"),
                "timings": answer["timings"],
                "models": [
                    {name: model[name] for name in _OF_A_MODEL if name in model}
                    for model in answer["models"]
                ],
            }

    def failed(self, error: WorkerError) -> None:
        """Note what came in place of an answer, whatever there was before."""
        self._error, self._known = error, {}

    def say(self) -> None:
        """Log it."""
        took_s = round(time.monotonic() - self._start, 3)
        outcome, error = "done", self._error
        if error is not None:
            outcome = _OUTCOMES.get(type(error), "failed")
        about: dict[str, Any] = {"kind": self._kind, "outcome": outcome, "took_s": took_s}
        if self._endpoint:
            about["endpoint"] = self._endpoint
        if self._price_per_s is not None:
            about["cost"] = round(took_s * self._price_per_s, 6)
        if error is not None:
            about |= {"code": error.code, "retryable": error.retryable, "stage": self._stage}
        what = f"{self._kind} {self._endpoint}".strip()
        words = f"{what} in {took_s:.1f} s{self._words()}"
        if error is not None:
            code = "" if isinstance(error, JobCancelledError) else f"{error.code}: "
            at = f", {self._stage}" if self._stage else ""
            words = f"{code}{error} ({what}, {took_s:.1f} s{at})"
        is_ours = isinstance(error, WorkerError) and outcome == "failed"
        level = logging.WARNING if is_ours else logging.INFO
        log.log(level, f"{outcome}: {words}", extra=logs.fields("job", **about, **self._known))

    def _words(self) -> str:
        """Return what is known, for people."""
        said: list[str] = []
        if "timings" in self._known:
            parts = [
                f"{name.removesuffix('_s').replace('_', ' ')} {value:.1f}"
                for name, value in self._known["timings"].items()
                if name.endswith("_s") and name not in {"total_s", "images_per_s"} and value
            ]
            count = self._known["pictures"]
            said += [f" ({', '.join(parts)})", f"; {count} picture{'' if count == 1 else 's'}"]
            said.append(f" as {self._known['delivery']}")
        if (size := self._known.get("result_bytes")) is not None:
            said.append(f"; {size / 1e6:.2f} MB" if size >= 1e5 else f"; {size} bytes")
        models = [
            f"{model['name']} ({'cached' if model['cached'] else 'fetched'})"
            for model in self._known.get("models", ())
        ]
        return "".join(said) + (f"; {', '.join(models)}" if models else "")


def _asked(given: Any) -> tuple[str, str]:
    """Return what kind of job `given`, the `input` of one, is, and the endpoint that it calls if any.

    Nothing is checked: this is said of bad jobs, too.
    """
    if not isinstance(given, Mapping):
        return "unknown", ""
    api = given.get("api")
    if api is None:
        return ("img2img" if names_image(given) else "txt2img"), ""
    endpoint = api.get("endpoint") if isinstance(api, Mapping) else None
    if not isinstance(endpoint, str):
        return "unknown", ""
    path = endpoint.partition("?")[0].strip(" /")[:_MAX_ENDPOINT_CHARS]
    if (name := path.removeprefix(PREFIX[1:])) in GENERATIONS:
        return name, ""
    return ("command" if path.startswith("v1/") else "call"), f"/{path}"


def _size(answer: Any) -> int | None:
    try:
        return size_bytes(answer)
    except (TypeError, ValueError):
        return None  # It is not JSON, which whoever sends it finds out, too.
