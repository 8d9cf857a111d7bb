"""The models of this worker: `ModelCache.ensure` makes a referenced model present and verified.

Two things are kept in the process: the list of what is on the volume, and what the headers said of
files that people put there. Everything else is on the volume and may change under our hands, so a
file is looked at (one `stat`) before it is said to be there.
"""

import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from model_cache import (
    layout,
    magic,
    manifests,
    publish,
    registry,
    selection,
    sources,
    transfer,
    urls,
    verify,
)
from model_cache.architecture import Nature
from model_cache.arrival import Arrival, settle
from model_cache.disk import require_volume
from model_cache.listing import Listing
from model_cache.models import CachedModel, CacheInfo, Ensured, Progress
from model_cache.transfer import Fetched
from schemas.errors import (
    JobCancelledError,
    ModelCorruptError,
    ModelIncompatibleError,
    ModelNotFoundError,
    ModelUnsafeError,
    VolumeBusyError,
)
from schemas.model_ref import Kind, ModelRef
from schemas.settings import CacheSettings

# How old the list may be: for what other workers add, and before we say that a model is not there.
_FRESH_S = 60.0
_MISS_FRESH_S = 0.2
# How often a model may change between the look and the use before we call the volume too busy.
_LOOKS = 8
_WAIT_S = 0.05
_NO_TOKENS: Mapping[str, str] = MappingProxyType({})

_BAD_FILE = (ModelCorruptError, ModelUnsafeError, ModelIncompatibleError)
_Report = Callable[[Progress], None] | None


class ModelCache:
    """The model files on one volume. Safe to use from several threads and several processes."""

    def __init__(self, settings: CacheSettings) -> None:
        """List what is on the volume, which may be missing, and clear what died fetches left."""
        self._settings = settings
        self._volume = settings.volume
        self._natures: dict[tuple[Path, int, int], Nature] = {}
        self._turn = threading.Condition()
        self._busy: set[Hashable] = set()
        publish.sweep(self._volume)
        self._listing = Listing(self._volume)

    def ensure(
        self,
        ref: ModelRef,
        *,
        cancelled: threading.Event,
        tokens: Mapping[str, str] = _NO_TOKENS,
        progress: _Report = None,
    ) -> Ensured:
        """Make the referenced model present and verified.

        Two threads that want the same file fetch it once. Two processes may both fetch it; whatever
        they do, only whole and verified files get a name, and none is overwritten.

        Args:
            ref: which model.
            cancelled: ends the work when it is set, within a fraction of a second.
            tokens: of the request, by host (`huggingface`, `civitai`); win over the settings'.
            progress: called while bytes are fetched or hashed, at most four times a second.

        Raises:
            WorkerError: it could not be had; docs/errors.md tells the classes.
        """
        source = urls.source_key(ref.url) if ref.url is not None else ""
        present = self._present(ref, source, cancelled, progress)
        if present is not None:
            return present
        with self._alone((ref.kind, source), cancelled):
            # Another thread may have fetched it while this one waited for its turn.
            present = self._present(ref, source, cancelled, progress)
            return present or self._fetch(ref, cancelled, tokens, progress)

    def models(self, kind: Kind) -> tuple[CachedModel, ...]:
        """Return every model of a kind in every root, sorted by name; at most 60 s old.

        `base` and `alias` are known of files that we verified, and of others once `inspected` saw
        them; reading the header of every file that people brought would take minutes.
        """
        models = self._listing.fresh(_FRESH_S).models(kind)
        return tuple(_told(model, self._natures.get(_identity(model))) for model in models)

    def inspected(self, model: CachedModel) -> CachedModel:
        """Return `model` with what its header tells; read and checked once for each state of it.

        Raises:
            ModelCorruptError: it is damaged or cut off.
            ModelUnsafeError: it is no safetensors file.
            ModelIncompatibleError: it is a model of another kind than its folder says.
            VolumeError: it cannot be read.
        """
        if model.sha256 is not None:
            return model  # It has a manifest, which is written after the header was checked.
        return _told(model, self._nature(model))

    def info(self) -> CacheInfo:
        """Return what is there in numbers: own changes at once, other workers' within 60 s."""
        inventory = self._listing.fresh(_FRESH_S)
        return CacheInfo(
            checkpoints_cached=len(inventory.models(Kind.CHECKPOINT)),
            loras_cached=len(inventory.models(Kind.LORA)),
            total_cache_size_mb=round(inventory.total_bytes / 1e6, 1),
        )

    def _present(
        self, ref: ModelRef, source: str, cancelled: threading.Event, progress: _Report
    ) -> Ensured | None:
        """Return the model if it is here or can be linked; None if it has to be fetched."""
        for _ in range(_LOOKS):
            choice = self._choose(ref, source)
            if isinstance(choice, selection.Fetch):
                return None
            try:
                hit = self._carry_out(choice, cancelled, progress)
            except _BAD_FILE:
                if ref.url is None:
                    raise
                return None  # People put a bad file under that name; a good one can be fetched.
            if hit is not None:
                return hit
        raise VolumeBusyError(
            f"The {ref.kind} {ref.label!r} changes again and again while it is looked at.",
            hint="Try again when whoever writes it has finished.",
        )

    def _carry_out(
        self,
        choice: selection.Use | selection.Link | selection.Hash,
        cancelled: threading.Event,
        progress: _Report,
    ) -> Ensured | None:
        """Do what was chosen; None when it changed what is here, so that one must choose again."""
        match choice:
            case selection.Use(model, warning):
                return self._hit(model, warning)
            case selection.Hash(model):
                self._hash(model, cancelled, progress)
            case selection.Link(model, name):
                if not self._link(model, name):
                    return self._hit(
                        model, f"The {model.kind} is here as {model.name!r}; that is used."
                    )
        return None

    def _choose(self, ref: ModelRef, source: str) -> selection.Choice:
        """Choose by the list at hand, and by a fresh one before anything is said to be absent."""
        try:
            choice = selection.choose(ref, source, self._listing.current)
        except ModelNotFoundError:
            require_volume(self._volume)
        else:
            if not isinstance(choice, selection.Fetch):
                return choice
        return selection.choose(ref, source, self._listing.fresh(_MISS_FRESH_S))

    def _hit(self, model: CachedModel, warning: str) -> Ensured | None:
        """Return the model if its file is what it was; else look at it again and return None."""
        try:
            status = model.path.stat()
        except OSError:
            self._listing.look_again(model.kind, model.path)
            return None
        if (status.st_size, status.st_mtime_ns) != (model.size_bytes, model.mtime_ns):
            self._listing.look_again(model.kind, model.path)
            return None
        warnings = [warning] if warning else []
        if model.sha256 is None:
            nature = self._nature(model)
            model = _told(model, nature)
            warnings += _unrecognised(model.kind, model.name, nature)
        return Ensured(
            model, cached=True, download_s=0.0, bytes_fetched=0, warnings=tuple(warnings)
        )

    def _nature(self, model: CachedModel) -> Nature:
        key = _identity(model)
        if key not in self._natures:
            self._natures[key] = verify.inspect(model.path, model.kind, model.name)
        return self._natures[key]

    def _hash(self, model: CachedModel, cancelled: threading.Event, progress: _Report) -> None:
        """Learn the digest of a file that people put there, and remember it for all workers."""
        with self._alone(("hash", model.path), cancelled):
            found = self._listing.current.files.get(model.path)
            if found is None or found.manifest is not None:
                return  # Another thread was faster, or it is gone: choose again.
            nature = self._nature(model)
            sha256 = verify.digest(model.path, cancelled=cancelled, progress=progress)
            place = layout.manifest_path(self._volume, model.kind, model.path)
            before = manifests.stored(place)
            source = before.source if before is not None and before.sha256 == sha256 else ""
            # The status is older than the bytes: had they changed since, it would not be theirs.
            self._listing.record(
                found, manifests.new(sha256, found.status, source, nature.base, nature.alias)
            )
        registry.write(self._volume, self._listing.current)

    def _link(self, model: CachedModel, name: str) -> bool:
        """Give the file a second name; False if that cannot be done here."""
        final = layout.published_path(self._volume, model.kind, name)
        if self._listing.look_again(model.kind, final) is not None:
            return True  # Somebody was faster: whatever it is, the next choice will see it.
        if not publish.second_name(model.path, final):
            return False
        self._listing.look_again(model.kind, final)
        files = self._listing.current.files
        known, linked = files.get(model.path), files.get(final)
        if linked is not None and known is not None and known.manifest is not None:
            self._listing.record(linked, known.manifest)
            registry.write(self._volume, self._listing.current)
        return True

    def _fetch(
        self,
        ref: ModelRef,
        cancelled: threading.Event,
        tokens: Mapping[str, str],
        progress: _Report,
    ) -> Ensured:
        """Fetch the file that the URL names, verify it and publish it."""
        started = time.monotonic()
        download = sources.resolve(ref.url or "", self._settings, tokens)
        watch = transfer.Watch(cancelled, progress, magic.refuse)
        with publish.private_file(self._volume) as part:
            fetched = transfer.fetch(download, part.file, transfer.Limits.of(self._settings), watch)
            part.seal()
            _require_digest(ref, fetched)
            nature = verify.inspect(part.path, ref.kind, ref.label)
            wanted = ref.name or layout.safe_name(fetched.file_name)
            arrived = Arrival(ref.kind, wanted, part.path, fetched.sha256, download.source, nature)
            model = settle(arrived, self._volume, self._listing, cancelled)
        registry.write(self._volume, self._listing.current)
        warnings = _unrecognised(ref.kind, model.name, nature)
        if model.name != wanted:
            warnings.append(selection.called_otherwise(ref.kind, wanted, model.name))
        return Ensured(
            model,
            cached=False,
            download_s=time.monotonic() - started,
            bytes_fetched=fetched.received_bytes,
            warnings=tuple(warnings),
        )

    @contextmanager
    def _alone(self, key: Hashable, cancelled: threading.Event) -> Iterator[None]:
        """Let one thread at a time do the work that `key` stands for.

        Raises:
            JobCancelledError: `cancelled` was set while another thread was at it.
        """
        with self._turn:
            while key in self._busy:
                self._turn.wait(_WAIT_S)
                if cancelled.is_set():
                    raise JobCancelledError("The job was cancelled while it waited for a model.")
            self._busy.add(key)
        try:
            yield
        finally:
            with self._turn:
                self._busy.discard(key)
                self._turn.notify_all()


def _identity(model: CachedModel) -> tuple[Path, int, int]:
    return model.path, model.size_bytes, model.mtime_ns


def _told(model: CachedModel, nature: Nature | None) -> CachedModel:
    """Return `model` with what its header told, if that is known."""
    return model if nature is None else replace(model, base=nature.base, alias=nature.alias)


def _unrecognised(kind: Kind, name: str, nature: Nature) -> list[str]:
    if nature.kind is not None:
        return []
    return [f"The file of {name!r} does not show that it is a {kind}; it is used as one."]


def _require_digest(ref: ModelRef, fetched: Fetched) -> None:
    if ref.hash not in {None, fetched.sha256}:
        raise ModelCorruptError(
            f"What came for {ref.label!r} has the SHA-256 {fetched.sha256}, not {ref.hash}.",
            hint="The file was replaced at its source, or the hash is wrong.",
            expected=ref.hash,
            actual=fetched.sha256,
        )
