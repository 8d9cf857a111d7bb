"""The records beside the model files: read with distrust, written last and at once.

A manifest is believed while size and mtime of its file are those that it names; a file that somebody
replaced is a file that nobody has verified. The bytes of the format: schemas/manifest.py.
"""

import logging
import os
import re
import time
import uuid
from collections.abc import Iterable
from pathlib import Path

from model_cache import layout, publish
from model_cache.disk import disk_errors
from model_cache.stillness import Stillness
from schemas.errors import VolumeError
from schemas.manifest import Manifest
from schemas.model_ref import Kind

log = logging.getLogger(__name__)

_MAX_BYTES = 65_536
# A manifest without a file is looked at again after so long: its file may be away for a moment only.
_ORPHAN_S = 60.0
# One that is called by a digest does not tell where its file lies. It may be one that only other
# workers see, as those with other settings do; what is lost with it is a digest.
_UNPLACED_S = 30 * 24 * 3600.0
_UNPLACED = re.compile(r"[0-9a-f]{32}\.json")
_MAX_SOURCES = 16


def names(volume: Path, kind: Kind) -> frozenset[str]:
    """Return the file names of all manifests of a kind; empty if there are none."""
    folder = layout.manifest_path(volume, kind, volume / "any").parent
    try:
        return frozenset(entry.name for entry in folder.iterdir())
    except OSError:
        return frozenset()


def stored(path: Path) -> Manifest | None:
    """Return the manifest at `path`, whether or not its file is still the one it speaks of."""
    try:
        with path.open("rb") as file:
            manifest = Manifest.model_validate_json(file.read(_MAX_BYTES))
    except (OSError, ValueError):
        return None  # Absent, unreadable or damaged: the same as never written.
    return manifest if re.fullmatch(r"[0-9a-f]{64}", manifest.sha256) else None


def read(path: Path, status: os.stat_result) -> Manifest | None:
    """Return the manifest at `path` if it speaks of the file with this `status`, else None."""
    manifest = stored(path)
    if manifest is None:
        return None
    told = (manifest.size_bytes, manifest.mtime_ns)
    return manifest if told == (status.st_size, status.st_mtime_ns) else None


def write(volume: Path, path: Path, manifest: Manifest) -> None:
    """Write `manifest` to `path`: a reader sees the old one or the new one, never a part.

    Raises:
        VolumeError: the disk refused.
    """
    with publish.private_file(volume) as part, disk_errors():
        part.file.write(manifest.model_dump_json(indent=1).encode())
        part.seal()
        path.parent.mkdir(parents=True, exist_ok=True)
        part.path.replace(path)


def new(sha256: str, status: os.stat_result, source: str, base: str, alias: str) -> Manifest:
    """Return the manifest of a file that was verified just now."""
    return Manifest(
        sha256=sha256,
        size_bytes=status.st_size,
        mtime_ns=status.st_mtime_ns,
        source=source,
        base=base,
        alias=alias,
        created=time.time(),
    )


def with_sources(manifest: Manifest, sources: Iterable[str]) -> Manifest:
    """Return `manifest` with more sources that gave the very same bytes."""
    known = {"", manifest.source, *manifest.also_from}
    new = [source for source in dict.fromkeys(sources) if source not in known]
    if not new:
        return manifest
    return manifest.model_copy(update={"also_from": (*manifest.also_from, *new)[-_MAX_SOURCES:]})


def without_source(manifest: Manifest, source: str) -> Manifest:
    """Return `manifest` of a file that `source` once gave, and gives no more."""
    first, *others = [
        key for key in (manifest.source, *manifest.also_from) if key not in {"", source}
    ] or [""]
    return manifest.model_copy(update={"source": first, "also_from": tuple(others)})


def drop(volume: Path, place: Path, believed: Manifest | None) -> bool:
    """Delete the manifest at `place` if it is `believed` still; tell whether it is gone.

    It is moved aside before it is looked at, so that one which another worker wrote in this very
    moment, for a file that it fetched again, is not deleted with the old one's name.

    Raises:
        VolumeError: the disk refused.
    """
    aside = layout.tmp_folder(volume) / f"{uuid.uuid4().hex}.part"
    with disk_errors():
        aside.parent.mkdir(parents=True, exist_ok=True)
        try:
            place.rename(aside)
        except FileNotFoundError:
            return True
        same = stored(aside) == believed
        if not same:
            publish.place(aside, place)
        aside.unlink(missing_ok=True)
    return same


def prune(volume: Path, listed: Iterable[tuple[Kind, Path]], still: Stillness) -> int:
    """Delete the manifests of files that are gone, and return how many those were.

    Args:
        volume: where they lie.
        listed: kind and path of the files that are known to be there; others are looked for.
        still: kept between calls. Only a manifest that this process saw without a file for a minute
            goes, so the first call deletes nothing.
    """
    known = {layout.manifest_path(volume, kind, path) for kind, path in listed}
    others = {
        place: kind
        for kind in Kind
        for name in names(volume, kind)
        if (place := layout.manifests_folder(volume, kind) / name) not in known
    }
    still.keep_only(others.keys())
    dropped = 0
    for place, kind in others.items():
        if _is_orphan(volume, kind, place, still):
            try:
                dropped += drop(volume, place, stored(place))
            except VolumeError as error:
                log.info("The manifest %s, of no file, stays: %s", place.name, error)
    return dropped


def _is_orphan(volume: Path, kind: Kind, place: Path, still: Stillness) -> bool:
    """Tell whether the manifest at `place`, of a file that is not listed, is of none at all."""
    try:
        status = place.stat()
    except OSError:
        return False  # Another worker prunes as well.
    if _UNPLACED.fullmatch(place.name):
        is_away = time.time() - status.st_mtime > _UNPLACED_S
    else:
        file = layout.published_path(volume, kind, place.name.removesuffix(".json"), suffix="")
        is_away = not os.path.lexists(file)
    # As a part of the state: a file that was back for one look has its minute again.
    state = (status.st_ino, status.st_mtime_ns, is_away)
    return still.of(place, state) >= _ORPHAN_S and is_away
