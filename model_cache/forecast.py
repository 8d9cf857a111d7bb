"""What an eviction would consider and choose, without doing it: for `prune --dry-run`.

The same rules as in `room`, by a look of its own; a test holds the two together.
"""

from collections.abc import Iterable
from pathlib import Path

from model_cache import account, evict, layout, manifests, pins
from model_cache.cache import ModelCache
from model_cache.disk import disk_errors
from model_cache.evict import Candidate, Kept
from model_cache.models import CachedModel, Origin
from model_cache.uses import Uses


def candidates(
    volume: Path, cache: ModelCache, uses: Uses, models: Iterable[CachedModel]
) -> list[Candidate]:
    """Return every name of each of `models` that lies on the volume, and why it stays if it does.

    Raises:
        VolumeError: it cannot be read.
    """
    history, in_use, pinned = cache.history(), uses.others_in_use(), pins.pinned(volume)
    found = []
    for model in models:
        if model.origin is Origin.BAKED:
            continue
        with disk_errors():
            try:
                status = model.path.stat()
            except FileNotFoundError:
                continue
        created = _created(volume, model)
        used = history.get(model.path)
        kept = None
        if model.origin is not Origin.PUBLISHED:
            kept = Kept.BROUGHT
        elif (model.kind, model.name) in pinned:
            kept = Kept.PINNED
        elif model.path in in_use:
            kept = Kept.IN_USE
        found.append(
            Candidate(
                path=model.path,
                file=(status.st_dev, status.st_ino),
                size_bytes=status.st_size,
                last_used=max(used.last, created) if used else created,
                kept=kept,
            )
        )
    return found


def victims(cache: ModelCache, considered: Iterable[Candidate], to_bytes: int) -> tuple[Path, ...]:
    """Return what `ModelCache.prune` would evict.

    Raises:
        VolumeFullError: so few bytes cannot be reached.
        VolumeError: the volume cannot be read.
    """
    known = cache.account()
    free_bytes = known.models_bytes - to_bytes
    chosen = evict.victims(considered, free_bytes)
    if chosen is None:
        raise account.full(known, free_bytes, None)
    return tuple(path for victim in chosen for path in victim.paths)


def _created(volume: Path, model: CachedModel) -> float:
    manifest = None
    if model.origin is Origin.PUBLISHED:
        manifest = manifests.stored(layout.manifest_path(volume, model.kind, model.path))
    return manifest.created if manifest else model.mtime_ns / 1e9
