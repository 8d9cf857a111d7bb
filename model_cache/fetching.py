"""A model that is not here: from its source to its name, once for all who want it.

    resolve ── look again ── lease ── look again ── room ── transfer ── verify ── publish ── manifest

Within a process threads take turns; among workers a lease makes one of them fetch while the others
wait for it. Neither guards the files: that does the order of the steps (publish.py).
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

from model_cache import layout, magic, manifests, s3, selection, sources, transfer, verify
from model_cache.arrival import Arrival, settle
from model_cache.connections import Connections
from model_cache.download import Download
from model_cache.lease import Lease
from model_cache.limits import Limits, Watch
from model_cache.listing import Listing
from model_cache.metadata import Asker
from model_cache.models import CachedModel, Ensured
from model_cache.partial import Part, key_of, private_part
from model_cache.presence import Errand, Presence, unrecognised
from model_cache.publish import PartLostError
from model_cache.room import Room
from model_cache.selection import Wanted
from model_cache.sources import Reference
from model_cache.uses import Uses
from model_cache.web import Web
from schemas.errors import VolumeBusyError, VolumeFullError
from schemas.model_ref import HashForm, Kind, ModelRef, hash_form
from schemas.settings import CacheSettings

log = logging.getLogger(__name__)

# How often a worker that waits for another asks whether it is its turn.
_ASK_EVERY_S = 0.25
# How often a fetch may lose its file to a worker that took this one for dead.
_TURNS = 3
# Of LoRAs A1111 and Civitai know the hash that leaves out the header; it costs as much again.
_WITH_AUTOV3 = frozenset({Kind.LORA})


@dataclass
class _Order:
    """One model that is to be fetched."""

    ref: ModelRef
    reference: Reference
    download: Download
    errand: Errand
    size_bytes: int | None = None
    """Once a host said it."""

    @property
    def subject(self) -> str:
        """What the work is about, the same text for every worker that does the same."""
        return f"{self.ref.kind}:{self.download.sha256 or self.download.source}"

    @property
    def keys(self) -> tuple[str, ...]:
        """Every source key that means the file today, most exact first."""
        download = self.download
        return tuple(dict.fromkeys((download.source, *download.also_from, self.reference.key)))

    @property
    def is_refresh(self) -> bool:
        """Whether what the reference meant before does not count."""
        plain = isinstance(self.reference, sources.WebFile | s3.Reference)
        return self.ref.refresh and (self.reference.mutable or plain)

    @property
    def wanted(self) -> Wanted:
        """The reference, with what its source said."""
        keys = self.keys
        if self.is_refresh:
            keys = tuple({self.download.source} - {self.reference.key})
        return replace(Wanted.of(self.ref, keys), sha256=self.download.sha256)


class Fetching:
    """Fetches models onto one volume. Safe to use from several threads."""

    def __init__(
        self,
        settings: CacheSettings,
        listing: Listing,
        presence: Presence,
        room: Room,
        uses: Uses,
    ) -> None:
        """Put what is fetched on `listing`."""
        self._settings = settings
        self._volume = settings.volume
        self._listing = listing
        self._presence = presence
        self._room = room
        self._uses = uses
        self._connections = Connections(settings.connections)

    def obtain(
        self, ref: ModelRef, reference: Reference, errand: Errand, tokens: Mapping[str, str]
    ) -> Ensured:
        """Have the model that `reference` means, fetched by us, by another worker, or found after all.

        Raises:
            WorkerError: it could not be had.
        """
        started = time.monotonic()
        download = self._resolved(reference, ref.kind, errand, tokens)
        _require_declared(ref, download)
        order = _Order(ref, reference, download, errand)
        for _ in range(_TURNS):
            try:
                done = self._found(order) or self._in_turn(order)
            except PartLostError:
                log.warning("Another worker took this one for dead, and fetched %s.", ref.label)
                continue
            if order.is_refresh:
                self._forget_old(order, done.model)
            return replace(done, download_s=time.monotonic() - started)
        raise VolumeBusyError(
            f"What was fetched of {ref.label!r} was deleted by other workers, again and again.",
            hint="Try again.",
        )

    def _resolved(
        self, reference: Reference, kind: Kind, errand: Errand, tokens: Mapping[str, str]
    ) -> Download:
        def require() -> None:
            errand.allowance.require_time(errand.cancelled, reference.key)

        web = Web(
            stall_s=self._settings.stall_s,
            allow_private_hosts=self._settings.allow_private_hosts,
            require=require,
            allowed_hosts=self._settings.allowed_hosts,
        )
        with web.watching():
            asker = Asker(self._settings, tokens, web, errand.cancelled)
            return sources.resolve(reference, kind, asker)

    def _found(self, order: _Order) -> Ensured | None:
        """Return the model if it is here under what its source calls it, and remember that."""
        found = self._presence.find(order.wanted, order.errand)
        if found is None:
            return None
        listed = self._listing.current.files.get(found.model.path)
        same = order.download.sha256 in {None, found.model.sha256}
        if listed is not None and listed.manifest is not None and same:
            manifest = manifests.with_sources(listed.manifest, order.keys)
            if manifest != listed.manifest:
                self._listing.record(listed, manifest)
        return found

    def _in_turn(self, order: _Order) -> Ensured:
        """Fetch the model when it is our turn, unless another worker did by then."""
        note = f"worker {self._uses.worker[:8]} fetches the {order.ref.kind} {order.ref.label}"
        lease = Lease(self._volume, order.subject, note=note)
        told = False
        while not lease.try_acquire():
            if not told and lease.holder is not None:
                log.info("Waiting: %s.", lease.holder.note or "another worker fetches it")
                told = True
            order.errand.cancelled.wait(_ASK_EVERY_S)
            order.errand.allowance.require_time(order.errand.cancelled, order.download.source)
        try:
            self._listing.refresh()
            return self._found(order) or self._fetched(order)
        finally:
            lease.release()

    def _fetched(self, order: _Order) -> Ensured:
        """Fetch, verify and publish; once more after making room on a disk that was full."""
        try:
            return self._attempt(order)
        except VolumeFullError as error:
            if error.details or order.size_bytes is None:
                raise  # The budget: whatever could go has gone.
            evicted = self._room.evict_for(order.size_bytes)
            log.warning("The volume was full: %d models were evicted.", len(evicted))
            return self._attempt(order)

    def _attempt(self, order: _Order) -> Ensured:
        ref, kind = order.ref, order.ref.kind
        with private_part(self._volume, key_of(order.subject)) as part:
            watch = self._watch(order, part)
            fetched = transfer.fetch(order.download, part, Limits.of(self._settings), watch)
            part.seal()
            checked = ""
            if ref.hash is not None:
                checked = verify.require_hash(ref.hash, fetched.sha256, fetched.autov3, ref.label)
            nature = verify.inspect(
                part.path, kind, ref.label, allow_pickle=self._settings.allow_pickle
            )
            file_name = order.download.file_name or fetched.file_name
            wanted = ref.name or layout.safe_name(file_name)
            arrival = Arrival(
                kind=kind,
                wanted=wanted,
                part=part.path,
                sha256=fetched.sha256,
                source=order.download.source,
                nature=nature,
                suffix=layout.suffix_for(kind, file_name, pickle=nature.pickle),
                autov3="" if nature.pickle else fetched.autov3,
                also_from=order.keys[1:],
            )
            model = settle(arrival, self._volume, self._listing, order.errand.cancelled)
        self._uses.note(model.path)
        warnings = unrecognised(kind, model.name, nature)
        if model.name != wanted:
            warnings.append(selection.called_otherwise(kind, wanted, model.name))
        return Ensured(
            model,
            cached=False,
            download_s=0.0,
            bytes_fetched=fetched.received_bytes,
            warnings=tuple(warnings),
            checked=checked,
        )

    def _watch(self, order: _Order, part: Part) -> Watch:
        kind, errand = order.ref.kind, order.errand

        def make_room(size_bytes: int) -> None:
            order.size_bytes = size_bytes
            self._room.make(size_bytes, part.path)

        digest = order.ref.hash
        asked = digest is not None and hash_form(digest) is HashForm.AUTOV3
        allowed = kind in self._settings.allow_pickle
        return Watch(
            cancelled=errand.cancelled,
            allowance=errand.allowance,
            connections=self._connections,
            progress=errand.progress,
            look=partial(magic.refuse, pickle_allowed=allowed),
            make_room=make_room,
            want_autov3=asked or kind in _WITH_AUTOV3,
        )

    def _forget_old(self, order: _Order, done: CachedModel) -> None:
        """Let the reference no longer mean what it meant before."""
        for model in self._listing.current.from_source(order.ref.kind, order.reference.key):
            found = self._listing.current.files.get(model.path)
            if found is not None and found.manifest is not None and model.sha256 != done.sha256:
                manifest = manifests.without_source(found.manifest, order.reference.key)
                self._listing.record(found, manifest)


def _require_declared(ref: ModelRef, download: Download) -> None:
    """Raise before a byte is fetched if the source itself says that the file is another one."""
    if ref.hash is None or download.sha256 is None or hash_form(ref.hash) is HashForm.AUTOV3:
        return
    verify.require_hash(ref.hash, download.sha256, "", ref.label)
