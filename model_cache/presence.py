"""Is a model here: found, looked at, hashed, given a second name. Fetches nothing.

A hit is one `stat`: what the list says is believed while the file has the size and the time that it
had, and others were told of its use before it is looked at (uses.py).
"""

import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from model_cache import hubcache, huggingface, layout, manifests, publish, selection, verify
from model_cache.architecture import Nature
from model_cache.disk import require_volume
from model_cache.download import Allowance
from model_cache.listing import Listing
from model_cache.models import CachedModel, Ensured, Progress
from model_cache.selection import Choice, Fetch, Hash, Link, Use, Wanted
from model_cache.sources import Reference
from model_cache.uses import Uses
from schemas.errors import (
    JobCancelledError,
    ModelCorruptError,
    ModelIncompatibleError,
    ModelNotFoundError,
    ModelUnsafeError,
    VolumeBusyError,
)
from schemas.model_ref import Kind, hash_form
from schemas.settings import CacheSettings

MISS_FRESH_S = 0.2
"""How old the list may be when we say that a model is not there."""
# How often a model may change between the look and the use before we call the volume too busy.
_LOOKS = 8
_WAIT_S = 0.05

_BAD_FILE = (ModelCorruptError, ModelUnsafeError, ModelIncompatibleError)
_State: TypeAlias = tuple[Path, int, int]


@dataclass(frozen=True)
class Errand:
    """The job that wants a model, as far as the store is concerned."""

    cancelled: threading.Event
    allowance: Allowance
    progress: Callable[[Progress], None] | None = None


class Turns:
    """Lets one thread at a time do what a key stands for."""

    def __init__(self) -> None:
        """Begin with nobody at work."""
        self._changed = threading.Condition()
        self._busy: set[Hashable] = set()

    @contextmanager
    def of(self, key: Hashable, cancelled: threading.Event) -> Iterator[None]:
        """Have the turn for the lines inside.

        Raises:
            JobCancelledError: `cancelled` was set while another thread was at it.
        """
        with self._changed:
            while key in self._busy:
                self._changed.wait(_WAIT_S)
                if cancelled.is_set():
                    raise JobCancelledError("The job was cancelled while it waited for a model.")
            self._busy.add(key)
        try:
            yield
        finally:
            with self._changed:
                self._busy.discard(key)
                self._changed.notify_all()


class Presence:
    """What is here, as one process sees it. Safe to use from several threads."""

    def __init__(self, settings: CacheSettings, listing: Listing, uses: Uses) -> None:
        """Look through `listing`, and tell `uses` what is looked at for a job."""
        self._settings = settings
        self._volume = settings.volume
        self._listing = listing
        self._uses = uses
        self._natures: dict[_State, Nature] = {}
        self._in_hub: dict[str, Path] = {}
        self._turns = Turns()

    def find(self, wanted: Wanted, errand: Errand) -> Ensured | None:
        """Return the model if it is here or can be linked; None if it has to be fetched.

        A file that is no sound model is an error where nothing can be fetched in its place, and else
        counts as absent.

        Raises:
            WorkerError: it is not here and cannot be fetched, or the disk refused.
        """
        for _ in range(_LOOKS):
            choice = self._choose(wanted)
            if isinstance(choice, Fetch):
                return None
            try:
                hit = self._carry_out(choice, wanted, errand)
            except _BAD_FILE:
                if not wanted.is_fetchable:
                    raise
                return None
            if hit is not None:
                return hit
        raise VolumeBusyError(
            f"The {wanted.kind} {wanted.label!r} changes again and again while it is looked at.",
            hint="Try again when whoever writes it has finished.",
        )

    def likely(self, wanted: Wanted) -> CachedModel | None:
        """Return what seems to be here, by the list at hand alone; nothing is looked at."""
        choice = selection.choose(wanted, self._listing.current)
        return choice.model if isinstance(choice, Use) else None

    def in_hub(self, wanted: Wanted, reference: Reference, errand: Errand) -> Ensured | None:
        """Return the model that the platform's Hugging Face cache has for a reference, if any.

        A branch stays what it was when it was first asked for.

        Raises:
            WorkerError: a hash is given, and the file cannot be read or the job was cancelled.
        """
        if not isinstance(reference, huggingface.Reference):
            return None
        path = self._in_hub.get(reference.key) or hubcache.find(self._volume, reference)
        model = path and self._listing.current.at(path)
        if not path or not model or model.kind is not wanted.kind:
            return None
        if wanted.hash is not None and not selection.is_hashed(model, wanted.hash):
            self.hash(model, errand)
            model = self._listing.current.at(path) or model
        if wanted.hash and not verify.matches(wanted.hash, model.sha256 or "", model.autov3):
            return None
        self._in_hub[reference.key] = path
        warning = ""
        if wanted.name not in {None, model.name}:
            warning = f"The {model.kind} is here as {model.name!r}; that is used."
        return self._hit(Use(model, warning), wanted.hash)

    def nature(self, model: CachedModel) -> Nature:
        """Return what the bytes of a model tell; read and checked once for each state of it.

        Raises:
            ModelCorruptError, ModelUnsafeError, ModelIncompatibleError: see `verify.inspect`.
            VolumeError: it cannot be read.
        """
        state = _state(model)
        if state not in self._natures:
            self._natures[state] = verify.inspect(
                model.path, model.kind, model.name, allow_pickle=self._settings.allow_pickle
            )
        return self._natures[state]

    def told(self, model: CachedModel) -> CachedModel:
        """Return `model` with what its header told, if that is known by now."""
        nature = self._natures.get(_state(model))
        return model if nature is None else replace(model, base=nature.base, alias=nature.alias)

    def hash(self, model: CachedModel, errand: Errand) -> None:
        """Learn the digests of a file that people put there, and remember them for all workers.

        Raises:
            WorkerError: it is no sound model, it cannot be read, or the job was cancelled.
        """
        with self._turns.of(model.path, errand.cancelled):
            found = self._listing.current.files.get(model.path)
            if found is None or self._listing.current.at(model.path) != model:
                return  # Another thread was faster, or it is gone: choose again.
            nature = self.nature(model)
            digests = verify.digests(
                model.path,
                autov3=not nature.pickle,
                cancelled=errand.cancelled,
                progress=errand.progress,
            )
            before = found.manifest or manifests.stored(
                layout.manifest_path(self._volume, model.kind, model.path)
            )
            source = before.source if before is not None and before.sha256 == digests.sha256 else ""
            # The status is older than the bytes: had they changed since, it would not be theirs.
            manifest = manifests.new(
                digests.sha256, found.status, source, nature.base, nature.alias
            )
            self._listing.record(found, manifest.model_copy(update={"autov3": digests.autov3}))

    def _choose(self, wanted: Wanted) -> Choice:
        """Choose by the list at hand, and by a fresh one before anything is said to be absent."""
        try:
            choice = selection.choose(wanted, self._listing.current)
        except ModelNotFoundError:
            require_volume(self._volume)
        else:
            if not isinstance(choice, Fetch):
                return choice
        return selection.choose(wanted, self._listing.fresh(MISS_FRESH_S))

    def _carry_out(
        self, choice: Use | Link | Hash, wanted: Wanted, errand: Errand
    ) -> Ensured | None:
        """Do what was chosen; None when it changed what is here, so that one must choose again."""
        match choice:
            case Use():
                return self._hit(choice, wanted.hash)
            case Hash(model):
                self.hash(model, errand)
            case Link(model, name):
                if not self._link(model, name):
                    said = f"The {model.kind} is here as {model.name!r}; that is used."
                    return self._hit(Use(model, said), wanted.hash)
        return None

    def _hit(self, use: Use, digest: str | None) -> Ensured | None:
        """Return the model if its file is what it was; else look at it again and return None."""
        model = use.model
        self._uses.note(model.path)
        try:
            status = model.path.stat()
        except OSError:
            self._listing.look_again(model.kind, model.path)
            return None
        if (status.st_size, status.st_mtime_ns) != (model.size_bytes, model.mtime_ns):
            self._listing.look_again(model.kind, model.path)
            return None
        warnings = [use.warning] if use.warning else []
        if model.sha256 is None:
            nature = self.nature(model)
            model = self.told(model)
            warnings += unrecognised(model.kind, model.name, nature)
        return Ensured(
            model,
            cached=True,
            download_s=0.0,
            bytes_fetched=0,
            warnings=tuple(warnings),
            checked=hash_form(digest) if digest else "",
        )

    def _link(self, model: CachedModel, name: str) -> bool:
        """Give the file a second name; False if that cannot be done here."""
        final = layout.published_path(self._volume, model.kind, name, model.path.suffix)
        if self._listing.look_again(model.kind, final) is not None:
            return True  # Somebody was faster: whatever it is, the next choice will see it.
        if not publish.second_name(model.path, final):
            return False
        self._listing.look_again(model.kind, final)
        files = self._listing.current.files
        known, linked = files.get(model.path), files.get(final)
        if linked is not None and known is not None and known.manifest is not None:
            self._listing.record(linked, known.manifest)
        return True


def unrecognised(kind: Kind, name: str, nature: Nature) -> list[str]:
    """Return the warning that a file is used as what nothing in it shows it to be, if it is."""
    if nature.kind is not None:
        return []
    return [f"The file of {name!r} does not show that it is a {kind}; it is used as one."]


def _state(model: CachedModel) -> _State:
    return model.path, model.size_bytes, model.mtime_ns
