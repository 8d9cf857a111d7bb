"""The commands that tell what there is: models, aliases, upscalers, samplers; and what Civitai has.

Each answer has the keys that callers of DiffusionAPI read, and more.
Source: DiffusionAPI's README, "List Endpoints".
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from threading import Event
from typing import Any

from model_cache import about, compat, describe
from model_cache.cache import ModelCache
from model_cache.engine.download import Allowance
from model_cache.models import CachedModel
from model_cache.sharing import pins
from model_cache.turns import Errand
from schemas.commands import Civitai, Compatibility, Models, Nothing
from schemas.errors import WorkerError
from schemas.model_ref import Kind
from schemas.settings import CacheSettings
from worker.api.upkeep import named
from worker.child.watch import Report

Ask = Callable[[str, Event], Any]
"""Returns what A1111 answers to GET of a route, once it can be asked; the event ends the wait."""
_INTERNAL = "internal"


class Listings:
    """Tells what there is. Safe to use from several threads."""

    def __init__(self, cache: ModelCache, settings: CacheSettings, ask: Ask) -> None:
        """Take the parts; nothing is asked yet."""
        self._cache = cache
        self._settings = settings
        self._ask = ask

    def models(self, payload: Models, _cancelled: Event, _report: Report) -> dict[str, Any]:
        """Return the models of a kind, or of all; the checkpoints if none is named."""
        self._cache.look_again()
        kinds = list(Kind) if payload.kind == "all" else [payload.kind]
        labels = {(ref.kind, model.name): label for label, ref, model in self._aliases() if model}
        rows = self._rows(model for kind in kinds for model in self._cache.models(kind))
        told = [
            {**row, "label": labels.get((Kind(row["kind"]), row["name"]), row["name"])}
            for row in rows
        ]
        return {"status": "success", "models": told}

    def aliases(self, _payload: Nothing, _cancelled: Event, _report: Report) -> dict[str, Any]:
        """Return what people call which model."""
        self._cache.look_again()
        told = [
            {
                "name": model.name if model is not None else ref.label,
                "label": label,
                "kind": str(ref.kind),
                "here": model is not None,
            }
            for label, ref, model in self._aliases()
        ]
        return {
            "status": "success",
            "models": told,
            "message": f"{len(told)} aliases in models/aliases.json.",
        }

    def loras(self, _payload: Nothing, _cancelled: Event, _report: Report) -> dict[str, Any]:
        """Return the LoRAs, each with the scale that it has where a request names none."""
        self._cache.look_again()
        rows = self._rows(self._cache.models(Kind.LORA))
        return {"status": "success", "loras": [{**row, "scale": 1.0} for row in rows]}

    def upscalers(self, _payload: Nothing, cancelled: Event, _report: Report) -> dict[str, Any]:
        """Return what `hr_upscaler` may be, by what the running A1111 says.

        Raises:
            WorkerError: A1111 does not come up, or does not answer.
        """
        files = {
            model.name: describe.text(model.path) for model in self._cache.models(Kind.UPSCALER)
        }
        latent = self._ask("latent-upscale-modes", cancelled)
        others = self._ask("upscalers", cancelled)
        told = [{"name": entry["name"], "path": _INTERNAL, "here": True} for entry in latent]
        for entry in others:
            # A URL for one that A1111 would fetch itself, were it used.
            path = files.get(entry["name"]) or entry.get("model_path") or _INTERNAL
            here = not path.startswith(("https://", "http://"))
            told.append({"name": entry["name"], "path": path, "here": here})
        return {"status": "success", "upscalers": told}

    def sampling_methods(
        self, _payload: Nothing, cancelled: Event, _report: Report
    ) -> dict[str, Any]:
        """Return what `sampler_name` and `scheduler_type` may be, by what the running A1111 says.

        Raises:
            WorkerError: A1111 does not come up, or does not answer.
        """
        samplers = self._ask("samplers", cancelled)
        schedulers = self._ask("schedulers", cancelled)
        return {
            "status": "success",
            "sampling_methods": [entry["name"] for entry in samplers],
            "scheduler_types": ["default", *(entry["name"] for entry in schedulers)],
            "schedulers": schedulers,
        }

    def compatibility(
        self, payload: Compatibility, cancelled: Event, _report: Report
    ) -> dict[str, Any]:
        """Return which LoRAs work with which checkpoints, by their headers.

        Raises:
            ModelNotFoundError: no model is called so.
            JobCancelledError: `cancelled` was set.
        """
        self._cache.look_again()
        checkpoints = self._meant(Kind.CHECKPOINT, payload.model, "model")
        loras = self._meant(Kind.LORA, payload.lora, "lora")
        return compat.report(self._cache, checkpoints, loras, cancelled=cancelled).as_json()

    def civitai(self, payload: Civitai, cancelled: Event, _report: Report) -> dict[str, Any]:
        """Return what Civitai says of a model, and what of it is here.

        Raises:
            WorkerError: it does not know it, or does not answer.
        """
        errand = Errand(cancelled, Allowance.of(self._settings))
        if payload.hash is not None:
            told = about.of_hash(payload.hash, self._settings, errand, payload.secrets)
        else:
            url = payload.url or payload.air or ""
            try:
                told = about.of_url(url, self._settings, errand, payload.secrets)
            except WorkerError as error:
                if error.details.get("field") == "url" and payload.air is not None:
                    error.details["field"] = "air"
                raise
        self._cache.look_again()
        about.mark_present(told, self._cache)
        return told

    def _meant(self, kind: Kind, names: Sequence[str] | None, field: str) -> Sequence[CachedModel]:
        if names is None:
            return self._cache.models(kind)
        return [
            named(self._cache, [kind], name, f"{field}[{index}]")
            for index, name in enumerate(names)
        ]

    def _aliases(self) -> list[tuple[str, Any, CachedModel | None]]:
        return [(label, ref, self._cache.likely(ref)) for label, ref in self._cache.aliases()]

    def _rows(self, models: Iterable[CachedModel]) -> list[Mapping[str, Any]]:
        history, pinned = self._cache.history(), pins.pinned(self._settings.volume)
        return [describe.model(model, history.get(model.path), pinned) for model in models]
