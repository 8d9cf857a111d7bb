"""The records beside the model files: read with distrust, written last and at once.

A manifest is believed while size and mtime of its file are those that it names; a file that somebody
replaced is a file that nobody has verified. The bytes of the format: schemas/manifest.py.
"""

import os
import re
import time
from pathlib import Path

from model_cache import layout, publish
from model_cache.disk import disk_errors
from schemas.manifest import Manifest
from schemas.model_ref import Kind

_MAX_BYTES = 65_536
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


def with_source(manifest: Manifest, source: str) -> Manifest:
    """Return `manifest` with one more source that gave the very same bytes."""
    if source in {"", manifest.source, *manifest.also_from}:
        return manifest
    kept = (*manifest.also_from, source)[-_MAX_SOURCES:]
    return manifest.model_copy(update={"also_from": kept})
