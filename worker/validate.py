"""Reads a request as the worker would, without a network, A1111 or models.

What needs those is not looked at: names of models, samplers and the like, and pictures given by URL.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from schemas.commands import Command
from schemas.errors import InvalidInputError
from schemas.request import Request, parse
from schemas.routes import Call
from schemas.settings import JobSettings
from worker.api.callcheck import pictures_in
from worker.generation import inputs, payload
from worker.pictures import images

_SHOWN_CHARS = 200
"""Of one value; a picture has millions."""


@dataclass(frozen=True)
class Verdict:
    """What a request means, or what is wrong with it."""

    calls: str = ""
    """Method and path; empty for a request that cannot be."""
    means: Any = None
    """What was given, under our names and as our types; secrets as asterisks."""
    warnings: tuple[str, ...] = ()
    problems: tuple[Mapping[str, str], ...] = ()
    """Each with its `field` and a `message`."""

    def as_json(self) -> str:
        """Return it for programs."""
        about = {"calls": self.calls, "means": self.means, "warnings": self.warnings}
        told = {"problems": self.problems} if self.problems else about
        return json.dumps({"valid": not self.problems, **told}, ensure_ascii=False)

    def lines(self) -> Iterator[str]:
        """Yield it for people."""
        for problem in self.problems:
            field, message = problem["field"], problem["message"]
            yield message if f"`{field}`" in message else f"{field}: {message}"
        if self.problems:
            return
        yield self.calls
        fields = self.means if isinstance(self.means, dict) else {"payload": self.means}
        for name, value in fields.items():
            text = json.dumps(value, ensure_ascii=False)
            more = len(text) - _SHOWN_CHARS
            end = f"… and {more} characters" if more > 0 else ""
            yield f"  {name}: {text[:_SHOWN_CHARS]}{end}"
        for warning in self.warnings:
            yield f"warning: {warning}"


def judged(text: str | bytes, limits: JobSettings) -> Verdict:
    """Return what the worker would make of `text`, a job as it is posted: `{"input": {…}}`."""
    try:
        job = json.loads(text)
    except (ValueError, RecursionError) as error:
        return _refused("the file", f"It is no JSON: {error}.")
    if not isinstance(job, dict) or "input" not in job:
        return _refused("input", 'A job is posted as {"input": {…}}.')
    try:
        request = parse(job["input"], limits)
    except InvalidInputError as error:
        found = error.details.get("problems") or [
            {"field": error.details["field"], "message": f"{error} {error.hint}".strip()}
        ]
        return Verdict(problems=tuple(found))
    calls, means, pictures = _read(request)
    broken = tuple(_broken(pictures, limits.max_input_pixels))
    return Verdict(calls, means, request.warnings, broken)


def _refused(field: str, message: str) -> Verdict:
    return Verdict(problems=({"field": field, "message": message},))


def _read(request: Request) -> tuple[str, Any, Mapping[str, object]]:
    """Return what a request calls, with what, and the pictures in it."""
    job = request.job
    if isinstance(job, Call):
        pictures = dict(pictures_in(job.route, job.payload))
        return f"{job.route.method} {job.route.path}", job.payload, pictures
    if isinstance(job, Command):
        return f"/v1/{job.name}", job.payload.model_dump(mode="json", exclude_unset=True), {}
    means = job.model_dump(mode="json", exclude_unset=True)
    return f"POST /sdapi/v1/{payload.route(job)}", means, inputs.pictures(job)


def _broken(pictures: Mapping[str, object], max_pixels: int) -> Iterator[dict[str, str]]:
    for field, text in pictures.items():
        if isinstance(text, str) and text and not images.is_url(text):
            try:
                images.image(text, field, max_pixels)
            except InvalidInputError as error:
                yield {"field": field, "message": f"{error} {error.hint}".strip()}
