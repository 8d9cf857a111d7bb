"""The path of a job: parse, fetch, ask A1111, check, return. One picture at a time."""

import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from threading import Event, Lock
from typing import Any

from model_cache.cache import ModelCache
from model_cache.engine.download import Allowance
from model_cache.models import CachedModel, Ensured
from schemas.errors import (
    JobCancelledError,
    ModelNotFoundError,
    WorkerError,
)
from schemas.job import Generation
from schemas.model_ref import Kind, ModelRef, stem_of
from schemas.request import parse
from schemas.result import ModelUsed, Result
from schemas.settings import Settings
from worker import check, images, models, output, overrides, payload
from worker.catalog import Catalog
from worker.client import WebuiClient
from worker.clock import Clock
from worker.links import LinkFolder
from worker.progress import Report, Watcher
from worker.tagging import Tagged, lora_by_name, mentions, tagged

log = logging.getLogger(__name__)

# What A1111 must be told after a new link; a LoRA or an embedding it finds by itself
# (recorded: ckpt_dropped_before_refresh, lora_dropped_before_refresh).
REFRESH = {Kind.CHECKPOINT: "refresh-checkpoints", Kind.VAE: "refresh-vae"}
REFRESH_TIMEOUT_S = 60.0
WAIT_S = 0.2
FETCHERS = 4
AUTOMATIC = "Automatic"


@dataclass(frozen=True)
class _Prepared:
    """A job with everything that A1111 needs to be told."""

    job: Generation
    chosen: payload.Chosen
    changes: dict[str, Any]
    found: Mapping[str, Ensured]
    names: Mapping[str, str]
    tagged: Tagged
    warnings: list[str]

    @property
    def models(self) -> list[CachedModel]:
        """Every file that A1111 will read for the job."""
        named = [ensured.model for ensured in self.found.values()]
        return [*named, *self.tagged.loras.values()]


@dataclass(frozen=True)
class _Caller:
    """Whoever waits for a job, and what is kept for it until it ends."""

    cancelled: Event
    report: Report
    held: ExitStack
    """Of models: none is evicted by any worker while the job lasts."""


class Runner:
    """Runs jobs against one A1111; its lock guards the GPU part alone."""

    def __init__(self, cache: ModelCache, client: WebuiClient, settings: Settings) -> None:
        self._cache = cache
        self._client = client
        self._settings = settings
        self._links = LinkFolder(settings.webui.links)
        self._catalog = Catalog(client)
        self._gpu = Lock()
        self._options = Lock()
        self._watcher = Watcher(client)
        # Kept, because to start a thread takes longer than to find a model that is there.
        self._fetchers = ThreadPoolExecutor(FETCHERS, thread_name_prefix="fetch")
        self._stale: set[Kind] = set()
        self._original: dict[str, Any] = {}
        self._touched: set[str] = set()
        self._last_vae: CachedModel | None = None

    def show_models(self) -> None:
        """Link every model of every root, so that A1111's lists show them; before it starts, ideally."""
        for kind in Kind:
            if self._links.show_only(kind, self._safe(kind)) and kind in REFRESH:
                self._stale.add(kind)

    def _safe(self, kind: Kind) -> Iterator[CachedModel]:
        """Yield the models of a kind that A1111 may be shown: it opens some as soon as it sees them."""
        for model in self._cache.models(kind):
            try:
                yield self._cache.inspected(model) if model.is_pickle else model
            except WorkerError as error:
                log.warning(f"{model.path.name} is not shown to A1111: {error}")

    def run(self, job: dict[str, Any], cancelled: Event, report: Report) -> Result:
        """Return the result of one RunPod job.

        Blocks; call it in a thread. `report` gets progress as JSON objects, from any thread.

        Raises:
            WorkerError: whatever the caller should be told.
        """
        clock = Clock()
        request = parse(job.get("input"), self._settings.job)
        with ExitStack() as held:
            caller = _Caller(cancelled, report, held)
            prepared = self._prepare(request.job, list(request.warnings), caller)
            clock.lap("download_s")
            answer = self._in_turn(prepared, clock, caller)
        info = self._checked(answer, prepared)
        clock.lap("generate_s")
        result = self._result(answer, info, prepared, clock)
        output.require_fitting(dict(result), str(job.get("id", "")), self._settings.output)
        return result

    def _in_turn(self, prepared: _Prepared, clock: Clock, caller: _Caller) -> Any:
        while not self._gpu.acquire(timeout=WAIT_S):
            _stop_if(caller.cancelled)
        try:
            _stop_if(caller.cancelled)
            clock.lap("webui_wait_s")
            return self._generate(prepared, caller)
        finally:
            self._gpu.release()

    def _prepare(self, job: Generation, warnings: list[str], caller: _Caller) -> _Prepared:
        changes = images.checked(job, self._settings.job.max_input_pixels)
        changes |= self._catalog.checked(job)
        overrides.checked(job.override_settings, self._originals())
        found = self._found(job, caller)
        names = {field: self._show(ensured.model) for field, ensured in found.items()}
        tags = tagged(
            job,
            {ref: found[f"loras[{index}]"].model for index, ref in enumerate(job.loras)},
            lambda name: lora_by_name(self._cache, partial(self._named_lora, caller), name),
            self._show,
        )
        for name in tags.hypernetworks:
            self._catalog.require_hypernetwork(name)
        checkpoint = _checkpoint(found)
        for name, lora in tags.loras.items():
            models.require_fit(checkpoint, self._cache.inspected(lora), f"<lora:{name}>")
        for index, ref in enumerate(job.embeddings):
            field = f"embeddings[{index}]"
            models.require_fit(checkpoint, found[field].model, field)
            warnings += mentions(job, ref, names[field], field)
        for ensured in found.values():
            warnings += ensured.warnings
        if not job.override_settings_restore_afterwards:
            warnings.append(
                "Options never outlive their job; `override_settings_restore_afterwards`"
                " has no effect."
            )
        return _Prepared(
            job=job,
            chosen=_chosen(found, names),
            changes=changes | tags.fields,
            found=found,
            names=names,
            tagged=tags,
            warnings=warnings + tags.warnings,
        )

    def _found(self, job: Generation, caller: _Caller) -> dict[str, Ensured]:
        default = None if models.names_checkpoint(job) else self._default()
        obtain = partial(
            self._cache.ensure,
            tokens={host: secret.get_secret_value() for host, secret in job.tokens.items()},
            allowance=Allowance.of(self._settings.cache, job.max_download_gb, job.max_download_s),
        )

        def ensure(ref: ModelRef, **how: Any) -> Ensured:
            return self._kept(obtain(ref, **how), caller)

        wanted = models.roles(job, default)
        self._cache.expect(role.ref for role in wanted)
        found = models.ensure_all(
            ensure, wanted, self._fetchers, cancelled=caller.cancelled, report=caller.report
        )
        models.require_agreement(job, found)
        self._add_automatic_vae(job, found, caller)
        return found

    def _kept(self, found: Ensured, caller: _Caller) -> Ensured:
        """Keep a model from now on: others of the same job may take half an hour to come."""
        caller.held.enter_context(self._cache.hold([found.model]))
        return found

    def _add_automatic_vae(
        self, job: Generation, found: dict[str, Ensured], caller: _Caller
    ) -> None:
        asked = job.vae or job.override_settings.get(overrides.VAE) or AUTOMATIC
        if asked != AUTOMATIC:
            return
        ref = models.automatic_vae(self._cache, _checkpoint(found))
        if ref is not None:
            try:
                vae = self._cache.present(ref, cancelled=caller.cancelled)
                found["vae"] = self._kept(vae, caller)
            except ModelNotFoundError:
                log.info(f"The VAE {ref.label} is gone; the checkpoint's own is used.")

    def _default(self) -> ModelRef:
        return models.default_checkpoint(self._cache, self._settings.webui.checkpoint)

    def _named_lora(self, caller: _Caller, name: str) -> CachedModel:
        """Return the LoRA that a tag names: one that is here, as words of a prompt fetch nothing."""
        ref = ModelRef(kind=Kind.LORA, name=name)
        return self._kept(self._cache.present(ref, cancelled=caller.cancelled), caller).model

    def _show(self, model: CachedModel) -> str:
        name, new = self._links.show(model)
        if new and model.kind in REFRESH:
            self._stale.add(model.kind)
        return name

    def _originals(self) -> dict[str, Any]:
        with self._options:  # read before any job, or a running job's options would be in it
            if not self._original:
                self._original = self._client.get("options")
            return self._original

    def _generate(self, prepared: _Prepared, caller: _Caller) -> Any:
        self._require_files(prepared)
        self._forget_lost_vae()
        self._refresh()
        original = self._originals()
        asked = overrides.checked(prepared.job.override_settings, original)
        options = {key: value for key, value in overrides.ALWAYS.items() if key in original}
        options |= {key: original[key] for key in sorted(self._touched)} | asked
        body = payload.body(prepared.job, prepared.chosen, prepared.changes, options)
        self._touched |= asked.keys()
        vae = prepared.found.get("vae") or prepared.found.get(f"override_settings.{overrides.VAE}")
        self._last_vae = vae.model if vae is not None else None
        return self._watcher.post(
            payload.route(prepared.job),
            body,
            timeout_s=self._settings.webui.job_timeout_s,
            cancelled=caller.cancelled,
            report=caller.report,
        )

    def _require_files(self, prepared: _Prepared) -> None:
        """Look at the job's files once more: one may have gone while the job waited for its turn.

        A1111 fails at a listed checkpoint that is gone, and draws wrong pictures with the one that
        it had loaded from then on (recorded: ckpt_deleted_file, after_ckpt_deleted).
        """
        for model in prepared.models:
            if not model.path.is_file():
                raise ModelNotFoundError(
                    f"The {model.kind} `{model.name}` was deleted while the job waited.",
                    hint="Send the job again.",
                )

    def _forget_lost_vae(self) -> None:
        """Hide the last job's VAE from A1111 if its file is gone.

        A1111 still has it as an option when it loads the next job's checkpoint, and fails at it.
        """
        if self._last_vae is not None and not self._last_vae.path.is_file():
            self._links.forget(self._last_vae)
            self._stale.add(Kind.VAE)

    def _refresh(self) -> None:
        """Tell A1111 of new links; of those that come meanwhile, too."""
        while self._stale:
            kind = self._stale.pop()
            try:
                self._client.post(REFRESH[kind], timeout_s=REFRESH_TIMEOUT_S)
            except WorkerError:
                self._stale.add(kind)
                raise

    def _checked(self, answer: Any, prepared: _Prepared) -> dict[str, Any]:
        info = check.info_of(answer)
        checkpoint = _checkpoint(prepared.found)
        check.require_checkpoint(info, stem_of(prepared.chosen.checkpoint), checkpoint.sha256)
        check.require_vae(info, prepared.chosen.vae)
        if prepared.chosen.refiner is not None:
            check.require_refiner(info, stem_of(prepared.chosen.refiner))
        listed = self._original.get("lora_add_hashes_to_infotext", True)
        if listed and not prepared.job.disable_extra_networks:
            check.require_loras(info, prepared.tagged.loras)
        return info

    def _result(
        self, answer: Any, info: dict[str, Any], prepared: _Prepared, clock: Clock
    ) -> Result:
        cached = self._cache.info()
        return Result(
            images=answer["images"],
            parameters=answer["parameters"],
            info=answer["info"],
            seed=info["seed"],
            seeds=info["all_seeds"],
            cache_info={
                "checkpoints_cached": cached.checkpoints_cached,
                "loras_cached": cached.loras_cached,
                "total_cache_size_mb": cached.total_cache_size_mb,
            },
            models=_used(prepared),
            warnings=prepared.warnings,
            timings=clock.timings(),
            backend=self._client.backend,
        )


def _checkpoint(found: Mapping[str, Ensured]) -> CachedModel:
    ensured = found.get("checkpoint") or found[f"override_settings.{overrides.CHECKPOINT}"]
    return ensured.model


def _chosen(found: Mapping[str, Ensured], names: Mapping[str, str]) -> payload.Chosen:
    files = {field: name + found[field].model.suffix for field, name in names.items()}
    option = f"override_settings.{overrides.CHECKPOINT}"
    return payload.Chosen(
        checkpoint=files.get("checkpoint") or files[option],
        vae=files.get("vae") or files.get(f"override_settings.{overrides.VAE}") or "None",
        refiner=files.get("refiner_checkpoint"),
        hires=files.get("hr_checkpoint_name"),
    )


def _used(prepared: _Prepared) -> list[ModelUsed]:
    """Return the models of a job: those that its fields name, then LoRAs that tags alone name."""
    listed = [
        ModelUsed(
            kind=ensured.model.kind.value,
            name=prepared.names[field],
            sha256=ensured.model.sha256,
            checked=ensured.checked,
            cached=ensured.cached,
            download_s=round(ensured.download_s, 3),
        )
        for field, ensured in prepared.found.items()
    ]
    named = {ensured.model.path for ensured in prepared.found.values()}
    by_tag = [
        ModelUsed(
            kind="lora", name=name, sha256=lora.sha256, checked="", cached=True, download_s=0.0
        )
        for name, lora in prepared.tagged.loras.items()
        if lora.path not in named
    ]
    return listed + by_tag


def _stop_if(cancelled: Event) -> None:
    if cancelled.is_set():
        raise JobCancelledError("The job was cancelled before it was generated.")
