"""Were two models made for each other? Told from their bases alone. Pure."""

from model_cache.models import CachedModel

_TOLD_BY = {
    "shapes": "by the shapes of its tensors",
    "metadata": "by its header's metadata",
}


def family(base: str) -> str | None:
    """Return the architecture that models must share to work together, None if it is not known."""
    plain = base.partition("-")[0]
    return None if plain in {"", "unknown"} else plain


def is_judged(checkpoint: CachedModel, other: CachedModel) -> bool:
    """Tell whether enough is known of both to say that they fit."""
    return family(checkpoint.base) is not None and family(other.base) is not None


def misfit(checkpoint: CachedModel, other: CachedModel) -> str:
    """Return why `other` does not work with `checkpoint`, as a sentence; empty if it may."""
    have, need = family(other.base), family(checkpoint.base)
    if have is None or need is None or have == need:
        return ""
    return (
        f"The {other.kind} `{other.name}` is made for {have}{_told(other)}, the checkpoint"
        f" `{checkpoint.name}` is {need}{_told(checkpoint)}."
    )


def _told(model: CachedModel) -> str:
    told = _TOLD_BY.get(model.base_by)
    return f" ({told})" if told else ""
