"""Pictures that stay on the volume: whole files, one folder per job."""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from model_cache.volume.disk import disk_errors, require_volume


class Outbox:
    """Writes pictures below one folder of the volume.

    Args:
        volume: where the network volume is mounted.
        folder: the folder on it, relative.
    """

    def __init__(self, volume: Path, folder: str) -> None:
        self._volume = volume
        self._root = volume / folder

    def put(self, files: Sequence[tuple[str, bytes]]) -> list[Path]:
        """Write `files`, pairs of a relative path and what is in it; return where they are, in order.

        A file of that name is replaced: a job that is done twice leaves its pictures once. None is
        seen before all of them are whole; if one cannot be written, nothing has changed.

        Raises:
            VolumeError: there is no room, or no volume.
        """
        require_volume(self._volume)
        paths = [self._root / name for name, _ in files]
        parts = [path.with_name(f".{uuid4().hex}.part") for path in paths]
        try:
            with disk_errors():
                for part, (_, data) in zip(parts, files, strict=True):
                    part.parent.mkdir(parents=True, exist_ok=True)
                    _write(part, data)
                for part, path in zip(parts, paths, strict=True):
                    part.replace(path)
        finally:
            for part in parts:
                with suppress(OSError):
                    part.unlink()
        return paths


def _write(part: Path, data: bytes) -> None:
    # Some network volumes tell only at fsync that they are full.
    # Source: MooseFS 3.0.117, seen with a hard quota.
    with part.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
