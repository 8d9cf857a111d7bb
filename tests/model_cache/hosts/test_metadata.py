import json
import threading
import time
from typing import Any

import pytest

from model_cache.hosts.metadata import MAX_BODY_BYTES, ask
from schemas.errors import (
    DownloadBudgetExceededError,
    JobCancelledError,
    SourceQuotaError,
    SourceUnavailableError,
)
from tests.model_cache.asking import asker_for, deaf
from tests.model_cache.conftest import Hub


def put(hub: Hub, body: bytes) -> str:
    (hub.root / "x.json").write_bytes(body)
    return f"{hub.url}/x.json"


def test_a_good_answer_is_a_json_object(model_hub: Hub) -> None:
    reply = ask(asker_for(model_hub), put(model_hub, b'{"a": [1]}'))

    assert (reply.status, reply.fields) == (200, {"a": [1]})


def test_a_refusal_is_returned_at_once(model_hub: Hub) -> None:
    reply = ask(asker_for(model_hub), f"{model_hub.url}/none")

    assert (reply.status, reply.fields) == (404, {})
    assert len(model_hub.requests) == 1


@pytest.mark.parametrize("how", [{"status": 503}, {"status": 408}, {"status": 429}, {"drop": True}])
def test_what_may_pass_is_tried_again(how: dict[str, Any], model_hub: Hub) -> None:
    url = put(model_hub, b"{}")
    model_hub.spoil(times=2, **how)

    assert ask(asker_for(model_hub), url).status == 200
    assert len(model_hub.requests) == 3


@pytest.mark.parametrize(
    ("status", "error"), [(503, SourceUnavailableError), (429, SourceQuotaError)]
)
def test_after_three_tries_the_last_answer_is_the_error(
    status: int, error: type[Exception], model_hub: Hub
) -> None:
    model_hub.spoil(times=9, status=status)

    with pytest.raises(error, match=f"answered {status}"):
        ask(asker_for(model_hub), f"{model_hub.url}/x?token=planted-secret")

    assert len(model_hub.requests) == 3


def test_a_host_that_wants_more_than_a_minute_is_left_alone(model_hub: Hub) -> None:
    model_hub.spoil(times=9, status=429, retry_after="61")

    with pytest.raises(SourceQuotaError):
        ask(asker_for(model_hub), f"{model_hub.url}/x")

    assert len(model_hub.requests) == 1


@pytest.mark.slow
def test_a_wait_that_the_host_asks_for_is_kept(model_hub: Hub) -> None:
    url = put(model_hub, b"{}")
    model_hub.spoil(status=503, retry_after="1")

    started = time.monotonic()
    ask(asker_for(model_hub), url)

    assert 0.9 < time.monotonic() - started < 15


def test_a_cancelled_job_waits_no_longer(model_hub: Hub) -> None:
    model_hub.spoil(times=9, status=503, retry_after="30")
    cancelled = threading.Event()
    threading.Timer(0.1, cancelled.set).start()

    started = time.monotonic()
    with pytest.raises(JobCancelledError):
        ask(asker_for(model_hub, cancelled=cancelled), f"{model_hub.url}/x")

    assert time.monotonic() - started < 15


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[1]",
        b"{",
        b"\xff",
        b"<html>",
        b"[" * 200_000,
        pytest.param(b'{"a":"' + b" " * MAX_BODY_BYTES + b'"}', id="endless"),
    ],
)
def test_what_is_no_json_object_of_bounded_size_is_an_outage(body: bytes, model_hub: Hub) -> None:
    url = put(model_hub, body)

    with pytest.raises(SourceUnavailableError, match="its API promises"):
        ask(asker_for(model_hub), url)


def test_a_packed_answer_is_unpacked(model_hub: Hub) -> None:
    url = put(model_hub, json.dumps({"a": 1}).encode())
    model_hub.spoil(gzip=True)

    assert ask(asker_for(model_hub), url).fields == {"a": 1}


def test_a_wait_ends_with_the_time_of_the_job(model_hub: Hub) -> None:
    model_hub.spoil(times=9, status=503, retry_after="30")
    asker = asker_for(model_hub)
    started = time.monotonic()

    def require() -> None:
        if time.monotonic() - started > 0.3:
            raise DownloadBudgetExceededError("The time is over.")

    asker.web.require = require

    with pytest.raises(DownloadBudgetExceededError):
        ask(asker, f"{model_hub.url}/x")

    assert time.monotonic() - started < 15


def test_a_host_that_makes_no_connection_does_not_hold_a_cancelled_job(model_hub: Hub) -> None:
    cancelled = threading.Event()
    threading.Timer(0.2, cancelled.set).start()
    started = time.monotonic()

    with deaf() as url, pytest.raises(JobCancelledError):
        ask(asker_for(model_hub, cancelled=cancelled, silent_s=30), url)

    assert time.monotonic() - started < 15
