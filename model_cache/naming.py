"""What model files are called, when people put them wherever they liked. Pure."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Protocol, TypeVar

from model_cache import layout
from schemas.model_ref import MAX_NAME_BYTES, SUFFIX

SHORT_HASH_DIGITS = 10
"""Digits of A1111's short hash, the one in a title. Source: A1111 1.10.1, modules/sd_models.py."""


class Placed(Protocol):
    """A file that wants a name."""

    @property
    def path(self) -> Path:
        """Where it is."""
        ...

    @property
    def relative(self) -> str:
        """`sub/stem`, below its root."""
        ...

    @property
    def published(self) -> bool:
        """Whether we published it, or could have: then nobody else gets its stem."""
        ...


File = TypeVar("File", bound=Placed)


def unique_names(volume: Path, files: Sequence[File]) -> dict[str, File]:
    """Return name -> file for the files of one kind; no two files have one name.

    A published file is called by its stem, and so is every other whose stem is its own. The rest
    are called by their path, as A1111 does with sub-folders (`sub_stem`); a number decides where
    even that is not enough. So a file that appears elsewhere never takes another's name.
    """
    stems = Counter(_plain(file.path.name.removesuffix(SUFFIX)) for file in files)
    named: dict[str, File] = {}
    others = []
    for file in sorted(files, key=lambda file: (not file.published, str(file.path))):
        stem = _plain(file.path.name.removesuffix(SUFFIX))
        if stem not in named and (file.published or stems[stem] == 1):
            named[stem] = file
        else:
            others.append(file)
    for file in others:
        named[next(name for name in _path_names(volume, file) if name not in named)] = file
    return named


def spellings(relative: str) -> tuple[str, ...]:
    """Return what a file at `sub/stem` answers to besides its name, without suffix.

    Source: A1111 1.10.1, modules/sd_models.py, CheckpointInfo.
    """
    stem = relative.rpartition("/")[2]
    return tuple(dict.fromkeys((relative, relative.replace("/", "_"), stem)))


def _path_names(volume: Path, file: Placed) -> Iterator[str]:
    """Yield names made from where a file is, from the shortest to ones that always work."""
    if "/" in file.relative:
        yield _plain(file.relative)
    whole = _plain(file.path.relative_to(volume).as_posix().removesuffix(SUFFIX))
    yield whole
    for number in count(2):
        yield f"{whole}-{number}"


def _plain(text: str) -> str:
    """Return `text` as a name: one path component that is printable, and not too long."""
    name = "".join(c if c.isprintable() and c not in "/\\" else "_" for c in text)
    if len(name.encode()) <= MAX_NAME_BYTES:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()
    return layout.beside(name, digest)
