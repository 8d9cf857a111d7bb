"""`parse`, where only a generation is expected."""

from dataclasses import dataclass

from schemas import request
from schemas.job import Img2Img, Job, Txt2Img
from schemas.settings import JobSettings


@dataclass(frozen=True)
class Parsed:
    """A `Request` whose job is a generation."""

    job: Job
    warnings: tuple[str, ...]


def parse(value: object, limits: JobSettings) -> Parsed:
    """Return what a job's `input` asks for; see `schemas.request.parse`."""
    read = request.parse(value, limits)
    assert isinstance(read.job, Txt2Img | Img2Img)
    return Parsed(read.job, read.warnings)
