"""Does this volume do what the store needs: tried out, in a folder that is removed again.

Each check does to the volume what the store does, and says what it saw. What a check finds missing
costs bandwidth or speed, except where it says that models cannot be kept here at all.
"""

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from model_cache import layout
from model_cache.disk import disk_errors, require_volume
from model_cache.lease import Lease
from schemas.errors import VolumeError

State = Literal["good", "slow", "bad"]
SPEED_BYTES = 64 << 20
_PIECE_BYTES = 1 << 20
_SMALL_FILES = 20
_SLOW_MB_S = 50
_SLOW_SMALL_FILE_MS = 50
_MAX_SKEW_S = 60
_MAX_TAKE_OVER_S = 60
_HOLDER = """
import sys, time
from pathlib import Path
from model_cache.lease import Lease

lease = Lease(Path(sys.argv[1]), "doctor")
print(lease.try_acquire(), flush=True)
time.sleep(600)
"""


@dataclass(frozen=True)
class Finding:
    """What one check saw."""

    check: str
    state: State
    said: str


def examine(volume: Path, *, speed_bytes: int = SPEED_BYTES) -> Iterator[Finding]:
    """Try the volume out, one finding at a time; takes about half a minute on a good one.

    Args:
        volume: the mount point.
        speed_bytes: how much is written to tell the speed.

    Raises:
        VolumeError: there is no volume, or nothing can be written to it.
    """
    require_volume(volume)
    yield _mount(volume)
    with disk_errors():
        layout.tmp_folder(volume).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=layout.tmp_folder(volume), prefix="doctor-") as name:
            folder = Path(name)
            for check in _CHECKS:
                yield _tried(check, folder)
            yield _speed(folder, speed_bytes)
            yield _take_over(folder)
    yield _leftovers(volume)


def _tried(check: Callable[[Path], Finding], folder: Path) -> Finding:
    try:
        return check(folder)
    except OSError as error:
        return Finding(check.__name__.strip("_").replace("_", " "), "bad", f"refused: {error}")


def _mount(volume: Path) -> Finding:
    """Say what is mounted there. Source: proc(5), /proc/pid/mountinfo."""
    place = volume.resolve()
    best, said = "", "not known"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        point = fields.split()[4].encode().decode("unicode_escape")
        if place.is_relative_to(point) and len(point) >= len(best):
            kind, source = rest.split()[:2]
            best, said = point, f"{kind}, {source}, mounted at {point}"
    return Finding("mount", "good", said)


def _one_winner_for_a_name(folder: Path) -> Finding:
    path = folder / "exclusive"
    path.touch(exist_ok=False)
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return Finding("one winner for a name", "good", "a name that is taken is refused")
    return Finding(
        "one winner for a name", "bad", "a name was given out twice: models could be overwritten"
    )


def _second_names(folder: Path) -> Finding:
    first, second = folder / "first", folder / "second"
    first.write_bytes(b"x")
    try:
        os.link(first, second)
    except OSError as error:
        return Finding("hard links", "slow", f"none here ({error.strerror}): files are renamed")
    same = os.path.samestat(first.stat(), second.stat())
    return Finding("hard links", "good" if same else "bad", "one file can have two names")


def _replaced_at_once(folder: Path) -> Finding:
    final, fresh = folder / "view", folder / "fresh"
    final.write_bytes(b"old")
    fresh.write_bytes(b"new")
    with final.open("rb") as reader:
        fresh.replace(final)
        if (reader.read(), final.read_bytes()) == (b"old", b"new"):
            return Finding("rename", "good", "a reader sees the old file or the new one")
    return Finding("rename", "bad", "a reader saw a mixture: models cannot be published safely")


def _kept_while_open(folder: Path) -> Finding:
    path = folder / "open"
    path.write_bytes(b"weights")
    with path.open("rb") as reader:
        path.unlink()
        kept = reader.read() == b"weights"
    said = "a deleted file stays readable for who has it open"
    return Finding(
        "delete while open",
        "good" if kept else "bad",
        said if kept else f"it is not so that {said}",
    )


def _clock(folder: Path) -> Finding:
    path = folder / "clock"
    path.touch()
    skew_s = path.stat().st_mtime - time.time()
    said = f"{skew_s:+.1f} s against ours; leases do not depend on it"
    return Finding("clock of the volume", "good" if abs(skew_s) < _MAX_SKEW_S else "slow", said)


def _sized_without_writing(folder: Path) -> Finding:
    path = folder / "sparse"
    with path.open("wb") as file:
        started = time.monotonic()
        file.truncate(1 << 30)
        took_s = time.monotonic() - started
    return Finding(
        "size set at once", "good" if took_s < 1 else "slow", f"1 GiB in {took_s * 1000:.1f} ms"
    )


def _small_files(folder: Path) -> Finding:
    took_ms = []
    for number in range(_SMALL_FILES):
        fresh = folder / f"small-{number}"
        started = time.monotonic()
        with fresh.open("wb") as file:
            file.write(b"{}")
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(folder / "small")
        took_ms.append((time.monotonic() - started) * 1000)
    median_ms = statistics.median(took_ms)
    return Finding(
        "small files",
        "good" if median_ms < _SLOW_SMALL_FILE_MS else "slow",
        f"{median_ms:.2f} ms to write, sync and rename one",
    )


_CHECKS = (
    _one_winner_for_a_name,
    _second_names,
    _replaced_at_once,
    _kept_while_open,
    _clock,
    _sized_without_writing,
    _small_files,
)


def _speed(folder: Path, size: int) -> Finding:
    """Write and sync; where a quota is reached, the disk may say so only at the sync."""
    path, piece = folder / "speed", os.urandom(_PIECE_BYTES)
    started = time.monotonic()
    with path.open("wb", buffering=0) as file:
        for _ in range(0, size, _PIECE_BYTES):
            file.write(piece)
        os.fsync(file.fileno())
    speed = size / (time.monotonic() - started) / 1e6
    return Finding("write speed", "good" if speed >= _SLOW_MB_S else "slow", f"{speed:.0f} MB/s")


def _take_over(folder: Path) -> Finding:
    """Let a process take a lease, kill it, and see how long it takes to get the lease."""
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(folder)],
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        took = holder.stdout is not None and holder.stdout.readline().strip() == "True"
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    if not took:
        return Finding("leases", "bad", "no lease can be had: models may be fetched twice")
    lease, started = Lease(folder, "doctor"), time.monotonic()
    while not lease.try_acquire():
        if time.monotonic() - started > _MAX_TAKE_OVER_S:
            return Finding("leases", "bad", f"not freed {_MAX_TAKE_OVER_S} s after a kill")
        time.sleep(0.1)
    lease.release()
    took_s = time.monotonic() - started
    return Finding("leases", "good", f"taken over {took_s:.1f} s after its holder was killed")


def _leftovers(volume: Path) -> Finding:
    try:
        parts = [entry for entry in os.scandir(layout.tmp_folder(volume)) if entry.is_file()]
        taken = sum(part.stat().st_blocks * 512 for part in parts)
    except OSError as error:
        raise VolumeError(f"The volume cannot be read: {error.strerror}.") from error
    said = f"{len(parts)} temporary files, {taken / 1e6:.1f} MB, of fetches that run or died"
    return Finding("temporary files", "good", said)
