"""The files in which a worker says what it uses: how one is read, replaced and overwritten.

Knows nothing of whose a file is, and of what is done with what it says (uses.py).
"""

import json
import os
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from model_cache.sharing import note
from model_cache.volume.disk import disk_errors, require_volume
from schemas.errors import VolumeError

UNFINISHED = ".tmp"
"""How a file is called before it has its name."""
_MAX_BYTES = 4_000_000
# What a record takes at least, and grows by: a dozen jobs name fewer models than fit.
_ROOM_BYTES = 8192
# A record that is overwritten where it lies may be read in the middle of that.
_TORN_S = 0.01


@dataclass(frozen=True)
class Record:
    """What a file says, and since when."""

    text: str
    modified_ns: int


def read(path: Path) -> Record:
    """Return what a file says; nothing where it just went.

    Raises:
        OSError: it cannot be read.
    """
    try:
        return Record(*note.read(path, _MAX_BYTES))
    except FileNotFoundError:
        return Record("", time.time_ns())


def read_whole(path: Path) -> Record:
    """Return what a record says, read again if it seems to be overwritten at this moment.

    Raises:
        OSError: it cannot be read.
    """
    said = read(path)
    if said.text and field(said.text, "in_use") is None:
        time.sleep(_TORN_S)
        said = read(path)
    return said


def in_use(text: str) -> list[str]:
    """Return the paths that a record names; one that is damaged names none."""
    names = field(text, "in_use")
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def field(text: str, name: str) -> object:
    """Return a field of a JSON object; None if there is none, or no such object."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return content.get(name) if isinstance(content, dict) else None


def room(text: str) -> int:
    """Return how many bytes a record with that text, of ASCII alone, is made to take."""
    return -(-len(text) // _ROOM_BYTES) * _ROOM_BYTES


def write(volume: Path, path: Path, text: str) -> VolumeError | None:
    """Replace a file: a reader sees all of it or what it was; return what the disk said against it."""
    part = path.with_suffix(f".{uuid.uuid4().hex}{UNFINISHED}")
    try:
        require_volume(volume)
        with disk_errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                part.write_text(text)
                part.replace(path)
            finally:
                part.unlink(missing_ok=True)
    except VolumeError as error:
        return error
    return None


def overwrite(path: Path, text: str) -> bool:
    """Write `text` over a file, which takes no room on a disk that is full; False if that failed.

    Nothing is changed where the file would have to grow: half a record says nothing at all.
    """
    data = text.encode()
    try:
        handle = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            status = os.fstat(handle)
            if status.st_size < len(data):
                os.utime(handle)  # That we live must be seen all the same.
                return False
            written = os.pwrite(handle, data.ljust(status.st_size), 0)
            os.fsync(handle)
            # Whoever moved it away meanwhile, to look at it, may have looked too early.
            return written == status.st_size and os.path.samestat(status, path.stat())
        finally:
            os.close(handle)
    except OSError:
        return False


def point(path: Path, text: str) -> bool:
    """Replace a file by a link that says `text`, which takes no bytes; False if that failed."""
    part = path.with_suffix(f".{uuid.uuid4().hex}{UNFINISHED}")
    try:
        note.point(part, text)
        part.replace(path)
    except OSError:
        with suppress(OSError):  # A sweep comes after.
            part.unlink(missing_ok=True)
        return False
    return True
