"""Who may ask A1111, and when: not before it answers, and one at a time for what occupies it.

Knows of what is asked only that A1111 may have been started too early for it. Safe to use from several threads.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from threading import Event, Lock
from typing import TypeVar

from schemas.errors import (
    BackendCrashedError,
    BackendNotReadyError,
    BackendStalledError,
    WorkerError,
)
from worker.child.client import WebuiClient
from worker.child.links import LinkFolder
from worker.child.webui import Webui
from worker.generation.catalog import UnlistedError
from worker.generation.line import Line
from worker.generation.session import Session

T = TypeVar("T")


@dataclass(frozen=True)
class Wear:
    """When A1111 is replaced between two jobs; None: never."""

    max_rss_bytes: int | None = None
    """More memory than this is too much."""
    max_switches: int | None = None
    """How many checkpoints it may load."""


_NO_WEAR = Wear()


class Access:
    """The one way to A1111 for everything that jobs ask of it.

    Args:
        client: the way to A1111.
        links: the folder of models that it is shown.
        webui: tells whether it can be asked, and replaces it.
        wear: when it is replaced between two jobs.
        on_opened: called when a new process can be asked, before it is.
        came_later: tells whether an upscaler came after a start of A1111; see `Upscalers`.
    """

    def __init__(
        self,
        client: WebuiClient,
        links: LinkFolder,
        webui: Webui,
        *,
        wear: Wear = _NO_WEAR,
        on_opened: Callable[[], None] = lambda: None,
        came_later: Callable[[str, float], bool] = lambda _name, _started: False,
    ) -> None:
        self._client = client
        self._links = links
        self._webui = webui
        self._wear = wear
        self._on_opened = on_opened
        self._came_later = came_later
        self.line = Line()
        """Of those who want its one place."""
        self._opening = Lock()
        self._opened: Session | None = None

    def asked(self, cancelled: Event, work: Callable[[Session], T], *, is_plain: bool = True) -> T:
        """Do what only asks A1111, once more if its process ends meanwhile.

        What is not plain, as a caller's own words are in it, is not asked again of the next process
        where this one stood still at it. Where it wants an upscaler that came after A1111 started, A1111
        is started again between two jobs: so not to be called in a `turn`.

        Raises:
            JobCancelledError: `cancelled` was set while A1111 was starting.
            WorkerError: A1111 does not answer, or what `work` raised.
        """
        life = self._webui.ready(cancelled)
        try:
            return self._asked(cancelled, work, is_plain=is_plain)
        except UnlistedError as error:
            # What somebody else started is not started again.
            if life.process is None or not self._came_later(error.name, life.started):
                raise
            with self.line.turn(cancelled, stays=True):
                self._webui.replace(life, f"the upscaler {error.name} came after it had started")
        return self._asked(cancelled, work, is_plain=is_plain)

    def _asked(self, cancelled: Event, work: Callable[[Session], T], *, is_plain: bool) -> T:
        for is_last in (False, True):
            life = self._webui.ready(cancelled)
            try:
                return work(self._session(cancelled))
            except (BackendNotReadyError, BackendCrashedError, BackendStalledError) as error:
                if error.refresh_worker:
                    raise
                if not self._is_occupied(error):
                    self._webui.replace(life, f"it did not answer: {error}", is_broken=is_plain)
                if is_last or (not is_plain and isinstance(error, BackendStalledError)):
                    raise
        raise AssertionError("the last attempt returns or raises")

    def turn(self, cancelled: Event) -> AbstractContextManager[None]:
        """Wait for the one place of what occupies A1111, and keep it for the lines inside.

        Raises:
            JobCancelledError: `cancelled` was set meanwhile.
        """
        return self.line.turn(cancelled)

    def when_idle(self, work: Callable[[], None]) -> None:
        """Do `work` as in a `turn` if nothing occupies A1111 now; else leave it.

        Raises:
            WorkerError: what `work` raised.
        """
        self.line.when_free(work)

    def again(self, work: Callable[[], T]) -> T:
        """Do `work` once more if A1111's process had ended a moment before it was asked.

        Raises:
            WorkerError: what `work` raised.
        """
        try:
            return work()
        except BackendNotReadyError as error:
            if error.refresh_worker:
                raise
            return work()  # Nothing was lost but that moment.

    def served(self, session: Session) -> None:
        """Say that A1111 did something useful; replace it if it has become worn."""
        self._webui.served(session.life)
        self.replace_worn(session)

    def replace(self, session: Session, reason: str, *, is_broken: bool = False) -> None:
        """End A1111's process and start another; see `Webui.replace`."""
        self._webui.replace(session.life, reason, is_broken=is_broken)

    def replace_lost(self, session: Session, error: WorkerError) -> bool:
        """Replace A1111 if `error` says that its process is of no use; return whether it does."""
        if isinstance(error.__cause__, WorkerError):
            error = error.__cause__  # What A1111 answered to a cancelled job, see Watcher.post.
        if isinstance(error, BackendCrashedError | BackendNotReadyError):
            self.replace(session, str(error), is_broken=True)
            return True
        return False

    def replace_worn(self, session: Session) -> None:
        """Replace A1111 between two jobs if it has become too large, or loaded too much."""
        process = session.life.process
        rss_bytes = (process.rss_bytes() if process is not None else None) or 0
        wear = self._wear
        if wear.max_rss_bytes is not None and rss_bytes > wear.max_rss_bytes:
            self.replace(session, f"it occupies {rss_bytes / 1e9:.1f} GB")
        elif wear.max_switches is not None and session.switches >= wear.max_switches:
            self.replace(session, f"it loaded {session.switches} checkpoints")

    def _is_occupied(self, error: WorkerError) -> bool:
        """Tell whether A1111 was silent because it works for another job, which watches it itself."""
        return isinstance(error, BackendStalledError) and self.line.is_anothers()

    def _session(self, cancelled: Event) -> Session:
        life = self._webui.ready(cancelled)
        with self._opening:
            if self._opened is None or self._opened.life is not life:
                self._opened = Session(self._client, self._links, life)
                self._on_opened()
            return self._opened
