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
        due = {chore.name: _next(chore) for chore in self._chores}
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


def _next(chore: Chore) -> float:
    return time.monotonic() + chore.every_s * random.uniform(_EARLIEST, 1.0)  # noqa: S311 - not a secret
