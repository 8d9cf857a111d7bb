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

from model_cache import selection, sources
from model_cache.asking import asking
from model_cache.engine import transfer
from model_cache.engine.connections import Connections
from model_cache.engine.download import Download
from model_cache.engine.limits import Limits, Watch
from model_cache.engine.partial import Part, key_of, private_part
from model_cache.hosts import s3
from model_cache.models import CachedModel, Ensured
from model_cache.presence import Presence, unrecognised
from model_cache.selection import Wanted
from model_cache.sharing.lease import Lease
from model_cache.sharing.room import Room
from model_cache.sharing.uses import Uses
from model_cache.sources import Reference
from model_cache.turns import Errand, in_turn
from model_cache.volume import layout, manifests
from model_cache.volume.arrival import Arrival, settle
from model_cache.volume.listing import Listing
from model_cache.volume.publish import PartLostError
from model_cache.weights import verify
from schemas.errors import VolumeBusyError, VolumeFullError
from schemas.model_ref import HashForm, Kind, ModelRef, hash_form
from schemas.settings import CacheSettings

log = logging.getLogger(__name__)

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
    refreshed_at: float | None = None
    """When the reference was last seen to give anything, before anybody began whose result counts;
    None until we have looked."""

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
    def expected(self) -> Download:
        """The download with the digest that the caller gave, where its source declares none."""
        digest = self.ref.hash
        if digest is None or self.download.sha256 or hash_form(digest) is not HashForm.SHA256:
            return self.download
        return replace(self.download, sha256=digest)

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
            self._forget_old(order, done.model)
            return replace(done, download_s=time.monotonic() - started)
        raise VolumeBusyError(
            f"What was fetched of {ref.label!r} was deleted by other workers, again and again.",
            hint="Try again.",
        )

    def _resolved(
        self, reference: Reference, kind: Kind, errand: Errand, tokens: Mapping[str, str]
    ) -> Download:
        with asking(self._settings, tokens, errand, reference.key) as asker:
            return sources.resolve(reference, kind, asker)

    def _found(self, order: _Order, *, by_list: bool = False) -> Ensured | None:
        """Return the model if it is here under what its source calls it, and remember that."""
        found = self._presence.find(order.wanted, order.errand, by_list=by_list)
        if found is not None:
            self._tell(order, found.model)
        return found

    def _tell(self, order: _Order, model: CachedModel) -> None:
        """Remember under which keys the source has a model, if the source itself says that."""
        inventory, kind = self._listing.current, order.ref.kind
        listed = inventory.files.get(model.path)
        known = [key for key in order.keys if model in inventory.from_source(kind, key)]
        # A name, or a hash that the caller gave, is no word of the source.
        if listed is None or not (known or model.sha256 == order.download.sha256):
            return
        new = [key for key in order.keys if key not in known]
        if new:
            seen_at = self._listing.now(kind, new)
            self._listing.amend(listed, partial(manifests.with_sources, sources=new, at=seen_at))

    def _in_turn(self, order: _Order) -> Ensured:
        """Fetch the model when it is our turn, unless another worker did by then."""
        note = f"worker {self._uses.worker[:8]} fetches the {order.ref.kind} {order.ref.label}"
        return in_turn(
            Lease(self._volume, order.subject, note=note),
            order.errand,
            order.download.source,
            lambda at_once: self._fetched_by_others(order, at_once=at_once),
            lambda: self._fetched(order),
        )

    def _fetched_by_others(self, order: _Order, *, at_once: bool) -> Ensured | None:
        """Return the model if another worker has fetched it; see `in_turn`."""
        kind, key = order.ref.kind, order.reference.key
        if at_once:
            self._listing.glance(kind)
        else:
            self._listing.refresh()
        if order.is_refresh:
            # Of a plain URL only its bytes tell what they are. Those that another worker began to
            # fetch after we were asked are as new as our own would be; older ones may not be. So
            # what was there when the first claim that we saw had ended does not count.
            seen_at = self._listing.current.seen_at(kind, key)
            if order.refreshed_at is None:
                order.refreshed_at = None if at_once else seen_at
            elif seen_at > order.refreshed_at:
                return self._presence.find(
                    Wanted.of(order.ref, (key,)), order.errand, by_list=at_once
                )
        return self._found(order, by_list=at_once)

    def _fetched(self, order: _Order) -> Ensured:
        """Fetch, verify and publish; again after making room on a disk that was full.

        Once, unless the host tells no size: then as long as more came than room was made for.
        """
        evicted_for = 0
        while True:
            try:
                return self._attempt(order)
            except VolumeFullError as error:
                size_bytes = order.size_bytes or 0
                if error.details:
                    raise  # The budget: whatever could go has gone.
                if size_bytes <= evicted_for:
                    raise self._room.refusal(size_bytes) from error
                evicted = self._room.evict_for(size_bytes)
                evicted_for = size_bytes
                log.warning("The volume was full: %d models were evicted.", len(evicted))

    def _attempt(self, order: _Order) -> Ensured:
        ref, kind = order.ref, order.ref.kind
        with private_part(self._volume, key_of(order.subject)) as part, self._room.kept_for(part):
            watch = self._watch(order, part)
            fetched = transfer.fetch(order.expected, part, Limits.of(self._settings), watch)
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
        look = partial(
            verify.look,
            kind=kind,
            called=order.ref.label,
            allow_pickle=self._settings.allow_pickle,
        )
        return Watch(
            cancelled=errand.cancelled,
            allowance=errand.allowance,
            connections=self._connections,
            progress=errand.progress,
            look=look,
            make_room=make_room,
            want_autov3=asked or kind in _WITH_AUTOV3,
        )

    def _forget_old(self, order: _Order, done: CachedModel) -> None:
        """Let the reference no longer mean what it meant before.

        The later time in the other manifest says so already. This is for the day on which that file
        is evicted, and the old one would be found.
        """
        kind, key = order.ref.kind, order.reference.key
        inventory = self._listing.current
        if inventory.at(done.path) not in inventory.from_source(kind, key):
            return
        for model in inventory.given_by(kind, key):
            if model.sha256 != done.sha256:
                forget = partial(manifests.without_source, source=key)
                self._listing.amend(inventory.files[model.path], forget)


def _require_declared(ref: ModelRef, download: Download) -> None:
    """Raise before a byte is fetched if the source itself says that the file is another one."""
    if ref.hash is None or download.sha256 is None or hash_form(ref.hash) is HashForm.AUTOV3:
        return
    verify.require_hash(ref.hash, download.sha256, "", ref.label)
