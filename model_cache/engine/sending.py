"""A request under way in a thread of its own, so that whoever sent it can stop waiting.

Nothing reaches a thread that looks up a name or makes a connection: both take as long as the
operating system lets them. So it is left alone, and what it brings is thrown away.
"""

import threading
from collections.abc import Callable
from typing import Any

import requests

_TICK_S = 0.05


class Sending:
    """One request, on its way as soon as this is made."""

    def __init__(self, send: Callable[..., requests.Response], *args: Any, **options: Any) -> None:
        """Call `send` with what else is given, in a thread that keeps no process alive."""
        self._lock = threading.Lock()
        self._is_over = threading.Event()
        self._is_given_up = False
        self._response: requests.Response | None = None
        self._error: BaseException | None = None
        # Not of a pool: the interpreter waits at its end for the threads of all pools.
        thread = threading.Thread(
            target=self._run, args=(send, args, options), name="fetch-send", daemon=True
        )
        thread.start()

    def answer(self, require: Callable[[], None]) -> requests.Response:
        """Return the answer when it is there, or raise what sending it has raised; once.

        Raises:
            Exception: what `require` raises, which is called many times a second.
        """
        try:
            while not self._is_over.wait(_TICK_S):
                require()
        except BaseException:
            self._give_up()
            raise
        # An error that holds a frame that holds the error would keep its socket open for long.
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
        finally:
            del error
        assert self._response is not None  # noqa: S101 - there is one or the other
        return self._response

    def _run(
        self,
        send: Callable[..., requests.Response],
        args: tuple[Any, ...],
        options: dict[str, Any],
    ) -> None:
        try:
            response = send(*args, **options)
        except BaseException as error:  # noqa: BLE001 - raised where the answer is waited for
            self._error = error
        else:
            with self._lock:
                self._response = response
                if self._is_given_up:
                    response.close()
        finally:
            self._is_over.set()

    def _give_up(self) -> None:
        with self._lock:
            self._is_given_up = True
            if self._response is not None:
                self._response.close()
