"""The models of one job: fetched together, and judged to fit each other.

Knows the roles that a request gives to models, not where their files come from.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from threading import Event
from typing import Any, TypeVar

from model_cache.cache import ModelCache
from model_cache.models import CachedModel, Ensured, Progress
from schemas.errors import (
    InvalidInputError,
    JobCancelledError,
    ModelNotFoundError,
    WorkerError,
)
from schemas.job import Generation, Txt2Img
from schemas.model_ref import SUFFIX, Kind, ModelRef, Recalled, parse_ref
from worker.child.watch import Report
from worker.generation import overrides

LOOK_S = 0.1
REPORT_S = 1.0
BUILT_IN_VAES = frozenset({"Automatic", "None"})
T = TypeVar("T")


@dataclass(frozen=True)
class Role:
    """What one model is in a job: the field that names it, and the reference there."""

    field: str
    ref: ModelRef


def names_checkpoint(job: Generation) -> bool:
    """Return whether `job` says which checkpoint it wants."""
    return job.checkpoint is not None or job.override_settings.get(overrides.CHECKPOINT) is not None


def roles(job: Generation, default: ModelRef | None) -> list[Role]:
    """Return every model of `job`; `default` is its checkpoint if it names none.

    `sd_model_checkpoint` and `sd_vae` in `override_settings` mean `checkpoint` and `vae`; named in
    both places, they are both here, and `require_agreement` compares what they turn out to be.
    """
    named = job.override_settings
    found: list[Role] = []
    checkpoint = job.checkpoint or default
    if checkpoint is not None:
        found.append(Role("checkpoint", checkpoint))
    override = named.get(overrides.CHECKPOINT)
    if override is not None:
        field = f"override_settings.{overrides.CHECKPOINT}"
        found.append(Role(field, parse_ref(override, Kind.CHECKPOINT, field)))
    vae = named.get(overrides.VAE)
    if vae is not None and not (isinstance(vae, str) and vae in BUILT_IN_VAES):
        field = f"override_settings.{overrides.VAE}"
        found.append(Role(field, parse_ref(vae, Kind.VAE, field)))
    if isinstance(job.vae, ModelRef):
        found.append(Role("vae", job.vae))
    if job.refiner_checkpoint is not None:
        found.append(Role("refiner_checkpoint", job.refiner_checkpoint))
    if isinstance(job, Txt2Img) and isinstance(job.hr_checkpoint_name, ModelRef):
        found.append(Role("hr_checkpoint_name", job.hr_checkpoint_name))
    found += [Role(f"loras[{index}]", ref) for index, ref in enumerate(job.loras)]
    found += [Role(f"embeddings[{index}]", ref) for index, ref in enumerate(job.embeddings)]
    found += [
        Role(f"{unit.at}.model", unit.model)
        for unit in job.controlnet_args
        if unit.enabled and unit.model is not None
    ]
    return found


def _named(error: BaseException, role: Role) -> BaseException:
    """Return `error` with the field at fault, unless it is said to be the infotext, or a token."""
    if isinstance(error, WorkerError) and not isinstance(role.ref, Recalled):
        said = str(error.details.get("field", ""))
        error.details["field"] = said if said.startswith("tokens.") else role.field
    return error


def ensure_all(
    ensure: Callable[..., T],
    wanted: Sequence[Role],
    threads: Executor,
    *,
    cancelled: Event,
    report: Report,
) -> dict[str, T]:
    """Make every model present, on `threads`; the first failure stops the others.

    `ensure` is `ModelCache.ensure` with the tokens and the allowance of the job, if it has any, or
    what makes something of its result.

    Raises:
        JobCancelledError: `cancelled` was set.
        WorkerError: what ModelCache.ensure raised for the first model in order that failed;
            `details["field"]` is the field that names it.
    """
    stop = Event()
    downloads = _Downloads(report)
    futures = {
        threads.submit(
            copy_context().run,  # so that what is logged has the job's id
            partial(ensure, role.ref, cancelled=stop, progress=partial(downloads.note, role.field)),
        ): role
        for role in wanted
    }
    waiting: set[Future[T]] = set(futures)
    try:
        while waiting:
            done, waiting = wait(waiting, timeout=LOOK_S, return_when=FIRST_COMPLETED)
            if cancelled.is_set() or any(future.exception() for future in done):
                break
            downloads.tell()
    finally:
        stop.set()
        for future in futures:
            future.cancel()  # those that have not begun
        wait(futures)
    if cancelled.is_set():
        raise JobCancelledError("The job was cancelled while its models were fetched.")
    for future, role in futures.items():
        error = None if future.cancelled() else future.exception()
        if error is not None and not isinstance(error, JobCancelledError):
            raise _named(error, role)
    return {role.field: future.result() for future, role in futures.items()}


class _Downloads:
    """The bytes of all downloads of a job, told as one figure and at most once a second."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._seen: dict[str, Progress] = {}
        self._start = self._told = time.monotonic()
        self._had: dict[str, int] = {}
        """What was there of each file when it was first seen: an earlier job may have begun."""

    def note(self, field: str, progress: Progress) -> None:
        self._had.setdefault(field, progress.done_bytes)
        self._seen[field] = progress

    def tell(self) -> None:
        now = time.monotonic()
        if not self._seen or now - self._told < REPORT_S:
            return
        self._told = now
        seen = list(self._seen.values())
        done = sum(progress.done_bytes for progress in seen)
        sizes = [progress.total_bytes for progress in seen]
        total = sum(size or 0 for size in sizes) if all(sizes) else None
        told: dict[str, Any] = {
            "stage": "fetching",
            "percent": round(100 * done / total) if total else 0,
            "done_bytes": done,
            "total_bytes": total,
            "detail": f"{len(seen)} model{'s' if len(seen) > 1 else ''}, {_gb(done)}"
            + (f" of {_gb(total)}" if total else ""),
        }
        came = done - sum(self._had.values())
        if total and came > 0:
            told["eta_s"] = round((total - done) * (now - self._start) / came, 1)
        self._report(told)


def _gb(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.2f} GB"


def require_agreement(job: Generation, found: Mapping[str, Ensured]) -> None:
    """Raise InvalidInputError if a field and its twin in `override_settings` mean two things."""
    twin = job.override_settings.get(overrides.VAE)
    if twin is not None and job.vae is not None and twin != job.vae:
        one_is_no_file = isinstance(job.vae, str) or str(twin) in BUILT_IN_VAES
        if one_is_no_file:
            raise InvalidInputError(
                f"`vae` and `override_settings.{overrides.VAE}` contradict each other.",
                hint="Name the VAE once.",
                field=f"override_settings.{overrides.VAE}",
            )
    for field, option in (("checkpoint", overrides.CHECKPOINT), ("vae", overrides.VAE)):
        twin = f"override_settings.{option}"
        if field in found and twin in found and found[field].model.path != found[twin].model.path:
            raise InvalidInputError(
                f"`{field}` is `{found[field].model.name}` and `{twin}` is"
                f" `{found[twin].model.name}`.",
                hint="Name the model once.",
                field=twin,
            )


def default_checkpoint(cache: ModelCache, configured: str) -> ModelRef:
    """Return what a request without a checkpoint means: never what the last job left loaded.

    Raises:
        ModelNotFoundError: there is no checkpoint at all.
        InvalidInputError: there are several and none is configured.
    """
    if configured:
        return parse_ref(configured, Kind.CHECKPOINT, "A1111_WEBUI_CHECKPOINT")
    names = [model.name for model in cache.models(Kind.CHECKPOINT)]
    if len(names) == 1:
        return parse_ref({"name": names[0] + SUFFIX}, Kind.CHECKPOINT, "checkpoint")
    if not names:
        raise ModelNotFoundError(
            "There is no checkpoint on the volume, and the request names none.",
            hint='Name one to fetch: {"checkpoint": {"name": "…", "url": "https://…"}}.',
            field="checkpoint",
        )
    raise InvalidInputError(
        f"The request names no checkpoint, and the volume holds {len(names)}.",
        hint=f"Name one of: {', '.join(names[:20])}; or set A1111_WEBUI_CHECKPOINT.",
        field="checkpoint",
    )


def automatic_vae(cache: ModelCache, checkpoint: CachedModel) -> ModelRef | None:
    """Return the VAE that goes with `checkpoint` by its name, None if it brings its own.

    A1111's "Automatic" would take any VAE whose name begins as the checkpoint's, among those that
    other jobs happened to fetch. Source: A1111 1.10.1, modules/sd_vae.py, find_vae_near_checkpoint.
    """
    names = {checkpoint.name, f"{checkpoint.name}.vae"}
    for model in cache.models(Kind.VAE):
        if model.name in names:
            return parse_ref({"name": model.name + SUFFIX}, Kind.VAE, "vae")
    return None
