"""Are the files on the volume what their manifests say."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from model_cache import describe
from model_cache.models import CachedModel, Origin, Progress
from model_cache.volume import layout, manifests
from model_cache.volume.disk import disk_errors
from model_cache.weights import verify
from schemas.errors import JobCancelledError, WorkerError
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

    def as_json(self) -> dict[str, str]:
        """Return it for programs."""
        return {
            "kind": self.model.kind,
            "name": self.model.name,
            "path": describe.text(self.model.path),
            "state": self.state,
            "said": self.said,
        }


def look(settings: CacheSettings, model: CachedModel) -> Result:
    """Check a file by its size, time and header."""
    try:
        _inspect(settings, model)
    except WorkerError as error:
        return _bad(model, error)
    return _compared(model, _record(settings, model))


def hash_again(
    settings: CacheSettings,
    model: CachedModel,
    *,
    cancelled: threading.Event,
    progress: Callable[[Progress], None] | None = None,
) -> Result:
    """Check a file by all of its bytes; a manifest that is right after all is believed from now on.

    Raises:
        JobCancelledError: `cancelled` was set.
    """
    record = _record(settings, model)
    try:
        _inspect(settings, model)
        if record is None:
            return _compared(model, record)
        return _hashed(settings, model, record, cancelled, progress)
    except JobCancelledError:
        raise
    except WorkerError as error:
        return _bad(model, error)


def bytes_to_hash(settings: CacheSettings, models: Sequence[CachedModel]) -> int:
    """Return how many bytes `hash_again` would read of these files."""
    return sum(model.size_bytes for model in models if _record(settings, model))


def _inspect(settings: CacheSettings, model: CachedModel) -> None:
    verify.inspect(model.path, model.kind, model.name, allow_pickle=settings.allow_pickle)


def _bad(model: CachedModel, error: WorkerError) -> Result:
    return Result(model, State.BAD, f"{error} {error.hint}".rstrip())


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


def _compared(model: CachedModel, record: Manifest | None) -> Result:
    """Compare size and time with the record."""
    if record is None:
        said = "Nobody took its hash yet; `python -m model_cache adopt` does."
        return Result(model, State.UNHASHED, said)
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
    progress: Callable[[Progress], None] | None,
) -> Result:
    """Hash the file and compare."""
    with disk_errors():
        before = model.path.stat()
    sha256 = verify.digest(model.path, cancelled=cancelled, progress=progress)
    if sha256 != record.sha256:
        said = f"Its SHA-256 is {sha256}, and was {record.sha256} when it was recorded."
        return Result(model, State.BAD, said)
    if model.sha256 is None:
        place = layout.manifest_path(settings.volume, model.kind, model.path)
        # The status is older than the bytes: had they changed since, it would not be theirs.
        mended = {"size_bytes": before.st_size, "mtime_ns": before.st_mtime_ns}
        manifests.write(settings.volume, place, record.model_copy(update=mended))
    return Result(model, State.GOOD)
