"""How the pictures of a job are wanted: format, way, and what may be done when they are too large."""

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Format = Literal["png", "jpeg", "webp", "avif"]
Delivery = Literal["auto", "base64", "url", "volume"]
Rung = Literal["upload", "lossless_webp", "volume", "lossy"]
"""One thing that can be done with pictures that are too large to travel inside the answer."""

LADDER: tuple[Rung, ...] = ("upload", "lossless_webp", "volume", "lossy")
MAX_PREFIX_CHARS = 200
_PREFIX = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)*", re.ASCII)


def _as_format(value: object) -> object:
    if not isinstance(value, str):
        return value
    word = value.strip().lower().removeprefix("image/").removeprefix(".")
    return "jpeg" if word == "jpg" else word


def _as_prefix(text: str) -> str:
    text = text.strip("/")
    if text and (len(text) > MAX_PREFIX_CHARS or not _PREFIX.fullmatch(text)):
        raise ValueError(
            f"must be folders of letters, digits, `_`, `-` and `.`, at most {MAX_PREFIX_CHARS} characters"
        )
    return text


def _once(rungs: tuple[Rung, ...]) -> tuple[Rung, ...]:
    if len(set(rungs)) != len(rungs):
        raise ValueError("must name each step once")
    return rungs


PictureFormat = Annotated[Format, BeforeValidator(_as_format)]
Prefix = Annotated[str, AfterValidator(_as_prefix)]
Ladder = Annotated[tuple[Rung, ...], AfterValidator(_once)]
Quality = Annotated[int, Field(ge=1, le=100)]


class Output(BaseModel):
    """The field `output` of a request; what is not given is as the worker's settings say."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: PictureFormat | None = None
    quality: Quality | None = None
    """Of the lossy formats, and of the step `lossy` of the ladder. Unset: A1111's own, 80."""
    lossless: bool | None = None
    """Of `webp` alone: every pixel as A1111 drew it."""
    delivery: Delivery | None = None
    prefix: Prefix = ""
    """Folders in front of the names of what is uploaded, or written to the volume."""
    allow_lossy: bool = False
    """Whether pictures may be encoded with loss so that they arrive."""
    ladder: Ladder | None = None

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.lossless and self.format in {"jpeg", "avif"}:
            raise ValueError(f"`lossless` is of `webp` and `png`; {self.format} always loses some")
        if self.lossless and self.quality is not None and self.format == "webp":
            raise ValueError("`lossless` and `quality` exclude each other")
        if self.lossless is False and self.format == "png":
            raise ValueError("`png` is always lossless")
        return self
