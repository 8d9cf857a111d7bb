"""Which LoRAs on the volume work with which checkpoints, by their headers alone.

A pair is incompatible if the two are known to be of different architectures, or one cannot be used at
all; it is unknown if a header does not tell, and such a LoRA is used when a job asks for it.
"""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from threading import Event
from typing import Any

from model_cache.cache import ModelCache
from model_cache.models import CachedModel
from model_cache.weights import fit
from schemas.errors import (
    JobCancelledError,
    ModelCorruptError,
    ModelIncompatibleError,
    ModelUnsafeError,
    VolumeError,
)

# A header over the network is mostly waiting.
_THREADS = 8


@dataclass(frozen=True)
class Looked:
    """A model whose header was read."""

    model: CachedModel
    flaw: str = ""
    """Why it cannot be used at all; empty if it can."""


@dataclass(frozen=True)
class Row:
    """One checkpoint against every LoRA; all names in their order."""

    checkpoint: Looked
    compatible: tuple[str, ...]
    unknown: tuple[str, ...]
    incompatible: tuple[tuple[str, str], ...]
    """Name and reason, a sentence."""

    @property
    def summary(self) -> str:
        """As in `6/8 (75.0%)`: the compatible ones of all."""
        total = len(self.compatible) + len(self.unknown) + len(self.incompatible)
        return f"{len(self.compatible)}/{total} ({_percent(len(self.compatible), total)}%)"


@dataclass(frozen=True)
class Report:
    """What `report` found."""

    generated: float
    """Unix time in seconds."""
    loras: tuple[Looked, ...]
    rows: tuple[Row, ...]

    @property
    def compatible(self) -> int:
        """Pairs that fit."""
        return sum(len(row.compatible) for row in self.rows)

    @property
    def unknown(self) -> int:
        """Pairs of which a header does not tell."""
        return sum(len(row.unknown) for row in self.rows)

    @property
    def incompatible(self) -> int:
        """Pairs that do not fit."""
        return sum(len(row.incompatible) for row in self.rows)

    @property
    def total(self) -> int:
        """All pairs."""
        return len(self.rows) * len(self.loras)

    @property
    def success_rate(self) -> float:
        """Percent of all pairs that fit, to one decimal; 0 if there is no pair."""
        return _percent(self.compatible, self.total)

    def as_json(self) -> dict[str, Any]:
        """Return the report as JSON can say it; docs/compatibility.md tells the keys."""
        generated = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(self.generated))
        return {
            "generated": generated,
            "total_tests": self.total,
            "compatible": self.compatible,
            "incompatible": self.incompatible,
            "unknown": self.unknown,
            "success_rate": self.success_rate,
            "loras": [_described(lora) for lora in self.loras],
            "models": [
                {
                    **_described(row.checkpoint),
                    "summary": row.summary,
                    "compatible": list(row.compatible),
                    "incompatible": [
                        {"lora": name, "reason": reason} for name, reason in row.incompatible
                    ],
                    "unknown": list(row.unknown),
                }
                for row in self.rows
            ],
        }


def report(
    cache: ModelCache,
    checkpoints: Sequence[CachedModel],
    loras: Sequence[CachedModel],
    *,
    cancelled: Event,
) -> Report:
    """Return how each checkpoint goes with each LoRA; both as `ModelCache.models` lists them.

    Headers that nobody has read yet are read now, and noted on the volume for the next time.

    Raises:
        JobCancelledError: `cancelled` was set.
    """
    look = partial(_looked, cache, cancelled)
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="headers") as threads:
        looked = list(threads.map(look, [*checkpoints, *loras]))
    cache.note_headers()
    found = looked[: len(checkpoints)], tuple(looked[len(checkpoints) :])
    return Report(time.time(), found[1], tuple(_row(each, found[1]) for each in found[0]))


def _looked(cache: ModelCache, cancelled: Event, model: CachedModel) -> Looked:
    if cancelled.is_set():
        raise JobCancelledError("The job was cancelled while headers were read.")
    try:
        return Looked(cache.inspected(model))
    except (ModelCorruptError, ModelUnsafeError, ModelIncompatibleError, VolumeError) as error:
        return Looked(model, str(error))


def _row(checkpoint: Looked, loras: Sequence[Looked]) -> Row:
    fitting: list[str] = []
    unknown: list[str] = []
    wrong: list[tuple[str, str]] = []
    for lora in loras:
        name = lora.model.name
        flaw = checkpoint.flaw or lora.flaw or fit.misfit(checkpoint.model, lora.model)
        if flaw:
            wrong.append((name, flaw))
        elif fit.is_judged(checkpoint.model, lora.model):
            fitting.append(name)
        else:
            unknown.append(name)
    return Row(checkpoint, tuple(fitting), tuple(unknown), tuple(wrong))


def _described(looked: Looked) -> dict[str, str]:
    model = looked.model
    described = {"name": model.name, "base": model.base, "base_by": model.base_by}
    return described | ({"flaw": looked.flaw} if looked.flaw else {})


def _percent(part: int, whole: int) -> float:
    return round(100 * part / whole, 1) if whole else 0.0
