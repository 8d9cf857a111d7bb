"""Is a model here: found, looked at, hashed, given a second name. Fetches nothing.

A hit is one `stat`: what the list says is believed while the file has the size and the time that it
had, and others were told of its use before it is looked at (uses.py).
"""

import errno
import logging
import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from model_cache import selection
from model_cache.hosts import hubcache, huggingface
from model_cache.models import CachedModel, Ensured, Origin
from model_cache.selection import Choice, Fetch, Hash, Link, Use, Wanted
from model_cache.sharing.lease import Lease
from model_cache.sharing.uses import Uses
from model_cache.sources import Reference
from model_cache.turns import Errand, Turns, in_turn
from model_cache.volume import headers, layout, manifests, publish
from model_cache.volume.disk import require_volume, volume_error
from model_cache.volume.inventory import Found
from model_cache.volume.listing import Listing
from model_cache.weights import verify
from model_cache.weights.architecture import Nature
from schemas.errors import (
    ModelCorruptError,
    ModelIncompatibleError,
    ModelNotFoundError,
    ModelUnsafeError,
    VolumeBusyError,
    VolumeError,
)
from schemas.model_ref import Kind, hash_form
from schemas.settings import CacheSettings

log = logging.getLogger(__name__)

MISS_FRESH_S = 0.2
"""How old the list may be when we say that a model is not there."""
# What says that there is no such file, and not that the disk does not answer.
_GONE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}
_BACK_WITHIN_S = 0.5
_MOST_HUB_LOOKS = 1024
# How often a model may change between the look and the use before we call the volume too busy.
_LOOKS = 8
_WAIT_S = 0.05

_BAD_FILE = (ModelCorruptError, ModelUnsafeError, ModelIncompatibleError)
_State: TypeAlias = tuple[Path, int, int]


class Presence:
    """What is here, as one process sees it. Safe to use from several threads."""

    def __init__(self, settings: CacheSettings, listing: Listing, uses: Uses) -> None:
        """Look through `listing`, and tell `uses` what is looked at for a job."""
        self._settings = settings
        self._volume = settings.volume
        self._listing = listing
        self._uses = uses
        self._natures: dict[_State, Nature] = {}
        self._has_loaded = False
        self._loading = threading.Lock()
        self._in_hub: dict[str, Path] = {}
        self._hub_looks: dict[str, tuple[int, Path | None]] = {}
        self._turns = Turns()

    def find(self, wanted: Wanted, errand: Errand, *, by_list: bool = False) -> Ensured | None:
        """Return the model if it is here or can be linked; None if it has to be fetched.

        A file that is no sound model is an error where nothing can be fetched in its place, and else
        counts as absent. With `by_list`, what is not on the list at hand is absent: nobody waits for
        a look at everything.

        Raises:
            WorkerError: it is not here and cannot be fetched, or the disk refused.
        """
        for _ in range(_LOOKS):
            choice = self._choose(wanted, by_list=by_list)
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
        path = self._hub_path(reference)
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
        return self._hit(Use(model, warning), wanted.hash, errand)

    def _hub_path(self, reference: huggingface.Reference) -> Path | None:
        """Return where the platform has a reference; looked up once for each look at everything."""
        if reference.key in self._in_hub:
            return self._in_hub[reference.key]
        scans, path = self._hub_looks.get(reference.key, (-1, None))
        if scans != self._listing.scans:
            if len(self._hub_looks) > _MOST_HUB_LOOKS:
                self._hub_looks.clear()
            scans, path = self._listing.scans, hubcache.find(self._volume, reference)
            self._hub_looks[reference.key] = scans, path
        return path

    def nature(self, model: CachedModel) -> Nature:
        """Return what the bytes of a model tell; read and checked once for each state of it.

        By this process or another: see `headers.py`.

        Raises:
            ModelCorruptError, ModelUnsafeError, ModelIncompatibleError: see `verify.inspect`.
            VolumeError: it cannot be read.
        """
        state = _state(model)
        if state not in self._natures:
            self._recollect()
        if state not in self._natures:
            self._natures[state] = verify.inspect(
                model.path, model.kind, model.name, allow_pickle=self._settings.allow_pickle
            )
        return self._natures[state]

    def _recollect(self) -> None:
        """Take over, once, what other processes read."""
        with self._loading:
            if not self._has_loaded:
                for state, nature in headers.load(self._volume).items():
                    self._natures.setdefault(state, nature)
                self._has_loaded = True

    def note_headers(self) -> None:
        """Write what headers told of the files that are here."""
        listed = self._listing.current.files
        known = self._natures.copy().items()
        headers.save(self._volume, {state: nature for state, nature in known if state[0] in listed})

    def told(self, model: CachedModel) -> CachedModel:
        """Return `model` with what its header told, if that is known by now."""
        nature = self._natures.get(_state(model))
        if nature is None:
            return model
        return replace(model, base=nature.base, base_by=nature.base_by, alias=nature.alias)

    def hash(self, model: CachedModel, errand: Errand) -> None:
        """Learn the digests of a file that people put there, and remember them for all workers.

        Raises:
            WorkerError: it is no sound model, it cannot be read, or the job was cancelled.
        """
        with self._turns.of(model.path, errand, model.name):
            if model.origin is Origin.BAKED:  # Nobody else could read what we would learn.
                if self._listing.look_again(model.kind, model.path) == model:
                    self._hashed(model, errand)
                return
            place = layout.manifest_path(self._volume, model.kind, model.path)
            note = f"worker {self._uses.worker[:8]} hashes the {model.kind} {model.name}"
            in_turn(
                Lease(self._volume, f"hash:{model.kind}:{place.name}", note=note),
                errand,
                model.name,
                # By another thread or worker; or it is gone. So or so: choose again.
                lambda _: self._listing.look_again(model.kind, model.path) != model or None,
                lambda: self._hashed(model, errand),
            )

    def _hashed(self, model: CachedModel, errand: Errand) -> bool:
        """Hash a listed file, unless it is gone."""
        found = self._listing.current.files.get(model.path)
        if found is None:
            return True
        nature = self.nature(model)
        digests = verify.digests(
            model.path,
            autov3=not nature.pickle,
            cancelled=errand.cancelled,
            progress=errand.progress,
        )
        # The status is older than the bytes: had they changed since, it would not be theirs.
        manifest = manifests.new(
            digests.sha256, found.status, "", nature.base, nature.alias, nature.base_by
        )
        place = layout.manifest_path(self._volume, model.kind, model.path)
        before = manifests.stored(place) or found.manifest
        if before is not None and before.sha256 == digests.sha256:
            # The bytes of before, with another time perhaps: all else that is known stays true.
            fields = {"size_bytes", "mtime_ns", "base", "base_by", "alias"}
            manifest = before.model_copy(update=manifest.model_dump(include=fields))
        self._listing.record(found, manifest.model_copy(update={"autov3": digests.autov3}))
        return True

    def _choose(self, wanted: Wanted, *, by_list: bool) -> Choice:
        """Choose by the list at hand, and by a fresh one before anything is said to be absent."""
        if by_list:
            return selection.choose(wanted, self._listing.current)
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
                return self._hit(choice, wanted.hash, errand)
            case Hash(model):
                self.hash(model, errand)
            case Link(model, name):
                if not self._link(model, name):
                    said = f"The {model.kind} is here as {model.name!r}; that is used."
                    return self._hit(Use(model, said), wanted.hash, errand)
        return None

    def _hit(self, use: Use, digest: str | None, errand: Errand) -> Ensured | None:
        """Return the model if its file is what it was; else look at it again and return None.

        Raises:
            VolumeError: the disk does not tell whether it is there.
        """
        model = use.model
        self._uses.note(model.path)
        status = _status(model.path, errand)
        if status is None or (status.st_size, status.st_mtime_ns) != (
            model.size_bytes,
            model.mtime_ns,
        ):
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
        self._listing.look_again(model.kind, model.path)
        known = self._listing.current.files.get(model.path)
        if known is None:
            return True  # It went in this moment: choose again.
        try:
            if not self._named(known, final):
                return False
        except VolumeError as error:
            log.info("%s cannot be called %s as well: %s", model.path.name, final.name, error)
            return False
        self._listing.look_again(model.kind, final)
        linked = self._listing.current.files.get(final)
        if linked is not None and linked.manifest is None and known.manifest is not None:
            self._listing.record(linked, known.manifest)
        return True

    def _named(self, known: Found, final: Path) -> bool:
        """Give a listed file another name, after its manifest (see arrival.py)."""
        if known.manifest is None:
            return publish.second_name(known.path, final)
        place = layout.manifest_path(self._volume, known.kind, final)
        return manifests.ahead(
            self._volume, place, known.manifest, lambda: publish.second_name(known.path, final)
        )


def unrecognised(kind: Kind, name: str, nature: Nature) -> list[str]:
    """Return the warning that a file is used as what nothing in it shows it to be, if it is."""
    if nature.kind is not None:
        return []
    return [f"The file of {name!r} does not show that it is a {kind}; it is used as one."]


def _status(path: Path, errand: Errand) -> os.stat_result | None:
    """Return the status of a listed file; None if it is gone.

    Not at once: a worker that makes room moves a file aside, reads who uses it, and puts it back if
    anybody does (room.py).
    """
    deadline = time.monotonic() + _BACK_WITHIN_S
    while True:
        try:
            return path.stat()
        except OSError as error:
            if error.errno not in _GONE:
                raise volume_error(error) from error
        if time.monotonic() >= deadline or errand.cancelled.wait(_WAIT_S):
            return None


def _state(model: CachedModel) -> _State:
    return model.path, model.size_bytes, model.mtime_ns
