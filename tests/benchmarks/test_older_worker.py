import contextlib
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from benchmarks.direct import Direct
from benchmarks.older_worker import OlderWorker

PAYLOAD = {"prompt": "a lighthouse", "steps": 1}
ENVELOPE = {"api": {"method": "POST", "endpoint": "/sdapi/v1/txt2img"}, "payload": PAYLOAD}


class Webui(ThreadingHTTPServer):
    """Says what it was sent as its picture; status 500 for the prompt `fail`."""

    connections = 0

    class Answer(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            answer = json.dumps({"images": [self.path, json.dumps(sent)]}).encode()
            self.send_response(500 if sent["prompt"] == "fail" else 200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            del format, args

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections += 1
        super().process_request(request, client_address)


@pytest.fixture
def webui() -> Iterator[Webui]:
    server = Webui(("127.0.0.1", 0), Webui.Answer)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def older(webui: Webui) -> Iterator[OlderWorker]:
    with contextlib.closing(OlderWorker(webui.server_port)) as worker:
        yield worker


@pytest.mark.slow
def test_the_envelope_is_checked_filled_up_and_posted(older: OlderWorker) -> None:
    route, sent = older.envelope_handler({"input": ENVELOPE})["images"]

    assert route == "/sdapi/v1/txt2img"
    assert json.loads(sent).items() >= {**PAYLOAD, "width": 512, "sampler_name": "Euler a"}.items()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("job", "words"),
    [
        pytest.param({"payload": PAYLOAD, "api": {"method": "POST"}}, "endpoint", id="no endpoint"),
        pytest.param({**ENVELOPE, "payload": {}}, "prompt", id="no prompt"),
        pytest.param(
            {**ENVELOPE, "payload": {**PAYLOAD, "steps": "many"}},
            "steps should be <class 'int'> type",
            id="a wrong type",
        ),
    ],
)
def test_a_job_that_its_schema_refuses_is_an_error(
    older: OlderWorker, job: dict[str, Any], words: str
) -> None:
    assert words in older.envelope_handler({"input": job})["error"]


@pytest.mark.slow
def test_a_failure_of_a1111_asks_for_a_new_worker(older: OlderWorker) -> None:
    failing = {**ENVELOPE, "payload": {"prompt": "fail"}}

    result = older.envelope_handler({"input": failing})

    assert result["refresh_worker"] is True
    assert result["error"] == "A1111 status code: 500"


def test_the_flat_form_is_posted_as_it_is(older: OlderWorker) -> None:
    route, sent = older.flat_handler({"input": PAYLOAD})["images"]

    assert (route, json.loads(sent)) == ("/sdapi/v1/txt2img", PAYLOAD)


@pytest.mark.parametrize(
    ("way", "connections"), [pytest.param("kept", 1, id="kept"), pytest.param("new", 2, id="new")]
)
def test_a_direct_call_sends_the_body_over_a_kept_or_a_new_connection(
    webui: Webui, way: str, connections: int
) -> None:
    with contextlib.closing(Direct(webui.server_port, PAYLOAD, keep=way == "kept")) as direct:
        assert direct.images() == direct.images() == ["/sdapi/v1/txt2img", json.dumps(PAYLOAD)]

    assert webui.connections == connections


def test_a_direct_call_that_fails_ends_the_benchmark(webui: Webui) -> None:
    with (
        contextlib.closing(Direct(webui.server_port, {"prompt": "fail"}, keep=True)) as direct,
        pytest.raises(RuntimeError, match="answered 500"),
    ):
        direct.images()
