"""The line before A1111's one place: whoever stands in it first has it first.

Knows neither A1111 nor jobs. Safe to use from several threads.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Condition, Event, get_ident

from schemas.errors import JobCancelledError

WAIT_S = 0.2
_mine: ContextVar[object] = ContextVar("place", default=None)
"""The place in a line that was taken last, by this context or the one that it is a copy of."""


class Line:
    """Gives turns, one at a time, in the order in which those who want one came.

    A place in the line is taken when a turn is asked for, or before, with `joined`.
    """

    def __init__(self) -> None:
        self._moved = Condition()
        self._places: list[object] = []
        self._holder: int | None = None
        """The thread whose turn it is."""

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Stand in the line for the lines inside, and for threads that run in a copy of their context.

        The place is given up when its turn is over, with `leave`, or when the lines inside are done.
        """
        with self._standing(None) as place:
            _mine.set(place)
            yield

    def leave(self) -> None:
        """Give up the place of this context, if it has one: others need not wait for it."""
        self._give_up(_mine.get())

    @contextmanager
    def turn(self, cancelled: Event, *, stays: bool = False) -> Iterator[None]:
        """Wait for the turn, at the place of this context or at the end, and keep it for the lines inside.

        Args:
            cancelled: ends the wait.
            stays: keep the place of this context, if it has one, for its next turn.

        Raises:
            JobCancelledError: `cancelled` was set meanwhile.
        """
        with self._standing(_mine.get(), stays=stays) as place:
            with self._moved:
                while not (cancelled.is_set() or self._is_next(place)):
                    self._moved.wait(WAIT_S)
                if cancelled.is_set():
                    raise JobCancelledError("The job was cancelled before A1111 was asked.")
                self._holder = get_ident()
            try:
                yield
            finally:
                self._free()

    def when_free(self, work: Callable[[], None]) -> None:
        """Do `work` as in a `turn` if it is nobody's now, whoever stands in the line; else leave it."""
        with self._moved:
            if self._holder is not None:
                return
            self._holder = get_ident()
        try:
            work()
        finally:
            self._free()

    def is_anothers(self) -> bool:
        """Tell whether it is the turn of another thread."""
        return self._holder not in {None, get_ident()}

    @contextmanager
    def _standing(self, place: object, *, stays: bool = False) -> Iterator[object]:
        """Yield `place` if it is one in this line, else a new one at its end; it is given up after.

        One that was in the line before is not, if it `stays`.
        """
        with self._moved:
            if place not in self._places:
                place, stays = object(), False
                self._places.append(place)
        try:
            yield place
        finally:
            if not stays:
                self._give_up(place)

    def _is_next(self, place: object) -> bool:
        return self._holder is None and self._places[0] is place

    def _free(self) -> None:
        with self._moved:
            self._holder = None
            self._moved.notify_all()

    def _give_up(self, place: object) -> None:
        with self._moved:
            if place in self._places:
                self._places.remove(place)
                self._moved.notify_all()
