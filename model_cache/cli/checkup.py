"""`verify` and `adopt`: are the files what their manifests say, and manifests for those without."""

import threading
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from model_cache import checking
from model_cache.cache import ModelCache
from model_cache.checking import Result, State
from model_cache.cli import lookup, parallel, tables
from model_cache.cli.console import Bar, Console
from model_cache.models import CachedModel, Origin
from schemas.errors import WorkerError
from schemas.settings import CacheSettings


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
    total_bytes = checking.bytes_to_hash(settings, models) if again else 0

    def look_at(model: CachedModel) -> Result:
        if not again:
            return checking.look(settings, model)
        return checking.hash_again(settings, model, cancelled=cancelled, progress=bar.part())

    with console.bar("verify", total_bytes=total_bytes) as bar:
        results = parallel.for_each(look_at, models, cancelled)
    console.say(*(_line(result) for result in results if result.state is not State.GOOD))
    console.say(_verdict(results, again=again))
    console.answer([result.as_json() for result in results])
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
