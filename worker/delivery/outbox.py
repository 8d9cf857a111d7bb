"""Pictures that stay on the volume: whole files, one folder per job."""

import os
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISDIR
from threading import Event
from uuid import uuid4

from model_cache.volume.beneath import folder_beneath
from model_cache.volume.disk import disk_errors, require_volume
from schemas.errors import JobCancelledError, VolumeMissingError


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
        seen before all of them are whole; if one cannot get its name, the others lose theirs, and
        what had them before has them again, unless somebody else gave them away meanwhile.

        Args:
            files: what is to be there.
            cancelled: looked at before each is written, and before each gets its name.

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
            parts = [_Part(folders[path.parent], path.name) for path in paths]
            for part in parts:
                opened.callback(part.remove)
            with disk_errors():
                for part in parts:
                    part.require_place()
                for part, (_, data) in zip(parts, files, strict=True):
                    _require_wanted(cancelled)
                    part.write(data)
                _publish(parts, cancelled)
        return paths


def _require_wanted(cancelled: Event) -> None:
    if cancelled.is_set():
        raise JobCancelledError("The job was cancelled while its pictures were written.")


def _publish(parts: Sequence["_Part"], cancelled: Event) -> None:
    """Give all of them their names, or none."""
    with ExitStack() as undone:
        for part in parts:
            _require_wanted(cancelled)
            # Before, as a network volume may say of what it did that it failed.
            undone.callback(part.take_back)
            part.publish()
        undone.pop_all()


@dataclass
class _Part:
    """A file that gets its name when all of them are whole."""

    folder: int
    """Descriptor of the folder it is in."""
    name: str
    private: str = field(default_factory=lambda: f".{uuid4().hex}.part")
    older: str = field(default_factory=lambda: f".{uuid4().hex}.part")
    """A second name of what had `name` before."""
    _identity: tuple[int, int] | None = None
    """Device and inode of what was written."""
    _was_free: bool = False
    """Whether nothing had `name` before."""

    def require_place(self) -> None:
        """Refuse a name that a folder has: no file can replace it."""
        with suppress(FileNotFoundError):
            found = os.stat(self.name, dir_fd=self.folder, follow_symlinks=False)
            if S_ISDIR(found.st_mode):
                raise VolumeMissingError(
                    f"A folder on the volume has the name of a picture, `{self.name}`.",
                    hint="Remove it, or use another prefix or A1111_OUTPUT_FOLDER.",
                )

    def write(self, data: bytes) -> None:
        # Some network volumes tell only at fsync that they are full.
        # Source: MooseFS 3.0.117, seen with a hard quota.
        with open(self.private, "xb", opener=self._opened) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            self._identity = _identity(os.fstat(file.fileno()))

    def publish(self) -> None:
        """Replace whatever has the name; a link is replaced, not followed."""
        try:
            os.link(
                self.name,
                self.older,
                src_dir_fd=self.folder,
                dst_dir_fd=self.folder,
                follow_symlinks=False,
            )
        except OSError as error:
            # Of a file system that knows no second names, the newer one would stay.
            self._was_free = isinstance(error, FileNotFoundError)
        os.replace(self.private, self.name, src_dir_fd=self.folder, dst_dir_fd=self.folder)

    def take_back(self) -> None:
        """Undo `publish`, if it is still this that has the name."""
        with suppress(OSError):
            found = os.stat(self.name, dir_fd=self.folder, follow_symlinks=False)
            if _identity(found) != self._identity:
                return
            if self._was_free:
                os.unlink(self.name, dir_fd=self.folder)
            else:
                os.replace(self.older, self.name, src_dir_fd=self.folder, dst_dir_fd=self.folder)

    def remove(self) -> None:
        """Remove what got no name, and the second name of what was before."""
        for name in (self.private, self.older):
            with suppress(OSError):
                os.unlink(name, dir_fd=self.folder)

    def _opened(self, name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NOFOLLOW, 0o666, dir_fd=self.folder)


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino
