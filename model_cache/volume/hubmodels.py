"""Which files of the platform's Hugging Face cache are models, and of which kind.

A repository does not say what its files are for, so their headers do, each read once for every state
of a file. What no header shows to be a model of ours is left out: it may be anything.
"""

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from model_cache.hosts import hubcache
from model_cache.weights import architecture, header
from schemas.errors import WorkerError
from schemas.model_ref import SUFFIX, Kind, stem_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HubModel:
    """A whole model in the cache."""

    kind: Kind
    path: Path
    status: os.stat_result
    key: str
    """The source key that means it."""
    relative: str
    """`org/repo/stem`."""


def models(volume: Path) -> Iterator[HubModel]:
    """Yield every model in the cache on `volume`; safetensors only."""
    for path, key in hubcache.files(volume):
        if path.suffix != SUFFIX:
            continue
        try:
            status = path.stat()
            kind = _kind(path, status.st_size, status.st_mtime_ns)
        except OSError as error:
            log.warning("The file %s cannot be read: %s", path, error.strerror)
            continue
        if kind is not None:
            yield HubModel(kind, path, status, key, _relative(path))


@lru_cache(maxsize=1024)
def _kind(path: Path, _size_bytes: int, _mtime_ns: int) -> Kind | None:
    try:
        return architecture.nature(header.read(path, path.name)).kind
    except WorkerError as error:
        log.warning("The file %s is no model: %s", path, error)
        return None


def _relative(path: Path) -> str:
    """Return `org/repo/stem` of `models--org--repo/snapshots/<commit>/<file>`."""
    _, org, repo = path.parents[2].name.split("--")
    return f"{org}/{repo}/{stem_of(path.name)}"
