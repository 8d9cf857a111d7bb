"""What one A1111 process was told, and what it holds: gone with the process. Knows nothing of jobs.

A1111 keeps much between two requests: its lists of files, overridden options, the checkpoint, the
last VAE. What of it must not show is put right here, before the next request.
"""

import logging
import time
from collections.abc import Mapping
from typing import Any

from model_cache.models import CachedModel
from schemas.errors import WorkerError
from schemas.model_ref import Kind
from worker.child.client import WebuiClient
from worker.child.links import LinkFolder
from worker.child.webui import Life
from worker.extensions.controlnet import Extension
from worker.extensions.detailer import MODELS_ROUTE
from worker.generation import overrides
from worker.generation.catalog import Catalog
from worker.generation.payload import Chosen

log = logging.getLogger(__name__)

# What A1111 must be told after a new link; a LoRA or an embedding it finds by itself
# (recorded: ckpt_dropped_before_refresh, lora_dropped_before_refresh).
REFRESH = {Kind.CHECKPOINT: "refresh-checkpoints", Kind.VAE: "refresh-vae"}
REFRESH_TIMEOUT_S = 60.0
# A picture of NaN says nothing against the model's loading (recorded: every job on tiny_nan).
_AFTER_LOADING = frozenset({"NansException"})


class Session:
    """Our side of one life of A1111. Used by one job at a time, but for what only asks A1111."""

    def __init__(self, client: WebuiClient, links: LinkFolder, life: Life) -> None:
        """Ask for its options, which no job has touched yet.

        Raises:
            WorkerError: it does not answer.
        """
        self.life = life
        self.catalog = Catalog(client)
        self.controlnet = Extension(client, links)
        self.originals: Mapping[str, Any] = client.get("options")
        """Every option and its value before any job."""
        self.switches = 0
        """How many checkpoints it loaded."""
        self._client = client
        self._links = links
        self._routes: frozenset[tuple[str, str]] | None = None
        self._told = dict.fromkeys(REFRESH, life.started)
        """Up to when it knows of our links; those that were there it found when it started."""
        self._touched: set[str] = set()
        self._loaded: str | None = None
        self._vae: str | None = None
        self._last_vae: CachedModel | None = None

    def refresh(self) -> None:
        """Tell A1111 of links that changed; of those that change meanwhile, too.

        Raises:
            WorkerError: see WebuiClient.post.
        """
        self._forget_lost_vae()
        for kind, route in REFRESH.items():
            while self._links.changed(kind) >= self._told[kind]:
                asked = time.monotonic()
                self._client.post(route, timeout_s=REFRESH_TIMEOUT_S)
                self._told[kind] = asked

    def offers(self, method: str, path: str) -> bool:
        """Tell whether this A1111, its extensions included, has a route; asked once.

        Raises:
            WorkerError: it does not answer.
        """
        if self._routes is None:
            paths = self._client.get("/openapi.json").get("paths") or {}
            self._routes = frozenset(
                (verb.upper(), path) for path, verbs in paths.items() for verb in verbs
            )
        return (method, path) in self._routes

    def require_detectors(self, wanted: Mapping[str, str]) -> list[str]:
        """Refuse models that ADetailer does not have; return what a caller should know of them.

        Args:
            wanted: their names, by the fields of the request.

        Raises:
            InvalidInputError: it would leave the picture as it is, in silence.
            WorkerError: A1111 does not answer.
        """
        if wanted and not self.offers("GET", MODELS_ROUTE):
            names = ", ".join(sorted(set(wanted.values())))
            told = "This ADetailer does not tell which models it has; it leaves a picture as it is"
            return [f"{told} if it lacks {names}."]
        for field, name in wanted.items():
            self.catalog.require_detector(field, name)
        return []

    def shown(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return A1111's `options` as they were before any job, but for its models."""
        touched = tuple(self._touched)  # A job may add to it meanwhile.
        return {**options, **{name: self.originals[name] for name in touched}}

    def restore(self) -> None:
        """Give A1111 back what jobs overrode, before a request that carries no options of its own.

        It writes its config.json, which is on the container's disk and lives as long as the worker.

        Raises:
            WorkerError: see WebuiClient.post.
        """
        if self._touched:
            body = {name: self.originals[name] for name in sorted(self._touched)}
            self._client.post("options", body, timeout_s=REFRESH_TIMEOUT_S)
            self._touched.clear()

    def options(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options to send: those of the job, and the originals of what others set."""
        always = {name: value for name, value in overrides.ALWAYS.items() if name in self.originals}
        restored = {name: self.originals[name] for name in sorted(self._touched)}
        self._touched |= asked.keys()
        return always | restored | dict(asked)

    def loads(self, chosen: Chosen) -> bool:
        """Return whether a job with these models makes A1111 load a checkpoint first."""
        return self._loaded != chosen.checkpoint

    def begin(self, chosen: Chosen, vae: CachedModel | None) -> None:
        """Note what a request is about to make A1111 load."""
        self._last_vae = vae
        if self.loads(chosen):
            self.switches += 1
            self._loaded = None
        if self._vae != chosen.vae:
            self._vae = None
        if chosen.refiner or chosen.hires:
            self._loaded = None  # Another one stays loaded.

    def end(self, chosen: Chosen) -> None:
        """Note that the request was answered with a picture."""
        if not chosen.refiner and not chosen.hires:
            self._loaded = chosen.checkpoint
        self._vae = chosen.vae

    def is_doubtful(self, error: WorkerError) -> bool:
        """Tell whether A1111 may draw wrong pictures from now on, after a job failed so.

        A checkpoint that fails to load leaves the one before without its hooks: every later picture
        is wrong, with status 200 and the right hash, until another checkpoint is loaded.
        A VAE that fails to load does so, too.
        Source: recorded from A1111 1.10.1: ckpt_deleted_file, after_ckpt_deleted; its
        modules/sd_vae.py, reload_vae_weights (undo_hijack, load_vae, hijack).
        """
        is_loading = self._loaded is None or self._vae is None
        return is_loading and error.details.get("exception") not in _AFTER_LOADING

    def _forget_lost_vae(self) -> None:
        """Hide the last job's VAE from A1111 if its file is gone.

        A1111 still has it as an option when it loads the next job's checkpoint, and fails at it.
        """
        if self._last_vae is not None and not self._last_vae.path.is_file():
            self._links.forget(self._last_vae)
            self._last_vae = None
