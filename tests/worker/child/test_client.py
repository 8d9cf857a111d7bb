import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread

import pytest

from schemas.errors import (
    BackendCrashedError,
    BackendFailedError,
    BackendNotReadyError,
    BackendOutOfMemoryError,
    BackendStalledError,
    InvalidInputError,
    WorkerError,
)
from worker.child.client import WebuiClient, failure

# What a simulator of A1111 would never answer, because A1111 does not.
ODD = {
    "/sdapi/v1/html": (200, b"<html>proxy</html>", None),
    "/sdapi/v1/short": (200, b'{"a": 1', 100),
    "/sdapi/v1/fine": (200, b'{"a": "\xc3\xa9"}', None),
    "/sdapi/v1/null": (200, b"null", None),
}


@pytest.fixture
def odd_server() -> Iterator[WebuiClient]:
    may_answer = Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.endswith("slow"):
                may_answer.wait()
            status, body, length = ODD.get(self.path, (200, b"{}", None))
            self.send_response(status)
            self.send_header("Content-Length", str(length or len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            del format, args

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield WebuiClient(f"http://127.0.0.1:{server.server_port}")
    finally:
        may_answer.set()
        server.shutdown()
        server.server_close()
        thread.join()


def test_an_answer_comes_back_as_it_is(odd_server: WebuiClient) -> None:
    assert odd_server.get("fine") == {"a": "é"}
    assert odd_server.get("null") is None


def test_something_else_than_json_is_a_failure(odd_server: WebuiClient) -> None:
    with pytest.raises(BackendFailedError, match="JSON"):
        odd_server.get("html")


def test_half_an_answer_is_a_crash(odd_server: WebuiClient) -> None:
    with pytest.raises(BackendCrashedError):
        odd_server.get("short")


def test_no_answer_in_time_is_a_stall(odd_server: WebuiClient) -> None:
    with pytest.raises(BackendStalledError, match=r"0\.2 s"):
        odd_server.get("slow", timeout_s=0.2)


def test_nobody_listening_means_that_nothing_was_asked() -> None:
    with pytest.raises(BackendNotReadyError):
        WebuiClient("http://127.0.0.1:9").post("txt2img", {}, timeout_s=1)


INVALID = {"detail": [{"loc": ["body", "steps"], "msg": "value is not a valid integer"}]}
NO_IMAGE = {"error": "HTTPException", "detail": "Invalid encoded image", "errors": ""}


@pytest.mark.parametrize(
    ("status", "answer", "error", "words"),
    [
        pytest.param(422, INVALID, InvalidInputError, "steps: value is not", id="pydantic"),
        pytest.param(404, {"detail": "Not Found"}, InvalidInputError, "Not Found", id="router"),
        pytest.param(500, NO_IMAGE, InvalidInputError, "Invalid encoded", id="the caller's by 500"),
        pytest.param(502, "<html>", BackendFailedError, "status 502", id="not an object"),
    ],
)
def test_each_error_shape_of_a1111_keeps_its_words(
    status: int, answer: object, error: type[WorkerError], words: str
) -> None:
    failed = failure(status, json.dumps(answer).encode())

    assert type(failed) is error
    assert words in str(failed)


@pytest.mark.parametrize(
    ("exception", "error", "words"),
    [
        ("RuntimeError: shapes do not match", BackendFailedError, "RuntimeError: shapes do not"),
        ("AssertionError", BackendFailedError, "AssertionError"),
        ("OutOfMemoryError: CUDA out of memory.", BackendOutOfMemoryError, "memory"),
        ("RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED", BackendOutOfMemoryError, "memory"),
        # A CUDA context that does not recover.
        ("AcceleratorError: CUDA error: device-side assert", BackendCrashedError, "broken: CUDA"),
        ("RuntimeError: cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", BackendCrashedError, "cuDNN"),
        # The wrong flavour of the image for the GPU.
        ("RuntimeError: CUDA error: no kernel image is available", BackendFailedError, "program"),
    ],
)
def test_an_exception_in_a1111_is_told_by_its_kind_and_its_words(
    exception: str, error: type[WorkerError], words: str
) -> None:
    kind, _, said = exception.partition(": ")
    answer = {"error": kind, "detail": "", "errors": said}

    failed = failure(500, json.dumps(answer).encode())

    assert type(failed) is error
    assert words in str(failed)
