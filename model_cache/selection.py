"""Which file a reference means, and what is left to do to have it. Pure: decides, does nothing.

A digest that the caller gives decides over everything, then the source that a file came from, then
its name. A file whose digest nobody knows is hashed before it is told from another; one that people
put there under the very name that is asked for is used, with a warning.
"""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from model_cache import layout
from model_cache.inventory import Inventory
from model_cache.models import CachedModel
from schemas.errors import ModelCorruptError, ModelNotFoundError
from schemas.model_ref import Kind, ModelRef

_TITLE = re.compile(r"(?P<name>.+?)(\.safetensors)? \[(?P<hash>[0-9a-fA-F]{10})\]$")
_MOST_LISTED = 3
_NEAR_RATIO = 0.6


@dataclass(frozen=True)
class Use:
    """The model is here."""

    model: CachedModel
    warning: str = ""


@dataclass(frozen=True)
class Link:
    """The bytes are here under another name; give them this one as well."""

    model: CachedModel
    name: str


@dataclass(frozen=True)
class Hash:
    """Only the digest of this model tells whether it is meant."""

    model: CachedModel


@dataclass(frozen=True)
class Fetch:
    """Nothing here is meant."""


Choice: TypeAlias = Use | Link | Hash | Fetch


def choose(ref: ModelRef, source: str, inventory: Inventory) -> Choice:
    """Return what to do for `ref`; `source` is the source key of its URL, empty without one.

    Raises:
        ModelNotFoundError: it names a model that is not here, and gives no URL.
        ModelCorruptError: it names a model that is here, with a hash that is not that model's.
    """
    same = _same(ref, source, inventory)
    if same:
        return _known_bytes(ref, same, inventory)
    if ref.url is None:
        return _by_name(ref, inventory)
    holder = inventory.named(ref.kind, ref.name) if ref.name is not None else None
    if holder is None:
        return Fetch()
    return _by_holder(ref, holder)


def called_otherwise(kind: Kind, wanted: str, name: str) -> str:
    """Return the warning that a model did not get the name that was asked for."""
    return f"The {kind} is called {name!r}: another file has the name {wanted!r}."


def _same(ref: ModelRef, source: str, inventory: Inventory) -> tuple[CachedModel, ...]:
    """Return the models that are known to be the one that is meant, whatever they are called."""
    if ref.hash is not None:
        return inventory.with_digest(ref.kind, ref.hash)
    return inventory.from_source(ref.kind, source) if source else ()


def _known_bytes(ref: ModelRef, same: Sequence[CachedModel], inventory: Inventory) -> Choice:
    """Choose among models with the very bytes that are meant, at least one."""
    wanted = ref.name or same[0].name
    # By any spelling: `sub/name` and a title mean a file that may be called otherwise.
    holder = inventory.named(ref.kind, wanted) or _found(ref.kind, wanted, inventory)
    if holder is not None and holder in same:
        return Use(holder)
    if "/" in wanted:
        return Use(same[0], called_otherwise(ref.kind, wanted, same[0].name))
    if holder is None:
        return Link(same[0], wanted)
    return _beside(ref, wanted, same, holder)


def _beside(ref: ModelRef, wanted: str, same: Sequence[CachedModel], holder: CachedModel) -> Choice:
    """Choose where the wanted name belongs to `holder`, which is not known to have those bytes."""
    name = layout.beside(wanted, str(same[0].sha256))
    warning = called_otherwise(ref.kind, wanted, name)
    for model in same:
        if model.name == name:
            return Use(model, warning)
    if ref.hash is not None and holder.sha256 is None:
        return Hash(holder)
    if ref.url is None:
        raise _other_digest(ref, holder)
    return Link(same[0], name)


def _by_holder(ref: ModelRef, holder: CachedModel) -> Choice:
    """Choose for a URL whose name belongs to `holder`, which is not known to come from there."""
    if ref.hash is not None:
        return Hash(holder) if holder.sha256 is None else Fetch()
    if holder.source:
        return Fetch()
    return Use(
        holder,
        f"The {ref.kind} {holder.name!r} is on the volume with no record of where it came from; it "
        "is used as it is, and was not compared with the URL.",
    )


def _other_digest(ref: ModelRef, model: CachedModel) -> ModelCorruptError:
    return ModelCorruptError(
        f"The {ref.kind} {model.name!r} has the SHA-256 {model.sha256}, not {ref.hash}.",
        hint="Give its URL to have the right file fetched beside it, or correct the hash.",
    )


def _by_name(ref: ModelRef, inventory: Inventory) -> Choice:
    text = ref.name or ""
    model = inventory.find(ref.kind, text)
    if model is not None:
        if ref.hash is None:
            return Use(model)
        if model.sha256 is None:
            return Hash(model)
        raise _other_digest(ref, model)
    if match := _TITLE.match(text):
        model = inventory.find(ref.kind, match["name"])
        if model is not None:
            return _by_title(model, match["hash"])
    raise ModelNotFoundError(
        f"There is no {ref.kind} called {text!r}.", hint=_near(ref.kind, text, inventory)
    )


def _by_title(model: CachedModel, short_hash: str) -> Choice:
    if model.sha256 is None:
        return Hash(model)
    if model.sha256.startswith(short_hash.lower()):
        return Use(model)
    raise ModelNotFoundError(
        f"The {model.kind} {model.name!r} has the hash {model.sha256[:10]}, not {short_hash}.",
        hint="Another version of it is on the volume.",
    )


def _found(kind: Kind, text: str, inventory: Inventory) -> CachedModel | None:
    """Return what `text` means by name or spelling; None as well where it is ambiguous."""
    match = _TITLE.match(text)
    try:
        return inventory.find(kind, match["name"] if match else text)
    except ModelNotFoundError:
        return None


def _near(kind: Kind, text: str, inventory: Inventory) -> str:
    """Return the hint for a name that is not there: what is near, or else what there is."""
    names = {model.name.casefold(): model.name for model in inventory.models(kind)}
    near = difflib.get_close_matches(text.casefold(), names, _MOST_LISTED, _NEAR_RATIO)
    if near:
        return f"Did you mean {' or '.join(repr(names[name]) for name in near)}?"
    where = ", ".join(inventory.folders(kind))
    if not names:
        return f"There is no {kind} at all in {where}; give its URL to have it fetched."
    listed = ", ".join(repr(name) for name in sorted(names.values())[:_MOST_LISTED])
    more = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    return f"In {where} there are: {listed}{more}."
