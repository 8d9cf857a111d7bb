"""What model files are called, when people put them wherever they liked. Pure."""

import hashlib
from collections import Counter
from collections.abc import Collection, Iterator
from itertools import count
from pathlib import Path
from typing import Protocol, TypeVar

from model_cache.volume import layout
from schemas.model_ref import MAX_NAME_BYTES, SUFFIX, stem_of


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
    def place(self) -> str:
        """`models/Lora/sub/stem`: where it is below the volume, the image or the cache."""
        ...

    @property
    def claim(self) -> int | None:
        """The lower, the sooner it gets its stem, and nobody else; None: only if no other has it."""
        ...


File = TypeVar("File", bound=Placed)


def unique_names(files: Collection[File]) -> dict[str, File]:
    """Return name -> file for the files of one kind; no two files have one name.

    A file with a claim (baked, then published) is called by its stem, and so is every other whose
    stem is its own. The rest are called by their path, as A1111 does with sub-folders (`sub_stem`);
    a number decides where even that is not enough. So a file that appears elsewhere never takes
    another's name.
    """
    stems = Counter(stem(file) for file in files)
    named: dict[str, File] = {}
    others = []
    for file in sorted(files, key=_order):
        name = stem(file)
        if name not in named and (file.claim is not None or stems[name] == 1):
            named[name] = file
        else:
            others.append(file)
    for file in others:
        named[next(name for name in _path_names(file) if name not in named)] = file
    return named


def stem(file: Placed) -> str:
    """Return the name that a file would have if it were the only one."""
    return _plain(stem_of(file.path.name))


def spellings(relative: str) -> tuple[str, ...]:
    """Return what a file at `sub/stem` answers to besides its name, without suffix.

    Source: A1111 1.10.1, modules/sd_models.py, CheckpointInfo.
    """
    last = relative.rpartition("/")[2]
    return tuple(dict.fromkeys((relative, relative.replace("/", "_"), last)))


def _order(file: Placed) -> tuple[bool, int, bool, str]:
    """Sort by claim; of `x.safetensors` and `x.pt` the first is what a name should mean."""
    return (
        file.claim is None,
        file.claim or 0,
        file.path.suffix != SUFFIX,
        str(file.path),
    )


def _path_names(file: Placed) -> Iterator[str]:
    """Yield names made from where a file is, from the shortest to ones that always work."""
    if "/" in file.relative:
        yield _plain(file.relative)
    whole = _plain(file.place)
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
