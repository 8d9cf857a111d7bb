"""Put a finished file in its place, so that a reader sees all of it or nothing.

What guards a published file is not a lock but the order of steps: a private name that nobody else
can have, fsync, then one `link` that fails where the name is taken. A process that dies at any step
leaves a whole file, or a `.part` that nobody reads and that is swept later (leftovers.py).
"""

import errno
import logging
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from model_cache.volume import layout
from model_cache.volume.disk import disk_errors, require_volume

log = logging.getLogger(__name__)

_BUFFER_BYTES = 1 << 20
# What a file system answers that has no hard links, or no more of them for this file.
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV, errno.EINVAL}
# MooseFS counts a file against a quota once for each of its names, as long as it has two. Source:
# measured on 3.0.117: a model of 210 MB could not be linked under a quota of 400 MB.
_NO_ROOM_FOR_LINKS = {errno.EDQUOT, errno.ENOSPC}


class PartLostError(Exception):
    """The private file of this process was deleted by another one, which took it for dead.

    Whoever did that fetched the same thing, so it is time to look again for what is there. Never
    shown to a caller.
    """


@dataclass(frozen=True)
class PrivateFile:
    """A file that one process alone knows of."""

    path: Path
    file: BinaryIO

    def seal(self) -> None:
        """Bring every byte to the disk and close the file.

        Raises:
            VolumeFullError: over quota, which a network volume may say only now.
            VolumeError: another refusal of the disk.
        """
        with disk_errors():
            self.file.flush()
            os.fsync(self.file.fileno())
            self.file.close()


@contextmanager
def private_file(volume: Path) -> Iterator[PrivateFile]:
    """Yield a new file on the volume, gone at the end unless it was renamed.

    Its name is random and not the process's number: containers that share a volume share numbers.

    Raises:
        VolumeMissingError: the volume is not mounted, or is read-only.
        VolumeError: another refusal of the disk.
    """
    require_volume(volume)
    path = layout.tmp_folder(volume) / f"{uuid.uuid4().hex}.part"
    with disk_errors():
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("xb", buffering=_BUFFER_BYTES)
    try:
        yield PrivateFile(path, file)
    finally:
        # Where this fails, something failed before that is being reported, and a sweep comes after.
        with suppress(OSError):
            file.close()
        with suppress(OSError):
            path.unlink(missing_ok=True)


def place(part: Path, final: Path) -> bool:
    """Give the finished file `part` the name `final`; False if that name is taken.

    `part` may keep its own name as well. Nothing is ever overwritten. Where the file system has no
    hard links, or no room to count the file twice, a rename after a check does it, with a gap between
    the two that only another process publishing the same name in the same moment can meet.

    Raises:
        PartLostError: there is no file `part` any more.
        VolumeError: the disk refused.
    """
    with disk_errors():
        final.parent.mkdir(parents=True, exist_ok=True)
        try:
            if not _named(part, final):
                return False
        except FileNotFoundError:
            if os.path.lexists(part):
                raise
            raise PartLostError(part.name) from None
        _sync_folder(final.parent)
    return True


def _named(part: Path, final: Path) -> bool:
    try:
        os.link(part, final)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS | _NO_ROOM_FOR_LINKS:
            raise
        if os.path.lexists(final):
            return False
        part.rename(final)
    return True


def second_name(existing: Path, final: Path) -> bool:
    """Give the published file `existing` a second name; False if that cannot be done.

    The name may be taken, the volume read-only, or without hard links: for the caller it is all one.
    """
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        # The file itself: link(2) would make a second link of a symbolic one.
        os.link(existing.resolve(), final)
    except OSError as error:
        log.info("%s cannot be called %s as well: %s", existing.name, final.name, error.strerror)
        return False
    return True


def _sync_folder(folder: Path) -> None:
    """Bring the new name to the disk.

    Where that cannot be done the name is there all the same, for everybody. It would be lost only if
    the file system itself went down in this moment, and then the file is fetched again.
    """
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS}:
            log.warning("The folder %s was not synced: %s", folder.name, error.strerror)
