"""Which file a reference means, and what is left to do to have it. Pure: decides, does nothing.

A digest that the caller gives decides over everything, then one that the source declares, then the
source that a file came from, then its name. A file whose digest nobody knows is hashed before it is
told from another; one that people put there under the very name that is asked for is used, with a
warning.
"""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from model_cache.models import CachedModel, Origin
from model_cache.volume import layout
from model_cache.volume.inventory import Inventory
from schemas.errors import ModelCorruptError, ModelNotFoundError
from schemas.model_ref import SUFFIX, HashForm, Kind, ModelRef, hash_form

_TITLE = re.compile(r"(?P<name>.+?)(\.(safetensors|ckpt))? \[(?P<hash>[0-9a-fA-F]{10})\]$")
# Not ours to give names to: in the image, and in a folder that the platform keeps.
_ELSEWHERE = {Origin.BAKED, Origin.HUB}
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


@dataclass(frozen=True)
class Wanted:
    """A reference, and what is known by now of the file that it means."""

    kind: Kind
    name: str | None
    """What it is called, or shall be called; None: whatever its source calls it."""
    label: str
    """What messages call it."""
    keys: tuple[str, ...] = ()
    """Source keys that mean it, most exact first; empty for a name alone."""
    hash: str | None = None
    """As the caller gave it: 64, 12 or 10 hex digits."""
    sha256: str | None = None
    """As the source declares it, once it was asked."""

    is_fetchable: bool = False
    """Whether there is a source to fetch it from; else it is here or nowhere."""

    @classmethod
    def of(cls, ref: ModelRef, keys: tuple[str, ...]) -> "Wanted":
        """Return what `ref` wants before its source was asked; `keys` are those of its `url`."""
        fetchable = ref.url is not None
        return cls(ref.kind, ref.name, ref.label, keys, ref.hash, is_fetchable=fetchable)


def choose(wanted: Wanted, inventory: Inventory) -> Choice:
    """Return what to do to have what is wanted.

    Raises:
        ModelNotFoundError: it names a model that is not here, and gives no URL.
        ModelCorruptError: it names a model that is here, with a hash that is not that model's.
    """
    same = _same(wanted, inventory)
    if same:
        return _warned(wanted, _known_bytes(wanted, same, inventory), inventory)
    if not wanted.is_fetchable:
        return _by_name(wanted, inventory)
    holder = inventory.named(wanted.kind, wanted.name) if wanted.name is not None else None
    if holder is None:
        return Fetch()
    return _by_holder(wanted, holder)


def called_otherwise(kind: Kind, wanted: str, name: str) -> str:
    """Return the warning that a model did not get the name that was asked for."""
    return f"The {kind} is called {name!r}: another file has the name {wanted!r}."


def is_hashed(model: CachedModel, digest: str) -> bool:
    """Tell whether enough is known of `model` to compare it with `digest`, of any form."""
    if hash_form(digest) is not HashForm.AUTOV3 or model.path.suffix != SUFFIX:
        return model.sha256 is not None
    return model.sha256 is not None and bool(model.autov3 or model.sha256.startswith(digest))


def _same(wanted: Wanted, inventory: Inventory) -> tuple[CachedModel, ...]:
    """Return the models that are known to be the one that is meant, whatever they are called."""
    digest = wanted.hash or wanted.sha256
    if digest is not None and (same := inventory.with_digest(wanted.kind, digest)):
        return tuple(model for model in same if _is_of(wanted, model, inventory)) or same
    if wanted.hash is not None:
        return ()
    for key in wanted.keys:
        if same := inventory.from_source(wanted.kind, key):
            return same
    return ()


def _is_of(wanted: Wanted, model: CachedModel, inventory: Inventory) -> bool:
    """Tell whether `model` is known to be what the source has, or the caller gave a whole digest."""
    if wanted.hash is None or hash_form(wanted.hash) is not HashForm.AUTOV3:
        return True
    return model.sha256 == wanted.sha256 or any(
        model in inventory.from_source(wanted.kind, key) for key in wanted.keys
    )


def _warned(wanted: Wanted, choice: Choice, inventory: Inventory) -> Choice:
    """Add a warning where only the weights are known to be those of the source.

    An AutoV3 leaves out the header, and two files that differ in nothing else may be two models.
    """
    if not isinstance(choice, Use) or choice.warning or not wanted.is_fetchable:
        return choice
    if _is_of(wanted, choice.model, inventory):
        return choice
    return Use(
        choice.model,
        f"The {wanted.kind} {choice.model.name!r} has the weights with the hash {wanted.hash}; its "
        "header was not compared with the source.",
    )


def _known_bytes(wanted: Wanted, same: Sequence[CachedModel], inventory: Inventory) -> Choice:
    """Choose among models with the very bytes that are meant, at least one."""
    name = wanted.name or same[0].name
    # By any spelling: `sub/name` and a title mean a file that may be called otherwise.
    holder = inventory.named(wanted.kind, name) or _found(wanted.kind, name, inventory)
    if holder is not None and holder in same:
        return Use(holder)
    if "/" in name or same[0].origin in _ELSEWHERE:
        return Use(same[0], called_otherwise(wanted.kind, name, same[0].name))
    # As when it was published: a name that a disk or an eye takes for this one is this one.
    alike = inventory.alike(wanted.kind, name) if holder is None else (holder,)
    for model in alike:
        if model in same:
            return Use(model, called_otherwise(wanted.kind, name, model.name))
    return _beside(wanted, name, same, alike[0]) if alike else Link(same[0], name)


def _beside(wanted: Wanted, name: str, same: Sequence[CachedModel], holder: CachedModel) -> Choice:
    """Choose where the wanted name belongs to `holder`, which is not known to have those bytes."""
    other = layout.beside(name, str(same[0].sha256))
    for model in same:
        if model.name == other:
            return Use(model, called_otherwise(wanted.kind, name, other))
    if wanted.hash is not None and not is_hashed(holder, wanted.hash):
        return Hash(holder)
    if not wanted.is_fetchable:
        raise _other_digest(wanted, holder)
    return Link(same[0], other)


def _by_holder(wanted: Wanted, holder: CachedModel) -> Choice:
    """Choose for a source whose name belongs to `holder`, which is not known to come from there."""
    if wanted.hash is not None:
        return Fetch() if is_hashed(holder, wanted.hash) else Hash(holder)
    if holder.source:
        return Fetch()
    return Use(
        holder,
        f"The {wanted.kind} {holder.name!r} is here with no record of where it came from; it is "
        "used as it is, and was not compared with the source.",
    )


def _other_digest(wanted: Wanted, model: CachedModel) -> ModelCorruptError:
    return ModelCorruptError(
        f"The {wanted.kind} {model.name!r} has the SHA-256 {model.sha256}, not {wanted.hash}.",
        hint="Give its URL to have the right file fetched beside it, or correct the hash.",
    )


def _by_name(wanted: Wanted, inventory: Inventory) -> Choice:
    text = wanted.name or ""
    model = inventory.find(wanted.kind, text)
    if model is not None:
        if wanted.hash is None:
            return Use(model)
        if not is_hashed(model, wanted.hash):
            return Hash(model)
        raise _other_digest(wanted, model)
    if match := _TITLE.match(text):
        model = inventory.find(wanted.kind, match["name"])
        if model is not None:
            return _by_title(model, match["hash"])
    raise ModelNotFoundError(
        f"There is no {wanted.kind} called {text!r}.", hint=_near(wanted.kind, text, inventory)
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
