"""What the simulator writes down of what it was asked and did."""

import collections
import time
from typing import Any

_LONG_TEXT = 2000
_KEPT_REQUESTS = 10_000


class Journal:
    """The requests in the order they came, and what was counted."""

    def __init__(self) -> None:
        self._requests: collections.deque[dict[str, Any]] = collections.deque(maxlen=_KEPT_REQUESTS)
        self._start = time.monotonic()
        self.refreshes: collections.Counter[str] = collections.Counter()
        self.interrupts = 0
        self.jobs = 0
        self._ignored: dict[str, int] = {}

    def note(self, method: str, path: str, body: object) -> dict[str, Any]:
        """Write down a request; the caller adds `status` when it is answered."""
        entry = {
            "t": round(time.monotonic() - self._start, 4),
            "method": method,
            "path": path,
            "body": cut(body),
        }
        self._requests.append(entry)
        return entry

    def shown(self, counted: dict[str, int], loaded: str | None) -> dict[str, Any]:
        """Return the journal; `counted` are the counters that live elsewhere."""
        return {
            "requests": list(self._requests),
            "refreshes": dict(self.refreshes),
            "interrupts": self.interrupts,
            "jobs": self.jobs,
            "loaded": loaded,
            **{name: value - self._ignored.get(name, 0) for name, value in counted.items()},
        }

    def reset(self, counted: dict[str, int]) -> None:
        """Begin anew."""
        self._requests.clear()
        self.refreshes.clear()
        self.interrupts = self.jobs = 0
        self._ignored = dict(counted)
        self._start = time.monotonic()


def cut(value: object) -> object:
    """Return JSON with its long texts, which are pictures mostly, cut."""
    if isinstance(value, str) and len(value) > _LONG_TEXT:
        return f"{value[:40]}… ({len(value)} characters)"
    if isinstance(value, dict):
        return {key: cut(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [cut(inner) for inner in value]
    return value
