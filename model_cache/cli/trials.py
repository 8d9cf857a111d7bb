"""What a disk can do of that which the store needs: each tried out in a folder of its own.

Knows nothing of the models that are there. A trial does what the store does, and an `OSError` is an
answer as well.
"""

import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from model_cache.cli import tables
from model_cache.sharing.lease import TTL_S, Lease
from model_cache.volume import layout

SPEED_BYTES = 64 << 20
_PIECE_BYTES = 1 << 20
_SPARSE_BYTES = 1 << 30
_SMALL_FILES = 20
_POOR_MB_S = 50
_POOR_SMALL_FILE_MS = 50
_POOR_SPARSE_S = 1.0
_POOR_SKEW_S = 60
_CHECKPOINT_BYTES = 7e9
# A contender needs the time to live of the dead holder's lease, and one more look.
_TAKE_OVER_TRIES = 4
_ASK_EVERY_S = 0.1
_HOLDER_S = 30
_OCTAL = re.compile(r"\\([0-7]{3})")
_HOLDER = """
import sys, time
from pathlib import Path
from model_cache.sharing.lease import Lease

lease = Lease(Path(sys.argv[1]), "doctor")
print(lease.try_acquire() and not lease.lost, flush=True)
time.sleep(600)
"""


class Grade(StrEnum):
    """How good what was seen is."""

    GOOD = "good"
    POOR = "poor"
    """It costs speed, bandwidth or convenience."""
    BAD = "bad"
    """Jobs fail or models get lost until somebody acts."""


@dataclass(frozen=True)
class Finding:
    """What one check saw, and what that means for whoever uses the volume."""

    check: str
    grade: Grade
    saw: str
    means: str = ""


@dataclass(frozen=True)
class _Verdict:
    grade: Grade
    saw: str
    means: str


def run(folder: Path, *, speed_bytes: int, lease_ttl_s: float = TTL_S) -> Iterator[Finding]:
    """Yield what each trial found; `folder` exists, is empty, and is full of rubbish afterwards.

    Args:
        folder: on the volume.
        speed_bytes: how much is written to tell the speed.
        lease_ttl_s: how long a dead holder's lease is respected, in seconds.
    """
    trials: tuple[tuple[str, Callable[[], _Verdict]], ...] = (
        ("exclusive names", lambda: _exclusive_names(folder)),
        ("hard links", lambda: _hard_links(folder)),
        ("rename", lambda: _rename(folder)),
        ("delete while open", lambda: _delete_while_open(folder)),
        ("clock", lambda: _clock(folder)),
        ("files with holes", lambda: _holes(folder)),
        ("small files", lambda: _small_files(folder)),
        ("write speed", lambda: _write_speed(folder, speed_bytes)),
        ("take-over", lambda: _take_over(folder, lease_ttl_s)),
    )
    for name, trial in trials:
        try:
            verdict = trial()
        except OSError as error:
            said = error.strerror or str(error)
            verdict = _Verdict(Grade.BAD, f"Refused: {said}.", "Models cannot be kept here so.")
        yield Finding(name, verdict.grade, verdict.saw, verdict.means)


def mount(volume: Path) -> Finding:
    """Say what is mounted where the volume is. Source: proc(5), /proc/pid/mountinfo."""
    place = volume.resolve()
    best, said = "", "It is not known what is mounted here."
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        point = _plain(fields.split()[4])
        if place.is_relative_to(point) and len(point) >= len(best):
            kind, source = map(_plain, rest.split()[:2])
            best, said = point, f"{kind} of {source}, mounted at {point}."
    if best == "/":
        return Finding(
            "mount",
            Grade.POOR,
            f"{volume} is on the root file system ({said.partition(' ')[0]}).",
            "No volume is mounted here: in a container, models are lost when it ends.",
        )
    return Finding("mount", Grade.GOOD, said)


def _plain(text: str) -> str:
    """Undo how the kernel writes blanks, `#` and the like: a backslash and three octal digits."""
    return _OCTAL.sub(lambda code: chr(int(code[1], 8)), text)


def _exclusive_names(folder: Path) -> _Verdict:
    path = folder / "exclusive"
    path.touch(exist_ok=False)
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return _Verdict(
            Grade.GOOD,
            "A name that is taken is refused.",
            "Two workers never write to one file, nor over each other's model.",
        )
    return _Verdict(
        Grade.BAD,
        "A name was given out twice.",
        "Workers could overwrite each other's models: use this volume for one worker at most.",
    )


def _hard_links(folder: Path) -> _Verdict:
    first, second = folder / "first", folder / "second"
    first.write_bytes(b"x")
    try:
        second.hardlink_to(first)
    except OSError as error:
        return _Verdict(
            Grade.POOR,
            f"One file cannot have two names ({error.strerror}).",
            "It works: files get their name by a rename. The same model under two names is used "
            "under its first, and two workers that publish in one moment may fetch it twice.",
        )
    if not first.samefile(second):
        return _Verdict(Grade.BAD, "A link is another file.", "Models would take twice the room.")
    return _Verdict(
        Grade.GOOD, "One file can have two names.", "The same model is never stored twice."
    )


def _rename(folder: Path) -> _Verdict:
    final, fresh = folder / "view", folder / "fresh"
    final.write_bytes(b"old")
    fresh.write_bytes(b"new")
    with final.open("rb") as reader:
        fresh.replace(final)
        seen = (reader.read(), final.read_bytes())
    if seen == (b"old", b"new"):
        return _Verdict(
            Grade.GOOD,
            "A reader sees the old file or the new one.",
            "Whatever is replaced, nobody reads a mixture of both.",
        )
    return _Verdict(
        Grade.BAD, "A reader saw neither.", "What workers tell each other may be read damaged."
    )


def _delete_while_open(folder: Path) -> _Verdict:
    path = folder / "open"
    path.write_bytes(b"weights")
    with path.open("rb") as reader:
        path.unlink()
        kept = reader.read() == b"weights"
    if kept:
        return _Verdict(
            Grade.GOOD,
            "A deleted file stays readable for whoever has it open.",
            "A model can be evicted while another worker loads it.",
        )
    return _Verdict(
        Grade.BAD,
        "A deleted file is gone for whoever has it open.",
        "A worker that loads a model while it is evicted fails: set no budget.",
    )


def _clock(folder: Path) -> _Verdict:
    path = folder / "clock"
    path.touch()
    skew_s = path.stat().st_mtime - time.time()
    near = abs(skew_s) < _POOR_SKEW_S
    means = "" if near else "Times in `list` are wrong by that. Nothing else depends on them."
    return _Verdict(
        Grade.GOOD if near else Grade.POOR,
        f"The volume's clock differs from this host's by {abs(skew_s):.1f} s.",
        means,
    )


def _holes(folder: Path) -> _Verdict:
    path = folder / "sparse"
    with path.open("wb") as file:
        started = time.monotonic()
        file.truncate(_SPARSE_BYTES)
        took_s = time.monotonic() - started
    taken_bytes = path.stat().st_blocks * 512
    path.unlink()
    if took_s < _POOR_SPARSE_S and taken_bytes < _SPARSE_BYTES // 2:
        return _Verdict(
            Grade.GOOD,
            f"A file of 1 GiB is made in {took_s * 1000:.1f} ms.",
            "The parts of a model can be fetched in any order.",
        )
    return _Verdict(
        Grade.POOR,
        f"To make a file of 1 GiB takes {took_s:.1f} s and {tables.size(taken_bytes)}.",
        "Each fetch of a large model begins late by that.",
    )


def _small_files(folder: Path) -> _Verdict:
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
    fast = median_ms < _POOR_SMALL_FILE_MS
    return _Verdict(
        Grade.GOOD if fast else Grade.POOR,
        f"To write, sync and rename one takes {median_ms:.2f} ms.",
        "" if fast else "Thousands of models take a worker long to look through at its start.",
    )


def _write_speed(folder: Path, size: int) -> _Verdict:
    """Write and sync: where a quota is reached, the disk may say so only at the sync."""
    path, piece = folder / "speed", os.urandom(_PIECE_BYTES)
    started = time.monotonic()
    with path.open("wb", buffering=0) as file:
        for _ in range(0, size, _PIECE_BYTES):
            file.write(piece)
        os.fsync(file.fileno())
    bytes_per_s = size / (time.monotonic() - started)
    path.unlink()
    return _Verdict(
        Grade.GOOD if bytes_per_s >= _POOR_MB_S * 1e6 else Grade.POOR,
        f"{bytes_per_s / 1e6:.0f} MB/s.",
        f"A checkpoint of 7 GB takes {tables.seconds(_CHECKPOINT_BYTES / bytes_per_s)} to write, "
        "however fast it comes.",
    )


def _take_over(folder: Path, ttl_s: float) -> _Verdict:
    """Let a process take a lease, kill it, and see how long it takes to get the lease."""
    if not _held_by_a_dead_process(folder):
        return _Verdict(
            Grade.POOR, "No lease can be had.", "Workers that want one model each fetch it."
        )
    lease, started = Lease(folder, "doctor", ttl_s=ttl_s), time.monotonic()
    while not lease.try_acquire():
        if time.monotonic() - started > ttl_s * _TAKE_OVER_TRIES:
            return _Verdict(
                Grade.POOR,
                f"The lease of a killed process was not free after {ttl_s * _TAKE_OVER_TRIES:g} s.",
                "When a worker dies while it fetches, others wait until their time is over.",
            )
        time.sleep(_ASK_EVERY_S)
    took_s = time.monotonic() - started
    lease.release()
    return _Verdict(
        Grade.GOOD,
        f"The lease of a killed process was free {tables.seconds(took_s)} later.",
        "When a worker dies while it fetches, another one goes on after so long.",
    )


def _held_by_a_dead_process(folder: Path) -> bool:
    """Have a process take the lease and kill it; False if it could not have it."""
    layout.leases_folder(folder).mkdir(parents=True, exist_ok=True)
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(folder)],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        return holder.stdout is not None and holder.stdout.readline().strip() == "True"
    finally:
        holder.kill()
        holder.communicate(timeout=_HOLDER_S)
