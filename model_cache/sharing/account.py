"""Who takes how much of the volume, and how a refusal for want of room is put. Pure."""

from dataclasses import dataclass

from schemas.errors import VolumeFullError


@dataclass(frozen=True)
class Account:
    """The bytes on the volume by what may be done with them; a file with two names counts once."""

    models_bytes: int
    """Of all models on the volume, whoever put them there."""
    fetching_bytes: int
    """What is being fetched, by this worker and others, as large as it will be; and what fetches that
    ended left, as large as it is."""
    evictable_bytes: int
    pinned_bytes: int
    in_use_bytes: int
    brought_bytes: int
    """Not fetched by us, so it could not be had again."""

    @property
    def taken_bytes(self) -> int:
        """What counts against the budget."""
        return self.models_bytes + self.fetching_bytes


def full(account: Account, free_bytes: int, budget_bytes: int | None) -> VolumeFullError:
    """Return the error that `free_bytes` would have to go and cannot, with all figures."""
    stays = ", ".join(
        f"{gigabytes(size)} {what}"
        for size, what in (
            (account.in_use_bytes, "in use"),
            (account.pinned_bytes, "pinned"),
            (account.brought_bytes, "put there by people"),
            (account.fetching_bytes, "being fetched"),
        )
        if size
    )
    return VolumeFullError(
        f"There is no room{'' if budget_bytes else ' on the disk'}: {gigabytes(free_bytes)} would have "
        f"to go, and "
        f"{gigabytes(account.evictable_bytes)} can ({stays or 'nothing else is there'}).",
        hint="Delete or unpin models"
        + (", or raise A1111_CACHE_BUDGET_GB if the volume is larger. " if budget_bytes else ". ")
        + "A model is in use for ten minutes after the last job that named it.",
        **_figures(account, free_bytes, budget_bytes),
    )


def unheard(account: Account, free_bytes: int, budget_bytes: int | None) -> VolumeFullError:
    """Return the error that nothing may go, as workers cannot write down what they use."""
    return VolumeFullError(
        f"There is no room: {gigabytes(free_bytes)} would have to go. The disk is so full that workers "
        "cannot write down which models they use, so none may be evicted.",
        hint="Delete any file on the volume that is not needed, then try again.",
        **_figures(account, free_bytes, budget_bytes),
    )


def too_large(size_bytes: int, budget_bytes: int) -> VolumeFullError:
    """Return the error that a model is larger than all of them may be together."""
    return VolumeFullError(
        f"The model takes {gigabytes(size_bytes)}, and all models together may take "
        f"{gigabytes(budget_bytes)}.",
        hint="Raise A1111_CACHE_BUDGET_GB, up to the size of the volume.",
        need_bytes=size_bytes,
        budget_bytes=budget_bytes,
    )


def _figures(account: Account, free_bytes: int, budget_bytes: int | None) -> dict[str, int | None]:
    return {
        "free_bytes": free_bytes,
        "budget_bytes": budget_bytes,
        "used_bytes": account.taken_bytes,
        "evictable_bytes": account.evictable_bytes,
        "pinned_bytes": account.pinned_bytes,
        "in_use_bytes": account.in_use_bytes,
        "brought_bytes": account.brought_bytes,
        "fetching_bytes": account.fetching_bytes,
    }


def gigabytes(size_bytes: int) -> str:
    """Return a size for people."""
    return f"{size_bytes / 1e9:.3g} GB"
