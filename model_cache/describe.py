"""What is known of the store and of each model, for programs: plain JSON values."""

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Any

from model_cache.cache import ModelCache
from model_cache.models import CachedModel
from model_cache.sharing.uses import Use
from schemas.model_ref import Kind
from schemas.settings import CacheSettings


def model(
    model: CachedModel, use: Use | None, pinned: Collection[tuple[Kind, str]]
) -> dict[str, Any]:
    """Return all that is known of a model.

    Args:
        model: as the store lists it.
        use: how it was used, by all workers; None if never.
        pinned: every kind and name with a pin.
    """
    return {
        **dataclasses.asdict(model),
        "path": text(model.path),
        "last_used": use.last if use else None,
        "uses": use.count if use else 0,
        "pinned": (model.kind, model.name) in pinned,
    }


def store(cache: ModelCache, settings: CacheSettings) -> dict[str, Any]:
    """Return the store in numbers: models of each kind, bytes by what may be done with them.

    Raises:
        VolumeError: the volume cannot be read.
    """
    budget_gb = settings.budget_gb
    return {
        "volume": str(settings.volume),
        **dataclasses.asdict(cache.info()),
        "kinds": {kind: len(cache.models(kind)) for kind in Kind},
        "budget_bytes": None if budget_gb is None else int(budget_gb * 1e9),
        **dataclasses.asdict(cache.account()),
    }


def text(path: Path) -> str:
    """Return a path as JSON can say it: bytes that are no UTF-8 become question marks."""
    return str(path).encode(errors="replace").decode()
