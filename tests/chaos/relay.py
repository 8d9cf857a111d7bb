"""Servers of this machine, reachable on the loopback interface of each host at their own address.

A socket stays in the network in which it was made. So a process that enters a host opens one there
and hands it to this process, and what comes in by it is passed on. Nothing leaves the machine.
"""

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager, suppress
from functools import partial
from urllib.parse import urlsplit

from simulator import loopback
from tests.chaos.hosts import Host

_OPEN = """
import socket, sys
with socket.socket(fileno=int(sys.argv[1])) as back:
    found = [socket.create_server(("127.0.0.1", int(port))) for port in sys.argv[2:]]
    socket.send_fds(back, [b"x"], [one.fileno() for one in found])
"""
# Little, so that a server has not sent much more than its client has read.
_PIECE_BYTES = 1 << 16


@contextmanager
def reachable(urls: Iterable[str], hosts: Iterable[Host]) -> Iterator[None]:
    """Let clients on `hosts` reach what listens here at `urls`, all of them on 127.0.0.1."""
    ports = [port for url in urls if (port := urlsplit(url).port) is not None]
    with ExitStack() as stack:
        doors = [
            (port, stack.enter_context(closing(door)))
            for host in hosts
            for port, door in zip(ports, _doors(host, ports), strict=True)
        ]
        stack.enter_context(loopback.in_background(partial(_relaying, doors)))
        yield


def _doors(host: Host, ports: list[int]) -> list[socket.socket]:
    """Return sockets that listen at `ports` of a host."""
    here, there = socket.socketpair()
    with here, there:
        python = [sys.executable, "-I", "-S", "-c", _OPEN]
        subprocess.run(
            [*host.inside, *python, str(there.fileno()), *map(str, ports)],
            pass_fds=[there.fileno()],
            check=True,
        )
        _, handles, _, _ = socket.recv_fds(here, 1, len(ports))
    return [socket.socket(fileno=handle) for handle in handles]


@asynccontextmanager
async def _relaying(doors: list[tuple[int, socket.socket]]) -> AsyncIterator[None]:
    under_way: set[asyncio.Task[None]] = set()

    async def accept(port: int, door: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            client, _ = await loop.sock_accept(door)
            task = asyncio.create_task(_serve(port, client))
            under_way.add(task)
            task.add_done_callback(under_way.discard)

    for _, door in doors:
        door.setblocking(False)
    accepting = [asyncio.create_task(accept(port, door)) for port, door in doors]
    try:
        yield
    finally:
        for task in (*accepting, *under_way):
            task.cancel()
        await asyncio.gather(*accepting, *under_way, return_exceptions=True)


async def _serve(port: int, client: socket.socket) -> None:
    """Pass on both ways until either side has ended, as a cable does."""
    loop = asyncio.get_running_loop()
    with client, socket.socket() as server, suppress(ConnectionError):
        for side in (client, server):
            side.setblocking(False)
            side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            side.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _PIECE_BYTES)
        await loop.sock_connect(server, (loopback.HOST, port))
        ways = [asyncio.create_task(_pass_on(*way)) for way in ((client, server), (server, client))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)


async def _pass_on(source: socket.socket, target: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    while piece := await loop.sock_recv(source, _PIECE_BYTES):
        await loop.sock_sendall(target, piece)
