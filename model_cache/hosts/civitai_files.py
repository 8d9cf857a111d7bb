"""What Civitai's API says of a version and its files, and which of them is meant. Pure.

The answers are a stranger's: whatever is missing or of another type counts as not said.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from schemas.errors import (
    ModelAccessDeniedError,
    ModelIncompatibleError,
    ModelNotFoundError,
    ModelUnsafeError,
    shown,
)
from schemas.model_ref import SUFFIX, SUFFIXES, Kind

TRAITS = ("type", "format", "size", "fp", "quantType")
"""What the download's query can ask for. Source: file.service.ts, getFileForModelVersion."""

# Source: civitai/civitai, prisma/schema.full.prisma, enum ModelType. Others may hold anything.
_KINDS = {
    "checkpoint": Kind.CHECKPOINT,
    "lora": Kind.LORA,
    "locon": Kind.LORA,
    "dora": Kind.LORA,
    "textualinversion": Kind.EMBEDDING,
    "hypernetwork": Kind.HYPERNETWORK,
    "vae": Kind.VAE,
    "controlnet": Kind.CONTROLNET,
    "upscaler": Kind.UPSCALER,
}
_MAIN_TYPES = frozenset({"model", "pruned model"})
_VAE = "vae"
_CLEAN = "Success"
_DANGER = "Danger"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MOST_LISTED = 12


@dataclass(frozen=True)
class Choice:
    """Which file of a version is meant; the empty one leaves it to us."""

    file: int | None = None
    traits: tuple[tuple[str, str], ...] = ()
    """In order of name; told apart without regard to case."""

    @classmethod
    def of_query(cls, query: Mapping[str, str]) -> "Choice":
        """Return what a URL's query chooses. A file's number says all, so nothing else is kept."""
        if re.fullmatch(r"[1-9][0-9]{0,9}", query.get("fileId", "")):
            return cls(file=int(query["fileId"]))
        return cls(traits=tuple((name, query[name]) for name in sorted(TRAITS) if query.get(name)))

    @property
    def key(self) -> str:
        """The tail of a source key; empty for the empty choice."""
        if self.file is not None:
            return f":file:{self.file}"
        low = [(name, value.lower()) for name, value in self.traits]
        return f"?{urlencode(low)}" if low else ""

    @property
    def query(self) -> dict[str, str]:
        """The query of the download that leaves the choice to Civitai."""
        return {"fileId": str(self.file)} if self.file is not None else dict(self.traits)


@dataclass(frozen=True)
class File:
    """One file of a version."""

    id: int
    name: str
    """Hostile text."""
    traits: Mapping[str, str]
    """In lower case."""
    primary: bool
    sha256: str | None
    scans: tuple[str, str]
    """Of pickles and of viruses: `Success`, `Danger`, `Pending`, `Error`, or empty."""
    query: Mapping[str, str]
    """Of the download of this very file."""

    @property
    def is_pickle(self) -> bool:
        """Whether loading it may run code."""
        return not self.name.lower().endswith(SUFFIX)


@dataclass(frozen=True)
class Version:
    """One version of a model."""

    id: int
    type: str
    """Of the model: `LORA`, `Checkpoint`, …"""
    mode: str
    """`Archived`, `TakenDown`, or empty."""
    usage: str
    """`Download`, or what else its creator lets people do with it."""
    early_access_ends: datetime | None
    files: tuple[File, ...]


def version(fields: Mapping[str, Any], id_: int) -> Version:
    """Return the version with the number `id_`, as an answer describes it."""
    model = fields.get("model")
    about = model if isinstance(model, dict) else {}
    type_ = _text(about, "type")
    files = fields.get("files")
    return Version(
        id=id_,
        type=type_,
        mode=_text(about, "mode"),
        usage=_text(fields, "usageControl") or "Download",
        early_access_ends=_moment(_text(fields, "earlyAccessEndsAt")),
        files=tuple(_files(files if isinstance(files, list) else [], type_)),
    )


def choose(version: Version, choice: Choice, kind: Kind) -> File:
    """Return the file that is meant: among those that fit safetensors first, then the primary one.

    Raises:
        ModelNotFoundError: none fits; the hint lists what there is.
    """
    fitting = list(_fitting(version, choice, kind))
    if fitting:
        return min(fitting, key=lambda file: (file.is_pickle, not file.primary))
    listed = "; ".join(_described(file) for file in version.files[:_MOST_LISTED])
    raise ModelNotFoundError(
        f"Version {version.id} on Civitai has no file that fits.",
        hint=f"Choose one by its fileId: {listed}." if listed else "It has no files for download.",
        field="url",
    )


def require_open(version: Version, *, has_token: bool) -> None:
    """Raise if nobody, or nobody without an account, may download the version.

    With a token only the download itself tells: its account may have bought early access.

    Raises:
        ModelNotFoundError: the model was archived or taken down.
        ModelAccessDeniedError: it is in early access, or for generation on Civitai alone.
    """
    if version.mode in {"Archived", "TakenDown"}:
        how = "archived by its creator" if version.mode == "Archived" else "taken down"
        raise ModelNotFoundError(
            f"The model of version {version.id} was {how}: Civitai no longer gives it out.",
            hint="Use another source, or put the file on the volume.",
            field="url",
        )
    if version.usage != "Download":
        raise ModelAccessDeniedError(
            f"The creator of version {version.id} offers it for generation on Civitai only.",
            hint="Use another model, or put a file that you may use on the volume.",
        )
    ends = version.early_access_ends
    if ends is not None and ends > datetime.now(UTC) and not has_token:
        raise ModelAccessDeniedError(
            f"Version {version.id} is in early access until {ends:%Y-%m-%d %H:%M} UTC.",
            hint="Set CIVITAI_TOKEN on the endpoint, or send `tokens.civitai` with the request, of "
            "an account that has bought it; or wait.",
        )


def require_kind(version: Version, file: File, kind: Kind) -> None:
    """Raise if Civitai says that the file is a model of another kind.

    Raises:
        ModelIncompatibleError: it does.
    """
    told = kind_of(version.type, file.traits.get("type", ""))
    if told is not None and told is not kind:
        raise ModelIncompatibleError(
            f"Version {version.id} on Civitai is a {told}, and was asked for as a {kind}.",
            hint=f"Ask for it as a {told}.",
        )


def kind_of(model_type: str, file_type: str) -> Kind | None:
    """Return which kind a file is by what Civitai calls its model and itself; None if any."""
    return Kind.VAE if file_type.lower() == _VAE else _KINDS.get(model_type.lower())


def require_scanned(file: File) -> None:
    """Raise if Civitai's scanners found something, or did not clear what can run code.

    Raises:
        ModelUnsafeError: they did, or did not.
    """
    if _DANGER in file.scans or (file.is_pickle and file.scans != (_CLEAN, _CLEAN)):
        pickles, viruses = (scan or "not done" for scan in file.scans)
        raise ModelUnsafeError(
            f"Civitai does not call {shown(file.name)} safe: pickle scan {shown(pickles)}, virus "
            f"scan {shown(viruses)}.",
            hint="Use a safetensors file, or wait until it has been scanned.",
        )


def _fitting(version: Version, choice: Choice, kind: Kind) -> Iterator[File]:
    """Yield the files that may be meant."""
    asked = {name: value.lower() for name, value in choice.traits}
    usable = [file for file in version.files if file.name.lower().endswith(SUFFIXES)]
    if choice.file is None and "type" not in asked:
        wanted = frozenset({_VAE}) if kind is Kind.VAE else _MAIN_TYPES
        usable = [file for file in usable if file.traits.get("type") in wanted] or usable
    for file in usable:
        if choice.file in {None, file.id} and asked.items() <= file.traits.items():
            yield file


def _files(entries: list[Any], model_type: str) -> Iterator[File]:
    for entry in entries:
        if not (isinstance(entry, dict) and isinstance(entry.get("id"), int)):
            continue
        metadata, hashes = (entry.get(name) for name in ("metadata", "hashes"))
        traits = {"type": _text(entry, "type").lower()}
        for name in TRAITS[1:]:
            traits[name] = _text(metadata if isinstance(metadata, dict) else {}, name).lower()
        sha256 = _text(hashes if isinstance(hashes, dict) else {}, "SHA256").lower()
        yield File(
            id=entry["id"],
            name=_text(entry, "name"),
            traits={name: value for name, value in traits.items() if value},
            primary=entry.get("primary") is True,
            sha256=sha256 if _SHA256.fullmatch(sha256) else None,
            scans=(_text(entry, "pickleScanResult"), _text(entry, "virusScanResult")),
            query=_query(entry, model_type),
        )


def _query(entry: Mapping[str, Any], model_type: str) -> dict[str, str]:
    """Return the query of the download of one file.

    Its number, because everything else is weighed against the preferences of the token's account.
    But a VAE may be another version's that this one recommends, of which the number is not known
    here and the query is. Source: model-versions/[id].ts, prepareModelVersionResponse;
    file.service.ts, getFileForModelVersion.
    """
    if _text(entry, "type").lower() == _VAE and model_type.lower() != _VAE:
        told = dict(parse_qsl(_query_of(_text(entry, "downloadUrl"))))
        kept = {name: told[name] for name in (*TRAITS, "fileId") if name in told}
        if kept:
            return kept
    return {"fileId": str(entry["id"])}


def _query_of(url: str) -> str:
    try:
        return urlsplit(url).query
    except ValueError:
        return ""


def _described(file: File) -> str:
    traits = ", ".join(shown(value)[1:-1] for value in file.traits.values())
    return f"{file.id} {shown(file.name)} ({traits})"


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    return value if isinstance(value, str) else ""


def _moment(text: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
