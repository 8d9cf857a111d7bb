"""Which files below the folders of models are called as models are; nothing of them is read."""

import logging
import os
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from model_cache.volume import layout
from schemas.model_ref import SUFFIX, SUFFIXES, Kind, stem_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """A file with a model's suffix, or something else that is called so."""

    root: layout.Root
    kind: Kind
    path: Path

    @property
    def published(self) -> bool:
        """Whether it lies where we publish."""
        return self.root.ours and self.path.parent == self.root.path


def candidates(
    volume: Path, baked: Path | None, allow_pickle: Collection[Kind]
) -> Iterator[Candidate]:
    """Yield the candidates in every root, in the order of roots, following links.

    A folder is looked into once for a kind, by whichever way it is reached first. Pickles are seen
    of the kinds in `allow_pickle` alone.
    """
    visited: set[tuple[Kind, int, int]] = set()
    for root in layout.roots(volume, baked):
        folders = [root.path]
        while folders:
            folder = folders.pop()
            for entry in _entries(folder, root.kind, visited):
                with suppress(OSError):  # A broken link, or deleted since it was listed.
                    if entry.is_dir():
                        folders.append(folder / entry.name)
                        continue
                kind = _kind(root, entry.name)
                if entry.name.endswith(SUFFIXES if kind in allow_pickle else SUFFIX):
                    yield Candidate(root, kind, folder / entry.name)


def _entries(
    folder: Path, kind: Kind, visited: set[tuple[Kind, int, int]]
) -> list[os.DirEntry[str]]:
    """Return what is in a folder but for what is hidden, sorted; nothing the second time."""
    try:
        status = folder.stat()
        key = (kind, status.st_dev, status.st_ino)
        if key in visited:
            return []
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return []  # Most roots exist on no volume.
    except OSError as error:
        log.warning("The folder %s cannot be read: %s", folder, error.strerror)
        return []
    visited.add(key)
    # Hidden: unfinished uploads of many tools, and our own folder.
    return [entry for entry in entries if not entry.name.startswith(".")]


def _kind(root: layout.Root, file_name: str) -> Kind:
    """Return the kind of a file; A1111 takes VAEs from the folder of checkpoints, called `x.vae.*`.

    Source: A1111 1.10.1, modules/sd_models.py, list_models, and modules/sd_vae.py, refresh_vae_list.
    """
    beside = root.kind is Kind.CHECKPOINT and not root.ours
    return Kind.VAE if beside and stem_of(file_name).endswith(".vae") else root.kind
