"""How a caller names a model file. Knows nothing of where files lie."""

import re
from enum import StrEnum
from typing import Annotated, Any, NewType
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from schemas.errors import InvalidInputError

Sha256 = NewType("Sha256", str)
"""64 lower-case hex digits."""

SUFFIX = ".safetensors"
MAX_NAME_BYTES = 150  # 255 is the file system's limit; suffixes and temporary names need room


class Kind(StrEnum):
    """What a model file is for, in the caller's words."""

    CHECKPOINT = "checkpoint"
    LORA = "lora"
    EMBEDDING = "embedding"
    VAE = "vae"
    CONTROLNET = "controlnet"
    UPSCALER = "upscaler"
    HYPERNETWORK = "hypernetwork"


def _plain_name(name: str) -> str:
    """Accept `name`, `name.safetensors` and `folder/name`; refuse whatever could leave a folder."""
    stem = name.removesuffix(SUFFIX)
    parts = stem.split("/")
    if not stem.strip():
        raise ValueError("a name must not be empty")
    if any(part in {"", ".", ".."} or part.startswith(".") for part in parts) or "\\" in stem:
        raise ValueError(
            "a name must not contain '..', a backslash, or a part that starts with '.'"
        )
    if not stem.isprintable():
        raise ValueError("a name must not contain control characters")
    if len(stem.encode()) > MAX_NAME_BYTES:
        raise ValueError(f"a name must not be longer than {MAX_NAME_BYTES} bytes")
    return stem


def _web_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in {"https", "http"} or not parts.hostname:
        raise ValueError("a URL must begin with https:// and name a host")
    if parts.username or parts.password:
        raise ValueError("a URL must not carry a user name or password")
    if not url.isprintable() or " " in url:
        raise ValueError("a URL must not contain spaces or control characters")
    return url


def _sha256(digest: str) -> str:
    plain = digest.strip().lower().removeprefix("sha256:")
    if not re.fullmatch(r"[0-9a-f]{64}", plain):
        raise ValueError("a hash must be a SHA-256: 64 hex digits")
    return plain


def _blank_is_absent(value: object) -> object:
    return None if isinstance(value, str) and not value.strip() else value


Name = Annotated[str, AfterValidator(_plain_name)]
WebUrl = Annotated[str, AfterValidator(_web_url)]
Digest = Annotated[str, AfterValidator(_sha256)]


class ModelRef(BaseModel):
    """One model as a caller named it: something on the volume (`name`), or a file on the web (`url`).

    With both, `name` is the name that the file gets, and that `<lora:name:…>` says.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    name: Name | None = Field(None, description="File name without suffix.")
    url: Annotated[WebUrl | None, BeforeValidator(_blank_is_absent)] = Field(
        None, description="Where to fetch it from when it is not on the volume."
    )
    hash: Annotated[Digest | None, BeforeValidator(_blank_is_absent)] = Field(
        None, description="SHA-256 of the whole file; anything else is refused."
    )

    @model_validator(mode="after")
    def _names_something(self) -> "ModelRef":
        if self.name is None and self.url is None:
            raise ValueError("a model needs a name, a url, or both")
        if self.url is not None and self.name is not None and "/" in self.name:
            raise ValueError("a name for a fetched file must not contain '/'")
        return self

    @property
    def label(self) -> str:
        """What to call it in messages; never the URL's query, which may hold a token."""
        if self.name is not None:
            return self.name
        parts = urlsplit(self.url or "")
        return f"{parts.hostname}{parts.path}"


class LoraRef(ModelRef):
    """A LoRA and how strongly it applies."""

    kind: Kind = Kind.LORA
    scale: float = Field(1.0, allow_inf_nan=False, description="Weight of the LoRA, as in the tag.")


def as_fields(value: Any, kind: Kind) -> Any:
    """Return the mapping that a reference is validated from: a bare string is a name or a URL."""
    if isinstance(value, str):
        key = "url" if value.startswith(("https://", "http://")) else "name"
        return {"kind": kind, key: value}
    if isinstance(value, dict):
        fields = {name: entry for name, entry in value.items() if entry is not None}
        if kind is Kind.LORA and "weight" in fields and "scale" not in fields:
            fields["scale"] = fields.pop("weight")
        return {**fields, "kind": kind}
    return value


def parse_ref(value: Any, kind: Kind, field: str) -> ModelRef:
    """Return the reference that `value`, a string or a mapping, stands for.

    Raises:
        InvalidInputError: it stands for none; `details["field"]` is `field`.
    """
    try:
        return ModelRef.model_validate(as_fields(value, kind))
    except ValidationError as error:
        message = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
        raise InvalidInputError(f"`{field}`: {message}.", field=field) from None
