"""`compat`: which LoRAs on the volume work with which checkpoints."""

from argparse import Namespace
from threading import Event

from model_cache import compat
from model_cache.cache import ModelCache
from model_cache.cli import lookup, tables
from model_cache.cli.console import Console
from model_cache.compat import Looked, Report, Row
from schemas.model_ref import Kind
from schemas.settings import CacheSettings

_HEADS = ("LORA", "BASE", "KNOWN BY", "FITS", "REASON")


def show_report(options: Namespace, settings: CacheSettings, console: Console) -> int:
    """Tell how checkpoints and LoRAs go together, in the words of `compat --help`.

    Raises:
        WorkerError: no model is called so, or the volume cannot be read.
    """
    cache = ModelCache(settings)
    report = compat.report(
        cache,
        lookup.meant(cache, options.model, Kind.CHECKPOINT),
        lookup.meant(cache, options.lora, Kind.LORA),
        cancelled=Event(),
    )
    console.say(*_totals(report))
    for row in report.rows:
        console.say(
            "", f"{row.checkpoint.model.name}: {_origin(row.checkpoint)}", *_table(row, report)
        )
    console.answer(report.as_json())
    return 0


def _totals(report: Report) -> list[str]:
    counts = tables.pairs(
        [
            ("Total tests", str(report.total)),
            ("Compatible", str(report.compatible)),
            ("Incompatible", str(report.incompatible)),
            ("Unknown", str(report.unknown)),
            ("Success rate", f"{report.success_rate}%"),
        ]
    )
    if not report.rows:
        return counts
    summaries = [(row.checkpoint.model.name, row.summary) for row in report.rows]
    return [*counts, "", "By checkpoint:", *tables.pairs(summaries)]


def _table(row: Row, report: Report) -> list[str]:
    """Return the lines about one checkpoint: what fits first, what does not last."""
    looked = {lora.model.name: lora for lora in report.loras}
    verdicts = [(name, "yes", "") for name in row.compatible]
    verdicts += [(name, "unknown", "") for name in row.unknown]
    verdicts += [(name, "no", reason) for name, reason in row.incompatible]
    rows = [
        (name, looked[name].model.base, looked[name].model.base_by, fits, reason)
        for name, fits, reason in verdicts
    ]
    return tables.table(_HEADS, rows) if rows else []


def _origin(looked: Looked) -> str:
    """Return what a checkpoint is, and what told that."""
    if looked.flaw:
        return looked.flaw
    told = looked.model.base_by
    return f"{looked.model.base}, by its {told}" if told else looked.model.base
