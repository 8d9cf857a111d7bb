"""A fetched and verified file gets its name, next to whatever has that name already.

Its manifest comes first: it names the size and the time that the file has already, and a process that
dies between the two leaves a record of no file, which `manifests.prune` deletes. The other way round
it would leave a file like one that people brought, which nobody may ever evict. Whoever has
published looks whether the manifest is still his: one who wanted the name as well may have written
his own before he saw that it was taken.
"""

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from model_cache.models import CachedModel
from model_cache.volume import layout, manifests, publish
from model_cache.volume.disk import disk_errors
from model_cache.volume.listing import Listing
from model_cache.weights import verify
from model_cache.weights.architecture import Nature
from schemas.errors import VolumeBusyError, VolumeMissingError
from schemas.manifest import Manifest
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

    @property
    def sources(self) -> tuple[str, ...]:
        """All of them."""
        return (self.source, *self.also_from)


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
    seen_at = listing.now(arrival.kind, arrival.sources)
    for name in _names(arrival):
        final = layout.published_path(volume, arrival.kind, name, arrival.suffix)
        holders = _holders(arrival.kind, name, final, listing)
        if not holders and _published(arrival, volume, final, seen_at):
            listing.look_again(arrival.kind, final)
            return _recorded(arrival, final, listing, seen_at, source=arrival.source)
        # Empty: somebody published in this moment.
        for holder in holders or _holders(arrival.kind, name, final, listing):
            if _has_bytes(holder, arrival, cancelled):
                # What people brought stays theirs: without a source it is never evicted.
                return _recorded(arrival, holder.path, listing, seen_at, source="")
    raise VolumeBusyError(f"Every name for the {arrival.kind} {arrival.wanted!r} is taken.")


def _holders(kind: Kind, name: str, final: Path, listing: Listing) -> list[CachedModel]:
    """Return what has the name, or one that is alike, at this moment."""
    listed = (model.path for model in listing.current.alike(kind, name))
    looked_at = [listing.look_again(kind, path) for path in dict.fromkeys((final, *listed))]
    return [model for model in looked_at if model is not None]


def _published(arrival: Arrival, volume: Path, final: Path, seen_at: float) -> bool:
    """Give the file its manifest and its name; False if that is taken by now."""
    with disk_errors():
        status = arrival.part.stat()
    place = layout.manifest_path(volume, arrival.kind, final)
    manifest = _manifest(arrival, status, arrival.source, seen_at)
    return manifests.ahead(volume, place, manifest, lambda: publish.place(arrival.part, final))


def _manifest(arrival: Arrival, status: os.stat_result, source: str, seen_at: float) -> Manifest:
    nature = arrival.nature
    manifest = manifests.new(
        arrival.sha256, status, source, nature.base, nature.alias, nature.base_by
    )
    manifest = manifest.model_copy(update={"autov3": arrival.autov3, "means": {}})
    return manifests.with_sources(manifest, arrival.sources, seen_at)


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


def _recorded(
    arrival: Arrival, path: Path, listing: Listing, seen_at: float, *, source: str
) -> CachedModel:
    """See to it that the manifest of the listed file at `path` tells of what arrived.

    `source` is where it was fetched from if it has no manifest yet.
    """

    def told(manifest: Manifest) -> Manifest:
        manifest = manifest.model_copy(update={"autov3": arrival.autov3 or manifest.autov3})
        return manifests.with_sources(manifest, arrival.sources, seen_at)

    found = listing.current.files.get(path)
    if found is not None:
        if found.manifest is not None and found.manifest.sha256 == arrival.sha256:
            listing.amend(found, told)
        else:
            listing.record(found, _manifest(arrival, found.status, source, seen_at))
    model = listing.current.at(path)
    if model is None:
        raise VolumeMissingError(
            f"The file {path.name} vanished as soon as it was written.",
            hint="Somebody deletes models, or the volume went away.",
        )
    return model
