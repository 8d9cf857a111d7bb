"""Short texts in files of their own, also where a full volume takes no more bytes.

MooseFS refuses each write once less than a whole chunk, 64 MiB, is left of a quota, and even one over
bytes that are there; what makes and moves names it still does. So a text that is refused becomes the
target of a symbolic link, which is read as such and never followed.
Source: measured on MooseFS 3.0.117; tests/chaos/test_network.py holds it.
"""

import errno
import os
from pathlib import Path

from model_cache.volume.disk import volume_error
from schemas.errors import VolumeFullError


def write(path: Path, text: str) -> None:
    """Make the file `path`, which nobody else knows yet, say `text`; it is gone if that fails.

    Raises:
        OSError: the disk refused, the text as well as the link.
    """
    try:
        path.write_text(text)
    except OSError as error:
        path.unlink(missing_ok=True)  # On a full disk it is there, and empty.
        if not isinstance(volume_error(error), VolumeFullError):
            raise
        try:
            point(path, text)
        except OSError:
            raise error from None


def point(path: Path, text: str) -> None:
    """Make `path` a symbolic link that says `text`, of less than 4096 bytes.

    Raises:
        OSError: the disk refused, the name is taken, or the text is too long.
    """
    os.symlink(text, path)  # noqa: PTH211 - it names no file


def read(path: Path, most_bytes: int) -> tuple[str, int]:
    """Return what a file or a link says, and its mtime in ns.

    Raises:
        FileNotFoundError: there is none.
        OSError: it cannot be read.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return os.readlink(path), path.lstat().st_mtime_ns  # noqa: PTH115 - it names no file
    with open(handle, "rb") as file:  # noqa: PTH123 - of a handle
        modified_ns = os.fstat(handle).st_mtime_ns
        return file.read(most_bytes).decode(errors="replace"), modified_ns
