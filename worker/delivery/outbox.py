"""Pictures that stay on the volume: whole files, one folder per job."""

import os
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from uuid import uuid4

from model_cache.volume.beneath import folder_beneath
from model_cache.volume.disk import disk_errors, require_volume
from schemas.errors import JobCancelledError


class Outbox:
    """Writes pictures below one folder of the volume, and through no link that is put there.

    Args:
        volume: where the network volume is mounted.
        folder: the folder on it, relative.
    """

    def __init__(self, volume: Path, folder: str) -> None:
        self._volume = volume
        self._root = volume / folder

    def put(self, files: Sequence[tuple[str, bytes]], cancelled: Event) -> list[Path]:
        """Write `files`, pairs of a relative path and what is in it; return where they are, in order.

        A file of that name is replaced: a job that is done twice leaves its pictures once. None is
        seen before all of them are whole; if one cannot be written, nothing has changed.

        Args:
            files: what is to be there.
            cancelled: looked at before each is written.

        Raises:
            VolumeError: there is no room, or no volume.
            JobCancelledError: `cancelled` was set.
        """
        require_volume(self._volume)
        paths = [self._root / name for name, _ in files]
        with ExitStack() as opened:
            folders = {
                path.parent: opened.enter_context(
                    folder_beneath(self._volume, path.parent.relative_to(self._volume))
                )
                for path in paths
            }
            parts = [
                _Part(folders[path.parent], f".{uuid4().hex}.part", path.name) for path in paths
            ]
            for part in parts:
                opened.callback(part.remove)
            with disk_errors():
                for part, (_, data) in zip(parts, files, strict=True):
                    if cancelled.is_set():
                        raise JobCancelledError(
                            "The job was cancelled while its pictures were written."
                        )
                    part.write(data)
                for part in parts:
                    part.publish()
        return paths


@dataclass(frozen=True)
class _Part:
    """A file that gets its name when all of them are whole."""

    folder: int
    """Descriptor of the folder it is in."""
    private: str
    name: str

    def write(self, data: bytes) -> None:
        # Some network volumes tell only at fsync that they are full.
        # Source: MooseFS 3.0.117, seen with a hard quota.
        with open(self.private, "xb", opener=self._opened) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def publish(self) -> None:
        """Replace whatever has the name; a link is replaced, not followed."""
        os.replace(self.private, self.name, src_dir_fd=self.folder, dst_dir_fd=self.folder)

    def remove(self) -> None:
        """Remove what got no name."""
        with suppress(OSError):
            os.unlink(self.private, dir_fd=self.folder)

    def _opened(self, name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NOFOLLOW, 0o666, dir_fd=self.folder)
