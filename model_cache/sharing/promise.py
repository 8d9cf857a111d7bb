"""Room that fetches will take: what this process promised to its own, and what others began.

    <volume>/models/.worker/tmp/<key>.<random>.part     one fetch of what `key` names

Knows nothing of models and of budgets (room.py).
"""

import os
import threading
from pathlib import Path

from model_cache.sharing.age import Ages
from model_cache.volume import layout
from model_cache.volume.disk import disk_errors

_PART = ".part"
# A fetch writes to its part every few seconds, or waits for a host for a minute at most.
_SILENT_S = 120.0
_BLOCK_BYTES = 512  # Of st_blocks. Source: stat(2).


class Promises:
    """The fetches on one volume; safe to use from several threads."""

    def __init__(self, volume: Path) -> None:
        """Touch nothing yet."""
        self._volume = volume
        self._state = threading.Lock()
        """Held for microseconds, never while the disk is touched."""
        self._promised: dict[Path, int] = {}
        self._ended: set[Path] = set()

    def give(self, part: Path, size_bytes: int) -> None:
        """Count the fetch of this process into `part` with what it will take."""
        with self._state:
            self._promised[part] = size_bytes
            self._ended.discard(part)

    def end(self, part: Path) -> None:
        """Count what the fetch into `part` left, if it left anything, with what it takes by now."""
        with self._state:
            self._promised.pop(part, None)
            self._ended.add(part)

    def taken_bytes(self, part: Path | None) -> int:
        """Return what all fetches but that into `part` will take; of the dead ones what they take.

        Parts of one thing, which begin with the same key, will be one model. Another worker's is
        dead if it was silent for two minutes by the volume's clock. Where hosts give the times one
        that lives may seem dead, and so does not count with all that it will be: then the next
        fetch makes up for it.

        Raises:
            VolumeError: they cannot be read.
        """
        with disk_errors():
            parts = dict(files(layout.tmp_folder(self._volume), _PART))
        with self._state:
            self._promised = {path: size for path, size in self._promised.items() if path in parts}
            self._ended.intersection_update(parts)
            promised, ended = dict(self._promised), frozenset(self._ended)
        ages = Ages(self._volume)
        sizes: dict[str, int] = {}
        for path, status in parts.items():
            size = max(status.st_size, promised.get(path, 0))
            is_silent = path not in promised and ages.over(status.st_mtime, _SILENT_S)
            if path in ended or is_silent:
                size = min(status.st_size, status.st_blocks * _BLOCK_BYTES)
            sizes[key(path)] = max(size, sizes.get(key(path), 0))
        if part is not None:
            sizes.pop(key(part), None)
        return sum(sizes.values())


def files(folder: Path, suffix: str) -> list[tuple[Path, os.stat_result]]:
    """Return the files of a folder that are called so, and what the disk says of each.

    Raises:
        OSError: the folder cannot be read.
    """
    found = []
    try:
        paths = list(folder.iterdir())
    except FileNotFoundError:
        return []
    for path in paths:
        if path.name.endswith(suffix):
            try:
                found.append((path, path.lstat()))
            except FileNotFoundError:
                continue  # Its owner finished in this moment.
    return found


def key(part: Path) -> str:
    """Return what the names of all parts of one thing begin with."""
    return part.name.partition(".")[0]
