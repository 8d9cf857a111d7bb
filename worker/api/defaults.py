"""What this worker takes where a job says nothing: its own checkpoint, VAE and options.

Set by `POST options`, as the older workers' callers do. Kept in memory alone: another worker of the
endpoint knows nothing of it, neither the volume nor A1111's config.json is written, and every job that
is made with it is told.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any, TypeVar

from schemas.job import Generation
from schemas.model_ref import ModelRef, Recalled
from worker.generation import overrides

J = TypeVar("J", bound=Generation)
THIS_WORKER = "it holds for this worker alone, until it ends; other workers do not know of it."


@dataclass(frozen=True)
class Model:
    """A model that stands in where a job names none."""

    ref: ModelRef | str
    """What the job's field gets; a word for one of A1111's own VAEs."""
    title: str
    """As A1111 shows it among its options."""


@dataclass(frozen=True)
class Choice:
    """Everything that was set. Not changed, but replaced as a whole."""

    checkpoint: Model | None = None
    vae: Model | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


class Defaults:
    """The present choice. Safe to use from several threads."""

    def __init__(self) -> None:
        """Nothing is set."""
        self._choice = Choice()
        self._lock = Lock()

    def set(self, models: Mapping[str, Model | None], options: Mapping[str, Any]) -> None:
        """Take what is given in place of what was; None, in either, unsets.

        Args:
            models: by `overrides.CHECKPOINT` and `overrides.VAE`.
            options: other options and their values, found to be good.
        """
        fields = {overrides.CHECKPOINT: "checkpoint", overrides.VAE: "vae"}
        changed: dict[str, Any] = {fields[name]: model for name, model in models.items()}
        with self._lock:
            together = {**self._choice.options, **options}
            kept = {name: value for name, value in together.items() if value is not None}
            self._choice = replace(self._choice, options=kept, **changed)

    def applied(self, job: J) -> tuple[J, list[str]]:
        """Return `job` with what it does not say itself, and what its caller should know of that.

        An infotext that names its checkpoint says all: what it says nothing of was not set when its
        picture was made, so nothing is added to it.
        """
        if isinstance(job.checkpoint, Recalled):
            return job, []
        choice, named = self._choice, job.override_settings
        changes: dict[str, Any] = {}
        told: list[str] = []
        for name, option, model in (
            ("checkpoint", overrides.CHECKPOINT, choice.checkpoint),
            ("vae", overrides.VAE, choice.vae),
        ):
            if model is not None and getattr(job, name) is None and named.get(option) is None:
                changes[name] = model.ref
                told.append(_told(f"The {name} {model.title!r}"))
        missing = {name: value for name, value in choice.options.items() if name not in named}
        if missing:
            changes["override_settings"] = {**missing, **named}
            told.append(_told("The value of " + ", ".join(f"`{name}`" for name in missing)))
        return (job.model_copy(update=changes) if changes else job), told

    def shown(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return A1111's own `options` with what was set in their place."""
        choice = self._choice
        models = {overrides.CHECKPOINT: choice.checkpoint, overrides.VAE: choice.vae}
        titles = {name: model.title for name, model in models.items() if model is not None}
        return {**options, **choice.options, **titles}


def _told(what: str) -> str:
    return f"{what} was set by an earlier `POST options`: {THIS_WORKER}"
