"""Which bytes of one file are here, and which part of it each connection fetches. In memory only.

Every byte has one owner: a connection writes what it was granted of its piece and nothing else, a
piece is shortened before its end is given to another connection, and what was granted once is
granted to nobody again. So no byte is written twice, and a digest taken over bytes that are there
stays true whatever a late or lying connection still sends.
"""

import threading
import time
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise

SEGMENT_BYTES = 8 << 20
"""What one request asks for: enough that the round trip before it costs little."""
LARGE_SEGMENT_BYTES = 16 << 20
LARGE_FROM_BYTES = 10**9

# Towards the end requests are smaller, so that all connections end at about the same time.
_LEAST_SEGMENT_BYTES = 2 << 20
# What a piece is shortened by was on its way already, and comes twice over the network: so only
# what is worth a request of its own, of a piece that would keep all others waiting.
_LEAST_STOLEN_BYTES = 1 << 20
_LEAST_STOLEN_S = 2.0
# The first silence after which a piece is taken away; doubles each time that this does not help.
_QUIET_S = 2.0
_MOVED_BYTES = 1 << 20


class Spans:
    """A set of bytes of a file, kept as ordered, disjoint, non-adjacent spans `[start, end)`."""

    def __init__(self, spans: Iterable[tuple[int, int]] = ()) -> None:
        """Begin with `spans`, which may overlap and come in any order."""
        self._starts: list[int] = []
        self._ends: list[int] = []
        self.total = 0
        for start, end in spans:
            self.add(start, end)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter([*zip(self._starts, self._ends, strict=True)])

    @property
    def prefix(self) -> int:
        """How many bytes are there from the start without a gap."""
        return self._ends[0] if self._starts and self._starts[0] == 0 else 0

    def add(self, start: int, end: int) -> None:
        """Add the bytes from `start` up to `end`; what is there already does not count twice."""
        if start >= end:
            return
        low, high = bisect_left(self._ends, start), bisect_right(self._starts, end)
        if low < high:
            start, end = min(start, self._starts[low]), max(end, self._ends[high - 1])
        merged = sum(self._ends[low:high]) - sum(self._starts[low:high])
        self.total += end - start - merged
        self._starts[low:high] = [start]
        self._ends[low:high] = [end]

    def missing(self, size: int) -> Iterator[tuple[int, int]]:
        """Yield the gaps below `size`, in order."""
        position = 0
        for start, end in self:
            if position < min(start, size):
                yield position, min(start, size)
            position = end
        if position < size:
            yield position, size


@dataclass(eq=False)
class Piece:
    """A part of the file that one connection fetches, `[at, end)`; `end` None: to the last byte."""

    at: int
    end: int | None
    tries: int = 0
    """Failures in a row, each with little to show for it."""
    quiet_s: float = _QUIET_S
    start: int = field(init=False)
    since: float = field(init=False)
    moved: float = field(init=False)
    """When a byte of it was written last, on the monotonic clock."""
    is_writing: bool = field(default=False, init=False)
    """Whether the disk has bytes of it at this moment: no host is to blame for how long that takes."""

    def __post_init__(self) -> None:
        """Start the clock."""
        self.start = self.at
        self.since = self.moved = time.monotonic()

    @property
    def is_empty(self) -> bool:
        """Whether nothing of it is left to be granted."""
        return self.at == self.end

    def left_s(self, now: float) -> float:
        """Return how long the rest takes to come at the pace so far; 0.0 if there was none."""
        if self.end is None or self.at == self.start:
            return 0.0
        return (self.end - self.at) * (now - self.since) / (self.at - self.start)


class Plan:
    """What is to be fetched of one version of one file. Safe to use from several threads."""

    def __init__(self, size: int | None, segment_bytes: int | None = None) -> None:
        """Plan for `size` bytes; None: they come as one piece, to the end."""
        large = size is not None and size >= LARGE_FROM_BYTES
        self._segment = segment_bytes or (LARGE_SEGMENT_BYTES if large else SEGMENT_BYTES)
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        """Work came up, or all is over: for connections without work and for who waits."""
        self._grown = threading.Condition(self._lock)
        """The prefix grew by a good deal, or all is over: for whoever reads it."""
        self._told = 0
        self._todo: deque[Piece] = deque()
        self._taken: set[Piece] = set()
        self._writing = 0
        self._closed = False
        self.size = size
        self.done = Spans()
        if size != 0:
            self._todo.append(Piece(0, size))

    # What the owner of the plan does.

    def reserve(self, spans: Spans) -> list[Piece]:
        """Return pieces for the missing bytes among `spans`, to be brought by other means.

        They are pieces like others: what takes too long is given to a connection.
        """
        with self._lock:
            reserved, todo = list[Piece](), deque[Piece]()
            for piece in self._todo:
                for start, end in _cut(piece, spans):
                    part = Piece(start, end)
                    inside = any(a <= start and end <= b for a, b in spans)
                    (reserved if inside else todo).append(part)
            self._todo = todo
            self._taken.update(reserved)
            return reserved

    def is_finished(self) -> bool:
        """Whether every byte is written."""
        return self.size is not None and self.done.total == self.size

    def is_closed(self) -> bool:
        """Whether nothing will be granted any more."""
        return self._closed

    def segments_left(self) -> int:
        """Return how many requests the bytes that nobody fetches yet will take, roughly."""
        with self._lock:
            return sum(-(-((p.end or 0) - p.at) // self._segment) for p in self._todo)

    def spans(self) -> list[tuple[int, int]]:
        """Return the bytes that are written."""
        with self._lock:
            return [*self.done]

    def wait(self, timeout_s: float) -> None:
        """Wait until all is written, the plan is closed, `stir` was called, or `timeout_s` passed."""
        with self._lock:
            if not (self.is_finished() or self._closed):
                self._changed.wait(timeout_s)

    def stir(self) -> None:
        """Wake whoever waits."""
        with self._lock:
            self._changed.notify_all()

    def close(self) -> None:
        """Grant nothing any more; returns when the last byte that was granted is written."""
        with self._lock:
            self._closed = True
            self._changed.notify_all()
            self._grown.notify_all()
            while self._writing:
                self._changed.wait()

    # What connections do.

    def take(self) -> Piece | None:
        """Return the next piece to fetch; None if there is none now.

        When all is being fetched, the end of the piece that would take longest is taken from the
        connection that has it, or all of a piece that is silent, so nobody is waited for alone.
        """
        with self._lock:
            if self._closed:
                return None
            piece = self._next() or self._stolen(time.monotonic())
            if piece is not None:
                self._taken.add(piece)
            return piece

    @contextmanager
    def granted(self, piece: Piece, size: int) -> Iterator[tuple[int, int]]:
        """Yield where to write and how much, at most `size`; it counts as written afterwards.

        Zero bytes: the rest of the piece is another connection's, or all is over.
        """
        with self._lock:
            offset, size = piece.at, self._fitting(piece, size)
            piece.at += size
            piece.is_writing, begun = True, time.monotonic()
            self._writing += 1
        written = 0
        try:
            yield offset, size
            written = size
        finally:
            with self._lock:
                self._writing -= 1
                piece.is_writing, piece.moved = False, time.monotonic()
                piece.since += piece.moved - begun
                self.done.add(offset, offset + written)
                self._tell()

    def give_back(self, piece: Piece) -> None:
        """Let others fetch what is left of `piece`."""
        with self._lock:
            self._taken.discard(piece)
            if not piece.is_empty:
                self._todo.appendleft(Piece(piece.at, piece.end, piece.tries, piece.quiet_s))
                piece.end = piece.at
            self._changed.notify_all()

    def ended(self, piece: Piece) -> None:
        """Note that the last byte of a file of unknown size was written."""
        with self._lock:
            self.size = piece.end = piece.at
            self._tell()

    def failed(self, piece: Piece, before: int) -> int:
        """Count a failure of `piece`, which had come to `before`; return how many in a row now."""
        with self._lock:
            piece.tries = 1 if piece.at - before >= _MOVED_BYTES else piece.tries + 1
            return piece.tries

    def wait_prefix(self, beyond: int) -> tuple[int, bool]:
        """Wait until some more than `beyond` bytes are there from the start, or all is over.

        Returns how many there are, and whether those are all.
        """
        with self._lock:
            while not (self._closed or self.is_finished()):
                if self.done.prefix - beyond >= _MOVED_BYTES:
                    break
                self._grown.wait()
            return self.done.prefix, self.is_finished()

    def _fitting(self, piece: Piece, size: int) -> int:
        if self._closed:
            return 0
        return size if piece.end is None else min(size, piece.end - piece.at)

    def _tell(self) -> None:
        if self.is_finished() or (self._closed and not self._writing):
            self._changed.notify_all()
            self._grown.notify_all()
        elif self.done.prefix - self._told >= _MOVED_BYTES:
            self._told = self.done.prefix
            self._grown.notify_all()

    def _next(self) -> Piece | None:
        """Return the next segment of what nobody fetches."""
        if not self._todo:
            return None
        piece = self._todo[0]
        size = self._segment_now()
        if piece.end is None or piece.end - piece.at <= size:
            return self._todo.popleft()
        first = Piece(piece.at, piece.at + size, piece.tries, piece.quiet_s)
        piece.at += size
        return first

    def _segment_now(self) -> int:
        """Return what the next request asks for: so much that there is one more for everybody.

        Not the first one, which was sent before anybody knew how large the file is.
        """
        if self._todo[0].at == 0:
            return self._segment
        left = sum((piece.end or piece.at) - piece.at for piece in self._todo)
        share = left // (2 * (len(self._taken) + 1))
        return min(self._segment, max(_LEAST_SEGMENT_BYTES, share))

    def _stolen(self, now: float) -> Piece | None:
        self._taken = {piece for piece in self._taken if not piece.is_empty}
        sized = [p for p in self._taken if p.end is not None and not p.is_writing]
        silent = [piece for piece in sized if now - piece.moved > piece.quiet_s]
        if silent:
            return _rest(max(silent, key=lambda piece: now - piece.moved))
        slow = [piece for piece in sized if piece.left_s(now) > _LEAST_STOLEN_S]
        worst = max(slow, key=lambda piece: piece.left_s(now), default=None)
        return None if worst is None else _half(worst)


def _rest(piece: Piece) -> Piece:
    """Take all that is left of a piece that is silent; be more patient with its next owner."""
    taken = Piece(piece.at, piece.end, piece.tries, piece.quiet_s * 2)
    piece.end = piece.at
    return taken


def _half(piece: Piece) -> Piece | None:
    """Take the second half of what is left, if it is worth a request."""
    end = piece.end or 0
    middle = piece.at + (end - piece.at) // 2
    if end - middle < _LEAST_STOLEN_BYTES:
        return None
    piece.end = middle
    return Piece(middle, end, piece.tries, piece.quiet_s)


def _cut(piece: Piece, spans: Spans) -> Iterator[tuple[int, int]]:
    """Yield `piece` cut where `spans` begin and end."""
    end = piece.end or piece.at
    edges = {edge for span in spans for edge in span if piece.at < edge < end}
    ordered = sorted({piece.at, end, *edges})
    yield from pairwise(ordered)
