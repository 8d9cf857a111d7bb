"""The commands that look after the store: `cache`, `verify`, `prune`."""

import time
from collections.abc import Callable, Sequence
from threading import Event
from typing import Any

from model_cache import checking, describe
from model_cache.cache import ModelCache
from model_cache.checking import State
from model_cache.models import CachedModel, Progress
from model_cache.sharing import pins
from schemas.commands import Nothing, Prune, Verify
from schemas.errors import InvalidInputError, JobCancelledError, ModelNotFoundError, shown
from schemas.model_ref import Kind
from schemas.settings import CacheSettings
from worker.child.watch import Report

_REPORT_S = 1.0


class Upkeep:
    """Looks after the store. Safe to use from several threads."""

    def __init__(
        self, cache: ModelCache, settings: CacheSettings, shown: Callable[[], None]
    ) -> None:
        """Take the parts; `shown` shows A1111 what there is, once something went."""
        self._cache = cache
        self._settings = settings
        self._shown = shown

    def account(self, _payload: Nothing, _cancelled: Event, _report: Report) -> dict[str, Any]:
        """Return the store in numbers.

        Raises:
            VolumeError: the volume cannot be read.
        """
        self._cache.look_again()
        pinned = sorted(pins.pinned(self._settings.volume))
        return {
            **describe.store(self._cache, self._settings),
            "pins": [{"kind": str(kind), "name": name} for kind, name in pinned],
        }

    def verify(self, payload: Verify, cancelled: Event, report: Report) -> dict[str, Any]:
        """Check files against what was recorded of them.

        Raises:
            ModelNotFoundError: no model is called so.
            InvalidInputError: models of several kinds are.
            JobCancelledError: `cancelled` was set.
        """
        self._cache.look_again()
        chosen = self._chosen(payload)
        hashes = payload.all or payload.name is not None
        total_bytes = sum(model.size_bytes for model in chosen)
        told = _Told(report, total_bytes)
        results = []
        for model in chosen:
            if cancelled.is_set():
                raise JobCancelledError("The job was cancelled while files were checked.")
            if hashes:
                result = checking.hash_again(
                    self._settings, model, cancelled=cancelled, progress=told.note
                )
            else:
                result = checking.look(self._settings, model)
            results.append(result)
            told.done(model)
        return {
            "checked": len(results),
            "by": "hash" if hashes else "header",
            **{str(state): sum(one.state is state for one in results) for state in State},
            "models": [one.as_json() for one in results if hashes or one.state is not State.GOOD],
        }

    def prune(self, payload: Prune, _cancelled: Event, _report: Report) -> dict[str, Any]:
        """Evict the models that were used longest ago until the others fit.

        Raises:
            InvalidInputError: neither the request nor a setting says into what.
            VolumeFullError: so few bytes cannot be reached; nothing went.
            VolumeError: the disk refused.
        """
        size_gb = self._settings.budget_gb if payload.to_gb is None else payload.to_gb
        if size_gb is None:
            raise InvalidInputError(
                "`to_gb` is not given, and there is no A1111_CACHE_BUDGET_GB.",
                hint="Say how many GB all models may take.",
                field="to_gb",
            )
        self._cache.look_again()
        models = {model.path: model for kind in Kind for model in self._cache.models(kind)}
        victims = self._cache.victims(int(size_gb * 1e9))
        if payload.dry_run:
            gone = {path for victim in victims for path in victim.paths}
        else:
            gone = set(self._cache.prune(int(size_gb * 1e9)))
            self._cache.write_registry()
            self._shown()
        # A file with two names is one file, and frees its bytes with the last of them.
        freed = sum(victim.size_bytes for victim in victims if gone.issuperset(victim.paths))
        return {
            "dry_run": payload.dry_run,
            "freed_bytes": freed,
            "evicted": [
                {
                    "kind": str(model.kind),
                    "name": model.name,
                    "path": describe.text(path),
                    "size_bytes": model.size_bytes,
                }
                for path, model in models.items()
                if path in gone
            ],
        }

    def _chosen(self, payload: Verify) -> list[CachedModel]:
        kinds = [payload.kind] if payload.kind is not None else list(Kind)
        if payload.name is None:
            return [model for kind in kinds for model in self._cache.models(kind)]
        return [named(self._cache, kinds, payload.name, "name")]


class _Told:
    """The bytes that were checked, told at most once a second."""

    def __init__(self, report: Report, total_bytes: int) -> None:
        self._report = report
        self._total_bytes = total_bytes
        self._before = 0
        self._told = float("-inf")

    def note(self, progress: Progress) -> None:
        """Take how much of the present file was read."""
        now = time.monotonic()
        if now - self._told < _REPORT_S:
            return
        self._told = now
        done = self._before + progress.done_bytes
        self._report(
            {
                "stage": "verifying",
                "percent": round(100 * done / self._total_bytes) if self._total_bytes else 0,
                "done_bytes": done,
                "total_bytes": self._total_bytes,
            }
        )

    def done(self, model: CachedModel) -> None:
        """Take a file as checked."""
        self._before += model.size_bytes
        self.note(Progress(0, None))


def named(cache: ModelCache, kinds: Sequence[Kind], name: str, field: str) -> CachedModel:
    """Return the model of one of these kinds that a request's `field` names.

    Raises:
        ModelNotFoundError: there is none.
        InvalidInputError: several kinds have one.
    """
    found = [model for kind in kinds if (model := cache.find(kind, name)) is not None]
    if len(found) > 1:
        raise InvalidInputError(
            f"There is a {' and a '.join(model.kind for model in found)} called {shown(name)}.",
            hint="Say which one by `kind`.",
            field="kind",
        )
    if not found:
        raise ModelNotFoundError(
            f"There is no {kinds[0] if len(kinds) == 1 else 'model'} called {shown(name)}.",
            hint="`/v1/models` lists what there is.",
            field=field,
        )
    return found[0]
