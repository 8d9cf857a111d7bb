"""`doctor`: does this volume do what the store needs, and is what lies there in order.

The disk is tried out in a folder that is removed again (trials.py); what is on the volume is looked
at and left alone.
"""

import dataclasses
import json
import shutil
import tempfile
import textwrap
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from model_cache.cache import ModelCache
from model_cache.cli import tables, trials
from model_cache.cli.console import Console
from model_cache.cli.lookup import listed
from model_cache.cli.trials import Finding, Grade
from model_cache.hosts.aliases import MAX_BYTES
from model_cache.models import CachedModel, Origin
from model_cache.sharing import account, lease, leftovers, pins
from model_cache.volume import layout, manifests
from model_cache.volume.disk import disk_errors
from schemas.errors import InvalidInputError, ModelNotFoundError, shown
from schemas.model_ref import Kind, parse_ref
from schemas.settings import CacheSettings

_MOST_NAMED = 5
_COLUMNS = 100
_INDENT = " " * 6
# Nothing that is a model is smaller: u64, and an empty header.
_SMALLEST_BYTES = 10
_CURRENT = ".json"
_HISTORY = ".history.json"


def doctor(options: Namespace, settings: CacheSettings, console: Console) -> int:
    """Examine the volume, in the words of `doctor --help`; 1 if anything is bad."""
    del options
    findings = []
    for finding in examine(settings):
        findings.append(finding)
        console.say(*_lines(finding, console.width or _COLUMNS))
    grades = [finding.grade for finding in findings]
    console.say(
        f"{grades.count(Grade.GOOD)} good, {grades.count(Grade.POOR)} poor, "
        f"{grades.count(Grade.BAD)} bad"
    )
    console.answer([dataclasses.asdict(finding) for finding in findings])
    return 1 if Grade.BAD in grades else 0


def examine(
    settings: CacheSettings,
    *,
    speed_bytes: int = trials.SPEED_BYTES,
    lease_ttl_s: float = lease.TTL_S,
) -> Iterator[Finding]:
    """Yield one finding after another; takes some twenty seconds on a good volume.

    Args:
        settings: the volume, which is mounted, its budget, and more.
        speed_bytes: how much is written to tell the speed.
        lease_ttl_s: see `trials.run`.

    Raises:
        VolumeError: the volume cannot be read.
    """
    volume = settings.volume
    claims = set(lease.claims(volume))
    records = _records(volume)
    yield trials.mount(volume)
    yield from _tried(volume, speed_bytes, lease_ttl_s)
    cache = ModelCache(settings)
    models = listed(cache, None)
    yield _models(volume, models)
    yield _room(settings, cache)
    yield _pins(cache, volume)
    yield _aliases(cache, volume)
    yield _leftovers(volume)
    # They had the time of the trials to show that they live.
    yield _workers(volume, records)
    yield _fetches(volume, claims)


def _lines(finding: Finding, width: int) -> list[str]:
    first = textwrap.wrap(
        f"{finding.grade}  {finding.check}: {finding.saw}", width, subsequent_indent=_INDENT
    )
    more = textwrap.wrap(finding.means, width, initial_indent=_INDENT, subsequent_indent=_INDENT)
    return [*first, *more]


def _tried(volume: Path, speed_bytes: int, lease_ttl_s: float) -> Iterator[Finding]:
    try:
        layout.tmp_folder(volume).mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=leftovers.SCRATCH, dir=layout.tmp_folder(volume)))
    except OSError as error:
        yield Finding(
            "writing",
            Grade.BAD,
            f"Nothing can be written here: {error.strerror}.",
            "What is there is used, and nothing can be fetched.",
        )
        return
    try:
        yield from trials.run(folder, speed_bytes=speed_bytes, lease_ttl_s=lease_ttl_s)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _models(volume: Path, models: list[CachedModel]) -> Finding:
    """Look at sizes and manifests; what costs a read of each file is for `verify`."""
    kept = [model for model in models if model.origin is not Origin.BAKED]
    bad = [model for model in kept if _is_cut(volume, model)]
    unknown = sum(model.sha256 is None for model in kept)
    there = f"{tables.count(len(models), 'model')}, {unknown} without a known hash"
    if bad:
        return Finding(
            "models",
            Grade.BAD,
            f"{there}. Cut off, or replaced since they were verified: {_named(bad)}.",
            "`verify NAME` tells more. Delete what is bad; what has a source is fetched again.",
        )
    means = "`adopt` takes their hashes, so that no worker has to." if unknown else ""
    return Finding("models", Grade.GOOD, f"{there}.", means)


def _is_cut(volume: Path, model: CachedModel) -> bool:
    if model.size_bytes < _SMALLEST_BYTES:
        return True
    if model.sha256 is not None:
        return False
    record = manifests.stored(layout.manifest_path(volume, model.kind, model.path))
    return record is not None and record.size_bytes != model.size_bytes


def _room(settings: CacheSettings, cache: ModelCache) -> Finding:
    known = cache.account()
    takes = f"Models take {tables.size(known.models_bytes)}"
    if settings.budget_gb is None:
        return Finding(
            "room",
            Grade.GOOD,
            f"{takes}; there is no budget.",
            "Nothing is evicted until the disk is full. A budget (A1111_CACHE_BUDGET_GB) a little "
            "below the size of the volume leaves room for what is being fetched.",
        )
    budget_bytes = int(settings.budget_gb * 1e9)
    stays_bytes = known.models_bytes - known.evictable_bytes - known.in_use_bytes
    saw = f"{takes} of {tables.size(budget_bytes)}; {tables.size(known.evictable_bytes)} can go."
    if stays_bytes >= budget_bytes:
        return Finding(
            "room",
            Grade.BAD,
            saw,
            f"What is pinned or was put there by people takes {account.gigabytes(stays_bytes)}, all "
            "that there may be: nothing can be fetched. Raise the budget, unpin or delete models.",
        )
    if known.taken_bytes > budget_bytes:
        means = (
            "More than there may be: the next fetch, or `prune`, evicts what was used longest ago."
        )
        return Finding("room", Grade.POOR, saw, means)
    return Finding("room", Grade.GOOD, saw)


def _pins(cache: ModelCache, volume: Path) -> Finding:
    pinned = pins.pinned(volume)
    names = {(kind, model.name) for kind in Kind for model in cache.models(kind)}
    lost = sorted(f"{kind} {name}" for kind, name in pinned - names)
    saw = f"{tables.count(len(pinned), 'model')} pinned"
    if lost:
        means = "They may still come; else `unpin` them."
        return Finding("pins", Grade.POOR, f"{saw}. Not there: {_some(lost)}.", means)
    return Finding("pins", Grade.GOOD, f"{saw}.")


def _aliases(cache: ModelCache, volume: Path) -> Finding:
    path = layout.aliases_path(volume)
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
        entries = json.loads(text) if len(text) <= MAX_BYTES else None
    except FileNotFoundError:
        return Finding("aliases", Grade.GOOD, "There are none.")
    except (OSError, ValueError, RecursionError) as error:
        return Finding("aliases", Grade.BAD, f"{path} cannot be read: {error}.", "None counts.")
    if not isinstance(entries, dict):
        saw = f"{path} does not hold an object of less than 1 MiB."
        return Finding("aliases", Grade.BAD, saw, "None of them counts.")
    faults = [fault for label, entry in entries.items() if (fault := _fault(cache, label, entry))]
    saw = tables.count(len(entries), "alias")
    if faults:
        return Finding("aliases", Grade.POOR, f"{saw}. {_some(faults)}.", "The others count.")
    return Finding("aliases", Grade.GOOD, f"{saw}.")


def _fault(cache: ModelCache, label: str, entry: object) -> str:
    """Return what is wrong with an alias; empty if nothing is."""
    said = entry.get("kind") if isinstance(entry, dict) else None
    if said is not None and said not in list(Kind):
        return f"{shown(label)} is for {shown(said)}, which is no kind of model"
    kinds = list(Kind) if said is None else [Kind(said)]
    try:
        ref = parse_ref(entry, kinds[0], label)
        if ref.url is not None or ref.name is None:
            return ""
        known = any(cache.find(kind, ref.name) for kind in kinds)
    except InvalidInputError as error:
        return str(error).rstrip(".")
    except ModelNotFoundError:  # Several are spelled so.
        known = True
    return "" if known else f"{shown(label)} stands for {shown(ref.name)}, which is not there"


def _leftovers(volume: Path) -> Finding:
    dead, orphans = leftovers.remains(volume), leftovers.orphans(volume)
    every = leftovers.remains(volume, older_than_s=float("-inf"))
    taken_bytes = sum(remains.size_bytes for remains in every)
    saw = (
        f"{tables.count(len(every), 'temporary file')} ({tables.size(taken_bytes)}), "
        f"{len(dead)} of them dead; {tables.count(len(orphans), 'manifest')} without a file."
    )
    if dead or orphans:
        means = "Workers clear them up within a day, `prune` does it now."
        return Finding("leftovers", Grade.POOR, saw, means)
    return Finding("leftovers", Grade.GOOD, saw)


def _records(volume: Path) -> dict[str, bytes]:
    """Return what each worker says that it uses, by worker."""
    records = {}
    with disk_errors():
        try:
            paths = list(layout.uses_folder(volume).iterdir())
        except FileNotFoundError:
            return {}
        for path in paths:
            if path.name.endswith(_CURRENT) and not path.name.endswith(_HISTORY):
                try:
                    records[path.name.removesuffix(_CURRENT)] = path.read_bytes()
                except FileNotFoundError:
                    continue  # That worker ended in this moment.
    return records


def _workers(volume: Path, before: dict[str, bytes]) -> Finding:
    now = _records(volume)
    living = sum(before.get(worker) != record for worker, record in now.items())
    silent = len(now) - living
    saw = f"{living} showed that they use models while we looked, {silent} did not."
    means = "For a minute each of them counts as living, and what it uses stays." if silent else ""
    return Finding("workers", Grade.GOOD, saw, means)


def _fetches(volume: Path, before: set[lease.Claim]) -> Finding:
    now = lease.claims(volume)
    notes = sorted(claim.note for claim in now if claim not in before)
    silent = len(now) - len(notes)
    saw = "; ".join(notes) or "Nobody fetches"
    if silent:
        means = "Who wants the same takes over within seconds; else they go by themselves."
        return Finding(
            "fetches", Grade.GOOD, f"{saw}. {silent} did not move while we looked.", means
        )
    return Finding("fetches", Grade.GOOD, f"{saw}.")


def _named(models: list[CachedModel]) -> str:
    return _some([f"{model.kind} {model.name}" for model in models])


def _some(names: list[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
