"""The commands below /v1/: which part does each. None waits for the GPU; two wait for A1111."""

from collections.abc import Callable, Mapping
from threading import Event
from typing import Any

from model_cache.cache import ModelCache
from schemas import inputs
from schemas.commands import Command, Nothing, Schema
from schemas.settings import CacheSettings
from worker.api import older_health
from worker.api.fetches import Fetches
from worker.api.health import Health
from worker.api.listings import Ask, Listings
from worker.api.upkeep import Upkeep
from worker.child.watch import Report

# A command's own type of payload; which one goes to which is said once, by the table of the schemas.
_Do = Callable[[Any, Event, Report], Mapping[str, Any]]


class Commands:
    """Does commands. Safe to use from several threads.

    Args:
        health: how the worker is.
        cache: the models.
        settings: of the models.
        ask: asks A1111 what it offers.
        shown: shows A1111 the models that there are; called when some came or went.
    """

    def __init__(
        self,
        health: Health,
        cache: ModelCache,
        settings: CacheSettings,
        *,
        ask: Ask,
        shown: Callable[[], None],
    ) -> None:
        self._health = health
        self._settings = settings
        fetches = Fetches(cache, settings, shown)
        listings = Listings(cache, settings, ask)
        upkeep = Upkeep(cache, settings, shown)
        self._table: Mapping[str, _Do] = {
            "health": self._report,
            "download": fetches.download,
            "sync": fetches.sync,
            "prefetch": fetches.prefetch,
            "models": listings.models,
            "models/aliases": listings.aliases,
            "loras": listings.loras,
            "upscalers": listings.upscalers,
            "sampling-methods": listings.sampling_methods,
            "sampling_methods": listings.sampling_methods,
            "cache": upkeep.account,
            "verify": upkeep.verify,
            "prune": upkeep.prune,
            "civitai": listings.civitai,
            "compatibility": listings.compatibility,
            "schema": _schema,
        }

    def run(self, command: Command, cancelled: Event, report: Report) -> Mapping[str, Any]:
        """Return the answer to `command`.

        Raises:
            WorkerError: what the caller should be told.
        """
        return self._table[command.name](command.payload, cancelled, report)

    def _report(self, _payload: Nothing, _cancelled: Event, _report: Report) -> dict[str, Any]:
        report = self._health.report()
        return report | older_health.keys(report, self._settings)


def _schema(payload: Schema, _cancelled: Event, _report: Report) -> Mapping[str, Any]:
    return inputs.schemas(payload.name)
