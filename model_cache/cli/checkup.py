"""`verify` and `adopt`: are the files what their manifests say, and manifests for those without."""

import threading
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from model_cache.cache import ModelCache
from model_cache.cli import lookup, parallel, tables
from model_cache.cli.console import Bar, Console
from model_cache.models import CachedModel, Origin
from model_cache.volume import layout, manifests
from model_cache.volume.disk import disk_errors
from model_cache.weights import verify
from schemas.errors import WorkerError
from schemas.manifest import Manifest
from schemas.settings import CacheSettings


class State(StrEnum):
    """What a check of one file came to."""

    GOOD = "good"
    UNHASHED = "unhashed"
    """Sound as far as its header tells, and nobody knows what its hash should be."""
    TOUCHED = "touched"
    """Written to, or copied, since its hash was taken: only hashing it again would tell."""
    BAD = "bad"


@dataclass(frozen=True)
class Result:
    """What a check of one file found."""

    model: CachedModel
    state: State
    said: str = ""
    """About it, a sentence; empty for a good one."""


@dataclass(frozen=True)
class Adopted:
    """What became of one file without a manifest."""

    model: CachedModel
    error: WorkerError | None = None


def check(options: Namespace, settings: CacheSettings, console: Console) -> int:
    """Check files, in the words of `verify --help`.

    Raises:
        WorkerError: no model is called so, or the volume cannot be read.
    """
    cache, cancelled = ModelCache(settings), threading.Event()
    models = lookup.meant(cache, options.name, options.kind)
    again = bool(options.all or options.name)
    total_bytes = sum(model.size_bytes for model in models if again and _record(settings, model))
    with console.bar("verify", total_bytes=total_bytes) as bar:
        results = parallel.for_each(
            _checker(settings, cancelled, bar, again=again), models, cancelled
        )
    console.say(*(_line(result) for result in results if result.state is not State.GOOD))
    console.say(_verdict(results, again=again))
    console.answer([_as_json(result) for result in results])
    return 1 if any(result.state is State.BAD for result in results) else 0


def adopt(options: Namespace, settings: CacheSettings, console: Console) -> int:
    """Hash files that people brought, in the words of `adopt --help`.

    Raises:
        WorkerError: no model is called so, or the volume cannot be read.
    """
    cache, cancelled = ModelCache(settings), threading.Event()
    models = lookup.meant(cache, options.name, options.kind)
    # What is in the image has its manifest there, or cannot get one.
    unknown = [one for one in models if one.sha256 is None and one.origin is not Origin.BAKED]
    total_bytes = sum(model.size_bytes for model in unknown)
    with console.bar("adopt", total_bytes=total_bytes) as bar:
        outcomes = parallel.for_each(_adopter(cache, cancelled, console, bar), unknown, cancelled)
    failed = sum(outcome.error is not None for outcome in outcomes)
    if len(outcomes) > failed:
        cache.write_registry()
    console.say(
        f"{len(outcomes) - failed} adopted, {len(models) - len(outcomes)} known already, "
        f"{failed} failed"
    )
    console.answer([_adopted_as_json(outcome) for outcome in outcomes])
    return 1 if failed else 0


def _checker(
    settings: CacheSettings, cancelled: threading.Event, bar: Bar, *, again: bool
) -> Callable[[CachedModel], Result]:
    def look_at(model: CachedModel) -> Result:
        record = _record(settings, model)
        try:
            verify.inspect(model.path, model.kind, model.name, allow_pickle=settings.allow_pickle)
            if record is None:
                return Result(model, State.UNHASHED, "`adopt` takes its hash for all workers.")
            if again:
                return _hashed(settings, model, record, cancelled, bar)
        except WorkerError as error:
            return Result(model, State.BAD, f"{error} {error.hint}".rstrip())
        return _compared(model, record)

    return look_at


def _record(settings: CacheSettings, model: CachedModel) -> Manifest | None:
    """Return what was once recorded of the file at that place, believed or not."""
    place = layout.manifest_path(settings.volume, model.kind, model.path)
    if model.origin is Origin.BAKED:
        return _as_told(model)
    return manifests.stored(place) or _as_told(model)


def _as_told(model: CachedModel) -> Manifest | None:
    if model.sha256 is None:
        return None
    return Manifest(
        sha256=model.sha256,
        size_bytes=model.size_bytes,
        mtime_ns=model.mtime_ns,
        source=model.source,
        created=model.mtime_ns / 1e9,
    )


def _compared(model: CachedModel, record: Manifest) -> Result:
    """Compare size and time with the record."""
    if model.size_bytes != record.size_bytes:
        said = f"It has {model.size_bytes} bytes; {record.size_bytes} when its hash was taken."
        return Result(model, State.BAD, said)
    if model.sha256 is None:
        said = "Its time changed since its hash was taken: `verify NAME` takes it again."
        return Result(model, State.TOUCHED, said)
    return Result(model, State.GOOD)


def _hashed(
    settings: CacheSettings,
    model: CachedModel,
    record: Manifest,
    cancelled: threading.Event,
    bar: Bar,
) -> Result:
    """Hash the file and compare; a manifest that is right after all is believed from now on."""
    with disk_errors():
        before = model.path.stat()
    sha256 = verify.digest(model.path, cancelled=cancelled, progress=bar.part())
    if sha256 != record.sha256:
        said = f"Its SHA-256 is {sha256}, and was {record.sha256} when it was recorded."
        return Result(model, State.BAD, said)
    if model.sha256 is None:
        place = layout.manifest_path(settings.volume, model.kind, model.path)
        # The status is older than the bytes: had they changed since, it would not be theirs.
        mended = {"size_bytes": before.st_size, "mtime_ns": before.st_mtime_ns}
        manifests.write(settings.volume, place, record.model_copy(update=mended))
    return Result(model, State.GOOD)


def _line(result: Result) -> str:
    model = result.model
    # Of a bad one the path, as it is to be deleted.
    called = model.path if result.state is State.BAD else f"{model.kind} {model.name}"
    return f"{result.state:8}  {called}: {result.said}"


def _verdict(results: Sequence[Result], *, again: bool) -> str:
    number = {state: sum(result.state is state for result in results) for state in State}
    parts = [f"{number[State.GOOD]} good"]
    parts += [f"{number[state]} {state}" for state in (State.UNHASHED, State.TOUCHED)]
    how = "hashed again" if again else "by size, time and header"
    return (
        f"{tables.count(len(results), 'model')} checked ({how}): "
        f"{', '.join(parts)}, {number[State.BAD]} bad"
    )


def _as_json(result: Result) -> dict[str, object]:
    model = result.model
    return {
        "kind": model.kind,
        "name": model.name,
        "path": str(model.path),
        "state": result.state,
        "said": result.said,
    }


def _adopter(
    cache: ModelCache, cancelled: threading.Event, console: Console, bar: Bar
) -> Callable[[CachedModel], Adopted]:
    def take_in(model: CachedModel) -> Adopted:
        try:
            known = cache.adopt(model, cancelled=cancelled, progress=bar.part())
        except WorkerError as error:
            if not cancelled.is_set():
                said = error.as_response()["error"]
                console.remark(f"failed   {model.kind} {model.name}: {said}")
            return Adopted(model, error)
        console.say(f"adopted  {known.kind} {known.name}: {(known.sha256 or '')[:10]}")
        return Adopted(known)

    return take_in


def _adopted_as_json(outcome: Adopted) -> dict[str, object]:
    model = outcome.model
    told: dict[str, object] = {"kind": model.kind, "name": model.name, "sha256": model.sha256}
    return told if outcome.error is None else {**told, **outcome.error.as_response()}
