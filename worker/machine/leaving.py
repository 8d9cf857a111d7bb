"""What SIGTERM and SIGINT do until the SDK's loop hears them: the process ends, its ExitStack first.

    at_once()                    from now on: wherever the main thread is
    with kept_whole(): …         not within these lines, but after them
    await unless_told(work)      not within a step of `work`, which is cancelled

Raised within a step, the exit could leave a pool with a thread that it has not noted yet, and that the
interpreter would wait for without end. Source: CPython 3.11, concurrent/futures/thread.py,
_adjust_thread_count and _python_exit.
"""

import asyncio
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


def at_once() -> None:
    """Raise SystemExit in the main thread when told to end: 128 and the signal's number."""
    _heed(_leave)


@contextmanager
def kept_whole() -> Iterator[None]:
    """Do what is inside to its end, whatever comes; told to end meanwhile, leave then.

    Raises:
        SystemExit: told so.
    """
    told: list[int] = []
    _heed(lambda number, _frame: told.append(number))
    try:
        yield
    finally:
        at_once()
        if told:
            _leave(told[0], None)


async def unless_told(work: Coroutine[Any, Any, Any]) -> Any:
    """Return what `work` returns; told to end, cancel it, wait for its end and leave.

    Raises:
        SystemExit: told so.
    """
    loop, task = asyncio.get_running_loop(), asyncio.ensure_future(work)
    told: list[int] = []

    def cancel(number: int, _frame: FrameType | None) -> None:
        told.append(number)
        loop.call_soon_threadsafe(task.cancel)

    _heed(cancel)
    try:
        return await task
    except asyncio.CancelledError:
        if told:
            _leave(told[0], None)
        raise
    finally:
        at_once()


def _heed(handler: Callable[[int, FrameType | None], None]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


def _leave(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)
