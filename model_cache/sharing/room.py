"""Room on the volume: whether a model fits, and which others go so that it does.

    <volume>/models/.worker/tmp/<random>.evicted    a model on its way out

The budget is ours to keep: `statvfs` on a network volume tells of the whole cluster. It counts every
model on the volume, whoever put it there, and what is being fetched at the moment. What dead fetches
left goes before any model.

A model is evicted in four steps: it is moved aside, so that nobody finds it any more; then the
records of use are read again, and whoever wrote that it is in use before it was moved gets it back;
then its manifest goes, then its bytes. A process that dies between them leaves a file aside, which
`sweep` deletes: nothing is evicted that could not be fetched again. What a WebUI has open stays
readable until it is closed.

On a disk so full that a file cannot even be moved it is deleted where it lies, right after the
records of use were read: who takes it up within that millisecond finds no file. And nothing is
evicted by a process that cannot write its own record, as others may use what they cannot tell.
"""

import logging
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from model_cache.engine.partial import Part
from model_cache.models import Origin
from model_cache.sharing import evict, leftovers, pins
from model_cache.sharing.account import Account, full, gigabytes, too_large, unheard
from model_cache.sharing.evict import Candidate, Kept, Victim
from model_cache.sharing.promise import Promises, files, key
from model_cache.sharing.stillness import Stillness
from model_cache.sharing.uses import Use, Uses
from model_cache.volume import layout, manifests, publish
from model_cache.volume.disk import disk_errors, volume_error
from model_cache.volume.inventory import Found
from model_cache.volume.listing import Listing
from schemas.errors import VolumeBusyError, VolumeError, VolumeFullError

log = logging.getLogger(__name__)

_EVICTED = ".evicted"
# How old the list may be by which room is made.
_FRESH_S = 2.0
# Each round sees what changed during the one before: put back, or used by then.
_ROUNDS = 8
# A process that moved a file aside decides within milliseconds, unless it died.
_ABANDONED_S = 60.0


class Room:
    """Makes room on one volume; safe to use from several threads, which take turns."""

    def __init__(
        self,
        volume: Path,
        budget_gb: float | None,
        listing: Listing,
        uses: Uses,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Touch nothing yet.

        Args:
            volume: where the models are.
            budget_gb: most that they may take, in GB (10^9 bytes); None for as much as there is.
            listing: of the same volume; what goes is taken off it.
            uses: of this worker.
            clock: seconds that never go back.
        """
        self._volume = volume
        self._budget_bytes = None if budget_gb is None else int(budget_gb * 1e9)
        self._listing = listing
        self._uses = uses
        self._turn = threading.Lock()
        self._promises = Promises(volume)
        self._aside = Stillness(_ABANDONED_S / 2, clock)

    def make(self, size_bytes: int, part: Path) -> tuple[Path, ...]:
        """See to it that a model of this size fits into the budget; return what was evicted.

        To be called before the model is fetched. Without a budget everything fits until the disk
        says otherwise, see `evict_for`. Workers that do this at the same moment may together pass
        the budget by what they fetch; the next one makes up for it.

        Args:
            size_bytes: of the model.
            part: the private file that it is fetched into, which exists. Its room counts as taken
                from now until that file is gone or no more `kept_for` it, whatever its size is so far.

        Raises:
            VolumeFullError: it does not fit; the figures are in its details, and nothing went that
                would not have sufficed.
            VolumeError: the disk refused.
        """
        budget = self._budget_bytes
        if budget is None:
            return ()
        if size_bytes > budget:
            raise too_large(size_bytes, budget)
        with self._turn:
            evicted, _ = self._free(
                lambda account, _: account.taken_bytes + size_bytes - budget, part
            )
            self._promises.give(part, size_bytes)
        return evicted

    @contextmanager
    def kept_for(self, part: Part) -> Iterator[None]:
        """Keep the room that is made for `part` inside; afterwards it counts with what it takes."""
        try:
            yield
        finally:
            self._promises.end(part.path)

    def evict_for(self, size_bytes: int) -> tuple[Path, ...]:
        """Evict this many bytes after the disk said that it is full, or as many as may go.

        How much is lacking nobody knows: some of it may be free. A volume may also keep deleted
        bytes for a while. So try once, and give up with `refusal`.

        Raises:
            VolumeFullError: nothing can go; the figures are in its details.
            VolumeError: the disk refused.
        """

        def excess(account: Account, freed_bytes: int) -> int:
            return min(size_bytes - freed_bytes, account.evictable_bytes)

        with self._turn:
            gone, freed_bytes = self._free(excess, None)
        if freed_bytes == 0:
            raise self.refusal(size_bytes)
        return gone

    def refusal(self, size_bytes: int) -> VolumeFullError:
        """Return the error that a model of this size does not fit onto the disk, with the figures.

        Raises:
            VolumeError: the volume cannot be read.
        """
        return full(self.account(), size_bytes, self._budget_bytes)

    def prune(self, to_bytes: int) -> tuple[Path, ...]:
        """Evict until all models together take at most `to_bytes`; return what went.

        Raises:
            VolumeFullError: so few bytes cannot be reached, so nothing went.
            VolumeError: the disk refused.
        """
        with self._turn:
            return self._free(lambda account, _: account.models_bytes - to_bytes, None)[0]

    def victims(self, to_bytes: int) -> tuple[Victim, ...]:
        """Return what `prune` would evict, and evict nothing.

        Raises:
            VolumeFullError: so few bytes cannot be reached.
            VolumeError: the disk refused.
        """
        with self._turn:
            candidates = self._candidates(frozenset())
            account = self._account(candidates, None)
            free_bytes = account.models_bytes - to_bytes
            chosen = evict.victims(candidates, free_bytes)
        if chosen is None:
            raise full(account, free_bytes, self._budget_bytes)
        return chosen

    def account(self) -> Account:
        """Return who takes how much, by a fresh look.

        Raises:
            VolumeError: the disk refused.
        """
        with self._turn:
            return self._account(self._candidates(frozenset()), None)

    def sweep(self) -> None:
        """Delete what evictions left aside whose process died; to be called again and again.

        Raises:
            VolumeError: the disk refused.
        """
        with disk_errors():
            left = dict(files(layout.tmp_folder(self._volume), _EVICTED))
            self._aside.keep_only(left.keys())
            for path, status in left.items():
                if self._aside.of(path, status.st_ino) >= _ABANDONED_S:
                    path.unlink(missing_ok=True)

    def _free(
        self, excess: Callable[[Account, int], int], part: Path | None
    ) -> tuple[tuple[Path, ...], int]:
        """Evict until `excess` of the account, and of the bytes that went so far, is nothing.

        Returns what went, and how many bytes, those of fetches that died included.
        """
        gone: list[Path] = []
        freed_bytes = 0
        stayed: set[Path] = set()
        for turn in range(_ROUNDS):
            candidates = self._candidates(stayed)
            account = self._account(candidates, part)
            free_bytes = excess(account, freed_bytes)
            if turn == 0 and free_bytes > 0:
                freed_bytes = self._clear_dead(part)
                account = self._account(candidates, part)
                free_bytes = excess(account, freed_bytes)
            chosen = self._chosen(candidates, account, free_bytes)
            if not chosen:
                return tuple(gone), freed_bytes
            for victim in chosen:
                went = [path for path in victim.paths if self._evict(path)]
                gone += went
                stayed.update(set(victim.paths).difference(went))
                freed_bytes += victim.size_bytes if len(went) == len(victim.paths) else 0
        raise VolumeBusyError(
            "Models are used and fetched faster than room is made.", hint="Try again."
        )

    def _chosen(
        self, candidates: list[Candidate], account: Account, free_bytes: int
    ) -> tuple[Victim, ...]:
        """Return what goes; raise if that is not enough, or may be in use by who cannot say so."""
        chosen = evict.victims(candidates, free_bytes)
        if chosen is None:
            raise full(account, free_bytes, self._budget_bytes)
        if chosen:
            try:
                self._uses.require_heard()
            except VolumeFullError as error:
                raise unheard(account, free_bytes, self._budget_bytes) from error
        return chosen

    def _clear_dead(self, part: Path | None) -> int:
        """Delete what dead fetches left; return how many bytes. What `part` goes on with stays."""
        cleared_bytes = 0
        for dead in leftovers.remains(self._volume):
            if part is None or key(dead.paths[0]) != key(part):
                try:
                    leftovers.clear(dead)
                except VolumeError as error:
                    log.info("%s stays: %s", dead.paths[0].name, error)
                else:
                    cleared_bytes += dead.size_bytes
        return cleared_bytes

    def _candidates(self, stayed: Collection[Path]) -> list[Candidate]:
        """Return every name of every model on the volume, and why it stays if it does.

        `stayed` are those that were to go a moment ago, and could not.
        """
        inventory = self._listing.fresh(_FRESH_S)
        history = self._uses.history()
        pinned = pins.pinned(self._volume)
        in_use = self._in_use()
        candidates = []
        for found in inventory.files.values():
            model = inventory.at(found.path)
            if found.baked or model is None or model.origin is Origin.HUB:
                continue  # In the image, or the platform's business.
            kept = None
            if model.origin is not Origin.PUBLISHED:
                kept = Kept.BROUGHT
            elif (found.kind, model.name) in pinned:
                kept = Kept.PINNED
            elif found.path in in_use or found.path in stayed:
                kept = Kept.IN_USE
            candidates.append(_candidate(found, history, kept))
        return candidates

    def _in_use(self) -> frozenset[Path]:
        return self._uses.in_use() | self._uses.others_in_use()

    def _account(self, candidates: list[Candidate], part: Path | None) -> Account:
        return Account(
            models_bytes=sum({one.file: one.size_bytes for one in candidates}.values()),
            fetching_bytes=self._promises.taken_bytes(part),
            evictable_bytes=evict.kept_bytes(candidates, None),
            pinned_bytes=evict.kept_bytes(candidates, Kept.PINNED),
            in_use_bytes=evict.kept_bytes(candidates, Kept.IN_USE),
            brought_bytes=evict.kept_bytes(candidates, Kept.BROUGHT),
        )

    def _evict(self, path: Path) -> bool:
        """Delete one name of a model; False if it stays."""
        found = self._listing.current.files.get(path)
        if found is None:
            return False
        with disk_errors():
            gone = self._delete(found)
        self._listing.look_again(found.kind, path)
        if gone:
            log.info("%s was evicted: %s.", path.name, gigabytes(found.status.st_size))
        return gone

    def _delete(self, found: Found) -> bool:
        """Delete one name of a model, unless it is in use or another file by now."""
        aside = layout.tmp_folder(self._volume) / f"{uuid.uuid4().hex}{_EVICTED}"
        aside.parent.mkdir(parents=True, exist_ok=True)
        try:
            found.path.rename(aside)
        except FileNotFoundError:
            return False  # Another worker makes room as well.
        except OSError as error:
            if isinstance(volume_error(error), VolumeFullError):
                return self._delete_in_place(found)
            raise
        # Not followed: what people moved elsewhere, leaving a link, is theirs.
        if not found.is_same_file(aside.lstat()) or self._is_used(found.path):
            _put_back(aside, found.path)
            return False
        place = layout.manifest_path(self._volume, found.kind, found.path)
        manifests.drop(self._volume, place, found.manifest)
        aside.unlink(missing_ok=True)
        return True

    def _delete_in_place(self, found: Found) -> bool:
        """Delete one name of a model where there is no room for another name."""
        try:
            if not found.is_same_file(found.path.lstat()) or self._is_used(found.path):
                return False
            found.path.unlink()
        except FileNotFoundError:
            return False
        place = layout.manifest_path(self._volume, found.kind, found.path)
        try:
            manifests.drop(self._volume, place, found.manifest)
        except VolumeFullError as error:
            log.info("The manifest %s stays until it is pruned: %s", place.name, error)
        return True

    def _is_used(self, path: Path) -> bool:
        """Tell whether a model is in use; if that cannot be read, it is."""
        try:
            return path in self._in_use()
        except VolumeError:
            return True


def _candidate(found: Found, history: Mapping[Path, Use], kept: Kept | None) -> Candidate:
    used = history.get(found.path)
    created = found.manifest.created if found.manifest else found.status.st_mtime
    return Candidate(
        path=found.path,
        file=(found.status.st_dev, found.status.st_ino),
        size_bytes=found.status.st_size,
        # A file that was evicted and fetched again has a history from before.
        last_used=max(used.last, created) if used else created,
        kept=kept,
    )


def _put_back(aside: Path, path: Path) -> None:
    """Give a file its name again, unless another file has it by now, which then is as good."""
    # Lost if this process was stopped here for so long that another one swept.
    with suppress(publish.PartLostError):
        publish.place(aside, path)
    aside.unlink(missing_ok=True)
