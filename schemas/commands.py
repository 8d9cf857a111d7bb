"""What can be asked below /v1/ besides pictures: names, and the shape of what each takes.

    {"api": {"method": "GET", "endpoint": "/v1/health"}}
    {"api": {"method": "POST", "endpoint": "/v1/prefetch"}, "payload": {"models": ["lora hf:…"]}}

docs/commands.md shows a request and an answer of each.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    model_validator,
)

from schemas import model_list
from schemas.errors import InvalidInputError
from schemas.model_ref import Digest, Kind, ModelRef, Name, SourceUrl, as_fields

MAX_MODELS = 500
"""That one command fetches."""
_REPOSITORY = r"^((datasets|spaces)/)?[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*$"
# Source: git-check-ref-format.
# As in git: no two dots after one another, so that a URL keeps its shape.
_REVISION = r"^\.?[^\s\\?*:~^\[\x00-\x1f\x7f.]+(\.[^\s\\?*:~^\[\x00-\x1f\x7f.]+)*$"
_MAX_CHARS = 2000


def _repository(text: str) -> str:
    if re.fullmatch(_REPOSITORY, text) is None:
        raise ValueError("must be `org/name`, after `datasets/` or `spaces/` for those")
    return text


def _revision(text: str) -> str:
    if re.fullmatch(_REVISION, text) is None:
        raise ValueError("must be a branch, a tag or a commit, as git allows them")
    return text


def _refusal(field: str, said: str) -> InvalidInputError:
    """Return the refusal of fields that do not go together: pydantic would name none of them."""
    return InvalidInputError(f"`{field}` {said}.", field=field)


class Payload(BaseModel):
    """What a command takes; a field that it does not know is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Nothing(Payload):
    """A command that takes nothing."""


class Asking(Payload):
    """A command that asks model hosts."""

    tokens: dict[Literal["civitai", "huggingface"], SecretStr] = Field(
        default_factory=dict, description="For this command only; sent to those hosts only."
    )

    @property
    def secrets(self) -> dict[str, str]:
        """The tokens by host, readable."""
        return {host: secret.get_secret_value() for host, secret in self.tokens.items()}


class Fetching(Asking):
    """A command that fetches; its limits never raise those of the settings."""

    max_download_gb: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="Most that it may fetch, in GB (10^9 bytes)."
    )
    max_download_s: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="Longest that it may fetch, in seconds."
    )


class Download(Fetching):
    """One model, in the words of the older workers, or in ours."""

    source_url: SourceUrl | None = Field(None, description="With `download_path`: where it is.")
    download_path: str | None = Field(
        None,
        max_length=_MAX_CHARS,
        description="A file or folder below one of the folders of models, which tells the kind.",
    )
    kind: Kind | None = None
    ref: str | None = Field(
        None, max_length=_MAX_CHARS, description="Any reference: a URL, `hf:…`, an AIR, an alias."
    )
    url: SourceUrl | None = None
    name: Name | None = Field(None, description="What the file shall be called.")
    hash: Digest | None = Field(None, description="Another file is refused.")
    refresh: bool = Field(False, description="Ask again what a branch or a page means today.")

    @model_validator(mode="after")
    def _is_one_form(self) -> "Download":
        ours = [name for name in ("kind", "ref", "url", "name") if getattr(self, name) is not None]
        older = {"source_url": self.source_url, "download_path": self.download_path}
        missing = [name for name, value in older.items() if value is None]
        if len(missing) == 1:
            raise _refusal(missing[0], "belongs to the other of the two, and is not given")
        if not missing and ours:
            raise _refusal(ours[0], "is told by `source_url` and `download_path` already")
        if missing and self.kind is None:
            raise _refusal("kind", "is not given, nor are `source_url` and `download_path`")
        if missing and (self.ref is None) == (self.url is None):
            raise _refusal("url", "or `ref` has to be given, and not both")
        return self


class Sync(Fetching):
    """The models of a Hugging Face repository."""

    repo_id: Annotated[str, Field(max_length=200), AfterValidator(_repository)] = Field(
        description="`org/name`.", json_schema_extra={"pattern": _REPOSITORY}
    )
    sync_path: str = Field(
        max_length=_MAX_CHARS,
        description="The folder below which its folders are meant to lie, as in "
        "`/runpod-volume/models`: folder by folder that tells the kinds.",
    )
    hf_token: SecretStr | None = Field(None, description="The same as `tokens.huggingface`.")
    revision: Annotated[str, Field(max_length=200), AfterValidator(_revision)] = Field(
        "main",
        description="A branch, a tag or a commit.",
        json_schema_extra={"pattern": _REVISION},
    )
    allow_patterns: list[Annotated[str, Field(min_length=1, max_length=200)]] | None = Field(
        None,
        max_length=100,
        description="Only files whose path fits one of these, as in `loras/*`; also those that lie "
        "in no folder.",
    )

    @property
    def secrets(self) -> dict[str, str]:
        """The tokens by host, readable."""
        own = {"huggingface": self.hf_token.get_secret_value()} if self.hf_token else {}
        return {**super().secrets, **own}


class Wanted(ModelRef):
    """A model by its reference, with `ref` for any spelling of one."""

    ref: str | None = Field(
        None, max_length=_MAX_CHARS, description="Any reference: a URL, `hf:…`, an AIR, a name."
    )

    @model_validator(mode="before")
    @classmethod
    def _with_ref(cls, value: Any) -> Any:
        if not isinstance(value, dict) or not isinstance(value.get("ref"), str):
            return value
        meant = as_fields(value["ref"], Kind.CHECKPOINT)
        del meant["kind"]
        twice = sorted({"name", "url"} & meant.keys() & value.keys())
        if twice:
            raise ValueError(f"`ref` says already what `{twice[0]}` says")
        return {**meant, **value}


def _of_line(value: Any) -> Any:
    """Accept a line of a list of models, as in `lora hf:org/repo/x.safetensors name=x`."""
    if not isinstance(value, str | dict):
        raise ValueError("must be an object, or a line `KIND REFERENCE`")  # noqa: TRY004 - pydantic's
    if isinstance(value, dict):
        return value
    try:
        refs = model_list.parse(value)
    except InvalidInputError as error:
        raise ValueError(f"{error} {error.hint}".rstrip(" .")) from None
    if len(refs) != 1:
        raise ValueError("a line must be `KIND REFERENCE`")
    return refs[0].model_dump()


class Prefetch(Fetching):
    """Models to have on the volume."""

    models: list[
        Annotated[Wanted, BeforeValidator(_of_line, json_schema_input_type=Wanted | str)]
    ] = Field(min_length=1, max_length=MAX_MODELS)


def _kind_or_all(value: Any) -> Any:
    """Refuse what is neither in words of our own: pydantic's would name two fields, and none of ours."""
    if value not in (*Kind, "all"):
        raise ValueError(f"must be `all`, or one of {', '.join(Kind)}")
    return value


class Models(Payload):
    """Models to list."""

    kind: Annotated[
        Kind | Literal["all"],
        BeforeValidator(_kind_or_all, json_schema_input_type=Kind | Literal["all"]),
    ] = Kind.CHECKPOINT


class Verify(Payload):
    """Files to check: all of them, all of a kind, or one."""

    kind: Kind | None = None
    name: str | None = Field(None, min_length=1, max_length=_MAX_CHARS)
    all: bool = Field(
        False, description="Hash the files again; a `name` is always. Else size, time and header."
    )


class Prune(Payload):
    """Room to make."""

    to_gb: float | None = Field(
        None,
        ge=0,
        le=1e9,
        description="What all models may take, in GB (10^9 bytes); else A1111_CACHE_BUDGET_GB.",
    )
    dry_run: bool = Field(False, description="Only tell what would go.")


class Civitai(Asking):
    """A model on Civitai: exactly one of the three."""

    url: SourceUrl | None = Field(None, description="A page or download of Civitai.")
    air: SourceUrl | None = Field(None, description="As in `urn:air:sdxl:lora:civitai:1@2`.")
    hash: Digest | None = Field(None, description="SHA-256, AutoV2 or AutoV3 of one of its files.")

    @model_validator(mode="after")
    def _is_one(self) -> "Civitai":
        if [self.url, self.air, self.hash].count(None) != 2:
            raise _refusal("url", "or `air` or `hash` has to be given, and only one of them")
        return self


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Names = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=_MAX_CHARS)]],
    BeforeValidator(_as_list, json_schema_input_type=list[str] | str),
]


class Compatibility(Payload):
    """Checkpoints and LoRAs to hold against each other: all, or those that are named."""

    model: Names | None = Field(None, min_length=1, max_length=MAX_MODELS)
    lora: Names | None = Field(None, min_length=1, max_length=MAX_MODELS)


class Schema(Payload):
    """Inputs to describe."""

    name: str | None = Field(
        None, max_length=_MAX_CHARS, description="One input alone, as in `txt2img` or `/v1/prune`."
    )


@dataclass(frozen=True)
class Command:
    """A command to do: no generation."""

    name: str
    """As in `COMMANDS`, without /v1/."""
    payload: Payload


COMMANDS: Mapping[str, type[Payload]] = {
    "health": Nothing,
    "download": Download,
    "sync": Sync,
    "prefetch": Prefetch,
    "models": Models,
    "models/aliases": Nothing,
    "loras": Nothing,
    "upscalers": Nothing,
    "sampling-methods": Nothing,
    "sampling_methods": Nothing,
    "cache": Nothing,
    "verify": Verify,
    "prune": Prune,
    "civitai": Civitai,
    "compatibility": Compatibility,
    "schema": Schema,
}
