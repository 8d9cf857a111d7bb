"""Several things at once, which end together when one asks for it. Knows nothing of what they do."""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

THREADS = 4
"""Enough for one to fetch or to read while others resolve, verify and publish."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def for_each(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    cancelled: threading.Event,
    *,
    threads: int = THREADS,
) -> list[Result]:
    """Return what `work` makes of each item, in their order; several are worked on at once.

    `cancelled` is set when one raises, or the user interrupts; `work` has to heed it. Whatever was
    raised comes out when all threads have ended.
    """
    with ThreadPoolExecutor(threads, thread_name_prefix="command") as pool:
        try:
            return [future.result() for future in [pool.submit(work, item) for item in items]]
        except BaseException:
            cancelled.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
