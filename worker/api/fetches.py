"""The commands that fetch: `download`, `sync`, `prefetch`. What they fetch, A1111 is shown at once.

Several models are fetched at once, and one that fails does not stop the others: what came stays, and
the error tells what became of each.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Event
from typing import Any

from model_cache import describe, mirror
from model_cache.cache import ModelCache
from model_cache.engine.download import Allowance
from model_cache.models import Ensured
from model_cache.turns import Errand
from model_cache.volume import asked
from schemas.commands import MAX_MODELS, Download, Fetching, Prefetch, Sync
from schemas.errors import InvalidInputError, JobCancelledError, WorkerError
from schemas.model_ref import ModelRef, as_fields, parse_ref
from schemas.settings import CacheSettings
from worker.child.watch import Report
from worker.generation import models
from worker.generation.models import Role

_FETCHERS = 4
_MOST_SKIPPED = 100
_TOKENS = "tokens."


class Fetches:
    """Makes models present for commands. Safe to use from several threads.

    Args:
        cache: where they are put.
        settings: its own.
        shown: called when models came: shows A1111 what there is.
    """

    def __init__(
        self, cache: ModelCache, settings: CacheSettings, shown: Callable[[], None]
    ) -> None:
        self._cache = cache
        self._settings = settings
        self._shown = shown

    def download(self, payload: Download, cancelled: Event, report: Report) -> dict[str, Any]:
        """Fetch one model.

        Raises:
            WorkerError: it could not be had; `details["field"]` is the field that names it.
        """
        role = self._named(payload)
        errand = Errand(cancelled, self._allowance(payload))
        found = self._each([role], payload, errand, report)[role.field]
        if isinstance(found, WorkerError):
            named = str(found.details.get("field", ""))
            field = named if named.startswith(_TOKENS) else role.field
            raise _of(found, str(found), field=field)
        told, path = _row(role, found), payload.download_path
        if path is not None and not asked.names(self._settings.volume, path, found.model.path):
            told["warnings"].append(f"It is kept as {told['path']}.")
        return {
            "msg": "Download successful",
            "source_url": payload.source_url or role.ref.label,
            "download_path": payload.download_path or told["path"],
            **told,
        }

    def prefetch(self, payload: Prefetch, cancelled: Event, report: Report) -> dict[str, Any]:
        """Fetch what is not here yet.

        Raises:
            WorkerError: some could not be had; `details["models"]` tells of all.
        """
        roles = [Role(f"models[{index}]", ref) for index, ref in enumerate(payload.models)]
        errand = Errand(cancelled, self._allowance(payload))
        rows = self._all(roles, payload, errand, report)
        fetched = sum(row["state"] == "fetched" for row in rows)
        return {"models": rows, "fetched": fetched, "present": len(rows) - fetched}

    def sync(self, payload: Sync, cancelled: Event, report: Report) -> dict[str, Any]:
        """Fetch the models of a repository that are not here, or not as they are there today.

        Raises:
            WorkerError: the repository cannot be seen, or some models could not be had.
        """
        repository = mirror.Repository(
            payload.repo_id, payload.revision, payload.sync_path, payload.allow_patterns
        )
        errand = Errand(cancelled, self._allowance(payload))
        try:
            plan = mirror.plan(repository, self._settings, errand, payload.secrets)
        except JobCancelledError:
            raise
        except WorkerError as error:
            raise _of(error, str(error), field=_field_of_sync(error, payload)) from error
        if len(plan.wanted) > MAX_MODELS:
            raise InvalidInputError(
                f"{payload.repo_id} holds {len(plan.wanted)} models; a command fetches at most"
                f" {MAX_MODELS}.",
                hint="Choose some by `allow_patterns`.",
                field="allow_patterns",
            )
        roles = [Role(path, ref) for path, ref in plan.wanted.items()]
        rows = self._all(roles, payload, errand, report)
        synced = [row["path"] for row in rows if row["state"] == "fetched"]
        skipped = [{"file": path, "reason": reason} for path, reason in plan.skipped.items()]
        return {
            "synced_count": len(synced),
            "synced_files": synced,
            "present": len(rows) - len(synced),
            "skipped_count": len(skipped),
            "skipped": skipped[:_MOST_SKIPPED],
            "commit": plan.commit,
            "models": rows,
        }

    def _named(self, payload: Download) -> Role:
        """Return the model that is meant, by the field that names it."""
        fields: dict[str, Any]
        if payload.download_path is not None:
            kind, name = asked.file(self._settings.volume, payload.download_path, "download_path")
            if name is not None:
                parse_ref({"name": name}, kind, "download_path")
            field, fields = "source_url", {"url": payload.source_url, "name": name}
        elif payload.kind is not None:
            kind, field = payload.kind, "url" if payload.url is not None else "ref"
            fields = as_fields(payload.url or payload.ref, kind)
            if payload.name is not None and "name" in fields:
                raise InvalidInputError("`ref` is a name, and `name` is another.", field="name")
            fields |= {"name": payload.name} if payload.name is not None else {}
        else:
            raise AssertionError("the payload has one form or the other")
        fields |= {"hash": payload.hash, "refresh": payload.refresh}
        return Role(field, parse_ref(fields, kind, field))

    def _all(
        self, roles: Sequence[Role], payload: Fetching, errand: Errand, report: Report
    ) -> list[dict[str, Any]]:
        """Return what became of each model.

        Raises:
            WorkerError: that of the first one that failed, if any did.
        """
        outcomes = self._each(roles, payload, errand, report)
        rows = [_row(role, outcomes[role.field]) for role in roles]
        failed = [(f, found) for f, found in outcomes.items() if isinstance(found, WorkerError)]
        if not failed:
            return rows
        field, error = failed[0]
        said = f"{len(failed)} of {len(rows)} models could not be had; `{field}`: {error}"
        raise _of(error, said, field=field, models=rows)

    def _each(
        self, roles: Sequence[Role], payload: Fetching, errand: Errand, report: Report
    ) -> Mapping[str, Ensured | WorkerError]:
        """Return what came of each model, by its field."""
        obtain = partial(self._cache.ensure, tokens=payload.secrets, allowance=errand.allowance)

        def attempt(ref: ModelRef, **how: Any) -> Ensured | WorkerError:
            try:
                return obtain(ref, **how)
            except JobCancelledError:
                raise
            except WorkerError as error:
                return error

        with ThreadPoolExecutor(_FETCHERS, thread_name_prefix="command") as threads:
            try:
                return models.ensure_all(
                    attempt, roles, threads, cancelled=errand.cancelled, report=report
                )
            finally:
                self._shown()

    def _allowance(self, payload: Fetching) -> Allowance:
        return Allowance.of(self._settings, payload.max_download_gb, payload.max_download_s)


def _row(role: Role, found: Ensured | WorkerError) -> dict[str, Any]:
    """Return what became of one model, for programs."""
    kind = str(role.ref.kind)
    if isinstance(found, WorkerError):
        called = {"field": role.field, "kind": kind, "name": role.ref.label}
        return {**called, "state": "failed", **found.as_response()}
    model = found.model
    return {
        "kind": kind,
        "name": model.name,
        "state": "present" if found.cached else "fetched",
        "path": describe.text(model.path),
        "sha256": model.sha256,
        "size_bytes": model.size_bytes,
        "cached": found.cached,
        "checked": found.checked,
        "download_s": round(found.download_s, 3),
        "warnings": list(found.warnings),
    }


def _field_of_sync(error: WorkerError, payload: Sync) -> str:
    """Return the field of `payload` that is to blame for a repository that was not seen."""
    named = str(error.details.get("field", ""))
    if named.startswith(_TOKENS):
        return "hf_token" if payload.hf_token is not None else named
    if "revision" in error.details:
        return "revision"
    return named if named in {"sync_path", "allow_patterns"} else "repo_id"


def _of(error: WorkerError, message: str, **details: Any) -> WorkerError:
    """Return the same kind of error with another message and more details."""
    told: Mapping[str, Any] = {**error.details, **details}
    return type(error)(message, hint=error.hint, **told)
