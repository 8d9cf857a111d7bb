"""Where a benchmark may write much: memory if there is enough of it, else the disk."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_IN_MEMORY = Path("/dev/shm")  # noqa: S108 - a file system, not a name to guess
_LEFT_FREE_BYTES = 2 << 30


@dataclass(frozen=True)
class Scratch:
    """An empty folder, and what it lies on."""

    path: Path
    file_system: str
    """As in `ext4`, `tmpfs`."""


@contextlib.contextmanager
def scratch(size_bytes: int, folder: Path | None = None) -> Iterator[Scratch]:
    """Yield an empty folder for so much, in `folder` if given; it is gone after the context."""
    where = folder or (_IN_MEMORY if _has_room(_IN_MEMORY, size_bytes) else None)
    with tempfile.TemporaryDirectory(prefix="a1111-bench-", dir=where) as made:
        path = Path(made).resolve()
        yield Scratch(path, file_system_of(path, Path("/proc/mounts").read_text()))


def file_system_of(path: Path, mounts: str) -> str:
    """Return the type of the file system that holds `path`; `mounts` is as in /proc/mounts."""
    best, kind = Path("/"), "unknown"
    for line in mounts.splitlines():
        _, mounted_at, type_, *_ = line.split(" ")
        at = Path(mounted_at.replace("\\040", " "))
        # Of several on one place the last one is seen.
        if path.is_relative_to(at) and len(at.parts) >= len(best.parts):
            best, kind = at, type_
    return kind


def _has_room(memory: Path, size_bytes: int) -> bool:
    """Tell whether a file system in memory takes so much, and the machine still has memory then."""
    if not os.access(memory, os.W_OK):
        return False
    status = os.statvfs(memory)
    available = next(
        int(line.split()[1]) << 10
        for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith("MemAvailable:")
    )
    room = status.f_bavail * status.f_frsize
    return room >= size_bytes and available >= size_bytes + _LEFT_FREE_BYTES
