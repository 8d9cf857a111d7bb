"""A model host that costs as little as it can: files by `sendfile`, whole or in ranges, or by TLS.

    python -m benchmarks.file_server FOLDER [--certificate FILE --key FILE]

prints one line of JSON with its URLs, and serves `FOLDER/NAME` as `/LINK/any/path/NAME`; LINK is a key
of `link.LINKS`, and decides how fast the bytes come. `/served` tells what has been sent. It speaks
as a host of models does, a strong ETag included, and as Hugging Face as far as its client needs.
"""

import argparse
import contextlib
import json
import mmap
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from benchmarks.link import LINKS, Flow, Link

ROOT = Path(__file__).parent.parent
HOST = "127.0.0.1"
REPOSITORY = "bench/models"
STOP_S = 10.0
_COMMIT = "0" * 40
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


@dataclass
class Served:
    """What a server has done since it began."""

    body_bytes: int = 0
    """Of files, without headers and TLS; what a client's machine took, read or not."""
    requests: int = 0
    connections: int = 0
    cpu_s: float = 0.0


@dataclass(frozen=True)
class Hosted:
    """A server that runs as a process of its own."""

    url: str
    tls_url: str
    """Empty if it has no certificate."""

    def file_url(self, link: Link, name: str, *, tls: bool = False) -> str:
        """Return where the file `name` is on `link`."""
        base = self.tls_url if tls else self.url
        return f"{base}/{link.slug}/{REPOSITORY}/resolve/main/{name}"

    def served(self) -> Served:
        """Return what it has done so far."""
        with urllib.request.urlopen(f"{self.url}/served", timeout=STOP_S) as answer:  # noqa: S310 - our own URL
            return Served(**json.load(answer))


@contextlib.contextmanager
def hosted(folder: Path, certificate: tuple[Path, Path] | None = None) -> Iterator[Hosted]:
    """Serve `folder` from a process of its own until the end of the context.

    Args:
        folder: its files are served as they are now.
        certificate: and its key, for TLS; see `self_signed`.

    Raises:
        RuntimeError: it did not start.
    """
    tls = [] if certificate is None else ["--certificate", certificate[0], "--key", certificate[1]]
    child = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.file_server", str(folder), *map(str, tls)],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        line = child.stdout.readline() if child.stdout is not None else ""
        if not line:
            raise RuntimeError("The file server did not start.")
        yield Hosted(**json.loads(line))
    finally:
        child.kill()
        child.communicate(timeout=STOP_S)


def self_signed(folder: Path) -> tuple[Path, Path]:
    """Write a certificate for 127.0.0.1 and its key into `folder`, by `openssl`.

    Raises:
        FileNotFoundError: there is no `openssl` here.
        subprocess.CalledProcessError: it failed.
    """
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-keyout", key, "-out", certificate, "-subj", f"/CN={HOST}"),
            *("-addext", f"subjectAltName=IP:{HOST}"),
        ],
        check=True,
        capture_output=True,
    )
    return certificate, key


class FileServer(ThreadingHTTPServer):
    """A thread for each connection; `tls` is what makes it speak TLS."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, folder: Path, served: "Tally", tls: ssl.SSLContext | None = None) -> None:
        """Listen on any free port of loopback."""
        super().__init__((HOST, 0), _Answer)
        self.files = {path.name: _File.opened(path) for path in folder.iterdir() if path.is_file()}
        self.tally = served
        self.tls = tls

    @property
    def url(self) -> str:
        """Its base URL, without a slash."""
        return f"http{'s' if self.tls else ''}://{HOST}:{self.server_port}"

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection; the handshake is the business of its own thread."""
        sock, address = super().get_request()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.tally.count(connections=1)
        if self.tls is not None:
            sock = self.tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        return sock, address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that went; they may, and a benchmark judges what they got."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    def server_close(self) -> None:
        """Stop listening and close the files."""
        super().server_close()
        for file in self.files.values():
            file.close()


class Tally:
    """Counts for all servers of a process."""

    def __init__(self) -> None:
        """Begin at nothing."""
        self._served = Served()
        self._lock = threading.Lock()

    def count(self, *, body_bytes: int = 0, requests: int = 0, connections: int = 0) -> None:
        """Add to what was served."""
        with self._lock:
            self._served.body_bytes += body_bytes
            self._served.requests += requests
            self._served.connections += connections

    def told(self) -> dict[str, Any]:
        """Return the counts as JSON takes them."""
        with self._lock:
            return {**asdict(self._served), "cpu_s": time.process_time()}


@dataclass(frozen=True)
class _File:
    descriptor: int
    data: mmap.mmap
    size: int
    etag: str

    @classmethod
    def opened(cls, path: Path) -> "_File":
        descriptor = os.open(path, os.O_RDONLY)
        status = os.fstat(descriptor)
        data = mmap.mmap(descriptor, status.st_size, prot=mmap.PROT_READ)
        etag = f'"{status.st_size:x}-{status.st_mtime_ns:x}"'
        return cls(descriptor, data, status.st_size, etag)

    def close(self) -> None:
        self.data.close()
        os.close(self.descriptor)


class _Answer(BaseHTTPRequestHandler):
    server: FileServer
    protocol_version = "HTTP/1.1"
    flow: Flow | None = None

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        if self.path == "/served":
            self._tell(json.dumps(self.server.tally.told()).encode())
        else:
            self._answer(with_body=True)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        del format, args

    def _tell(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _answer(self, *, with_body: bool) -> None:
        parts = self.path.partition("?")[0].split("/")
        link, file = LINKS.get(parts[1]), self.server.files.get(parts[-1])
        if link is None or file is None:
            self.send_error(404)
            return
        self.server.tally.count(requests=1)
        flow = self.flow = self.flow or Flow(link, set_up_round_trips=2 if self.server.tls else 1)
        _sleep_until(flow.first_byte_at(time.monotonic()))
        start, end = self._wanted(file)
        if start >= file.size:
            self.send_error(416)
            return
        self._send_head(file, start, end)
        if with_body:
            self._send_body(flow, file, start, end)

    def _wanted(self, file: _File) -> tuple[int, int]:
        """Return the first byte that is asked for and the one after the last."""
        asked = _RANGE.fullmatch(self.headers.get("Range", ""))
        if asked is None or self.headers.get("If-Range", file.etag) != file.etag:
            return 0, file.size
        return int(asked[1]), min(file.size, int(asked[2]) + 1 if asked[2] else file.size)

    def _send_head(self, file: _File, start: int, end: int) -> None:
        is_part = end - start < file.size
        self.send_response(206 if is_part else 200)
        if is_part:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{file.size}")
        self.send_header("Content-Length", str(end - start))
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", file.etag)
        self.send_header("X-Repo-Commit", _COMMIT)
        self.end_headers()

    def _send_body(self, flow: Flow, file: _File, start: int, end: int) -> None:
        while start < end:
            size = min(flow.slice_bytes, end - start)
            _sleep_until(flow.leaves_at(size, time.monotonic()))
            sent = 0
            # Before they are sent: whoever got them may ask for the count at once.
            self.server.tally.count(body_bytes=size)
            try:
                sent = self._send(file, start, size)
            finally:
                self.server.tally.count(body_bytes=sent - size)
            start += sent

    def _send(self, file: _File, start: int, size: int) -> int:
        """Send some bytes of a file, as many as one call takes; return how many."""
        if isinstance(self.connection, ssl.SSLSocket):
            with memoryview(file.data) as data, data[start : start + size] as piece:
                return self.connection.send(piece)
        return os.sendfile(self.connection.fileno(), file.descriptor, start, size)


def _sleep_until(at: float) -> None:
    left_s = at - time.monotonic()
    if left_s > 0:
        time.sleep(left_s)


def main() -> int:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser("python -m benchmarks.file_server")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--certificate", type=Path)
    parser.add_argument("--key", type=Path)
    options = parser.parse_args()
    tally = Tally()
    servers = [FileServer(options.folder, tally)]
    if options.certificate is not None:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(options.certificate, options.key)
        servers.append(FileServer(options.folder, tally, tls))
    threads = [threading.Thread(target=server.serve_forever) for server in servers]
    for thread in threads:
        thread.start()
    urls = [server.url for server in servers]
    print(json.dumps({"url": urls[0], "tls_url": "".join(urls[1:])}), flush=True)
    for thread in threads:
        thread.join()
    return 0


if __name__ == "__main__":
    sys.exit(main())
