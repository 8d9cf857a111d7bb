"""Which models go when room is needed: the ones used longest ago. Pure: decides, deletes nothing."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby
from pathlib import Path


class Kept(StrEnum):
    """Why a model stays, whatever room is needed."""

    PINNED = "pinned"
    IN_USE = "in_use"
    BROUGHT = "brought"
    """Not fetched by us, so it could not be had again."""


@dataclass(frozen=True)
class Candidate:
    """One name of a model file."""

    path: Path
    file: tuple[int, int]
    """Device and inode: two names of one file free its bytes only together."""
    size_bytes: int
    last_used: float
    """Unix time in seconds; when it was published, if it was never used."""
    kept: Kept | None


@dataclass(frozen=True)
class Victim:
    """A file that goes, under all its names."""

    paths: tuple[Path, ...]
    size_bytes: int
    last_used: float


def victims(candidates: Iterable[Candidate], free_bytes: int) -> tuple[Victim, ...] | None:
    """Return the files to delete to free at least `free_bytes`, least recently used first.

    As many of them as it takes and no more; none if there is nothing to free; None where all that
    may go would not be enough, and then nothing should.
    """
    chosen = []
    missing = free_bytes
    for victim in sorted(_evictable(candidates), key=lambda one: (one.last_used, one.paths)):
        if missing <= 0:
            break
        chosen.append(victim)
        missing -= victim.size_bytes
    return tuple(chosen) if missing <= 0 else None


def kept_bytes(candidates: Iterable[Candidate], why: Kept | None) -> int:
    """Return how many bytes are kept for the reason `why`, or for None can go.

    A file with several names is kept for the strongest reason that one of them has.
    """
    return sum(names[0].size_bytes for names in _files(candidates) if _reason(names) is why)


def _evictable(candidates: Iterable[Candidate]) -> list[Victim]:
    return [
        Victim(
            tuple(sorted(name.path for name in names)),
            names[0].size_bytes,
            max(name.last_used for name in names),
        )
        for names in _files(candidates)
        if _reason(names) is None
    ]


def _files(candidates: Iterable[Candidate]) -> list[Sequence[Candidate]]:
    """Return the candidates in groups of names of one file."""
    in_order = sorted(candidates, key=lambda one: one.file)
    return [list(names) for _, names in groupby(in_order, key=lambda one: one.file)]


def _reason(names: Sequence[Candidate]) -> Kept | None:
    reasons = {name.kept for name in names}
    return next((why for why in Kept if why in reasons), None)
