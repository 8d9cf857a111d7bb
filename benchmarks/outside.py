"""What is round a worker whose results are measured: RunPod's queue, A1111's answers and a store.

One server that does next to nothing, so that what is measured is the worker. A request to A1111 goes on to
a simulator; only a generation's pictures, of which that draws small ones, are replaced by others, made
before. It holds the clock: from the first byte of such an answer to the last one of the job's result.
"""

import http.client
import json
import queue
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HOST = "127.0.0.1"
BUCKET = "pictures"
_HOLD_S = 1.0
_ANSWER_S = 180.0
_PIECE_BYTES = 1 << 20
# A longer body is no progress.
_PROGRESS_BYTES = 2000
_DRAWN = "/sdapi/v1/txt2img"
_SMALL = {"width": 64, "height": 64, "steps": 1}


class Outside(ThreadingHTTPServer):
    """Serves on any free port of loopback.

    Args:
        webui_port: where the simulated A1111 listens.
    """

    daemon_threads = True

    def __init__(self, webui_port: int) -> None:
        super().__init__((HOST, 0), _Handler)
        self.webui_port = webui_port
        self.pictures = b""
        """What stands in A1111's answer between the brackets of `images`."""
        self.answer_bytes = 0
        """Size of the last answer of A1111."""
        self.answered_at = 0.0
        self.uploaded_bytes = 0
        self.lock = threading.Lock()
        self.jobs: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.results: queue.SimpleQueue[tuple[float, int, bytes]] = queue.SimpleQueue()

    def environ(self) -> dict[str, str]:
        """Return the variables by which a worker finds it all.

        Source: runpod-python 1.12.0, rp_job.py, rp_http.py, rp_ping.py.
        """
        url = f"http://{HOST}:{self.server_port}"
        return {
            "RUNPOD_WEBHOOK_GET_JOB": f"{url}/job-take/$ID?",
            "RUNPOD_WEBHOOK_POST_OUTPUT": f"{url}/job-done/$ID?",
            "RUNPOD_WEBHOOK_PING": f"{url}/ping/$RUNPOD_POD_ID",
            "RUNPOD_AI_API_KEY": "bench",
            "RUNPOD_POD_ID": "bench",
            "A1111_WEBUI_PORT": str(self.server_port),
            "BUCKET_ENDPOINT_URL": f"{url}/{BUCKET}",
            "BUCKET_ACCESS_KEY_ID": "bench",
            "BUCKET_SECRET_ACCESS_KEY": "bench",
        }

    def result(self, job: dict[str, Any], pictures: bytes) -> tuple[float, int, bytes]:
        """Have a job done and return its seconds, the size of its result and how that begins.

        Args:
            job: as RunPod gives it.
            pictures: those of A1111's answer, JSON.

        Raises:
            RuntimeError: no result came.
        """
        self.pictures = pictures
        self.jobs.put(job)
        try:
            return self.results.get(timeout=_ANSWER_S)
        except queue.Empty:
            raise RuntimeError("No result came.") from None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of workers that were ended."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Outside

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        del format, args

    def do_GET(self) -> None:
        if self.path.startswith("/job-take/"):
            self._give()
        elif self.path.startswith("/job-stop/"):
            time.sleep(_HOLD_S)
            self._answer(204)
        elif self.path.startswith((f"/{BUCKET}/", "/ping/")):
            self._answer(200, b"{}")
        else:
            self._pass_on(None)

    def do_PUT(self) -> None:
        size = len(self._body())
        with self.server.lock:
            self.server.uploaded_bytes += size
        self._answer(200)

    def do_POST(self) -> None:
        body = self._body()
        if self.path.startswith("/job-done/"):
            now = time.perf_counter()
            if len(body) > _PROGRESS_BYTES or b'"IN_PROGRESS"' not in body:
                took = now - self.server.answered_at
                self.server.results.put((took, len(body), body[:_PROGRESS_BYTES]))
            self._answer(200, b"{}")
        else:
            self._pass_on(body)

    def _give(self) -> None:
        try:
            job = self.server.jobs.get(timeout=_HOLD_S)
        except queue.Empty:
            self._answer(204)
        else:
            self._answer(200, json.dumps(job).encode())

    def _pass_on(self, body: bytes | None) -> None:
        is_drawn = self.path == _DRAWN
        if is_drawn:
            body = json.dumps({**json.loads(body or b""), **_SMALL}).encode()
        connection = http.client.HTTPConnection(HOST, self.server.webui_port)
        headers = {"Content-Type": "application/json"}
        connection.request(self.command, self.path, body, headers)
        response = connection.getresponse()
        answer = response.read()
        connection.close()
        if is_drawn and response.status == 200:
            self._draw(json.loads(answer))
        else:
            self._answer(response.status, answer)

    def _draw(self, answer: dict[str, Any]) -> None:
        """Answer as A1111 does, with the pictures that are set.

        Source of the form: starlette 0.26, responses.py, JSONResponse.render.
        """
        del answer["images"]
        rest = json.dumps(answer, ensure_ascii=False, separators=(",", ":")).encode()
        body = b'{"images":[' + self.server.pictures + b"]," + rest[1:]
        self.server.answer_bytes = len(body)
        self.server.answered_at = time.perf_counter()
        self._answer(200, body)

    def _body(self) -> bytes:
        if "Content-Length" in self.headers:
            return self.rfile.read(int(self.headers["Content-Length"]))
        pieces = []
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def _answer(self, status: int, body: bytes = b"") -> None:
        self.send_response_only(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:  # Unless it is told, a client may take the connection again.
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)
