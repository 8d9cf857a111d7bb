"""A fetched and verified file gets its name, next to whatever has that name already."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from model_cache import layout, manifests, publish, verify
from model_cache.architecture import Nature
from model_cache.disk import disk_errors
from model_cache.listing import Listing
from model_cache.models import CachedModel
from schemas.errors import VolumeBusyError, VolumeMissingError
from schemas.model_ref import SUFFIX, Kind


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
    suffix: str = SUFFIX
    """Of the published file: `layout.suffix_for`."""
    autov3: str = ""
    """See `digests`; empty for a pickle."""
    also_from: tuple[str, ...] = ()
    """Other source keys that mean this file today."""


def settle(
    arrival: Arrival, volume: Path, listing: Listing, cancelled: threading.Event
) -> CachedModel:
    """Publish the file under the name that is wanted, or beside it, and return what has its bytes.

    A file that has the name and the very same bytes is taken instead, so two workers that fetched
    the same thing end up with one file. Any other keeps its name, and ours gets its digest in it; so
    it is with names that differ in case or in how letters are composed alone, which many disks and
    all people take for one.

    Raises:
        JobCancelledError: `cancelled` was set while a file was hashed for comparison.
        VolumeError: the disk refused.
    """
    for name in _names(arrival):
        final = layout.published_path(volume, arrival.kind, name, arrival.suffix)
        published = listing.look_again(arrival.kind, final)
        holders = {model.path: model for model in listing.current.alike(arrival.kind, name)}
        if published is None and not holders and publish.place(arrival.part, final):
            listing.look_again(arrival.kind, final)
            return _recorded(arrival, final, listing, source=arrival.source)
        # Empty: somebody published in this moment.
        for holder in holders.values() or [listing.look_again(arrival.kind, final)]:
            if holder is not None and _has_bytes(holder, arrival, cancelled):
                # What people brought stays theirs: without a source it is never evicted.
                return _recorded(arrival, holder.path, listing, source="")
    raise VolumeBusyError(f"Every name for the {arrival.kind} {arrival.wanted!r} is taken.")


def _names(arrival: Arrival) -> Iterator[str]:
    yield arrival.wanted
    for digits in (8, 16, 64):
        yield layout.beside(arrival.wanted, arrival.sha256, digits)


def _has_bytes(model: CachedModel, arrival: Arrival, cancelled: threading.Event) -> bool:
    """Tell whether the very bytes that arrived are there; hashes a file of the same size."""
    if model.sha256 is not None:
        return model.sha256 == arrival.sha256
    with disk_errors():
        if model.size_bytes != arrival.part.stat().st_size:
            return False
    return verify.digest(model.path, cancelled=cancelled) == arrival.sha256


def _recorded(arrival: Arrival, path: Path, listing: Listing, *, source: str) -> CachedModel:
    """Write the manifest of the listed file at `path`, which has the bytes that arrived.

    `source` is where it was fetched from if it has no manifest yet.
    """
    found = listing.current.files.get(path)
    if found is not None:
        nature, before = arrival.nature, found.manifest
        if before is None:
            before = manifests.new(arrival.sha256, found.status, source, nature.base, nature.alias)
        manifest = before.model_copy(update={"autov3": arrival.autov3 or before.autov3})
        manifest = manifests.with_sources(manifest, (arrival.source, *arrival.also_from))
        if manifest != found.manifest:
            listing.record(found, manifest)
    model = listing.current.at(path)
    if model is None:
        raise VolumeMissingError(
            f"The file {path.name} vanished as soon as it was written.",
            hint="Somebody deletes models, or the volume went away.",
        )
    return model
