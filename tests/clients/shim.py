"""A1111's HTTP API on a loopback port, each request carried as a job in the envelope.

    GET /sdapi/v1/samplers  ▶  {"api": {"method": "GET", "endpoint": "/sdapi/v1/samplers"}}

With it a client that was written for A1111 talks to the worker.
"""

import contextlib
import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

RunJob = Callable[[dict[str, Any]], Any]
"""From the `input` of a job to the handler's answer."""


@contextlib.contextmanager
def shim(run: RunJob) -> Iterator[int]:
    """Serve A1111's API by `run`; yield the port."""

    class Request(BaseHTTPRequestHandler):
        def _carry(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            job = {"api": {"method": self.command, "endpoint": self.path}}
            answer = run({**job, "payload": json.loads(body)} if body else job)
            has_failed = isinstance(answer, dict) and "error" in answer
            told = json.dumps(answer).encode()
            self.send_response(500 if has_failed else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(told)))
            self.end_headers()
            self.wfile.write(told)

        do_GET = do_POST = _carry  # noqa: N815 - the names that the base calls

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Request)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
