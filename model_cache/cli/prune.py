"""`prune`: makes room, and tells what went or would go."""

import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from model_cache.cache import ModelCache
from model_cache.cli import lookup, tables
from model_cache.cli.console import Console
from model_cache.models import CachedModel
from model_cache.sharing import leftovers
from model_cache.sharing import uses as records
from model_cache.sharing.evict import Victim
from model_cache.sharing.leftovers import Orphan, Remains
from model_cache.sharing.uses import Uses
from schemas.errors import VolumeFullError
from schemas.settings import CacheSettings

# So many looks until a silent worker counts as dead, and one more.
_LOOKS = 13
# A file that is moved, or put back by an eviction that came too late, is away for less.
_BETWEEN_LOOKS_S = 2.0


def prune(options: Namespace, settings: CacheSettings, console: Console) -> int:
    """Clear leftovers and evict models, in the words of `prune --help`.

    Raises:
        VolumeFullError: so few bytes cannot be reached; leftovers went, and no model did.
        VolumeError: the disk refused.
    """
    volume = settings.volume
    cleared = _clear(volume, console, dry_run=options.dry_run)
    cache, uses = ModelCache(settings), Uses(volume)
    if options.watch:
        _watch(cache, uses, console)
    models = {model.path: model for model in lookup.listed(cache, None)}
    gone = _evict(options, settings, cache)
    if gone and not options.dry_run:
        cache.write_registry()
    evicted = [models[path] for victim in gone for path in victim.paths if path in models]
    word = "would go" if options.dry_run else "evicted"
    for model in evicted:
        console.say(f"{word}  {model.kind} {model.name} ({tables.size(model.size_bytes)})")
    freed_bytes = sum(victim.size_bytes for victim in gone)
    freed_bytes += sum(remains.size_bytes for remains in cleared)
    if settings.budget_gb is None and options.to is None:
        console.say("No model had to go: there is no budget, and no --to.")
    console.say(f"{tables.size(freed_bytes)} {'to be freed' if options.dry_run else 'freed'}")
    console.answer(
        {
            "dry_run": options.dry_run,
            "evicted": [_as_json(model) for model in evicted],
            "leftovers": [str(path) for remains in cleared for path in remains.paths],
            "freed_bytes": freed_bytes,
        }
    )
    return 0


def _clear(volume: Path, console: Console, *, dry_run: bool) -> list[Remains]:
    """Delete what dead processes left, and return that; with `dry_run` only look."""
    looked_at = time.monotonic()
    dead, orphans = leftovers.remains(volume), leftovers.orphans(volume)
    if not dry_run:
        for remains in dead:
            leftovers.clear(remains)
        orphans = _dropped(volume, orphans, looked_at)
    if dead:
        size = tables.size(sum(remains.size_bytes for remains in dead))
        console.say(f"leftovers of died fetches: {size}")
    if orphans:
        console.say(f"{tables.count(len(orphans), 'manifest')} without a file")
    return dead


def _dropped(volume: Path, orphans: Sequence[Orphan], looked_at: float) -> list[Orphan]:
    """Delete the manifests whose files are still not there at a second look; return them."""
    if not orphans:
        return []
    time.sleep(max(0.0, looked_at + _BETWEEN_LOOKS_S - time.monotonic()))
    still = leftovers.orphans(volume)
    return [orphan for orphan in orphans if orphan in still and leftovers.drop(volume, orphan)]


def _watch(cache: ModelCache, uses: Uses, console: Console) -> None:
    """Look at the records of other workers until the dead are told from the living."""
    console.remark(f"Watching for {records.ALIVE_S:.0f} s which workers live.")
    for _ in range(_LOOKS):
        cache.account()
        uses.others_in_use()
        time.sleep(records.ALIVE_S / (_LOOKS - 1))


def _evict(options: Namespace, settings: CacheSettings, cache: ModelCache) -> list[Victim]:
    """Evict, and return what went; with `--dry-run` what would go."""
    size_gb = settings.budget_gb if options.to is None else options.to
    if size_gb is None:
        return []
    to_bytes = int(size_gb * 1e9)
    try:
        chosen = cache.victims(to_bytes)
        if options.dry_run:
            return list(chosen)
        gone = set(cache.prune(to_bytes))
    except VolumeFullError as error:
        if error.details.get("in_use_bytes") and not options.watch:
            error.hint = (
                "Every worker that left a record counts as living; --watch tells those that died. "
                f"{error.hint}"
            )
        raise
    # A file with two names is one file, and frees its bytes with the last of them.
    return [victim for victim in chosen if gone.issuperset(victim.paths)]


def _as_json(model: CachedModel) -> dict[str, object]:
    return {
        "kind": model.kind,
        "name": model.name,
        "path": str(model.path),
        "size_bytes": model.size_bytes,
    }
