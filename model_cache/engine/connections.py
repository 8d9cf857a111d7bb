"""How many connections a fetch may have: by what all fetches share, and by what makes it faster.

Knows nothing of what is fetched.
"""

import threading
from dataclasses import dataclass

FIRST_WANTED = 4
GROWTH = 1.15
"""More connections must raise the rate by this factor to be kept."""
STEP_S = 0.25
"""How often a rate is judged."""
# A new connection needs some round trips to come up to speed: so many steps until it is judged.
_PATIENCE = 3
# After more connections did not help, or were refused: what may have changed is tried again.
_TRY_AGAIN_S = 4.0
_AFTER_REFUSAL_S = 10.0
# Until a connection that was refused is replaced, where the host does not say how long.
_PAUSE_S = 1.0


class Connections:
    """A budget of connections, shared by all fetches of a process.

    Every fetch has one, even if that exceeds the budget. The others are free for all; when there
    are none left, a fetch that holds more than its share gives one to a fetch that has less.
    """

    def __init__(self, limit: int) -> None:
        """Allow `limit` connections at a time."""
        self.limit = limit
        self._lock = threading.Lock()
        self._held: dict[Share, int] = {}
        self._waiting: set[Share] = set()

    def join(self) -> "Share":
        """Return what a new fetch holds: one connection. It must `leave` in the end."""
        share = Share(self)
        with self._lock:
            self._held[share] = 1
        return share

    def count(self) -> int:
        """Return how many connections are held now."""
        with self._lock:
            return sum(self._held.values())

    def leave(self, share: "Share") -> None:
        with self._lock:
            self._held.pop(share, None)
            self._waiting.discard(share)

    def more(self, share: "Share") -> bool:
        with self._lock:
            if share not in self._held or sum(self._held.values()) >= self.limit:
                self._waiting.add(share)
                return False
            self._waiting.discard(share)
            self._held[share] += 1
            return True

    def less(self, share: "Share") -> None:
        with self._lock:
            if share in self._held:
                self._held[share] -= 1

    def enough(self, share: "Share") -> None:
        with self._lock:
            self._waiting.discard(share)

    def wanted_back(self, share: "Share") -> bool:
        with self._lock:
            fair = max(1, self.limit // max(1, len(self._held)))
            if self._held.get(share, 0) <= fair:
                return False
            above = sum(self._held.values()) > self.limit
            return above or any(
                self._held.get(other, fair) < fair for other in self._waiting - {share}
            )


class Share:
    """The connections that one fetch holds."""

    def __init__(self, connections: Connections) -> None:
        """Belong to `connections`."""
        self._connections = connections

    def more(self) -> bool:
        """Take one more connection; False if there is none left now."""
        return self._connections.more(self)

    def enough(self) -> None:
        """Wait for no more: others need not give theirs."""
        self._connections.enough(self)

    def less(self) -> None:
        """Give one connection back."""
        self._connections.less(self)

    def wanted_back(self) -> bool:
        """Tell whether another fetch has less than its share while this one has more."""
        return self._connections.wanted_back(self)

    def leave(self) -> None:
        """Give everything back, for good."""
        self._connections.leave(self)


@dataclass
class Ramp:
    """How many connections one fetch wants. Pure: is told the rates and the time."""

    most: int
    wanted: int = FIRST_WANTED
    _before: int = FIRST_WANTED
    """What it goes back to when more does not help."""
    _best: float = 0.0
    """The rate that must be exceeded, in bytes a second."""
    _steps: int = 0
    _quiet_until: float = 0.0
    _refused_at: float = -STEP_S
    _none_before: float = 0.0

    def __post_init__(self) -> None:
        """Want no more than there can be."""
        self.wanted = self._before = min(self.wanted, self.most)

    def step(self, rate: float, now: float) -> None:
        """Judge the `rate`, in bytes a second, of the last `STEP_S`; `now` is any clock's seconds."""
        if now < self._quiet_until or rate <= 0:
            return
        if rate > self._best * GROWTH:
            self._grow(rate)
            return
        self._steps += 1
        if self.wanted == self.most == self._before or self._steps < _PATIENCE:
            return
        if self.wanted > self._before:
            self.wanted = self._before
            self._quiet_until = now + _TRY_AGAIN_S
        else:
            self._grow(rate)  # The quiet time is over.

    def may_hire(self, now: float) -> bool:
        """Tell whether another connection may be made now."""
        return now >= self._none_before

    def refused(self, now: float, after_s: float | None = None) -> None:
        """Note that the host refused a connection as one too many, or was too busy for it.

        `after_s` is how long it asked us to wait.
        """
        self._none_before = max(self._none_before, now + (after_s or _PAUSE_S))
        # Many are refused in one moment, for one reason.
        if now - self._refused_at >= STEP_S:
            self.wanted = self._before = max(1, self.wanted // 2)
        self._refused_at = now
        self._quiet_until = now + _AFTER_REFUSAL_S
        self._best = 0.0

    def _grow(self, rate: float) -> None:
        self._best, self._steps = rate, 0
        self._before, self.wanted = self.wanted, min(self.most, self.wanted * 2)
