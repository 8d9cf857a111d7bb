"""The models of this worker: `ModelCache.ensure` makes a referenced model present and verified.

The parts of one volume, put together. What is kept in the process is the list of what is there;
everything else is on the volume and may change under our hands.
"""

import logging
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from types import MappingProxyType

from model_cache import sources
from model_cache.engine.download import Allowance
from model_cache.fetching import Fetching
from model_cache.hosts.aliases import Aliases
from model_cache.models import CachedModel, CacheInfo, Ensured, Progress
from model_cache.presence import Presence
from model_cache.selection import Wanted
from model_cache.sharing import lease, leftovers, pins
from model_cache.sharing.account import Account
from model_cache.sharing.evict import Victim
from model_cache.sharing.room import Room
from model_cache.sharing.stillness import Stillness
from model_cache.sharing.upkeep import Chore, Upkeep
from model_cache.sharing.uses import BEAT_S, Use, Uses
from model_cache.sources import Reference
from model_cache.turns import Errand, Turns
from model_cache.volume import manifests, registry
from model_cache.volume.disk import remember_volume
from model_cache.volume.inventory import Inventory
from model_cache.volume.listing import Listing
from model_cache.volume.registry import Registry
from schemas.errors import (
    InvalidInputError,
    ModelAccessDeniedError,
    ModelNotFoundError,
    VolumeError,
    WorkerError,
)
from schemas.model_ref import Kind, ModelRef
from schemas.settings import CacheSettings

log = logging.getLogger(__name__)

# How old the list may be for what other workers add.
_FRESH_S = 60.0
_SWEEP_EVERY_S = 300.0
# Many workers live for seconds only, and what they leave must not pile up.
_SOON_S = 2.0
_NO_TOKENS: Mapping[str, str] = MappingProxyType({})
_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


class ModelCache:
    """The model files on one volume. Safe to use from several threads and several processes."""

    def __init__(self, settings: CacheSettings) -> None:
        """List what is on the volume, which may be missing; nothing is changed there."""
        self._settings = settings
        self._volume = settings.volume
        if settings.require_volume:
            remember_volume(self._volume)
        self._listing = Listing(
            self._volume, baked=settings.baked, allow_pickle=settings.allow_pickle
        )
        self._aliases = Aliases(self._volume)
        self._uses = Uses(self._volume)
        self._room = Room(self._volume, settings.budget_gb, self._listing, self._uses)
        self._presence = Presence(settings, self._listing, self._uses)
        self._fetching = Fetching(settings, self._listing, self._presence, self._room, self._uses)
        self._registry = Registry(self._volume, self._rows)
        self._turns = Turns()
        # Pure, and half of what a hit costs; jobs ask for the same few again and again.
        self._read = lru_cache(maxsize=1024)(partial(sources.read, settings=settings))
        self._orphans = Stillness(_SWEEP_EVERY_S)
        self._upkeep = Upkeep(
            [
                Chore("The record of what is in use", BEAT_S, self._tell_and_watch, _SOON_S),
                Chore("The list of models", _FRESH_S, self._look_around),
                Chore("Clearing up", _SWEEP_EVERY_S, self._sweep, _SOON_S),
            ]
        )
        self._is_kept_fresh = False

    @property
    def worker(self) -> str:
        """What this process is called on the volume: random hex digits."""
        return self._uses.worker

    def start(self) -> None:
        """Keep the list fresh and the use of models known to others, and clear up what the dead left.

        From a thread of its own, but for the record of use, which is there when this returns.
        """
        self._uses.begin()
        self._upkeep.start()
        self._is_kept_fresh = True

    def close(self) -> None:
        """End that thread, and leave nothing in use."""
        self._upkeep.stop()
        self._is_kept_fresh = False
        self._uses.close()

    def ensure(
        self,
        ref: ModelRef,
        *,
        cancelled: threading.Event,
        tokens: Mapping[str, str] = _NO_TOKENS,
        progress: Callable[[Progress], None] | None = None,
        allowance: Allowance | None = None,
    ) -> Ensured:
        """Make the referenced model present and verified.

        What several threads and workers want at once is fetched once. The model is in use for ten
        minutes from now, and not evicted; see `hold` for longer.

        Args:
            ref: which model.
            cancelled: ends the work when it is set, within a fraction of a second.
            tokens: of the request, by host (`huggingface`, `civitai`); win over the settings'.
            progress: called while bytes are fetched or hashed, at most four times a second.
            allowance: what the job may fetch, shared by its models; None: what the settings allow.

        Raises:
            WorkerError: it could not be had; docs/errors.md tells the classes.
        """
        errand = Errand(cancelled, allowance or Allowance.of(self._settings), progress)
        ref = self._meant(ref)
        if ref.url is None:
            return self._by_name(ref, errand, tokens)
        reference = self._read(ref.url)
        present = None if ref.refresh else self._present(ref, reference, errand)
        return present or self._obtain(ref, reference, errand, tokens)

    def present(self, ref: ModelRef, *, cancelled: threading.Event) -> Ensured:
        """Return the referenced model if it is here, verified as by `ensure`. Fetches nothing.

        Raises:
            ModelNotFoundError: it is not here.
            WorkerError: as `ensure`.
        """
        errand = Errand(cancelled, Allowance.of(self._settings), None)
        ref = self._meant(ref)
        if ref.url is None:
            return self._by_name(ref, errand, None)
        found = self._present(ref, self._read(ref.url), errand)
        if found is None:
            raise ModelNotFoundError(
                f"The {ref.kind} {ref.label!r} is not here.",
                hint="Name it in the request to have it fetched.",
            )
        return found

    def expect(self, refs: Iterable[ModelRef]) -> None:
        """Be told of all models of a job before they are ensured one by one.

        What seems to be here is shown to be in use with one write, and not one for each.
        """
        models = map(self.likely, refs)
        self._uses.announce(model.path for model in models if model is not None)

    def likely(self, ref: ModelRef) -> CachedModel | None:
        """Return the model that seems to be meant, by the list in memory; None if there is none.

        Looks only: nothing is fetched, verified, or counted as a use.
        """
        ref = self._meant(ref)
        with suppress(WorkerError):  # Whoever ensures it is told.
            keys = () if ref.url is None else (self._read(ref.url).key,)
            return self._presence.likely(Wanted.of(ref, keys))
        return None

    def aliases(self) -> tuple[tuple[str, ModelRef], ...]:
        """Return what people call which model, sorted by label: one entry for each kind it is for.

        An alias without a kind is listed for those of which such a model is here; where there is
        none, as one of a checkpoint.
        """
        found: list[tuple[str, ModelRef]] = []
        for label in self._aliases.labels():
            meant = [ref for kind in Kind if (ref := self._aliases.lookup(kind, label))]
            here = [ref for ref in meant if len(meant) == 1 or self.likely(ref)]
            found += [(label, ref) for ref in here or meant[:1]]
        return tuple(found)

    def hold(self, models: Iterable[CachedModel]) -> AbstractContextManager[None]:
        """Keep `models` from being evicted by any worker for the lines inside."""
        return self._uses.hold([model.path for model in models])

    def models(self, kind: Kind) -> tuple[CachedModel, ...]:
        """Return every model of a kind in every root, sorted by name; at most 60 s old.

        `base` and `alias` are known of files that we verified, and of others once `inspected` saw
        them; reading the header of every file that people brought would take minutes.
        """
        return tuple(map(self._presence.told, self._seen().models(kind)))

    def look_again(self) -> None:
        """Look at every root now, so that `models` knows what others added or took away."""
        self._listing.refresh()

    def inspected(self, model: CachedModel) -> CachedModel:
        """Return `model` with what its header tells; read and checked once for each state of it.

        Raises:
            ModelCorruptError: it is damaged or cut off.
            ModelUnsafeError: it is no safetensors file, and no pickle that is allowed.
            ModelIncompatibleError: it is a model of another kind than its folder says.
            VolumeError: it cannot be read.
        """
        if model.sha256 is not None:
            return model  # It has a manifest, which is written after the header was checked.
        self._presence.nature(model)
        return self._presence.told(model)

    def note_headers(self) -> None:
        """Note on the volume what headers told, so that no other worker has to read them."""
        self._presence.note_headers()

    def info(self) -> CacheInfo:
        """Return what is there in numbers: own changes at once, other workers' within 60 s."""
        inventory = self._seen()
        return CacheInfo(
            checkpoints_cached=len(inventory.models(Kind.CHECKPOINT)),
            loras_cached=len(inventory.models(Kind.LORA)),
            total_cache_size_mb=round(inventory.total_bytes / 1e6, 1),
        )

    # What people do to a volume, by the command line.

    def adopt(
        self,
        model: CachedModel,
        *,
        cancelled: threading.Event,
        progress: Callable[[Progress], None] | None = None,
    ) -> CachedModel:
        """Hash a file that people put there, and remember what it is for all workers.

        Raises:
            WorkerError: it is no sound model, or cannot be read.
        """
        self._presence.hash(model, Errand(cancelled, Allowance.of(self._settings), progress))
        return self._listing.current.at(model.path) or model

    def find(self, kind: Kind, text: str) -> CachedModel | None:
        """Return the model that `text` means as a name does in a request; None if there is none.

        Looks only: it does not count as a use. Aliases are not followed.

        Raises:
            ModelNotFoundError: several files are spelled so, and none of them is called so.
        """
        return self._seen().find(kind, text)

    def account(self) -> Account:
        """Return who takes how much of the volume.

        Raises:
            VolumeError: it cannot be read.
        """
        return self._room.account()

    def victims(self, to_bytes: int) -> tuple[Victim, ...]:
        """Return what `prune` would evict, and evict nothing.

        Raises:
            VolumeFullError: so few bytes cannot be reached.
            VolumeError: the disk refused.
        """
        return self._room.victims(to_bytes)

    def prune(self, to_bytes: int) -> tuple[Path, ...]:
        """Evict the least recently used until all models take at most `to_bytes`; return what went.

        Raises:
            VolumeFullError: so few bytes cannot be reached; nothing went.
            VolumeError: the disk refused.
        """
        return self._room.prune(to_bytes)

    def history(self) -> Mapping[Path, Use]:
        """Return how each file was used, by all workers."""
        return self._uses.history()

    def write_registry(self) -> bool:
        """Write `cache_registry.json` at once; False if the disk refused, which is logged.

        Raises:
            VolumeError: the volume cannot be read.
        """
        inventory = self._listing.fresh(0.0)
        pinned = pins.pinned(self._volume)
        return registry.write(self._volume, inventory, self._uses.history(), pinned)

    def _seen(self) -> Inventory:
        return self._listing.current if self._is_kept_fresh else self._listing.fresh(_FRESH_S)

    def _meant(self, ref: ModelRef) -> ModelRef:
        """Return what an alias stands for, with what else the reference says; else `ref` itself."""
        if ref.url is not None or ref.name is None:
            return ref
        aliased = self._aliases.lookup(ref.kind, ref.name)
        if aliased is None:
            return ref
        return aliased.model_copy(
            update={
                "hash": ref.hash or aliased.hash,
                "refresh": ref.refresh or aliased.refresh,
            }
        )

    def _by_name(self, ref: ModelRef, errand: Errand, tokens: Mapping[str, str] | None) -> Ensured:
        """Return the model of that name, or of the Hugging Face repository of that name.

        That one is asked for only where the name can be nothing else, as no file lies in such a
        folder; and not at all without `tokens`.
        """
        repository = self._as_repository(ref)
        if repository is None:
            return self._named(ref, errand)
        reference = self._read(repository.url or "")
        warning = (
            f"There is no {ref.kind} file {ref.name!r}; it was taken for the Hugging Face repository"
            f" {repository.url}."
        )
        if self._listing.current.from_source(ref.kind, reference.key):
            done = self._present(repository, reference, errand)
            if done is not None:
                return replace(done, warnings=(*done.warnings, warning))
        try:
            return self._named(ref, errand)
        except ModelNotFoundError as error:
            if tokens is None or self._has_folder_of(ref):
                raise
            missing = error
        try:
            done = self._obtain(repository, reference, errand, tokens)
        except (InvalidInputError, ModelNotFoundError, ModelAccessDeniedError) as error:
            raise ModelNotFoundError(
                str(missing),
                hint=f"{missing.hint} Nor is it the Hugging Face repository of that name: {error}",
                **missing.details,
            ) from error
        return replace(done, warnings=(*done.warnings, warning))

    def _named(self, ref: ModelRef, errand: Errand) -> Ensured:
        found = self._presence.find(Wanted.of(ref, ()), errand)
        if found is None:
            raise AssertionError("a name is found or not, but never fetched")
        return found

    def _has_folder_of(self, ref: ModelRef) -> bool:
        """Tell whether models of that kind lie in a folder that the name begins with."""
        folder = f"{(ref.name or '').partition('/')[0]}/"
        files = self._listing.current.files.values()
        return any(
            file.kind is ref.kind and file.hub is None and file.relative.startswith(folder)
            for file in files
        )

    @staticmethod
    def _as_repository(ref: ModelRef) -> ModelRef | None:
        if ref.name is None or not _REPOSITORY.fullmatch(ref.name):
            return None
        return ref.model_copy(update={"name": None, "url": f"hf:{ref.name}"})

    def _present(self, ref: ModelRef, reference: Reference, errand: Errand) -> Ensured | None:
        wanted = Wanted.of(ref, (reference.key,))
        if not self._listing.current.from_source(ref.kind, reference.key):
            in_hub = self._presence.in_hub(wanted, reference, errand)
            if in_hub is not None:
                return in_hub
        return self._presence.find(wanted, errand)

    def _obtain(
        self, ref: ModelRef, reference: Reference, errand: Errand, tokens: Mapping[str, str]
    ) -> Ensured:
        with self._turns.of((ref.kind, reference.key), errand, reference.key):
            # Another thread may have fetched it while this one waited for its turn.
            done = None if ref.refresh else self._present(ref, reference, errand)
            done = done or self._fetching.obtain(ref, reference, errand, tokens)
        try:
            self._registry.refresh()
        except VolumeError as error:
            log.warning("cache_registry.json was not written: %s", error)  # The model is here.
        return done

    def _rows(self) -> str:
        return registry.rows(
            self._volume, self._listing.current, self._uses.history(), pins.pinned(self._volume)
        )

    def _tell_and_watch(self) -> None:
        self._uses.beat()
        self._uses.others_in_use()  # So that the dead are known when room is needed.

    def _look_around(self) -> None:
        self._listing.refresh()
        self._registry.refresh()

    def _sweep(self) -> None:
        leftovers.sweep(self._volume)
        lease.sweep(self._volume)
        self._room.sweep()
        self._uses.fold()
        files = self._listing.current.files.values()
        manifests.prune(self._volume, [(file.kind, file.path) for file in files], self._orphans)
