"""The models that somebody at a command line means by the names that they typed."""

import difflib
from collections.abc import Sequence

from model_cache.cache import ModelCache
from model_cache.models import CachedModel
from schemas.errors import InvalidInputError, ModelNotFoundError, shown
from schemas.model_ref import Kind

_MOST_NEAR = 3


def listed(cache: ModelCache, kind: Kind | None) -> list[CachedModel]:
    """Return all models, or all of one kind, by kind and name."""
    kinds = [kind] if kind else list(Kind)
    return [model for kind in kinds for model in cache.models(kind)]


def named(cache: ModelCache, names: Sequence[str], kind: Kind | None) -> list[CachedModel]:
    """Return the models that are called so, each once, in the order of their names.

    A name may be spelled as in a request: with its suffix or folder, or as a hash.

    Raises:
        ModelNotFoundError: there is none of that name.
        InvalidInputError: several kinds have one, and `kind` is None.
    """
    models = [_one(cache, name, kind) for name in names]
    return list({model.path: model for model in models}.values())


def meant(cache: ModelCache, names: Sequence[str], kind: Kind | None) -> list[CachedModel]:
    """Return the models that are called so, or all of them where no name is given; see `named`."""
    return named(cache, names, kind) if names else listed(cache, kind)


def _one(cache: ModelCache, name: str, kind: Kind | None) -> CachedModel:
    kinds = [kind] if kind else list(Kind)
    found = [model for kind in kinds if (model := cache.find(kind, name)) is not None]
    if len(found) == 1:
        return found[0]
    if found:
        raise InvalidInputError(
            f"There is a {' and a '.join(model.kind for model in found)} called {shown(name)}.",
            hint="Say which one with --kind.",
        )
    names = sorted({model.name for model in listed(cache, kind)})
    near = difflib.get_close_matches(name, names, _MOST_NEAR)
    raise ModelNotFoundError(
        f"There is no {kind or 'model'} called {shown(name)}.",
        hint=f"Did you mean {' or '.join(near)}?" if near else "`list` shows what there is.",
    )
