"""`pull`: makes models present, several at once, and tells what became of each."""

import dataclasses
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_cache.cache import ModelCache
from model_cache.cli import parallel, tables
from model_cache.cli.console import Bar, Console
from model_cache.models import CachedModel, Ensured
from schemas import model_list
from schemas.errors import InvalidInputError, WorkerError
from schemas.model_ref import Kind, ModelRef, as_fields, parse_ref
from schemas.settings import CacheSettings


@dataclass(frozen=True)
class Outcome:
    """What became of one reference."""

    ref: ModelRef
    done: Ensured | None
    error: WorkerError | None = None

    @property
    def state(self) -> str:
        """`fetched`, `present` (it was there) or `failed`."""
        if self.done is None:
            return "failed"
        return "present" if self.done.cached else "fetched"


def pull(options: Namespace, settings: CacheSettings, console: Console) -> int:
    """Make every model present that is named by the options, in the words of `pull --help`.

    Raises:
        InvalidInputError: the options or a list of models cannot be understood; nothing was fetched.
        VolumeError: the volume cannot be read.
    """
    refs = _wanted(options)
    started = time.monotonic()
    cache, cancelled = ModelCache(settings), threading.Event()
    cache.start()
    try:
        outcomes = _fetched(cache, refs, cancelled, console)
    except KeyboardInterrupt:
        console.remark(
            "Interrupted. What came is kept for 24 hours: the same command goes on from there."
        )
        raise
    finally:
        cache.close()
    if any(outcome.state == "fetched" for outcome in outcomes):
        cache.write_registry()
    _summary(outcomes, time.monotonic() - started, console)
    return 1 if any(outcome.error for outcome in outcomes) else 0


def as_json(model: CachedModel) -> dict[str, Any]:
    """Return all that is known of a model, for programs."""
    return {**dataclasses.asdict(model), "path": str(model.path)}


def _wanted(options: Namespace) -> list[ModelRef]:
    refs = [ref for path in options.file for ref in _of_file(path)]
    if options.ref and options.kind is None:
        raise InvalidInputError(
            "`pull REF` does not tell what kind of model it is.",
            hint=f"Say --kind and one of {', '.join(Kind)}.",
        )
    if len(options.ref) != 1 and (options.name or options.hash):
        raise InvalidInputError(
            "--name and --hash belong to exactly one REF.",
            hint="In a list of models, write name=… and hash=… behind each reference.",
        )
    refs += [_of_text(text, options.kind, options) for text in options.ref]
    if not refs:
        raise InvalidInputError("There is nothing to pull.", hint="Give a REF, or -f FILE.")
    return [ref.model_copy(update={"refresh": options.refresh}) for ref in refs]


def _of_file(path: Path) -> Sequence[ModelRef]:
    # A FIFO or /dev/stdin will do as well.
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"The list of models {path} cannot be read: {error}.") from error
    try:
        return model_list.parse(text)
    except InvalidInputError as error:
        raise InvalidInputError(f"{path}: {error}", hint=error.hint) from error


def _of_text(text: str, kind: Kind, options: Namespace) -> ModelRef:
    fields = as_fields(text, kind)
    if options.name is not None:
        fields["name"] = options.name
    if options.hash is not None:
        fields["hash"] = options.hash
    return parse_ref(fields, kind, "REF")


def _fetched(
    cache: ModelCache, refs: Sequence[ModelRef], cancelled: threading.Event, console: Console
) -> list[Outcome]:
    label = refs[0].label if len(refs) == 1 else tables.count(len(refs), "model")
    with console.bar(tables.cut(tables.printable(label), 30)) as bar:
        return parallel.for_each(_ensurer(cache, cancelled, console, bar), refs, cancelled)


def _ensurer(
    cache: ModelCache, cancelled: threading.Event, console: Console, bar: Bar
) -> Callable[[ModelRef], Outcome]:
    def ensure(ref: ModelRef) -> Outcome:
        try:
            done = cache.ensure(ref, cancelled=cancelled, progress=bar.part())
        except WorkerError as error:
            if not cancelled.is_set():
                console.remark(f"failed   {ref.kind} {ref.label}: {error.as_response()['error']}")
            return Outcome(ref, None, error)
        outcome = Outcome(ref, done)
        console.say(_line(outcome, done))
        console.remark(*(f"{done.model.name}: {warning}" for warning in done.warnings))
        return outcome

    return ensure


def _line(outcome: Outcome, done: Ensured) -> str:
    line = f"{outcome.state:7}  {done.model.path}"
    if done.cached:
        return line
    took = f"{tables.size(done.bytes_fetched)} in {tables.seconds(done.download_s)}"
    return f"{line} ({took})"


def _summary(outcomes: Sequence[Outcome], took_s: float, console: Console) -> None:
    number = {
        state: sum(outcome.state == state for outcome in outcomes)
        for state in ("fetched", "present", "failed")
    }
    fetched_bytes = sum(outcome.done.bytes_fetched for outcome in outcomes if outcome.done)
    console.say(
        f"{number['fetched']} fetched ({tables.size(fetched_bytes)} in {tables.seconds(took_s)}), "
        f"{number['present']} already there, {number['failed']} failed"
    )
    console.answer(
        {
            "models": [_as_json(outcome) for outcome in outcomes],
            **number,
            "bytes": fetched_bytes,
            "seconds": round(took_s, 3),
        }
    )


def _as_json(outcome: Outcome) -> dict[str, object]:
    told: dict[str, object] = {
        "kind": outcome.ref.kind,
        "ref": outcome.ref.label,
        "state": outcome.state,
    }
    if outcome.error is not None:
        return {**told, **outcome.error.as_response()}
    if outcome.done is not None:
        done = outcome.done
        told |= {
            "model": as_json(done.model),
            "bytes_fetched": done.bytes_fetched,
            "download_s": round(done.download_s, 3),
            "checked": done.checked,
            "warnings": done.warnings,
        }
    return told
