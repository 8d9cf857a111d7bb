"""For how long something has not changed, by this process's own clock. Touches no disk.

Hosts that share a volume do not share a clock: theirs may be an hour apart, and the times that a
file carries are another host's. So whether another process lives is told from what it keeps
changing, and from how long we ourselves have seen it unchanged.
"""

import threading
import time
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass


@dataclass
class _Seen:
    state: object
    looked_at: float
    still_s: float


class Stillness:
    """What was seen of things, and since when; safe to use from several threads."""

    def __init__(self, most_per_look_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin without having seen anything.

        Args:
            most_per_look_s: what the time between two looks counts at most, in seconds. A host that
                is paused stops those that are watched as well as the one that watches: however long
                that lasts, it is no sign of death.
            clock: seconds that never go back.
        """
        self._most_per_look_s = most_per_look_s
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: dict[Hashable, _Seen] = {}

    def of(self, key: Hashable, state: object) -> float:
        """Look at `key`: return for how many seconds it was seen in this `state` and no other.

        0.0 the first time, as long as it may have been so: nobody here saw it.
        """
        now = self._clock()
        with self._lock:
            seen = self._seen.get(key)
            if seen is None or seen.state != state:
                seen = self._seen[key] = _Seen(state, now, 0.0)
            seen.still_s += min(now - seen.looked_at, self._most_per_look_s)
            seen.looked_at = now
            return seen.still_s

    def keep_only(self, keys: Collection[Hashable]) -> None:
        """Forget everything but `keys`, so that what is gone takes no memory."""
        with self._lock:
            for key in self._seen.keys() - set(keys):
                del self._seen[key]
