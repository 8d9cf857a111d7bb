"""Models that people want to keep: eviction never takes them.

    <volume>/models/.worker/pins/<kind>/<name>      an empty file for each

One file for each model, so that two people who pin at once do not undo each other's.
"""

import os
from pathlib import Path

from model_cache.volume import layout
from model_cache.volume.disk import disk_errors, require_volume
from schemas.errors import InvalidInputError, shown
from schemas.model_ref import Kind

# Of a file name on all file systems that we know.
_MAX_NAME_BYTES = 255


def pin(volume: Path, kind: Kind, name: str) -> None:
    """Keep the model of that name, which need not be there yet.

    Raises:
        InvalidInputError: no model can be called so.
        VolumeError: the disk refused.
    """
    marker = _marker(volume, kind, name)
    require_volume(volume)
    with disk_errors():
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()


def unpin(volume: Path, kind: Kind, name: str) -> bool:
    """Let the model go when room is needed; False if it was not pinned.

    Raises:
        InvalidInputError: no model can be called so.
        VolumeError: the disk refused.
    """
    marker = _marker(volume, kind, name)
    with disk_errors():
        try:
            marker.unlink()
        except FileNotFoundError:
            return False
    return True


def pinned(volume: Path) -> frozenset[tuple[Kind, str]]:
    """Return every model that is pinned.

    Raises:
        VolumeError: they cannot be read, so nobody may say that none is.
    """
    found: set[tuple[Kind, str]] = set()
    with disk_errors():
        for kind in Kind:
            try:
                markers = list((layout.pins_folder(volume) / kind).iterdir())
            except FileNotFoundError:
                continue
            found.update((kind, marker.name) for marker in markers)
    return frozenset(found)


def _marker(volume: Path, kind: Kind, name: str) -> Path:
    too_long = len(os.fsencode(name)) > _MAX_NAME_BYTES
    if name in {"", ".", ".."} or "/" in name or "\0" in name or too_long:
        raise InvalidInputError(f"No model can be called {shown(name)}.")
    return layout.pins_folder(volume) / kind / name
