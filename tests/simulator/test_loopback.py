import contextlib
import json
import threading
from collections.abc import AsyncIterator

import pytest
import requests
from aiohttp import web

from simulator import loopback


async def hello(_: web.Request) -> web.Response:
    return web.Response(text="hello")


def application() -> web.Application:
    app = web.Application()
    app.router.add_get("/", hello)
    return app


def test_a_server_answers_while_the_context_lasts_and_not_after() -> None:
    with requests.Session() as session:
        with loopback.in_background(lambda: loopback.listening(application())) as url:
            assert session.get(url, timeout=5).text == "hello"
            assert url.startswith("http://127.0.0.1:")

        with pytest.raises(requests.ConnectionError):
            session.get(url, timeout=5)

    assert "simulator" not in {thread.name for thread in threading.enumerate()}


def test_a_port_that_is_taken_is_an_error_for_the_caller() -> None:
    with loopback.in_background(lambda: loopback.listening(application())) as url:
        port = int(url.rpartition(":")[2])

        with (
            pytest.raises(OSError, match="address already in use"),
            loopback.in_background(lambda: loopback.listening(application(), port)),
        ):
            raise AssertionError


def test_an_error_in_the_block_ends_the_server_and_is_passed_on() -> None:
    left = threading.Event()

    @contextlib.asynccontextmanager
    async def server() -> AsyncIterator[str]:
        try:
            yield "here"
        finally:
            left.set()

    def fail() -> None:
        with loopback.in_background(server) as value:
            raise LookupError(value)

    with pytest.raises(LookupError, match="here"):
        fail()

    assert left.is_set()


def test_the_announcement_is_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    loopback.announce("hub", "http://127.0.0.1:1", second_url="http://127.0.0.1:2")

    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert json.loads(out) == {
        "simulator": "hub",
        "url": "http://127.0.0.1:1",
        "second_url": "http://127.0.0.1:2",
    }
