"""What the servers share: listen on loopback, say where, end on SIGTERM. Knows no protocol."""

import asyncio
import contextlib
import json
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

from aiohttp import web

HOST = "127.0.0.1"
_SETTLE_S = 0.01

T = TypeVar("T")


@contextlib.asynccontextmanager
async def listening(app: web.Application, port: int = 0) -> AsyncIterator[str]:
    """Serve `app` on 127.0.0.1 while the context lasts and yield its base URL, without a slash.

    Port 0 takes any free port. A handler whose client has gone is cancelled, and so are those that
    still run half a second after the end of the context: a stalled answer must not keep a test waiting.
    """
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5, handler_cancellation=True)
    await runner.setup()
    try:
        await web.TCPSite(runner, HOST, port).start()
        yield f"http://{HOST}:{runner.addresses[0][1]}"
    finally:
        # A connection that was accepted just now must be made before the server closes: it would
        # leak its socket. Source: CPython 3.11, asyncio/base_events.py, Server._attach asserts.
        await asyncio.sleep(_SETTLE_S)
        await runner.cleanup()


def announce(name: str, url: str, **more: str) -> None:
    """Print the one line on stdout by which whoever started a simulator learns that it listens."""
    print(json.dumps({"simulator": name, "url": url, **more}), flush=True)


async def until_terminated() -> None:
    """Return when this process is sent SIGTERM or SIGINT."""
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    await ended.wait()


@contextlib.contextmanager
def in_background(server: Callable[[], AbstractAsyncContextManager[T]]) -> Iterator[T]:
    """Keep `server()` entered, on an event loop in a thread of its own, while the context lasts.

    For programs that are not asynchronous themselves; what the server yields is yielded here.
    """
    entered: Future[tuple[T, Callable[[], object]]] = Future()

    async def hold() -> None:
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        async with server() as value:
            entered.set_result((value, lambda: loop.call_soon_threadsafe(ended.set)))
            await ended.wait()

    def run() -> None:
        try:
            asyncio.run(hold())
        except BaseException as error:
            if entered.done():
                raise
            entered.set_exception(error)

    thread = threading.Thread(target=run, name="simulator")
    thread.start()
    try:
        value, end = entered.result()
        try:
            yield value
        finally:
            end()
    finally:
        thread.join()
