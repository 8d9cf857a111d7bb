"""What nobody needs any more: the parts of dead fetches, and manifests whose file is gone.

Workers clear these up by themselves, slowly: they watch a thing for a while before they believe that
it is dead, and keep the parts of a fetch for 24 hours for whoever goes on with it. Here somebody
wants the room now, and the process is too short to watch anything, so ages have to tell.
"""

import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from model_cache import layout, manifests
from model_cache.disk import disk_errors
from schemas.manifest import Manifest
from schemas.model_ref import Kind

DEAD_S = 2 * 3600.0
"""A fetch that lives writes every few seconds. Hosts' clocks may be an hour apart. And were it alive
after all, it would find its file gone and begin again: time is lost, never a model."""
SCRATCH = "doctor-"
"""How the folders are called in which `doctor` tries a volume out."""
_SUFFIXES = (".part", ".json", ".new", ".evicted")
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
    """Return what nobody has written to for so long, in seconds.

    Raises:
        VolumeError: it cannot be read.
    """
    groups: dict[str, list[tuple[Path, os.stat_result]]] = {}
    with disk_errors():
        for path, status in _temporary(volume):
            groups.setdefault(path.stem, []).append((path, status))
    now = time.time()
    return [
        Remains(
            tuple(path for path, _ in sorted(group)),
            sum(status.st_blocks * 512 for _, status in group),
        )
        for _, group in sorted(groups.items())
        if now - max(status.st_mtime for _, status in group) > older_than_s
    ]


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
