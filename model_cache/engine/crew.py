"""The threads that bring one version of one file: connections, copiers of leftovers, the hasher.

Connections take pieces from the plan, ask for them, and write what they are granted. The thread
that called for the file does no such work: it watches, so a job that is cancelled is let go while
every connection and copier is stuck. Memory: `stream.CHUNK_BYTES` for each connection, copier and hasher.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import requests

from model_cache.engine import apart, stream
from model_cache.engine.answers import TryAgainError
from model_cache.engine.connections import STEP_S, Ramp, Share
from model_cache.engine.limits import Limits, Watch
from model_cache.engine.partial import Leftover, Part
from model_cache.engine.ranges import Piece, Plan
from model_cache.engine.stream import CHUNK_BYTES, Offer, Source, StartOverError
from model_cache.volume.disk import volume_error
from model_cache.weights.digests import Digests
from schemas.errors import WorkerError

_TICK_S = 0.05
# How long connections that were cut are waited for; one that is being made may take longer.
_LAST_CALL_S = 0.3
# How far a file of unknown size may come before room is made for what came: that costs some reads.
_ROOM_STEP_BYTES = 256 << 20


@dataclass
class Meter:
    """What came over the network, and what of it the job was charged for in advance."""

    watch: Watch
    what: str
    received: int = 0
    _taken: int = 0
    _used: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, size: int) -> None:
        """Set `size` bytes aside. Raises `DownloadBudgetExceededError`."""
        self.watch.allowance.take(size, self.what)
        self._taken += size

    def count(self, size: int) -> None:
        """Count bytes that came; what was not set aside is charged now."""
        with self._lock:
            self.received += size
            self._used += size
            if self._used > self._taken:
                self.take(self._used - self._taken)

    def settle(self) -> None:
        """Give back what was set aside and did not come."""
        with self._lock:
            self.watch.allowance.give_back(self._taken - self._used)
            self._taken = self._used = 0


@dataclass
class Crew:
    """Those who work on one plan."""

    source: Source
    offer: Offer
    part: Part
    plan: Plan
    limits: Limits
    watch: Watch
    meter: Meter
    share: Share
    ranges: bool
    """Whether the host may be asked for parts."""
    copied: int = 0
    """Bytes that came from leftovers."""
    _resumable: bool = field(init=False)
    _ramp: Ramp = field(init=False)
    _workers: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _futures: list[Future[Any]] = field(default_factory=list)
    _hashing: Future[Digests] | None = None
    _saving: Future[None] | None = None
    _wanted: int = 0
    """How many first bytes are to be looked at; 0 if no more than were."""
    _roomed: int = 0
    """What room was made for, of a file of unknown size."""

    def __post_init__(self) -> None:
        """Gather."""
        offer = self.offer
        # Two answers are of one file only if a strong ETag says so, or if a digest is checked.
        self._resumable = self.ranges and bool(offer.etag or self.source.download.sha256)
        parallel = self._resumable and offer.in_parts
        most = self.watch.connections.limit if parallel else 1
        self._ramp = Ramp(most)
        # And who hashes, and who saves.
        self._pool = ThreadPoolExecutor(most + 2, thread_name_prefix="fetch")

    def bring(self, leftovers: list[Leftover]) -> Digests:
        """Return when every byte is written and hashed, or raise what went wrong first.

        Raises:
            StartOverError: the file changed at its source.
            WorkerError: see `transfer.fetch`.
            PartLostError: somebody deleted the part.
        """
        with self._working():
            copies = [(left, self.plan.reserve(left.done)) for left in leftovers]
            hashing: Future[Digests] = self._spawn(self._hash)
            self._hashing = hashing
            # Leftovers are few: each was worth a worker's life.
            for leftover, pieces in copies:
                self._watched(apart.begin(self._copy, leftover, pieces))
            self._first()
            self._watch_over()
            while not hashing.done():
                wait([hashing], _TICK_S)
                self._look()
            return hashing.result()

    @contextmanager
    def _working(self) -> Iterator[None]:
        try:
            yield
        finally:
            self.plan.close()
            self.offer.response.close()
            self.source.cut()
            # It reads the part. The others may be in the middle of connecting, or of reading what a
            # dead host left, where nothing reaches them; they will find that the plan is closed.
            wait([] if self._hashing is None else [self._hashing])
            wait(self._futures, _LAST_CALL_S)
            self._pool.shutdown(wait=False, cancel_futures=True)
            while self._leaves():
                pass
            # An error that holds a frame that holds the error would keep its socket open for long.
            self._futures.clear()
            self._hashing = self._saving = None

    def _spawn(self, work: Callable[..., Any], *args: Any) -> Future[Any]:
        return self._watched(self._pool.submit(work, *args))

    def _watched(self, future: Future[Any]) -> Future[Any]:
        future.add_done_callback(lambda _: self.plan.stir())
        self._futures.append(future)
        return future

    # What the calling thread does.

    def _first(self) -> None:
        """Give the answer that is open to whoever fetches the first bytes."""
        piece = self.plan.take()
        if piece is None:
            return
        response: requests.Response | None = self.offer.response
        if piece.at > 0:
            self.offer.response.close()
            response = None
        self._workers = 1
        self._spawn(self._work, piece, response)

    def _watch_over(self) -> None:
        judged_at, received, saved_at = time.monotonic(), self.meter.received, time.monotonic()
        while not self.plan.is_finished():
            self._hire()
            self.plan.wait(_TICK_S)
            self._look()
            now = time.monotonic()
            if now - judged_at >= STEP_S:
                rate = (self.meter.received - received) / (now - judged_at)
                self._ramp.step(rate, now)
                judged_at, received = now, self.meter.received
            if self._saving is not None and not self._saving.done():
                saved_at = now  # A slow disk is not kept at it all the time.
            elif now - saved_at >= self.limits.save_every_s:
                self._saving = self._spawn(self._save)

    def _look(self) -> None:
        """Raise if somebody failed, or the job ended; tell how far it came."""
        self.watch.require_time(self.source.download)
        done = [future for future in self._futures if future.done()]
        self._futures = [future for future in self._futures if future not in done]
        while done:
            done.pop().result()
        self.watch.report(self.plan.done.total, self.plan.size)

    def _hire(self) -> None:
        """Begin with as many connections as are wanted, allowed and of use."""
        if self._workers and not self._ramp.may_hire(time.monotonic()):
            return
        wanted = min(self._ramp.wanted, self._workers + self.plan.segments_left())
        if self._workers >= wanted:
            self.share.enough()
        while self._workers < wanted and (self._workers == 0 or self.share.more()):
            with self._lock:
                self._workers += 1
            self._spawn(self._work, None, None)

    def _save(self) -> None:
        self.part.save(self.plan.spans())

    # What connections do.

    def _work(self, piece: Piece | None, response: requests.Response | None) -> None:
        while True:
            piece = piece or self._next()
            if piece is None or not self._brought(piece, response):
                return
            piece = response = None

    def _next(self) -> Piece | None:
        """Return a piece to fetch, sooner or later; None if there will be none for this thread."""
        while not (self.plan.is_finished() or self.plan.is_closed()):
            many = self._workers > self._ramp.wanted or self.share.wanted_back()
            if many and self._leaves():
                return None
            piece = self.plan.take()
            if piece is not None:
                return piece
            self.plan.wait(_TICK_S * 2)
        return None

    def _leaves(self) -> bool:
        """Leave if others stay."""
        with self._lock:
            if self._workers <= 1:
                return False
            self._workers -= 1
        self.share.less()
        return True

    def _brought(self, piece: Piece, response: requests.Response | None) -> bool:
        """Bring all of a piece; False if this connection was one too many and has left."""
        while not (piece.is_empty or self.plan.is_closed()):
            before = piece.at
            try:
                self._stream(piece, response)
            except TryAgainError as failure:
                if self.plan.is_closed():
                    break
                if piece.end is None or not self._resumable:
                    raise StartOverError(failure.error) from None
                if failure.is_busy and self._leaves():
                    self._ramp.refused(time.monotonic(), failure.after_s)
                    self.plan.give_back(piece)
                    return False
                self._pause(failure, self.plan.failed(piece, before))
            response = None
        return True

    def _stream(self, piece: Piece, response: requests.Response | None) -> None:
        """Write what one answer brings of a piece."""
        if response is None:
            response = stream.rest(self.source, self.offer, piece.at, piece.end or 0)
        before = piece.at
        with closing(response):
            for chunk in stream.chunks(response, self._broken, at=piece.at):
                self.meter.count(len(chunk))
                if not self._written(piece, memoryview(chunk)):
                    return
        if piece.end is None:
            self._make_room(piece.at)
            self.plan.ended(piece)
        elif not piece.is_empty and piece.at - before < CHUNK_BYTES:
            raise TryAgainError(self._broken("broke off"))

    def _written(self, piece: Piece, data: memoryview) -> bool:
        """Write the next bytes of a piece; False if the rest is not wanted."""
        if piece.at == 0 and self.watch.look is not None:
            self._wanted = self.watch.look(bytes(data[: stream.FIRST_BYTES]))
        if piece.end is None and piece.at + len(data) - self._roomed > _ROOM_STEP_BYTES:
            self._make_room(piece.at + len(data))
        with self.plan.granted(piece, len(data)) as (offset, size):
            self.part.write(offset, data[:size])
        return size == len(data) and not piece.is_empty

    def _make_room(self, size: int) -> None:
        self._roomed = size
        if self.watch.make_room is not None:
            self.watch.make_room(size)

    def _pause(self, failure: TryAgainError, tries: int) -> None:
        """Wait before the next try, or raise what has failed too often."""
        until = time.monotonic() + self.limits.pause_s_after(failure, tries)
        while time.monotonic() < until and not self.plan.is_closed():
            self.plan.wait(until - time.monotonic())

    # What those at the disk do.

    def _copy(self, leftover: Leftover, pieces: list[Piece]) -> None:
        """Bring pieces from what another process left; what cannot be read is fetched.

        What a host wrote that died meanwhile, MooseFS gives nobody for two minutes. Source: measured
        on 3.0.117, a read of 124 s. By then others have fetched it.
        """
        buffer = memoryview(bytearray(CHUNK_BYTES))
        # Deleted by its owner, who is alive, or damaged: the host has those bytes as well.
        with suppress(OSError), leftover.path.open("rb", buffering=0) as file:
            for piece in pieces:
                while not (piece.is_empty or self.plan.is_closed()):
                    size = os.preadv(file.fileno(), [buffer], piece.at)
                    if not size or not self._written(piece, buffer[:size]):
                        break
        for piece in pieces:
            with self._lock:
                self.copied += piece.at - piece.start
            self.plan.give_back(piece)

    def _hash(self) -> Digests:
        """Hash the bytes as they are in the file, as soon as there is no gap before them."""
        digests, at = Digests(autov3=self.watch.want_autov3), 0
        buffer = memoryview(bytearray(CHUNK_BYTES))
        while True:
            there, complete = self.plan.wait_prefix(at)
            self._look_further(there)
            while at < there:
                size = self.part.read(at, buffer[: there - at])
                if not size:
                    raise volume_error(OSError(5, "a file lost its end while it was written"))
                digests.update(buffer[:size])
                at += size
            if complete or self.plan.is_closed():
                return digests

    def _look_further(self, there: int) -> None:
        """Have the first bytes looked at, as many as were asked for, as soon as they are there."""
        seen = 0
        while self.watch.look is not None and seen < self._wanted <= there:
            seen = self._wanted
            start = memoryview(bytearray(seen))
            self._wanted = self.watch.look(bytes(start[: self.part.read(0, start)]))
            if self._wanted <= seen:
                self._wanted = 0

    def _broken(self, how: str) -> WorkerError:
        done = self.plan.done.total
        return stream.incomplete(self.source, f"{how} after {done} bytes", received_bytes=done)
