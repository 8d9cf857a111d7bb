"""S3 stores on loopback that others wrote, and a proxy that makes a server misbehave."""

import contextlib
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import requests
from pydantic import SecretStr

from schemas.bucket import Address, Destination, Keys
from worker.delivery.bucket import Bucket, How

KEY, SECRET = "AKIDTESTING", "a-secret-that-nobody-may-see"
XML = '<?xml version="1.0"?><Error><Code>{}</Code><Message>said by the store</Message></Error>'
_STARTED_S = 20.0


def refusing(code: str, status: int) -> tuple[int, bytes]:
    """Return a fault: the store answers that."""
    return status, XML.format(code).encode()


def destination(url: str, bucket: str, **more: Any) -> Destination:
    secret = more.pop("secret", SECRET)
    key = more.pop("key", KEY)
    keys = Keys(access_key_id=SecretStr(key), secret_access_key=SecretStr(secret))
    return Destination(Address(bucket, url, "us-east-1", "path"), keys, **more)


def bucket_at(url: str, bucket: str, *, timeout_s: float = 20, **more: Any) -> Bucket:
    """Return a bucket that tries three times, with next to no wait."""
    how = How(
        allow_private=more.pop("allow_private", True),
        timeout_s=timeout_s,
        link_ttl_s=600,
        waits_s=(0.01, 0.01),
    )
    return Bucket(destination(url, bucket, **more), how)


def rclone() -> str | None:
    """Return the path of an rclone that serves S3; None if there is none."""
    beside = Path(sys.executable).with_name("rclone")
    return str(beside) if beside.exists() else shutil.which("rclone")


@contextlib.contextmanager
def moto() -> Iterator[str]:
    """Run moto's server: right about objects, indifferent to signatures. Yields its URL."""
    argv = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with _serving(argv, r"Running on (http://127\.0\.0\.1:\d+)") as url:
        yield url


@contextlib.contextmanager
def rclone_serving(program: str, folder: Path) -> Iterator[str]:
    """Run rclone's server: strict about signatures. Each folder in `folder` is a bucket."""
    argv = [program, "serve", "s3", "--addr", "127.0.0.1:0", "--auth-key", f"{KEY},{SECRET}"]
    argv += ["--config", "", str(folder)]
    with _serving(argv, r"(http://127\.0\.0\.1:\d+)") as url:
        yield url


@contextlib.contextmanager
def _serving(argv: list[str], pattern: str) -> Iterator[str]:
    process = subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    said = ""
    try:
        for line in process.stdout:
            said += line
            if (found := re.search(pattern, line)) is not None:
                break
        else:
            raise AssertionError(said)
        _await(found[1])
        # It may log more than a pipe holds.
        drain = threading.Thread(target=process.stdout.read)
        drain.start()
        yield found[1]
        process.kill()
        drain.join()
    finally:
        process.kill()
        process.communicate()


def _await(url: str) -> None:
    host, port = url.removeprefix("http://").split(":")
    deadline = time.monotonic() + _STARTED_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 1):
            return
        time.sleep(0.02)
    raise AssertionError(f"{url} does not listen")


@dataclass
class Seen:
    """A request that the proxy received."""

    method: str
    path: str
    headers: dict[str, str]
    client: tuple[str, int]


@dataclass
class Proxy:
    """A way to a store, or any other server, on which things happen.

    `faults` are used up, one a request that matches `on`: `cut` (half of the body is read, then the
    connection breaks), `silent` (no answer until the end), an answer, or None (passed on).
    """

    url: str
    faults: list[Any] = field(default_factory=list)
    on: str = "PUT"
    headers: dict[str, str] = field(default_factory=dict)
    """Sent with an answer that is a fault."""
    change: Callable[[str, bytes], bytes] = lambda _path, body: body
    """Makes another body of an answer that is passed on."""
    seen: list[Seen] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)

    def methods(self) -> list[str]:
        return [seen.method for seen in self.seen]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    proxy: Proxy
    store: str

    def handle_error(self, request: Any, client_address: Any) -> None:
        del request, client_address  # The client has gone, which is what some tests are about.


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *args: object) -> None:
        del args

    def handle_any(self) -> None:
        proxy = self.server.proxy
        sent = {name.lower(): value for name, value in self.headers.items()}
        proxy.seen.append(Seen(self.command, self.path, sent, self.client_address))
        fault = proxy.faults.pop(0) if proxy.faults and self.command == proxy.on else None
        length = int(sent.get("content-length", "0"))
        if fault == "silent":
            proxy.released.wait()
            self.close_connection = True
        elif fault == "cut":
            self.rfile.read(length // 2)
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        elif fault is None:
            self.pass_on(sent, self.rfile.read(length))
        else:
            self.rfile.read(length)
            status, body = fault
            self.answer(status, body, {"Content-Type": "application/xml", **proxy.headers})

    def pass_on(self, headers: dict[str, str], body: bytes) -> None:
        url = self.server.store + self.path
        answer = requests.request(self.command, url, headers=headers, data=body, timeout=30)
        ours = {"content-length", "transfer-encoding", "connection"}
        kept = {name: text for name, text in answer.headers.items() if name.lower() not in ours}
        body = self.server.proxy.change(self.path, answer.content)
        self.answer(answer.status_code, body, kept)

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:  # Unless it is told, a client may take the connection again.
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any  # noqa: N815 - as its base calls them


@contextlib.contextmanager
def proxied(store: str) -> Iterator[Proxy]:
    """Run a proxy before the store at that URL."""
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.store = store
        server.proxy = proxy = Proxy(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield proxy
        finally:
            proxy.released.set()
            server.shutdown()
            thread.join()
