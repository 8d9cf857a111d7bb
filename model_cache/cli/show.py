"""`list`, `info`, `pin`, `unpin` and `registry`: what is there, and what shall stay."""

import time
from argparse import Namespace
from pathlib import Path

from model_cache import describe
from model_cache.cache import ModelCache
from model_cache.cli import lookup, tables
from model_cache.cli.console import Console
from model_cache.models import CachedModel
from model_cache.sharing import pins
from model_cache.sharing.uses import Use
from model_cache.volume import layout
from schemas.errors import InvalidInputError, ModelNotFoundError, shown
from schemas.model_ref import Kind
from schemas.settings import CacheSettings

_HEADS = ("KIND", "NAME", "SIZE", "BASE", "ORIGIN", "USED", "PIN", "SHA-256")
_NAME, _SIZE = 1, 2
_SHORT_DIGITS = 10


def show_list(options: Namespace, settings: CacheSettings, console: Console) -> int:
    """Show the models, in the words of `list --help`.

    Raises:
        VolumeError: the volume cannot be read.
    """
    cache = ModelCache(settings)
    models = lookup.listed(cache, options.kind)
    history, pinned = cache.history(), pins.pinned(settings.volume)
    rows = [_row(model, history.get(model.path), pinned) for model in models]
    right = frozenset({_SIZE})
    console.say(*tables.table(_HEADS, rows, width=console.width, flexible=_NAME, right=right))
    console.answer([describe.model(model, history.get(model.path), pinned) for model in models])
    return 0


def show_info(options: Namespace, settings: CacheSettings, console: Console) -> int:
    """Show the volume in numbers, or all that is known of some models; see `info --help`.

    Raises:
        WorkerError: no model is called so, or the volume cannot be read.
    """
    cache = ModelCache(settings)
    if not options.name:
        _numbers(cache, settings, console)
        return 0
    models = lookup.named(cache, options.name, options.kind)
    history, pinned = cache.history(), pins.pinned(settings.volume)
    told = []
    for number, model in enumerate(models):
        inspected, use = cache.inspected(model), history.get(model.path)
        if number:
            console.say("")
        console.say(*tables.pairs(_described(inspected, use, pinned)))
        told.append(describe.model(inspected, use, pinned))
    console.answer(told)
    return 0


def pin(options: Namespace, settings: CacheSettings, console: Console) -> int:
    """Keep models from being evicted, in the words of `pin --help`.

    Raises:
        WorkerError: no kind is given for a model that is not there, or the disk refused.
    """
    cache = ModelCache(settings)
    wanted = [_to_pin(cache, name, options.kind) for name in options.name]
    for kind, name in wanted:
        pins.pin(settings.volume, kind, name)
        console.say(f"pinned  {kind} {name}")
    cache.write_registry()
    console.answer([{"kind": kind, "name": name, "pinned": True} for kind, name in wanted])
    return 0


def unpin(options: Namespace, settings: CacheSettings, console: Console) -> int:
    """Let models go when room is needed, in the words of `unpin --help`; 1 if one had no pin.

    Raises:
        WorkerError: a name cannot be one, or the disk refused.
    """
    cache = ModelCache(settings)
    told, missing = [], 0
    for name in options.name:
        held = _pinned_as(cache, settings.volume, name, options.kind)
        for kind, plain in held:
            pins.unpin(settings.volume, kind, plain)
            console.say(f"unpinned  {kind} {plain}")
            told.append({"kind": kind, "name": plain, "pinned": False})
        if not held:
            missing += 1
            console.remark(f"{name} is not pinned.")
    cache.write_registry()
    console.answer(told)
    return 1 if missing else 0


def write_registry(options: Namespace, settings: CacheSettings, console: Console) -> int:
    """Write the view for people, in the words of `registry --help`; 1 if the disk refused.

    Raises:
        VolumeError: the volume cannot be read.
    """
    del options
    written = ModelCache(settings).write_registry()
    path = layout.registry_path(settings.volume)
    if written:
        console.say(str(path))
    console.answer({"path": str(path), "written": written})
    return 0 if written else 1


def _row(
    model: CachedModel, use: Use | None, pinned: frozenset[tuple[Kind, str]]
) -> tuple[str, ...]:
    return (
        model.kind,
        model.name,
        tables.size(model.size_bytes),
        "" if model.base == "unknown" else model.base,
        model.origin,
        tables.age(use.last, time.time()) if use else "",
        "pin" if (model.kind, model.name) in pinned else "",
        (model.sha256 or "")[:_SHORT_DIGITS],
    )


def _described(
    model: CachedModel, use: Use | None, pinned: frozenset[tuple[Kind, str]]
) -> list[tuple[str, str]]:
    used = f"{tables.age(use.last, time.time())}, {tables.count(use.count, 'use')}" if use else ""
    return [
        ("kind", model.kind),
        ("name", model.name),
        ("also called", model.alias),
        ("file", str(model.path)),
        ("size", f"{tables.size(model.size_bytes)} ({model.size_bytes} bytes)"),
        ("base", model.base),
        ("origin", model.origin),
        ("source", model.source),
        ("SHA-256", model.sha256 or "not taken; `adopt` does"),
        ("AutoV3", model.autov3),
        ("used", used or "never"),
        ("pinned", "yes" if (model.kind, model.name) in pinned else ""),
    ]


def _numbers(cache: ModelCache, settings: CacheSettings, console: Console) -> None:
    told = describe.store(cache, settings)
    by_kind = ", ".join(tables.count(n, kind) for kind, n in told["kinds"].items() if n)
    budget_bytes = told["budget_bytes"]
    sizes = {
        "can be evicted": told["evictable_bytes"],
        "pinned": told["pinned_bytes"],
        "in use": told["in_use_bytes"],
        "put there by people": told["brought_bytes"],
        "being fetched": told["fetching_bytes"],
    }
    console.say(
        *tables.pairs(
            [
                ("volume", str(settings.volume)),
                ("models", by_kind or "none"),
                ("they take", tables.size(told["models_bytes"])),
                ("budget", "none" if budget_bytes is None else tables.size(budget_bytes)),
                *((name, tables.size(size) if size else "") for name, size in sizes.items()),
            ]
        )
    )
    console.answer(told)


def _to_pin(cache: ModelCache, name: str, kind: Kind | None) -> tuple[Kind, str]:
    """Return which model shall stay; one that is not there yet is called as it is spelled."""
    try:
        (model,) = lookup.named(cache, [name], kind)
    except ModelNotFoundError as error:
        if kind is None:
            raise InvalidInputError(
                f"There is no model called {shown(name)}.",
                hint="To pin one that will come, give its --kind.",
            ) from error
        return kind, name
    return model.kind, model.name


def _pinned_as(
    cache: ModelCache, volume: Path, name: str, kind: Kind | None
) -> list[tuple[Kind, str]]:
    """Return the pins that `name` means; a pin outlives its model."""
    pinned = pins.pinned(volume)
    kinds = [kind] if kind else list(Kind)
    held = []
    for one in kinds:
        model = None if (one, name) in pinned else cache.find(one, name)
        plain = model.name if model else name
        if (one, plain) in pinned:
            held.append((one, plain))
    return held
