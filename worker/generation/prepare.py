"""A job made ready for A1111: its models fetched, named and judged to fit, its prompts tagged.

What asks A1111 is handed in as a `Session`; nothing here waits for it.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from model_cache.cache import ModelCache
from model_cache.engine.download import Allowance
from model_cache.models import CachedModel, Ensured
from model_cache.recall import Recall
from schemas.errors import ModelNotFoundError, WorkerError
from schemas.job import Generation, Img2Img
from schemas.model_ref import Kind, ModelRef, Recalled
from schemas.settings import Settings
from worker.caller import Caller
from worker.child.hashes import HashCache
from worker.child.links import LinkFolder
from worker.child.parser import require_readable
from worker.extensions import scripts
from worker.extensions.controlnet import Controls, controls_of, enabled, not_installed
from worker.generation import models, overrides, payload
from worker.generation.fit import Judge
from worker.generation.session import Session
from worker.generation.tagging import Tagged, knows_lora, lora_by_name, mentions, tagged
from worker.machine.helpers import require_helpers
from worker.machine.places import DATA
from worker.pictures import images

log = logging.getLogger(__name__)

FETCHERS = 4
AUTOMATIC = "Automatic"
PROMPTS = ("prompt", "negative_prompt", "hr_prompt", "hr_negative_prompt")
MUST_FIT = frozenset({Kind.LORA, Kind.EMBEDDING, Kind.CONTROLNET})
"""Kinds that are judged against the checkpoint; LoRAs that tags alone name, besides."""


@dataclass(frozen=True)
class Prepared:
    """A job with everything that A1111 needs to be told."""

    job: Generation
    chosen: payload.Chosen
    changes: dict[str, Any]
    found: Mapping[str, Ensured]
    names: Mapping[str, str]
    tagged: Tagged
    warnings: list[str]
    controls: Controls = field(default_factory=Controls)

    @property
    def checkpoint(self) -> CachedModel:
        """The checkpoint that the pictures are made with."""
        return self.found[checkpoint_field(self.found)].model

    @property
    def checkpoint_name(self) -> str:
        """What A1111 calls it."""
        return self.names[checkpoint_field(self.found)]

    @property
    def vae(self) -> CachedModel | None:
        """The VAE's file, None for the checkpoint's own."""
        vae = self.found.get("vae") or self.found.get(f"override_settings.{overrides.VAE}")
        return vae.model if vae is not None else None

    @property
    def models(self) -> list[CachedModel]:
        """Every file that A1111 will read for the job."""
        named = [ensured.model for ensured in self.found.values()]
        return [*named, *self.tagged.loras.values()]

    def require_files(self) -> None:
        """Look at the job's files once more: one may have gone while the job waited for its turn.

        A1111 fails at a listed checkpoint that is gone, and draws wrong pictures with the one that
        it had loaded from then on (recorded: ckpt_deleted_file, after_ckpt_deleted).

        Raises:
            ModelNotFoundError: one is gone.
        """
        fields = {ensured.model.path: field for field, ensured in self.found.items()}
        for model in self.models:
            if not model.path.is_file():
                raise ModelNotFoundError(
                    f"The {model.kind} `{model.name}` was deleted while the job waited.",
                    hint="Send the job again.",
                    field=fields.get(model.path, "prompt"),
                )


class Preparation:
    """Makes jobs ready, and keeps the folder that A1111 is shown. Safe to use from several threads."""

    def __init__(self, cache: ModelCache, links: LinkFolder, settings: Settings) -> None:
        self._cache = cache
        self._links = links
        self._settings = settings
        self._hashes = HashCache(settings.webui.links / DATA)
        # One for each job that fetches, so that none waits for another's downloads; kept, because to
        # start a thread takes longer than to find a model that is there.
        self._idle: list[ThreadPoolExecutor] = []

    def show_models(self) -> None:
        """Link every model of every root, so that A1111's lists show them."""
        for kind in Kind:
            self._links.show_only(kind, self._safe(kind))
        self.tell_hashes()

    def tell_hashes(self) -> None:
        """Tell A1111 the hashes of all models; nothing while its data folder is not there yet."""
        for kind in Kind:
            if kind is not Kind.VAE:  # All of them share one entry.
                shown = ((model, self._links.show(model)[0]) for model in self._safe(kind))
                self._hashes.put_all(shown)

    def look_again(self) -> None:
        """Link what came to the roots meanwhile, and unlink what has gone; no link of a job changes."""
        self._cache.look_again()
        for kind in Kind:
            shown = list(self._safe(kind))
            links = [(model, self._links.show(model)[0]) for model in shown]
            if kind is not Kind.VAE:
                self._hashes.put_all(links)
            self._links.forget_gone(kind)

    def obtain(self, wanted: Sequence[models.Role], caller: Caller) -> dict[str, Ensured]:
        """Make models present that no job has asked for yet; return them by the fields that name them.

        Raises:
            WorkerError: see ModelCache.ensure.
        """
        allowance = Allowance.of(self._settings.cache)

        def ensure(ref: ModelRef, **how: Any) -> Ensured:
            return self._kept(self._cache.ensure(ref, allowance=allowance, **how), caller)

        return self._present(ensure, wanted, caller)

    def _safe(self, kind: Kind) -> Iterator[CachedModel]:
        """Yield the models of a kind that A1111 may be shown: it opens some as soon as it sees them."""
        for model in self._cache.models(kind):
            try:
                yield self._cache.inspected(model) if model.is_pickle else model
            except WorkerError as error:
                log.warning(f"{model.path.name} is not shown to A1111: {error}")

    def fetch(self, job: Generation, caller: Caller) -> dict[str, Ensured]:
        """Make the models of `job` present; return them by the fields that name them.

        Raises:
            WorkerError: see ModelCache.ensure.
        """
        default = None if models.names_checkpoint(job) else self._default()
        tokens: dict[str, str] = {
            host: secret.get_secret_value() for host, secret in job.tokens.items()
        }
        allowance = Allowance.of(self._settings.cache, job.max_download_gb, job.max_download_s)
        recall = Recall(self._cache, self._settings.cache, tokens, allowance)
        obtain = partial(self._cache.ensure, tokens=tokens, allowance=allowance)

        def ensure(ref: ModelRef, **how: Any) -> Ensured:
            if isinstance(ref, Recalled):
                return self._kept(recall.ensure(self._as_shown(ref), **how), caller)
            return self._kept(obtain(ref, **how), caller)

        wanted = models.roles(job, default)
        self._cache.expect(role.ref for role in wanted)
        found = self._present(ensure, wanted, caller)
        models.require_agreement(job, found)
        self._add_automatic_vae(job, found, caller)
        return found

    def _present(
        self,
        ensure: Callable[..., Ensured],
        wanted: Sequence[models.Role],
        caller: Caller,
    ) -> dict[str, Ensured]:
        try:
            threads = self._idle.pop()
        except IndexError:
            threads = ThreadPoolExecutor(FETCHERS, thread_name_prefix="fetch")
        try:
            return models.ensure_all(
                ensure, wanted, threads, cancelled=caller.cancelled, report=caller.report
            )
        finally:
            self._idle.append(threads)

    def _as_shown(self, ref: Recalled) -> Recalled:
        """Return `ref` by the store's name: A1111 writes into an infotext what a link is called."""
        path = self._links.path_of(ref.kind, ref.name or "")
        shown = (model for model in self._cache.models(ref.kind) if model.path == path)
        name = next((model.name for model in shown), ref.name)
        return ref.model_copy(update={"name": name})

    def _kept(self, found: Ensured, caller: Caller) -> Ensured:
        """Keep a model from now on: others of the same job may take half an hour to come."""
        caller.held.enter_context(self._cache.hold([found.model]))
        return found

    def _add_automatic_vae(
        self, job: Generation, found: dict[str, Ensured], caller: Caller
    ) -> None:
        asked = job.vae or job.override_settings.get(overrides.VAE) or AUTOMATIC
        if asked != AUTOMATIC:
            return
        ref = models.automatic_vae(self._cache, found[checkpoint_field(found)].model)
        if ref is not None:
            try:
                vae = self._cache.present(ref, cancelled=caller.cancelled)
                found["vae"] = self._kept(vae, caller)
            except ModelNotFoundError:
                log.info(f"The VAE {ref.label} is gone; the checkpoint's own is used.")

    def _default(self) -> ModelRef:
        return models.default_checkpoint(self._cache, self._settings.webui.checkpoint)

    def _named_lora(self, caller: Caller, name: str) -> CachedModel:
        """Return the LoRA that a tag names: one that is here, as words of a prompt fetch nothing."""
        ref = ModelRef(kind=Kind.LORA, name=name)
        return self._kept(self._cache.present(ref, cancelled=caller.cancelled), caller).model

    def _show(self, model: CachedModel) -> str:
        name, _ = self._links.show(model)
        self._hashes.put(model, name)
        return name

    def check(self, job: Generation, session: Session) -> dict[str, Any]:
        """Return the fields of `job` that change, after a look at everything but its models.

        Raises:
            InvalidInputError: a picture or a name that A1111 could not work with.
            WorkerError: A1111 does not answer.
        """
        changes = self._changes(job, session)
        self._detectors(job, session)
        self._controls(job, session)
        return changes

    def _changes(self, job: Generation, session: Session) -> dict[str, Any]:
        for prompt in PROMPTS:
            require_readable(getattr(job, prompt, ""), prompt)
        changes = images.checked(job, self._settings.job.max_input_pixels)
        changes |= session.catalog.checked(job)
        overrides.checked(job.override_settings, session.originals)
        require_helpers(job, self._links.root, session.originals)
        return changes | self._script(job, session, changes.get("init_images", ()))

    def _script(self, job: Generation, session: Session, pictures: Sequence[str]) -> dict[str, Any]:
        if not job.script_name and not job.alwayson_scripts:
            return {}
        limits = self._settings.job
        for at, upscaler in scripts.upscalers(job, limits).items():
            session.catalog.require_upscaler(at, upscaler)
        offered = session.catalog.arguments(img2img=isinstance(job, Img2Img))
        return scripts.checked(job, offered, pictures, limits, self._links.root)

    def _detectors(self, job: Generation, session: Session) -> list[str]:
        """Refuse a model that ADetailer lacks; see `Session.require_detectors`."""
        wanted = scripts.detectors(job.alwayson_scripts, self._settings.job)
        return session.require_detectors(wanted)

    def _controls(
        self, job: Generation, session: Session, names: Mapping[str, str] | None = None
    ) -> Controls:
        """Return the ControlNet units of `job`; see `controls_of`."""
        units = enabled(job)
        if units and not session.offers("GET", "/controlnet/model_list"):
            raise not_installed(units[0].at)
        limit = self._settings.job.max_input_pixels
        return controls_of(job, session.controlnet, limit, names)

    def complete(
        self, job: Generation, found: dict[str, Ensured], session: Session, caller: Caller
    ) -> Prepared:
        """Return `job` with what A1111 is to be told.

        Raises:
            WorkerError: its models do not go together, or A1111 does not answer.
        """
        judge = Judge(found[checkpoint_field(found)].model, skips=self._skips(job))

        def fits(model: CachedModel, at: str) -> bool:
            return judge.takes(self._cache.inspected(model), at)

        tags = tagged(
            job,
            {ref: found[f"loras[{index}]"].model for index, ref in enumerate(job.loras)},
            lambda name: lora_by_name(self._cache, partial(self._named_lora, caller), name),
            partial(knows_lora, self._cache),
            self._show,
            fits,
        )
        found = {
            field: ensured
            for field, ensured in found.items()
            if ensured.model.kind not in MUST_FIT or fits(ensured.model, field)
        }
        names = {field: self._show(ensured.model) for field, ensured in found.items()}
        for name in tags.hypernetworks:
            session.catalog.require_hypernetwork(name)
        warnings = judge.warnings + _remarks(job, found, names)
        changes = self._changes(job, session)
        warnings += self._detectors(job, session)
        controls = self._controls(job, session, names)
        return Prepared(
            job=job,
            chosen=_chosen(found, names),
            changes=changes | tags.fields | controls.changes(job),
            found=found,
            names=names,
            tagged=tags,
            warnings=warnings + tags.warnings + controls.warnings,
            controls=controls,
        )

    def _skips(self, job: Generation) -> bool:
        return (job.on_incompatible or self._settings.job.on_incompatible) == "skip"


def _remarks(job: Generation, found: Mapping[str, Ensured], names: Mapping[str, str]) -> list[str]:
    """Return what the caller should know of the models that are used.

    Raises:
        InvalidInputError: an embedding got another name than the one in the prompt.
    """
    warnings: list[str] = []
    for index, ref in enumerate(job.embeddings):
        field = f"embeddings[{index}]"
        if field in found:
            warnings += mentions(job, ref, names[field], field)
    for ensured in found.values():
        warnings += ensured.warnings
    if not job.override_settings_restore_afterwards:
        warnings.append(
            "Options never outlive their job; `override_settings_restore_afterwards` has no effect."
        )
    return warnings


def checkpoint_field(found: Mapping[str, Ensured]) -> str:
    """Return the field that names the checkpoint among the models of a job."""
    return "checkpoint" if "checkpoint" in found else f"override_settings.{overrides.CHECKPOINT}"


def _chosen(found: Mapping[str, Ensured], names: Mapping[str, str]) -> payload.Chosen:
    files = {field: name + found[field].model.suffix for field, name in names.items()}
    return payload.Chosen(
        checkpoint=files[checkpoint_field(found)],
        vae=files.get("vae") or files.get(f"override_settings.{overrides.VAE}") or "None",
        refiner=files.get("refiner_checkpoint"),
        hires=files.get("hr_checkpoint_name"),
    )
