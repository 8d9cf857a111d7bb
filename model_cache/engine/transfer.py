"""Bytes from a URL into a private file: over several connections, hashed as they land, resumed.

Knows nothing of model formats or of where the file will be published.

The first request asks for the first segment, so a small file takes one request. From the answer
follow size, version (a strong ETag) and whether the host gives parts; then as many connections take
segments as make it faster. A host that gives no parts is read as one stream. What another process
began and could not finish is copied from its file at the same time.

Memory: at most `stream.CHUNK_BYTES` (1 MiB) for each connection, copier and hasher; nothing waits
in memory for its turn. With 16 connections that is less than 20 MiB beside what Python itself and
the libraries take, and what `Watch.look` asks to see.

Source: RFC 9110 sections 13.1.5 (If-Range), 14 (Range), 15.3.7 (206).
"""

from contextlib import suppress
from dataclasses import dataclass, field

from model_cache.engine import stream
from model_cache.engine.answers import TryAgainError
from model_cache.engine.connections import Share
from model_cache.engine.crew import Crew, Meter
from model_cache.engine.download import Download
from model_cache.engine.limits import Limits, Watch
from model_cache.engine.partial import Leftover, Part
from model_cache.engine.ranges import SEGMENT_BYTES, Plan, Spans
from model_cache.engine.stream import Offer, Source, StartOverError
from model_cache.hosts.urls import place
from model_cache.volume.publish import PartLostError
from model_cache.weights.digests import Digests
from schemas.errors import (
    ModelCorruptError,
    ModelIncompatibleError,
    ModelUnsafeError,
    SourceError,
    VolumeError,
    VolumeFullError,
    WorkerError,
)

# After a file has changed so often it is read by one answer: hosts behind one name may each have an
# ETag of their own for the same bytes. Source: Apache httpd 2.2, core, FileETag (INode by default).
_CHANGES = 3
# After these nothing that came, or that others left, is of use, or it may be what is in the way.
_WORTHLESS = (ModelCorruptError, ModelUnsafeError, ModelIncompatibleError, VolumeFullError)


@dataclass(frozen=True)
class Fetched:
    """What came, and is in the part from its first byte to its last."""

    sha256: str
    autov3: str
    """12 hex digits; empty unless `Watch.want_autov3`, and without a meaning for what is no
    safetensors file."""
    size_bytes: int
    received_bytes: int
    """What came over the network, repeated parts included."""
    resumed_bytes: int
    """What was copied from what another process had begun."""
    file_name: str
    """What the host calls it: hostile text."""


def fetch(download: Download, part: Part, limits: Limits, watch: Watch) -> Fetched:
    """Write the bytes of `download` to `part`, which must be new, and tell what they are.

    What `download` declares, size and SHA-256, holds for what came. The part is not sealed.

    Raises:
        JobCancelledError: `watch.cancelled` was set; noticed within a fraction of a second, also
            while hosts are silent.
        DownloadBudgetExceededError: more bytes, or longer, than the job's allowance.
        DownloadIncompleteError: a connection broke, or was silent, too often; the file changed at
            its source again and again.
        SourceUnavailableError, SourceQuotaError: 5xx or unreachable; 429.
        ModelAccessDeniedError, ModelNotFoundError, ModelUnsafeError: see `answers.require_file`.
        WorkerError: what `watch.look` raises.
        ModelCorruptError: what came is not what was declared; carries both.
        InvalidInputError: the URL, or one that it redirects to, may not be asked.
        VolumeFullError: no room; also what `watch.make_room` raises.
        VolumeError: another refusal of the disk.
        PartLostError: somebody else fetched the same thing and deleted the part.
    """
    web = limits.web(lambda: watch.require_time(download))
    share = watch.connections.join()
    try:
        with web.watching():
            return _Fetch(Source(web, download), part, limits, watch, share).run()
    finally:
        share.leave()


@dataclass
class _Fetch:
    """One fetch, over all of its attempts."""

    source: Source
    part: Part
    limits: Limits
    watch: Watch
    share: Share
    meter: Meter = field(init=False)
    whole: bool = False
    """The host is not to be asked for parts: it gave others."""
    fresh: bool = False
    """Nothing that others left is to be used."""
    roomed: int | None = None
    """The size that room was made for."""

    def __post_init__(self) -> None:
        self.meter = Meter(self.watch, place(self.source.download.url))

    def run(self) -> Fetched:
        failures = 0
        while True:
            try:
                return self._attempt()
            except StartOverError as over:
                failures += 1
                pause_s = self.limits.pause_s_after(TryAgainError(over.error), failures)
                self.whole = self.whole or over.whole or failures == _CHANGES
                self.part.start_over()
                self._rest(pause_s)

    def _attempt(self) -> Fetched:
        """Fetch what the source has now."""
        offer = self._offer()
        try:
            plan, leftovers = self._prepared(offer)
        except BaseException:
            offer.response.close()
            self.meter.settle()
            raise
        crew = Crew(
            *(self.source, offer, self.part, plan, self.limits, self.watch, self.meter, self.share),
            ranges=not self.whole,
        )
        try:
            digests = crew.bring(leftovers)
        except _WORTHLESS as error:
            self._without(leftovers, error)
            self._tell_size(plan, error)
            raise
        except SourceError:
            self._keep(plan, leftovers)
            raise
        finally:
            self.meter.settle()
        size = plan.done.total
        self._require_size(size)
        self._require_digest(digests, leftovers)
        self.watch.report(size, size, last=True)
        return Fetched(
            *(digests.sha256, digests.autov3, size, self.meter.received, crew.copied, offer.name)
        )

    def _offer(self) -> Offer:
        """Return the first answer."""
        failures = 0
        while True:
            try:
                size = self.limits.segment_bytes or SEGMENT_BYTES
                return stream.first(self.source, size, whole=self.whole)
            except TryAgainError as failure:
                self.watch.require_time(self.source.download)
                failures += 1
                self._rest(self.limits.pause_s_after(failure, failures))

    def _prepared(self, offer: Offer) -> tuple[Plan, list[Leftover]]:
        """Make sure that the file may come and has room, and find what others left of it."""
        total = offer.span.total
        # A host that gives no parts is read to the end by one connection.
        plan = Plan(total, self.limits.segment_bytes if offer.in_parts else total)
        leftovers = list[Leftover]()
        if total is not None:
            self._require_size(total)
            if offer.etag and offer.in_parts and not self.fresh:
                fitting = (offer.etag, total)
                leftovers = [
                    left for left in self.part.leftovers() if (left.etag, left.size) == fitting
                ]
            there = Spans(span for left in leftovers for span in left.done)
            self.meter.take(total - there.total)
            if self.watch.make_room is not None and self.roomed != total:
                self.watch.make_room(total)
                self.roomed = total
        self.part.begin(total, offer.etag)
        self.part.used = leftovers
        return plan, leftovers

    def _keep(self, plan: Plan, leftovers: list[Leftover]) -> None:
        """Leave what came to the next try, and drop what it contains."""
        # An error is on its way that tells more than what the disk says now.
        with suppress(VolumeError, PartLostError):
            self.part.save(plan.spans())
            for leftover in leftovers:
                if self.part.saved_bytes and Spans([*plan.done, *leftover.done]).total == (
                    plan.done.total
                ):
                    leftover.delete()

    def _tell_size(self, plan: Plan, error: WorkerError) -> None:
        """After the disk was full, say how large a file of unknown size may become: a guess."""
        make_room, unsized = self.watch.make_room, plan.size is None
        from_disk = isinstance(error, VolumeFullError) and not error.details
        if from_disk and unsized and make_room is not None:
            # An error is on its way, and whoever made room knows the size now.
            with suppress(VolumeError):
                make_room(2 * plan.done.total)

    def _without(self, leftovers: list[Leftover], error: WorkerError) -> None:
        """Start over without `leftovers`, if there are any: they are in the way, or damaged."""
        if leftovers:
            self.fresh = True
            for leftover in leftovers:
                leftover.delete()
            raise StartOverError(error)

    def _rest(self, pause_s: float) -> None:
        self.watch.cancelled.wait(min(pause_s, self.watch.allowance.left_s))

    def _require_size(self, size: int) -> None:
        """Raise if the file has not the size that its source declared."""
        declared = self.source.download.size_bytes
        if declared not in {None, size}:
            raise ModelCorruptError(
                f"{place(self.source.download.url)} has {size} bytes, not {declared} as declared.",
                hint="The file was replaced at its source, or a host between serves another one.",
                expected=declared,
                actual=size,
            )

    def _require_digest(self, digests: Digests, leftovers: list[Leftover]) -> None:
        """Raise if the file has not the SHA-256 that its source declared."""
        declared = self.source.download.sha256
        if declared not in {None, digests.sha256}:
            error = ModelCorruptError(
                f"{place(self.source.download.url)} gave bytes with the SHA-256 {digests.sha256}, "
                f"not {declared} as declared.",
                hint="The file was replaced at its source, or damaged on the way; try again.",
                expected=declared,
                actual=digests.sha256,
            )
            self._without(leftovers, error)
            raise error
