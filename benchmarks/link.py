"""How fast bytes travel on one connection: by a throttle, or by distance. Knows no sockets.

Distance is played at the sender, with the clock of the receiver: a byte "leaves" when it would arrive.
What a connection may have on its way is limited by a window that grows by every byte that was
acknowledged, from 64 KiB up to 4 MiB, as that of TCP does without losses; it stays grown while the
connection is kept, and nothing is ever lost. Requests and acknowledgements take no room.

Source: RFC 5681 section 3.1 (slow start); RFC 9293 section 3.5 and RFC 8446 section 2 (one round trip
each before TCP and TLS 1.3 carry a request).
"""

from collections import deque
from dataclasses import dataclass

MIB = 1 << 20
FIRST_WINDOW_BYTES = 64 << 10
LARGEST_WINDOW_BYTES = 4 * MIB
_SLICE_BYTES = 256 << 10
_LEAST_SLICE_BYTES = 16 << 10
# A server that woke up late sends what it should have sent by now, if it is no more than this.
_CATCH_UP_S = 0.05


@dataclass(frozen=True)
class Link:
    """What lies between a host and whoever asks it, for each connection by itself."""

    name: str
    slug: str
    """Names it in the path of a URL."""
    bytes_per_s: float = 0.0
    """0: unlimited."""
    round_trip_s: float = 0.0

    @property
    def full_rate(self) -> float:
        """Most bytes per second that one connection carries, once it is at full speed; inf: any."""
        if self.round_trip_s:
            return LARGEST_WINDOW_BYTES / self.round_trip_s
        return self.bytes_per_s or float("inf")


UNTHROTTLED = Link("unthrottled", "free")
THROTTLED = Link("20 MiB/s per connection", "throttled", bytes_per_s=20 * MIB)
DISTANT = Link("50 ms round trip", "distant", round_trip_s=0.05)
LINKS = {link.slug: link for link in (UNTHROTTLED, THROTTLED, DISTANT)}


class Flow:
    """What one connection may send, and when. Times are seconds on any clock that never goes back."""

    def __init__(self, link: Link, *, set_up_round_trips: int = 1) -> None:
        """Begin with a connection of which nothing has been seen on the other side yet."""
        self._link = link
        self._set_up_round_trips = set_up_round_trips
        self._window = FIRST_WINDOW_BYTES
        self._on_the_way: deque[tuple[float, int]] = deque()
        self._on_the_way_bytes = 0
        self._free_at = 0.0

    def first_byte_at(self, now: float) -> float:
        """Return when the answer to a request begins that was sent `now`."""
        at = now + self._link.round_trip_s * (1 + self._set_up_round_trips)
        self._set_up_round_trips = 0
        # While nobody asked for anything, nothing was saved up.
        self._free_at = max(self._free_at, at)
        return at

    @property
    def slice_bytes(self) -> int:
        """How much to send at once, so that the steps are fine and the server has rest."""
        if self._link.round_trip_s:
            return max(_LEAST_SLICE_BYTES, self._window // 8)
        return _SLICE_BYTES if self._link.bytes_per_s else LARGEST_WINDOW_BYTES

    def leaves_at(self, size: int, now: float) -> float:
        """Return when the next `size` bytes leave, at most `slice_bytes`; may be before `now`."""
        if self._link.bytes_per_s:
            begin = max(self._free_at, now - _CATCH_UP_S)
            self._free_at = begin + size / self._link.bytes_per_s
        elif self._link.round_trip_s:
            self._free_at = max(self._free_at, self._acknowledged(size), now - _CATCH_UP_S)
            self._on_the_way.append((self._free_at + self._link.round_trip_s, size))
            self._on_the_way_bytes += size
        return self._free_at

    def _acknowledged(self, size: int) -> float:
        """Return when so much was acknowledged that the window has room for `size` bytes."""
        at = 0.0
        while self._on_the_way_bytes + size > self._window and self._on_the_way:
            at, acknowledged = self._on_the_way.popleft()
            self._on_the_way_bytes -= acknowledged
            self._window = min(LARGEST_WINDOW_BYTES, self._window + acknowledged)
        return at
