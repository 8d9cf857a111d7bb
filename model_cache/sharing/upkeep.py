"""What a process does on the side, again and again. Knows nothing of what that is."""

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from schemas.errors import WorkerError

log = logging.getLogger(__name__)

# Many workers start at once and must not march in step: each waits a little less, never more.
_EARLIEST = 0.7
_STOP_S = 5.0


@dataclass(frozen=True)
class Chore:
    """Something to be done again and again."""

    name: str
    """What the log calls it."""
    every_s: float
    """The longest wait between two runs."""
    run: Callable[[], object]
    first_s: float | None = None
    """The longest wait before the first run; `every_s` unless it is given."""


class Upkeep:
    """One thread that does the chores, one after another. Start and stop it from one thread."""

    def __init__(self, chores: Sequence[Chore]) -> None:
        """Do nothing yet."""
        self._chores = chores
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._complaints: set[tuple[str, str]] = set()

    def start(self) -> None:
        """Begin; the first run of each chore comes after its first wait."""
        if self._thread is None:
            self._stop.clear()
            self._thread = threading.Thread(target=self._work, name="upkeep", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End after the chore that is being done, or without it if that hangs for 5 s."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._stop.set()
            thread.join(_STOP_S)

    def _work(self) -> None:
        due = {chore.name: _next(chore, first=True) for chore in self._chores}
        while True:
            chore = min(self._chores, key=lambda chore: due[chore.name])
            if self._stop.wait(max(0.0, due[chore.name] - time.monotonic())):
                return
            self._do(chore)
            due[chore.name] = _next(chore)

    def _do(self, chore: Chore) -> None:
        """Do it; what the volume does to one chore ends neither the thread nor the others."""
        try:
            chore.run()
        except (WorkerError, OSError) as error:
            complaint = (chore.name, type(error).__name__)
            if complaint not in self._complaints:
                self._complaints.add(complaint)
                log.warning("%s failed, and will be tried again: %s", chore.name, error)


def _next(chore: Chore, *, first: bool = False) -> float:
    wait_s = chore.first_s if first and chore.first_s is not None else chore.every_s
    return time.monotonic() + wait_s * random.uniform(_EARLIEST, 1.0)  # noqa: S311 - not a secret
