"""Work in a thread that is left alone where it gets stuck. Knows nothing of what it does."""

import threading
from collections.abc import Callable
from concurrent.futures import Future


def begin(work: Callable[..., object], *args: object) -> Future[object]:
    """Call `work` in a thread of its own; what it returns or raises is in the future.

    Not of a pool: the interpreter waits at its end for the threads of all pools.
    """
    future = Future[object]()

    def run() -> None:
        try:
            future.set_result(work(*args))
        except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
            future.set_exception(error)

    threading.Thread(target=run, name="fetch-apart", daemon=True).start()
    return future
