"""What is posted, as bytes, and what becomes of it at a gateway that does not let all of it through."""

import asyncio
import json
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runpod.serverless.modules import rp_http, rp_job

import rp_post
import rp_sdk

LONG = "QUJD" * 70_000
strings = (
    st.text() | st.text().map(lambda text: LONG + text) | st.text().map(lambda text: text + LONG)
)


@settings(max_examples=25)
@given(
    st.lists(strings | st.none() | st.integers(), max_size=4),
    st.dictionaries(st.text(), strings, max_size=2),
    st.text(),
)
def test_a_body_is_the_json_of_its_result(
    images: list[Any], rest: dict[str, Any], key: str
) -> None:
    message = {key: 1, "output": {**rest, "images": images, "last": [images]}}

    assert rp_post.encoded(message) == json.dumps(message, ensure_ascii=False).encode()


@pytest.mark.parametrize(
    "output", [None, [], "x", {"images": {}}, {"image": LONG}, [{"images": 1}]]
)
def test_a_body_of_another_shape_is_its_json_too(output: Any) -> None:
    message = {"output": output}

    assert rp_post.encoded(message) == json.dumps(message).encode()


@pytest.mark.parametrize("bad", [float("nan"), "\ud800", LONG + "\ud800"])
def test_what_is_no_json_is_an_error_in_any_place(bad: Any) -> None:
    for output in ({"images": [bad]}, {"images": [LONG], "info": bad}, bad):
        with pytest.raises(ValueError):  # noqa: PT011 - of whatever kind
            rp_post.encoded({"output": output})


def test_the_sdk_makes_no_text_of_an_answer() -> None:
    async def handler(_job: rp_sdk.Job) -> Any:
        return {"images": [LONG]}

    answering = rp_sdk._answering(handler)
    tracemalloc.start()
    result = asyncio.run(rp_job.run_job(answering, {"id": "j", "input": {}}))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert result == {"output": {"images": [LONG]}}
    assert peak < len(LONG) / 2


def test_a_picture_is_copied_once() -> None:
    message = {"output": {"images": [LONG * 20]}}
    size = len(LONG) * 20

    tracemalloc.start()
    body = rp_post.encoded(message)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert len(body) > size
    assert peak < 1.5 * size


class Gateway:
    """Answers 200 to what it lets through, and keeps it; else a status, or cuts it as it is written (0)."""

    def __init__(self, status: int, lets_through: Callable[[int, int], bool]) -> None:
        self.arrived: list[Any] = []
        self.tries: list[int] = []
        """The length of each body."""
        self._status = status
        self._lets_through = lets_through

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        size = int(head.partition("content-length: ")[2].partition("\r\n")[0])
        self.tries.append(size)
        passes = self._lets_through(size, len(self.tries))
        if not passes and self._status == 0:
            await reader.readexactly(size // 2)
            writer.transport.abort()
            return
        body = await reader.readexactly(size)
        if passes:
            self.arrived.append(json.loads(body))
        answer = f"HTTP/1.1 {200 if passes else self._status} -\r\nConnection: close\r\n"
        writer.write(f"{answer}Location: /elsewhere\r\nContent-Length: 0\r\n\r\n".encode())
        await writer.drain()
        writer.close()

    def get(
        self,
        monkeypatch: pytest.MonkeyPatch,
        result: dict[str, Any],
        result_s: float = 0.5,
        instead_s: float = 0.5,
        **how: bool,
    ) -> None:
        """Have `result` sent here for so long, and for so much longer an error in its place."""
        monkeypatch.setattr(rp_post, "RESULT_S", result_s)
        monkeypatch.setattr(rp_post, "INSTEAD_S", instead_s)

        async def send() -> None:
            server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/job-done/$ID?gpu=none"
            monkeypatch.setattr(rp_http, "JOB_DONE_URL", url)
            async with server, aiohttp.ClientSession() as session:
                await rp_post.send_result(session, result, {"id": "j"}, **how)

        asyncio.run(send())


SMALL: dict[str, Any] = {"output": {"images": ["QUJD"]}}
LARGE: dict[str, Any] = {"output": {"images": [LONG * 4]}, "stopPod": True}


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize(
    ("status", "told"),
    [
        pytest.param(0, "the last try was cut off without an answer", id="cut"),
        pytest.param(504, "the last try was answered 504", id="504"),
    ],
)
def test_a_large_result_that_never_arrives_becomes_an_error(
    monkeypatch: pytest.MonkeyPatch, status: int, told: str, *, is_stream: bool
) -> None:
    gateway = Gateway(status, lambda size, _: size < rp_post.LARGE_BYTES)

    gateway.get(monkeypatch, LARGE, is_stream=is_stream)

    (told_in_place,) = gateway.arrived
    output = told_in_place["output"][0] if is_stream else told_in_place["output"]
    assert told_in_place["error"].startswith("OUTPUT_TOO_LARGE: RunPod did not take the result of ")
    assert told in told_in_place["error"]
    assert output["code"] == "OUTPUT_TOO_LARGE"
    assert output["details"] == {"size_bytes": gateway.tries[0], "status": status}
    assert told_in_place["stopPod"] is True


def test_an_error_in_place_of_a_result_has_time_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    small: list[int] = []

    def second_small(size: int, _: int) -> bool:
        small.extend([size] if size < rp_post.LARGE_BYTES else [])
        return len(small) > 1

    gateway = Gateway(0, second_small)

    gateway.get(monkeypatch, LARGE, result_s=0, instead_s=30)

    assert [message["output"]["code"] for message in gateway.arrived] == ["OUTPUT_TOO_LARGE"]


def test_a_large_result_that_arrives_late_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = Gateway(0, lambda _, tries: tries > 2)

    gateway.get(monkeypatch, LARGE, result_s=30)

    assert gateway.arrived == [LARGE]


@pytest.mark.parametrize(
    ("result", "sizes"),
    [pytest.param(SMALL, 1, id="small"), pytest.param(LARGE, 2, id="large")],
)
def test_what_never_arrives_is_given_up_in_time_and_only_a_large_result_replaced(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    result: dict[str, Any],
    sizes: int,
) -> None:
    gateway = Gateway(0, lambda _, __: False)
    began = time.monotonic()

    gateway.get(monkeypatch, result)

    assert time.monotonic() - began < 20  # It is asked in vain for as long as it likes.
    assert len(set(gateway.tries)) == sizes
    assert caplog.messages[-1] == "job j: no answer could be sent (last status: none)"


def test_a_refused_result_is_replaced_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gateway = Gateway(422, lambda _, tries: tries > 1)

    gateway.get(monkeypatch, SMALL, result_s=30)

    assert [message["output"]["code"] for message in gateway.arrived] == ["INTERNAL"]
    assert len(gateway.tries) == 2


@pytest.mark.parametrize("status", [307, 308])
def test_a_result_goes_where_a_redirect_leads(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    gateway = Gateway(status, lambda _, tries: tries > 1)

    gateway.get(monkeypatch, LARGE, result_s=30)

    assert gateway.arrived == [LARGE]
    assert gateway.tries[0] == gateway.tries[1]
