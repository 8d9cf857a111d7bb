"""The records beside the model files: read with distrust, written at once.

A manifest is believed while size and mtime of its file are those that it names; a file that somebody
replaced is a file that nobody has verified. So it may be written before its file has its name, and
then no moment exists in which a file of ours lies there like one that people brought. The bytes of
the format: schemas/manifest.py.
"""

import logging
import os
import re
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

from model_cache.sharing.stillness import Stillness
from model_cache.volume import layout, publish
from model_cache.volume.disk import disk_errors
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
State: TypeAlias = tuple[int, int]
"""By which one writing of a manifest is told from another: inode and mtime in ns."""


def names(volume: Path, kind: Kind) -> frozenset[str]:
    """Return the file names of all manifests of a kind; empty if there are none."""
    folder = layout.manifest_path(volume, kind, volume / "any").parent
    try:
        return frozenset(entry.name for entry in folder.iterdir())
    except OSError:
        return frozenset()


def state(path: Path) -> State | None:
    """Return which writing of a manifest is at `path`; None if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


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


def write(volume: Path, path: Path, manifest: Manifest) -> State:
    """Write `manifest` to `path`: a reader sees the old one or the new one, never a part.

    Raises:
        VolumeError: the disk refused.
    """
    with publish.private_file(volume) as part, disk_errors():
        part.file.write(manifest.model_dump_json(indent=1).encode())
        part.file.flush()
        status = os.fstat(part.file.fileno())
        part.seal()
        path.parent.mkdir(parents=True, exist_ok=True)
        part.path.replace(path)
    return status.st_ino, status.st_mtime_ns


def ahead(volume: Path, place: Path, manifest: Manifest, name: Callable[[], bool]) -> bool:
    """Have `manifest` at `place` while `name` gives its file the name; return what that returns.

    It stays if that is True. Else, for the name may be another's by then, what was there before is
    there again. That may be the manifest of somebody who publishes under this name in this very
    moment, so it is moved aside as it is, and not read and written back; and whoever has published
    looks afterwards whether the manifest is still his.

    Raises:
        VolumeError: the disk refused; what `name` raises.
    """
    aside = layout.tmp_folder(volume) / f"{uuid.uuid4().hex}.part"
    with disk_errors():
        aside.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            place.rename(aside)
    named = False
    try:
        write(volume, place, manifest)
        named = name()
    finally:
        if not named:
            drop(volume, place, manifest)
            with suppress(publish.PartLostError):  # Nothing was there.
                publish.place(aside, place)
        with disk_errors():
            aside.unlink(missing_ok=True)
    return named


def new(
    sha256: str, status: os.stat_result, source: str, base: str, alias: str, base_by: str = ""
) -> Manifest:
    """Return the manifest of a file that was verified just now; `source` may be empty."""
    now = time.time()
    return Manifest(
        sha256=sha256,
        size_bytes=status.st_size,
        mtime_ns=status.st_mtime_ns,
        source=source,
        base=base,
        base_by=base_by,
        alias=alias,
        means={source: now} if source else {},
        created=now,
    )


def with_sources(manifest: Manifest, sources: Iterable[str], at: float) -> Manifest:
    """Return `manifest` of a file that `sources` were seen to give at the Unix time `at`."""
    seen = {source: at for source in sources if source and manifest.means.get(source, 0.0) < at}
    others = {key: time for key, time in manifest.means.items() if key not in seen}
    means = {**others, **seen}
    kept = {manifest.source, *list(means)[-_MAX_SOURCES:]}
    means = {key: time for key, time in means.items() if key in kept}
    return manifest.model_copy(update={"means": means})


def without_source(manifest: Manifest, source: str) -> Manifest:
    """Return `manifest` of a file that `source` once gave, and gives no more."""
    means = {key: time for key, time in manifest.means.items() if key != source}
    return manifest.model_copy(update={"means": means})


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
