r"""A file that is being fetched, and what is left of one whose fetch ended too early.

    <volume>/models/.worker/tmp/
        <key>.<random>.part     the bytes, as large as the whole file from the start, with holes
        <key>.<random>.json     {"version": 1, "etag": "\"…\"", "size": 7105348560,
                                 "done": [[0, 8388608], [16777216, 25165824]]}

`key` names what is fetched, in hex digits. The journal is written after the bytes that it speaks of
are on the disk, and only for a file with a strong ETag; without one nothing could be resumed.

A part belongs to the one process that made it: nobody else ever opens it for writing, not even when
that process seems to be dead, for it may only sleep. Who comes after it *reads* it and copies what
it can use. What a journal speaks of never changes while the file exists: to start over is to begin
another part.
"""

import hashlib
import json
import logging
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from model_cache.engine.ranges import Spans
from model_cache.volume import layout
from model_cache.volume.disk import disk_errors, require_volume
from model_cache.volume.publish import PartLostError
from schemas.errors import (
    DownloadBudgetExceededError,
    DownloadIncompleteError,
    JobCancelledError,
    ModelCorruptError,
    ModelIncompatibleError,
    ModelUnsafeError,
    SourceQuotaError,
    SourceUnavailableError,
    VolumeMissingError,
)

log = logging.getLogger(__name__)

_VERSION = 1
_MAX_JOURNAL_BYTES = 1 << 20
# After these the same fetch may be tried again, and what came is of use.
_WORTH_KEEPING = (
    DownloadBudgetExceededError,
    DownloadIncompleteError,
    JobCancelledError,
    SourceQuotaError,
    SourceUnavailableError,
)
# After these what was used of others' bytes may be what is wrong.
_USELESS = (ModelCorruptError, ModelIncompatibleError, ModelUnsafeError)


def key_of(source: str) -> str:
    """Return the key of what a source key names: 16 hex digits."""
    return hashlib.sha256(source.encode(errors="surrogatepass")).hexdigest()[:16]


class Part:
    """A file that this process alone writes to. Bytes may be written from several threads."""

    def __init__(self, volume: Path, key: str) -> None:
        """Make the file.

        Raises:
            VolumeError: the disk refused.
        """
        self.volume = volume
        self.key = key
        self._new()

    def _new(self) -> None:
        # The name is random and not the process's number: containers that share a volume share
        # numbers.
        self.path = layout.tmp_folder(self.volume) / f"{self.key}.{uuid.uuid4().hex}.part"
        self._etag, self._size = "", 0
        self.saved_bytes = 0
        self.used: list[Leftover] = []
        """What its bytes come from beside the network."""
        with disk_errors():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._handle: int | None = os.open(self.path, flags, 0o666)

    @property
    def _fd(self) -> int:
        if self._handle is None:
            raise ValueError("the part is closed")
        return self._handle

    def start_over(self) -> None:
        """Go on with an empty file of another name; the old one is deleted.

        Raises:
            VolumeError: the disk refused.
        """
        self.delete()
        self._new()

    def begin(self, size: int | None, etag: str) -> None:
        """Give the file its size, if that is known; `etag` is a strong one, or empty.

        Raises:
            VolumeFullError: no room for a file of that size.
            VolumeError: another refusal of the disk.
        """
        self._size, self._etag = size or 0, etag if size else ""
        if size:
            with disk_errors():
                # Sparse, and no promise of room. posix_fallocate is not used: glibc writes into
                # every block where the file system cannot do it, as on MooseFS.
                # Source: glibc manual, "Storage Allocation".
                os.ftruncate(self._fd, size)

    def write(self, offset: int, data: memoryview) -> None:
        """Write all of `data` at `offset`.

        Raises:
            VolumeFullError: no room, or over quota.
            VolumeError: another refusal of the disk.
        """
        with disk_errors():
            while data:
                written = os.pwrite(self._fd, data, offset)
                data, offset = data[written:], offset + written

    def read(self, offset: int, into: memoryview) -> int:
        """Read at `offset` as much as there is and fits; return how much.

        Raises:
            VolumeError: the disk refused.
        """
        with disk_errors():
            return os.preadv(self._fd, [into], offset)

    def save(self, done: list[tuple[int, int]]) -> None:
        """Bring the bytes in `done` to the disk and note in the journal that they are there.

        Does nothing without a strong ETag.

        Raises:
            PartLostError: somebody deleted the file.
            VolumeFullError: over quota, which a network volume may say only now.
            VolumeError: another refusal of the disk.
        """
        if not self._etag:
            return
        path, journal = self.path, {"version": _VERSION, "etag": self._etag, "size": self._size}
        # A handle of its own: the part may be closed while a slow disk is still at it.
        handle = os.dup(self._fd)
        try:
            with disk_errors():
                os.fdatasync(handle)
            _require_presence(path, handle)
            new = path.with_suffix(".new")
            with disk_errors():
                new.write_text(json.dumps(journal | {"done": done}))
                new.replace(path.with_suffix(".json"))
        finally:
            with disk_errors():
                os.close(handle)
        self.saved_bytes = sum(end - start for start, end in done)

    def seal(self) -> None:
        """Bring every byte to the disk, have one mtime for all hosts, and close the file.

        Raises:
            PartLostError: somebody deleted the file.
            VolumeFullError: over quota, which a network volume may say only now.
            VolumeError: another refusal of the disk.
        """
        _require_presence(self.path, self._fd)
        handle, self._handle = self._fd, None
        with disk_errors():
            try:
                os.fsync(handle)
                # MooseFS tells other hosts an older mtime for a second or so, and then they would
                # take the file for another one than its manifest's, unless it is set by itself.
                # Source: measured on 3.0.117 with two mounts; its mfsmount keeps times of its own.
                os.utime(handle)
            finally:
                os.close(handle)

    def close(self) -> None:
        """Close the file and leave it, if its journal is worth it, to who comes next."""
        if self.saved_bytes:
            self._close()
        else:
            self.delete()

    def delete(self) -> None:
        """Close the file, and delete it and its journal; where that fails, `sweep` comes after."""
        self._close()
        _delete(self.path)

    def _close(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            # Whatever a close says now, the bytes are of no more use, or were synced before.
            with suppress(OSError):
                os.close(handle)

    def leftovers(self) -> list["Leftover"]:
        """Return what others began of the same thing; the largest first. Fails in silence."""
        found = [left for left in _journals(self.volume, self.key) if left.path != self.path]
        return sorted(found, key=lambda left: left.done.total, reverse=True)


@dataclass(frozen=True)
class Leftover:
    """A part that another process wrote, and may still write to where its journal is silent."""

    path: Path
    etag: str
    size: int
    done: Spans

    def delete(self) -> None:
        """Delete it. If its process is alive, that one gets a `PartLostError`."""
        _delete(self.path)


@contextmanager
def private_part(volume: Path, key: str) -> Iterator[Part]:
    """Yield a new part; afterwards it has been published, is left to be resumed, or is gone.

    After a success everything that anybody began under `key` is deleted. After an error that
    another try may not meet, what the journal speaks of is left for 24 hours. When what came was
    refused for what it is, what it was copied from goes as well. After a full volume nothing is left:
    it would stand in the way of the room that is made next.

    Args:
        volume: the root of the volume, mounted.
        key: names what is fetched, in hex digits.

    Raises:
        PartLostError: the lines inside found no file any more where the part was.
        VolumeMissingError: the volume is not mounted, or is read-only.
        VolumeError: another refusal of the disk.
    """
    require_volume(volume)
    part = Part(volume, key)
    try:
        yield part
    except _WORTH_KEEPING:
        part.close()
        raise
    except _USELESS:
        part.delete()
        for used in part.used:
            used.delete()
        raise
    except VolumeMissingError as error:
        # Whatever was about to be done with it: it went in the middle, by another worker's hand.
        lost = os.path.lexists(volume) and not os.path.lexists(part.path)
        part.delete()
        if lost:
            raise PartLostError(part.path.name) from error
        raise
    except BaseException:
        part.delete()
        raise
    part.delete()
    for left in _leftover_files(volume, key):
        _delete(left)


def _require_presence(path: Path, handle: int) -> None:
    """Raise `PartLostError` if the file at `path` is not the open one any more."""
    with disk_errors():
        ours = os.fstat(handle)
        try:
            there = path.stat()
        except FileNotFoundError:
            raise PartLostError(path.name) from None
    if (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino):
        raise PartLostError(path.name)


def _delete(path: Path) -> None:
    """Delete a part and what belongs to it, the journal first; `sweep` tries again."""
    for suffix in (".json", ".new", ".part"):
        with suppress(OSError):
            path.with_suffix(suffix).unlink(missing_ok=True)


def _leftover_files(volume: Path, key: str) -> list[Path]:
    try:
        with os.scandir(layout.tmp_folder(volume)) as entries:
            names = [entry.name for entry in entries]
    except OSError:
        return []
    folder = layout.tmp_folder(volume)
    mine = [name for name in names if name.startswith(f"{key}.")]
    return [folder / name for name in mine if name.endswith((".json", ".part"))]


def _journals(volume: Path, key: str) -> Iterator[Leftover]:
    for path in _leftover_files(volume, key):
        if path.suffix == ".json":
            leftover = _read_journal(path)
            if leftover is not None:
                yield leftover


def _read_journal(path: Path) -> Leftover | None:
    """Return what a journal says; None if it is damaged, of another version or has no part."""
    part = path.with_suffix(".part")
    try:
        if path.stat().st_size > _MAX_JOURNAL_BYTES:
            return None
        journal = json.loads(path.read_bytes())
        if journal["version"] != _VERSION or part.stat().st_size != journal["size"]:
            return None
        done = [(int(start), int(end)) for start, end in journal["done"]]
        leftover = Leftover(part, str(journal["etag"]), int(journal["size"]), Spans(done))
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        log.info("the journal %s is of no use", path.name)
        return None
    sound = all(0 <= start < end <= leftover.size for start, end in done)
    return leftover if sound and leftover.etag else None
