"""How a caller names a model file. Knows nothing of where files lie."""

import re
from enum import StrEnum
from typing import Annotated, Any, NewType
from urllib.parse import SplitResult, urlsplit

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
PICKLE_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")
"""Of files that run code when they are loaded; taken only where a setting says so."""
SUFFIXES = (SUFFIX, *PICKLE_SUFFIXES)
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


class HashForm(StrEnum):
    """What a hash is of; told from its number of digits."""

    SHA256 = "sha256"
    """64: the SHA-256 of the file."""
    AUTOV2 = "autov2"
    """10: the start of that, Civitai's AutoV2 and the short hash that A1111 shows for a checkpoint."""
    AUTOV3 = "autov3"
    """12: Civitai's AutoV3 and A1111's hash of a LoRA: of what follows the safetensors header."""


# Source: A1111 1.10.1 modules/sd_models.py, CheckpointInfo.__init__ (10 digits), and
# extensions-builtin/Lora/network.py, NetworkOnDisk.set_hash (12 digits);
# civitai/civitai, prisma/schema.full.prisma, enum ModelHashType.
_HASH_FORMS = {64: HashForm.SHA256, 10: HashForm.AUTOV2, 12: HashForm.AUTOV3}

# How a reference to something that is fetched begins; whatever else a bare string is, is a name.
_URL_STARTS = ("https://", "http://", "hf:", "civitai:", "s3://", "urn:air:")


def stem_of(name: str) -> str:
    """Return the name of a file without the one suffix that makes it a model, if it has one."""
    for suffix in SUFFIXES:
        if name.endswith(suffix):
            return name.removesuffix(suffix)
    return name


def hash_form(digest: str) -> HashForm:
    """Return what `digest`, the `hash` of a reference, is the hash of."""
    return _HASH_FORMS[len(digest)]


def _plain_name(name: str) -> str:
    """Accept `name`, `name.safetensors` and `folder/name`; refuse whatever could leave a folder."""
    stem = stem_of(name)
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


def _source_url(url: str) -> str:
    """Accept what names a place on the web; `model_cache.sources` reads it in full."""
    parts = urlsplit(url)
    _require_place(url, parts)
    if parts.username or parts.password:
        raise ValueError("a URL must not carry a user name or password")
    if not url.isprintable() or (" " in url and parts.scheme in {"https", "http"}):
        raise ValueError("a URL must not contain spaces or control characters")
    return url


def _require_place(url: str, parts: SplitResult) -> None:
    if parts.scheme in {"https", "http"}:
        if not parts.hostname:
            raise ValueError("a URL must begin with https:// and name a host")
    elif not url.lower().startswith(_URL_STARTS):
        raise ValueError(
            "a URL must begin with https:// and name a host, or be an hf:, civitai:, s3:// or "
            "urn:air: reference"
        )


def _digest(text: str) -> str:
    """Accept a hash in one of its forms, called by the form's name or not."""
    form, _, plain = text.strip().lower().rpartition(":")
    is_known = re.fullmatch(r"[0-9a-f]*", plain) and len(plain) in _HASH_FORMS
    if is_known and form in {"", hash_form(plain)}:
        return plain
    raise ValueError(
        "a hash must be a SHA-256 (64 hex digits), an AutoV2 or A1111 short hash (10), or an AutoV3 "
        "(12)"
    )


def _blank_is_absent(value: object) -> object:
    return None if isinstance(value, str) and not value.strip() else value


Name = Annotated[str, AfterValidator(_plain_name)]
SourceUrl = Annotated[str, AfterValidator(_source_url)]
Digest = Annotated[str, AfterValidator(_digest)]


class ModelRef(BaseModel):
    """One model as a caller named it: something on the volume (`name`), or a file on the web (`url`).

    With both, `name` is the name that the file gets, and that `<lora:name:…>` says.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    name: Name | None = Field(None, description="File name without suffix.")
    url: Annotated[SourceUrl | None, BeforeValidator(_blank_is_absent)] = Field(
        None,
        description="Where to fetch it from when it is not on the volume: an https:// URL, a page of "
        "Hugging Face or Civitai, `hf:org/repo/path@revision`, `s3://bucket/key`, or an AIR.",
    )
    hash: Annotated[Digest | None, BeforeValidator(_blank_is_absent)] = Field(
        None,
        description="SHA-256 (64 hex digits), AutoV2 (10) or AutoV3 (12) of the file; another file "
        "is refused.",
    )
    refresh: bool = Field(
        False,
        description="Look again at the source of a `url` whose meaning changes: a branch, a model's "
        "page without a version.",
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
        url = self.url or ""
        parts = urlsplit(url)
        if parts.scheme in {"https", "http"}:
            return f"{parts.hostname}{parts.path}"
        return url.partition("?")[0]


class LoraRef(ModelRef):
    """A LoRA and how strongly it applies."""

    kind: Kind = Kind.LORA
    scale: float = Field(1.0, allow_inf_nan=False, description="Weight of the LoRA, as in the tag.")


class Recalled(ModelRef):
    """A model that an infotext names: its `hash` says which it is, its `name` what it was called."""


class RecalledLora(LoraRef, Recalled):
    """A LoRA that a tag in an infotext's prompt names; the tag says how strongly it applies."""


def as_fields(value: Any, kind: Kind) -> Any:
    """Return the mapping that a reference is validated from: a bare string is a name or a URL."""
    if isinstance(value, str):
        key = "url" if value.lower().startswith(_URL_STARTS) else "name"
        return {"kind": kind, key: value}
    if isinstance(value, dict):
        fields = {name: entry for name, entry in value.items() if entry is not None}
        if kind is Kind.LORA and "weight" in fields and "scale" not in fields:
            fields["scale"] = fields.pop("weight")
        return {**fields, "kind": kind}
    if not isinstance(value, ModelRef):
        raise ValueError('a model is a name, a URL, or {"name", "url", "hash"}')  # noqa: TRY004 - pydantic's way
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
    except ValueError as error:
        raise InvalidInputError(f"`{field}`: {error}.", field=field) from None
