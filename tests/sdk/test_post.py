"""What is posted, as bytes."""

import asyncio
import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runpod.serverless.modules import rp_job

import rp_post
import rp_sdk

LONG = "QUJD" * 70_000
strings = (
    st.text() | st.text().map(lambda text: LONG + text) | st.text().map(lambda text: text + LONG)
)


@settings(max_examples=25)
@given(
    st.lists(strings | st.none() | st.integers()), st.dictionaries(st.text(), strings), st.text()
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
