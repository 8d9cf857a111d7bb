"""What shall go wrong on the way between a worker or a client and the queue."""

import dataclasses
from dataclasses import dataclass
from typing import Any

ROUTES = frozenset(
    {
        *("job-take", "job-stop", "job-done", "job-stream", "ping"),
        *("run", "runsync", "status", "stream", "cancel", "retry", "purge-queue", "health"),
    }
)


@dataclass
class Fault:
    """One thing that goes wrong on `route` (`job-take` means the batch route, too)."""

    route: str
    status: int | None = 500
    """Answer this; 0: close the connection without an answer; None: answer truly, after the delay."""
    times: int = 1
    """How often; -1: always."""
    skip: int = 0
    """How many requests go well before."""
    delay_s: float = 0.0
    """How long the answer is held back, in real seconds."""
    body_s: float = 0.0
    """How long the body of a true answer comes after its head, in real seconds."""
    late_s: float = 0.0
    """How long a true answer is held back after the request was carried out, in real seconds."""
    after: bool = False
    """The request is carried out and only its answer spoilt, as when a connection breaks late."""
    twice: bool = False
    """For `job-take`: what is handed out is handed out once more, to whoever asks next; all else is well."""
    same: bool = False
    """With `twice`: not to whoever asks next, but to the same worker when it asks again."""
    hits: int = 0

    def strikes(self, route: str) -> bool:
        """Say whether a request on `route` goes wrong, and count it."""
        if route.removesuffix("-batch") != self.route or self.hits == self.times:
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        self.hits += 1
        return True


def parse(wish: Any) -> Fault:
    """Build a fault from JSON.

    Raises:
        ValueError: not an object, an unknown field or an unknown route.
    """
    names = {field.name for field in dataclasses.fields(Fault)} - {"hits"}
    if not isinstance(wish, dict) or not wish.keys() <= names:
        raise ValueError(f"a fault is an object with some of: {', '.join(sorted(names))}")
    if wish.get("route") not in ROUTES:
        raise ValueError(f"route is one of: {', '.join(sorted(ROUTES))}")
    return Fault(**wish)
