"""Folders on the volume that are reached through no link: whoever may write there could have put one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath

from model_cache.volume.disk import disk_errors
from schemas.errors import VolumeMissingError

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


@contextmanager
def folder_beneath(volume: Path, inner: PurePath) -> Iterator[int]:
    """Yield a descriptor of the folder `inner` of the volume, made if need be, for `dir_fd` of `os`.

    What is done by it happens in that folder, wherever its name leads to meanwhile. `volume` itself
    is the operator's, and may be a link.

    Raises:
        VolumeMissingError: a link, or a file, is in the place of a folder.
        VolumeError: another refusal of the disk.
    """
    with disk_errors():
        folder = os.open(volume, _FOLDER)
    try:
        for depth, name in enumerate(inner.parts, 1):
            with disk_errors():
                inside = _opened(folder, name, PurePath(*inner.parts[:depth]))
            os.close(folder)
            folder = inside
        yield folder
    finally:
        os.close(folder)


def _opened(folder: int, name: str, shown: PurePath) -> int:
    with suppress(FileExistsError):
        os.mkdir(name, dir_fd=folder)
    try:
        return os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)
    except NotADirectoryError:
        raise VolumeMissingError(
            f"`{shown}` on the volume is no folder, or a link to one, which is not followed.",
            hint="Put a folder in its place, or use another prefix or A1111_OUTPUT_FOLDER.",
        ) from None
