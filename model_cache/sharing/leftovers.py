"""What nobody needs any more: the parts of dead fetches, and manifests whose file is gone.

Ages tell what is dead (age.py), for many processes are too short to watch anything. Workers clear up
when they start and from time to time: what can be resumed after 24 hours, the rest after two. Who
wants the room now has all of it after two.
"""

import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from model_cache.sharing.age import DEAD_S, Ages
from model_cache.volume import layout, manifests
from model_cache.volume.disk import disk_errors
from schemas.errors import VolumeError
from schemas.manifest import Manifest
from schemas.model_ref import Kind

STALE_AFTER_S = 24 * 3600.0
"""For so long a part with a journal waits for whoever goes on with it."""
SCRATCH = "doctor-"
"""How the folders are called in which `doctor` tries a volume out."""
_JOURNAL = ".json"
_SUFFIXES = (".part", _JOURNAL, ".new", ".evicted")
# Called by a digest of its path, a manifest does not tell where its file lies: for workers to judge.
_UNPLACED = re.compile(r"[0-9a-f]{32}\.json")


@dataclass(frozen=True)
class Remains:
    """What one dead process left."""

    paths: tuple[Path, ...]
    """A part after its journal: no journal may speak of what is not there."""
    size_bytes: int
    """On the disk; a part has holes."""


@dataclass(frozen=True)
class Orphan:
    """A manifest whose file is not there."""

    place: Path
    manifest: Manifest | None
    """What it says; None if it is damaged."""


def remains(volume: Path, *, older_than_s: float = DEAD_S) -> list[Remains]:
    """Return what nobody has touched for so long, in seconds.

    A fetch that lives writes every few seconds. Were it alive after all, it would find its file gone
    and begin again: time is lost, never a model.

    Raises:
        VolumeError: it cannot be read.
    """
    groups: dict[str, list[tuple[Path, os.stat_result]]] = {}
    with disk_errors():
        for path, status in _temporary(volume):
            groups.setdefault(path.stem, []).append((path, status))
    ages = Ages(volume)
    return [
        Remains(
            tuple(path for path, _ in sorted(group)),
            sum(status.st_blocks * 512 for _, status in group),
        )
        for _, group in sorted(groups.items())
        if ages.over(max(_touched(path, status) for path, status in group), older_than_s)
    ]


def sweep(volume: Path) -> None:
    """Delete what nobody goes on with any more; what cannot be deleted stays for another time.

    Nothing was ever fetched, or the volume is away: then it does nothing.
    """
    with suppress(VolumeError):
        stale = {found.paths for found in remains(volume, older_than_s=STALE_AFTER_S)}
        for found in remains(volume):
            resumable = any(path.suffix == _JOURNAL for path in found.paths)
            if found.paths in stale or not resumable:
                with suppress(VolumeError):  # Another worker sweeps as well, or it is read-only.
                    clear(found)


def clear(found: Remains) -> None:
    """Delete it; what another process deletes in the same moment is gone as well.

    Raises:
        VolumeError: the disk refused.
    """
    with disk_errors():
        for path in found.paths:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def orphans(volume: Path) -> list[Orphan]:
    """Return the manifests of files that are not there at this moment.

    A file can be away for a moment only: `drop` those alone that two looks some seconds apart saw.
    """
    found = []
    for kind in Kind:
        for name in sorted(manifests.names(volume, kind)):
            file = layout.published_path(volume, kind, name.removesuffix(".json"), suffix="")
            if not _UNPLACED.fullmatch(name) and not os.path.lexists(file):
                place = layout.manifests_folder(volume, kind) / name
                found.append(Orphan(place, manifests.stored(place)))
    return found


def drop(volume: Path, orphan: Orphan) -> bool:
    """Delete a manifest if it still says what it said; tell whether it is gone.

    Raises:
        VolumeError: the disk refused.
    """
    return manifests.drop(volume, orphan.place, orphan.manifest)


def _touched(path: Path, status: os.stat_result) -> float:
    """Return when somebody was last at work on it, Unix time in seconds.

    What was moved here, a model or a manifest on its way out, has the times of its content; that it
    was moved is told by its ctime. Source: rename(2), POSIX.1-2017, "some implementations mark for
    update the last file status change timestamp of renamed files"; Linux does.
    """
    is_fetched = path.stem.count(".") == 1  # <key>.<random>, written here from its first byte.
    if is_fetched or stat.S_ISDIR(status.st_mode):
        return status.st_mtime
    return max(status.st_mtime, status.st_ctime)


def _temporary(volume: Path) -> Iterator[tuple[Path, os.stat_result]]:
    try:
        paths = list(layout.tmp_folder(volume).iterdir())
    except FileNotFoundError:
        return
    for path in paths:
        try:
            status = path.lstat()
        except FileNotFoundError:
            continue  # Its owner finished in this moment.
        is_scratch = stat.S_ISDIR(status.st_mode) and path.name.startswith(SCRATCH)
        if is_scratch or path.name.endswith(_SUFFIXES):
            yield path, status
