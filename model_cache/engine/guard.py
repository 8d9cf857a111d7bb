"""An HTTP session that talks to public addresses only, and whose connections can be cut.

The address is judged where it cannot lie any more: at the connected socket, before a byte is sent.
So redirects, a name that resolves to something else the second time, and every odd spelling
(`127.1`, `0x7f000001`, `[::ffff:10.0.0.1]`) meet the same check. Names are resolved and judged
before the connection as well, so that not even a handshake shows whether a private port is open.

Source: OWASP, Server Side Request Forgery Prevention Cheat Sheet.
"""

import ipaddress
import logging
import socket
import threading
import weakref
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

# Well-known prefix under which IPv6-only networks reach IPv4. Source: RFC 6052 section 2.1.
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# Inside of a network, and yet global by the registry that Python's `is_global` goes by: the agent of
# an Azure host, which hands out its secrets, and the nearest 6to4 relay. Source: Microsoft, "What is
# IP address 168.63.129.16?"; RFC 7526 section 4.
_INSIDE = (ipaddress.ip_network("168.63.129.16/32"), ipaddress.ip_network("192.88.99.0/24"))

# To one host, for the next request. As many as `A1111_CACHE_CONNECTIONS` may be.
_KEPT_CONNECTIONS = 64

# It writes whole URLs, signatures and tokens included, at levels from DEBUG to WARNING.
logging.getLogger("urllib3.connectionpool").setLevel(logging.CRITICAL)


class BlockedAddressError(ValueError):
    """A host is at an address that is not public.

    Not an `OSError`: urllib3 would take that for a failed connection, and try again.
    """


class WebSession(requests.Session):
    """A session for one fetch; environment, proxies, cookies of netrc and gzip play no part.

    May be used from several threads, each of which has a connection to itself for as long as it
    reads an answer.
    """

    def __init__(self, *, allow_private: bool) -> None:
        """Prepare a session; `allow_private` turns the check of addresses off."""
        super().__init__()
        self.trust_env = False
        self._connections = _Connections(allow_private=allow_private)
        adapter = _GuardedAdapter(self._connections)
        self.mount("https://", adapter)
        self.mount("http://", adapter)

    def cut(self) -> None:
        """Break every connection that is open, from any thread; their readers get an error."""
        self._connections.cut()

    def shut(self) -> None:
        """Do as `cut` does, and open no connection any more."""
        self._connections.shut()


def is_public(address: str) -> bool:
    """Tell whether `address`, an IP address in text form, belongs to the public internet.

    An IPv4 address inside of an IPv6 address (mapped, 6to4, Teredo, NAT64) must be public too.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped or ip in _NAT64:
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
        inner = [ip.sixtofour, *(ip.teredo or ())]
        if ip.is_site_local or any(v4 is not None and not is_public(str(v4)) for v4 in inner):
            return False
    inside = any(ip in network for network in _INSIDE)
    return ip.is_global and not (inside or ip.is_multicast or ip.is_reserved)


class _Connections:
    """The connections that one session opened."""

    def __init__(self, *, allow_private: bool) -> None:
        self._allow_private = allow_private
        self._open: weakref.WeakSet[HTTPConnection] = weakref.WeakSet()
        # A connection lets go of its socket as soon as it knows that the answer ends with it, and
        # the answer is read from there all the same. Source: Python 3.11, http.client, getresponse.
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._is_shut = False

    def judge_host(self, host: str, port: int) -> None:
        if self._allow_private:
            return
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            return  # The connection that follows fails for the same reason, and says so.
        for *_, address in found:
            self._judge(host, str(address[0]))

    def admit(self, connection: HTTPConnection, sock: socket.socket) -> None:
        if not self._allow_private:
            try:
                self._judge(connection.host, str(sock.getpeername()[0]))
            except (BlockedAddressError, OSError):
                sock.close()
                raise
        with self._lock:
            if self._is_shut:
                sock.close()
                raise ConnectionAbortedError("the session ended")
            self._open.add(connection)

    def keep(self, sock: object) -> None:
        """Remember the socket of an admitted connection, the one that TLS put in its place."""
        if isinstance(sock, socket.socket):
            with self._lock:
                self._sockets.add(sock)

    def shut(self) -> None:
        with self._lock:
            self._is_shut = True
        self.cut()

    def cut(self) -> None:
        with self._lock:
            sockets = {connection.sock for connection in self._open} | set(self._sockets)
        for sock in sockets:
            if isinstance(sock, socket.socket):
                try:
                    # Past the TLS layer: its own shutdown would change state under the reader.
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)
                except OSError:
                    continue  # It was closed in the meantime.

    @staticmethod
    def _judge(host: str, address: str) -> None:
        if not is_public(address):
            raise BlockedAddressError(f"{host} is at {address}, which is not a public address")


class _GuardedAdapter(HTTPAdapter):
    """Makes connections that ask `_Connections` before they are used."""

    def __init__(self, connections: _Connections) -> None:
        self._connections = connections
        super().__init__(pool_maxsize=_KEPT_CONNECTIONS)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        connections = self._connections

        class Guarded(HTTPConnection):
            def connect(self) -> None:
                super().connect()
                connections.keep(self.sock)

            def _new_conn(self) -> socket.socket:
                connections.judge_host(self.host, self.port or self.default_port)
                sock = super()._new_conn()
                connections.admit(self, sock)
                return sock

        class GuardedTls(HTTPSConnection):
            def connect(self) -> None:
                super().connect()
                connections.keep(self.sock)

            def _new_conn(self) -> socket.socket:
                connections.judge_host(self.host, self.port or self.default_port)
                sock = super()._new_conn()
                connections.admit(self, sock)
                return sock

        class Pool(HTTPConnectionPool):
            ConnectionCls = Guarded

        class TlsPool(HTTPSConnectionPool):
            ConnectionCls = GuardedTls

        self.poolmanager.pool_classes_by_scheme = {"http": Pool, "https": TlsPool}
