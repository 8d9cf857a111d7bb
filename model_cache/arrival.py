"""A fetched and verified file gets its name, next to whatever has that name already."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from model_cache import layout, manifests, publish, verify
from model_cache.architecture import Nature
from model_cache.listing import Listing
from model_cache.models import CachedModel
from schemas.errors import VolumeBusyError, VolumeMissingError
from schemas.model_ref import Kind


@dataclass(frozen=True)
class Arrival:
    """A verified file that nobody sees yet."""

    kind: Kind
    wanted: str
    """The name that it should get: one plain path component."""
    part: Path
    sha256: str
    source: str
    nature: Nature


def settle(
    arrival: Arrival, volume: Path, listing: Listing, cancelled: threading.Event
) -> CachedModel:
    """Publish the file under the name that is wanted, or beside it, and return what has its bytes.

    A file that has the name and the very same bytes is taken instead, so two workers that fetched
    the same thing end up with one file. Any other keeps its name, and ours gets its digest in it.

    Raises:
        JobCancelledError: `cancelled` was set while a file was hashed for comparison.
        VolumeError: the disk refused.
    """
    for name in _names(arrival):
        final = layout.published_path(volume, arrival.kind, name)
        holder = listing.look_again(arrival.kind, final) or listing.current.named(
            arrival.kind, name
        )
        if holder is None and publish.place(arrival.part, final):
            listing.look_again(arrival.kind, final)
            return _recorded(arrival, final, listing)
        holder = holder or listing.look_again(arrival.kind, final)
        if holder is not None and _digest(holder, cancelled) == arrival.sha256:
            return _recorded(arrival, holder.path, listing)
    raise VolumeBusyError(f"Every name for the {arrival.kind} {arrival.wanted!r} is taken.")


def _names(arrival: Arrival) -> Iterator[str]:
    yield arrival.wanted
    for digits in (8, 16, 64):
        yield layout.beside(arrival.wanted, arrival.sha256, digits)


def _digest(model: CachedModel, cancelled: threading.Event) -> str:
    return model.sha256 or verify.digest(model.path, cancelled=cancelled)


def _recorded(arrival: Arrival, path: Path, listing: Listing) -> CachedModel:
    """Write the manifest of the listed file at `path`, which has the bytes that arrived."""
    found = listing.current.files.get(path)
    if found is not None:
        nature, before = arrival.nature, found.manifest
        if before is None:
            before = manifests.new(
                arrival.sha256, found.status, arrival.source, nature.base, nature.alias
            )
        manifest = manifests.with_source(before, arrival.source)
        if manifest != found.manifest:
            listing.record(found, manifest)
    model = listing.current.at(path)
    if model is None:
        raise VolumeMissingError(
            f"The file {path.name} vanished as soon as it was written.",
            hint="Somebody deletes models, or the volume went away.",
        )
    return model
