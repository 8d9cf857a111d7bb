import errno
import hashlib
import itertools
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial as partial_of
from pathlib import Path
from typing import Any

import pytest

from model_cache.engine import crew, partial, stream, transfer
from model_cache.engine.connections import Connections
from model_cache.engine.download import Allowance, Download
from model_cache.engine.limits import Limits, Watch
from model_cache.engine.transfer import Fetched
from model_cache.models import Progress
from model_cache.weights import verify
from schemas.errors import (
    DownloadBudgetExceededError,
    DownloadIncompleteError,
    InvalidInputError,
    JobCancelledError,
    ModelAccessDeniedError,
    ModelIncompatibleError,
    ModelNotFoundError,
    ModelUnsafeError,
    SourceQuotaError,
    SourceUnavailableError,
    VolumeFullError,
    WorkerError,
)
from schemas.model_ref import Kind
from tests.model_cache.asking import deaf
from tests.model_cache.conftest import Hub, settings_for

SIZE = 300_000
BYTES = hashlib.shake_256(b"model").digest(SIZE)
SHA256 = hashlib.sha256(BYTES).hexdigest()
LIMITS = Limits(stall_s=5, allow_private_hosts=True, tries=3, pause_s=0.01)


@pytest.fixture
def url(model_hub: Hub) -> str:
    (model_hub.root / "m").write_bytes(BYTES)
    return f"{model_hub.url}/m"


@dataclass
class Fetcher:
    """Fetches to a volume, and knows what the part held at the end."""

    volume: Path
    got: bytes = b""

    def __call__(self, url: str, **options: Any) -> Fetched:
        """Fetch `url` with `LIMITS`, changed by `options`, which also are those of `Watch`."""
        declared = {name: options.pop(name) for name in DECLARED if name in options}
        download = Download(url, url.partition("?")[0], **declared)
        allowance = Allowance(options.pop("max_bytes", 10**9), options.pop("max_s", 20))
        watched: dict[str, Any] = {
            "connections": Connections(16),
            "cancelled": threading.Event(),
            **{name: options.pop(name) for name in WATCHED if name in options},
        }
        with partial.private_part(self.volume, "ab") as part:
            try:
                return transfer.fetch(
                    download,
                    part,
                    replace(LIMITS, **options),
                    Watch(allowance=allowance, **watched),
                )
            finally:
                self.got = part.path.read_bytes() if part.path.exists() else b""


DECLARED = ("authorization", "size_bytes", "sha256")
WATCHED = ("cancelled", "connections", "progress", "look", "make_room", "want_autov3")


@pytest.fixture
def fetch(volume: Path) -> Fetcher:
    return Fetcher(volume)


def test_a_file_comes_whole_with_its_digest_and_name_by_one_request(
    fetch: Fetcher, model_hub: Hub, url: str
) -> None:

    fetched = fetch(url)

    assert fetch.got == BYTES
    assert fetched == Fetched(SHA256, "", SIZE, SIZE, 0, "m")
    assert [request.range for request in model_hub.requests] == ["bytes=0-8388607"]


def test_the_host_learns_who_asks_and_sends_no_packed_bytes(
    fetch: Fetcher, model_hub: Hub, url: str
) -> None:
    fetch(url)

    assert model_hub.requests[0].user_agent == "a1111-worker/0.1"


@pytest.mark.parametrize("how", ["chunked", "no_length"])
def test_a_file_of_unsaid_size_comes_whole(
    fetch: Fetcher, model_hub: Hub, url: str, how: str
) -> None:
    model_hub.spoil(chunked=how == "chunked", no_length=how == "no_length", no_range=True)

    assert fetch(url).size_bytes == SIZE


def test_a_broken_connection_is_resumed_where_it_broke(
    fetch: Fetcher, model_hub: Hub, url: str
) -> None:
    model_hub.spoil(cut=100_000)

    fetched = fetch(url)

    assert fetch.got == BYTES
    assert fetched.received_bytes == SIZE
    assert [request.range for request in model_hub.requests] == [
        "bytes=0-8388607",
        "bytes=100000-299999",
    ]


def test_many_breaks_do_not_end_a_fetch_that_moves_on(
    fetch: Fetcher, model_hub: Hub, url: str
) -> None:
    large = BYTES * 30
    (model_hub.root / "m").write_bytes(large)
    model_hub.spoil(cut=2_000_000, times=4)

    fetched = fetch(url, connections=Connections(1))

    assert fetch.got == large
    assert fetched.received_bytes == len(large)
    assert len(model_hub.requests) == 6


def test_a_host_that_gives_crumbs_ends_in_an_error(
    fetch: Fetcher, model_hub: Hub, url: str
) -> None:
    model_hub.spoil(cut=5, times=-1)

    with pytest.raises(DownloadIncompleteError, match="broke off after 15 bytes"):
        fetch(url)


@pytest.mark.parametrize(
    "second",
    [
        pytest.param({"no_range": True}, id="ignores the range"),
        pytest.param({"etag": "none"}, id="has no etag any more"),
        pytest.param({"etag": "changing"}, id="has another etag"),
        pytest.param({"status": 416}, id="refuses the range"),
        pytest.param({"cut": 0}, id="breaks again at once"),
        pytest.param({"cut": 50_000, "no_length": True}, id="ends too early and says nothing"),
    ],
)
def test_whatever_a_host_does_with_the_rest_the_bytes_are_right(
    fetch: Fetcher, model_hub: Hub, url: str, second: dict[str, Any]
) -> None:
    model_hub.spoil(cut=100_000)
    model_hub.spoil(**second)

    fetched = fetch(url)

    assert fetch.got == BYTES
    assert fetched.sha256 == hashlib.sha256(BYTES).hexdigest()


@pytest.mark.parametrize("etag", ["none", "weak"])
def test_without_a_strong_etag_a_broken_fetch_starts_again(
    fetch: Fetcher, model_hub: Hub, url: str, etag: str
) -> None:
    model_hub.spoil(cut=100_000, etag=etag)

    fetched = fetch(url)

    assert fetch.got == BYTES
    assert fetched.received_bytes == SIZE + 100_000
    assert [request.range for request in model_hub.requests] == ["bytes=0-8388607"] * 2


@pytest.mark.parametrize("other", [BYTES[::-1], BYTES[:50_000]], ids=["as long", "shorter"])
def test_a_file_that_changes_between_two_tries_is_never_mixed(
    fetch: Fetcher, model_hub: Hub, url: str, other: bytes
) -> None:
    model_hub.spoil(cut=100_000)

    def replace_it(_: bytes) -> int:
        (model_hub.root / "m").write_bytes(other)
        return 0

    fetch(url, look=replace_it)

    assert fetch.got == other


@dataclass
class Canned:
    """A host that gives answers as they are, in crumbs, one to a connection."""

    url: str
    asked: list[bytes]


@contextmanager
def canned(*answers: bytes) -> Iterator[Canned]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host = Canned(f"http://127.0.0.1:{listener.getsockname()[1]}/m", [])

        def serve() -> None:
            # The client may go before all is sent, or not come as often as it could.
            for answer in answers:
                with suppress(OSError), listener.accept()[0] as connection:
                    host.asked.append(connection.recv(65536))
                    for start in range(0, len(answer), 500):
                        connection.sendall(answer[start : start + 500])

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield host
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def answer(status: str, body: bytes, *headers: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, "", ""]).encode() + body


FIRST = answer("200 OK", BYTES[:1000], "Content-Length: 3000", 'ETag: "a"')
REST = BYTES[1000:3000]


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param(['ETag: "a"', "Content-Range: bytes 999-2999/3000"], id="begins too early"),
        pytest.param(['ETag: "a"', "Content-Range: bytes 1000-3999/4000"], id="of another size"),
        pytest.param(['ETag: "a"', "Content-Range: bytes 1000-2000/3000"], id="a part of the rest"),
        pytest.param(['ETag: "b"', "Content-Range: bytes 1000-2999/3000"], id="of another file"),
        pytest.param(['ETag: "a"'], id="of nobody knows what"),
    ],
)
def test_a_rest_that_is_another_one_is_thrown_away(fetch: Fetcher, headers: list[str]) -> None:
    rest = answer("206 Partial Content", REST, *headers)

    with canned(FIRST, rest, answer("200 OK", BYTES[:3000], "Content-Length: 3000")) as host:
        fetch(host.url)

    assert fetch.got == BYTES[:3000]
    assert [b"Range: bytes=1000-2999" in asked for asked in host.asked] == [False, True, False]
    assert b'If-Range: "a"' in host.asked[1]


def test_a_rest_that_fits_is_taken(fetch: Fetcher) -> None:
    rest = answer("206 Partial Content", REST, "Content-Range: bytes 1000-2999/3000", 'ETag: "a"')

    with canned(FIRST, rest) as host:
        fetch(host.url)

    assert fetch.got == BYTES[:3000]


def test_a_part_that_nobody_asked_for_is_not_taken_for_the_file(fetch: Fetcher) -> None:
    part = answer("206 Partial Content", BYTES[:3000], "Content-Range: bytes 0-2999/3000")

    with canned(part, answer("200 OK", BYTES[:3000], "Content-Length: 3000")) as host:
        fetch(host.url)

    assert fetch.got == BYTES[:3000]


def test_first_bytes_that_come_in_crumbs_are_looked_at_together(fetch: Fetcher) -> None:
    looked: list[bytes] = []

    def look(start: bytes) -> int:
        looked.append(start)
        return 0

    with canned(answer("200 OK", BYTES[:3000], "Content-Length: 3000")) as host:
        fetch(host.url, look=look)

    assert looked == [BYTES[: stream.FIRST_BYTES]]


def test_more_first_bytes_are_looked_at_as_often_as_they_are_asked_for(
    fetch: Fetcher, url: str
) -> None:
    looked: list[bytes] = []
    wanted = iter([5000, 70_000, 0])

    def look(start: bytes) -> int:
        looked.append(start)
        return next(wanted)

    fetch(url, look=look)

    assert looked == [BYTES[:size] for size in (stream.FIRST_BYTES, 5000, 70_000)]


def test_more_first_bytes_than_there_are_are_never_looked_at(fetch: Fetcher, url: str) -> None:
    looked: list[int] = []

    def look(start: bytes) -> int:
        looked.append(len(start))
        return SIZE + 1

    assert fetch(url, look=look).size_bytes == SIZE
    assert looked == [stream.FIRST_BYTES]


def test_what_is_not_worth_the_rest_ends_before_the_rest_came(
    fetch: Fetcher, model_hub: Hub, url: str
) -> None:
    (model_hub.root / "m").write_bytes(BYTES * 100)
    model_hub.spoil(rate=4_000_000, times=-1)

    def look(start: bytes) -> int:
        if len(start) == SIZE:
            raise ModelIncompatibleError("Another kind.")
        return SIZE

    with pytest.raises(ModelIncompatibleError):
        fetch(url, look=look)

    assert sum(request.bytes_sent for request in model_hub.requests) < SIZE * 50


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"\0\xff\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3, 4\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: \xff\xfe\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://[::1\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://\xff..\xff/\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://" + b"a" * 70 + b".example/\r\n\r\n",
        b"HTTP/1.1 302 Found\r\n\r\n",
        b"HTTP/1.1 500 Oops\r\nRetry-After: \xff\r\nContent-Length: 9\r\n\r\n{",
    ],
)
def test_whatever_a_host_answers_the_outcome_is_our_error(fetch: Fetcher, garbage: bytes) -> None:
    with canned(*[garbage] * 3) as host, pytest.raises(WorkerError):
        fetch(host.url, stall_s=1)


def test_a_host_that_breaks_every_time_ends_in_an_error(
    fetch: Fetcher, model_hub: Hub, url: str
) -> None:
    model_hub.spoil(drop=True, times=-1)

    with pytest.raises(SourceUnavailableError, match="could not be reached"):
        fetch(url)

    assert len(model_hub.requests) == 3


def test_a_host_that_never_gets_further_ends_in_an_error(
    fetch: Fetcher, model_hub: Hub, url: str
) -> None:
    model_hub.spoil(cut=1000, etag="none", times=-1)

    with pytest.raises(DownloadIncompleteError, match="broke off after 1000 bytes"):
        fetch(url)

    assert len(model_hub.requests) == 3


def test_a_promise_of_more_bytes_than_there_are_is_noticed(
    fetch: Fetcher, model_hub: Hub, url: str
) -> None:
    model_hub.spoil(length=7, etag="none", times=-1)

    with pytest.raises(DownloadIncompleteError):
        fetch(url)


@pytest.mark.parametrize(
    ("status", "error", "tries"),
    [
        (401, ModelAccessDeniedError, 1),
        (403, ModelAccessDeniedError, 1),
        (404, ModelNotFoundError, 1),
        (410, ModelNotFoundError, 1),
        (451, ModelNotFoundError, 1),
        (429, SourceQuotaError, 3),
        (408, SourceUnavailableError, 3),
        (500, SourceUnavailableError, 3),
        (503, SourceUnavailableError, 3),
    ],
)
def test_a_refusal_becomes_our_error_with_what_the_host_said(
    fetch: Fetcher, model_hub: Hub, url: str, status: int, error: type[WorkerError], tries: int
) -> None:
    model_hub.spoil(status=status, times=-1)

    with pytest.raises(error) as caught:
        fetch(url)

    assert f'answered {status}: "This answer was asked to be wrong".' in str(caught.value)
    assert caught.value.details["status"] == status
    assert len(model_hub.requests) == tries


@pytest.mark.slow
def test_a_host_that_was_busy_is_asked_again_when_it_said(
    fetch: Fetcher, model_hub: Hub, url: str
) -> None:
    model_hub.spoil(status=503, retry_after="1")
    started = time.monotonic()

    assert fetch(url).size_bytes == SIZE
    assert 1 <= time.monotonic() - started < 15


def test_a_host_that_wants_an_hour_of_patience_is_not_waited_for(
    fetch: Fetcher, model_hub: Hub, url: str
) -> None:
    model_hub.spoil(status=429, retry_after="3600")

    with pytest.raises(SourceQuotaError):
        fetch(url)

    assert len(model_hub.requests) == 1


@pytest.mark.parametrize(
    ("how", "what"),
    [
        ({"html": True}, "text/html"),
        ({"json_error": True}, 'application/json instead of a model: "This answer'),
        ({"gzip": True}, "packed as 'gzip'"),
    ],
)
def test_an_answer_that_is_no_file_is_refused(
    fetch: Fetcher, model_hub: Hub, url: str, how: dict[str, Any], what: str
) -> None:
    model_hub.spoil(**how)

    with pytest.raises(ModelUnsafeError, match=what):
        fetch(url)

    assert len(model_hub.requests) == 1


def test_a_pickle_is_refused_by_its_first_bytes(fetch: Fetcher, model_hub: Hub, url: str) -> None:
    (model_hub.root / "m").write_bytes(b"PK\x03\x04" + BYTES * 100)

    with pytest.raises(ModelUnsafeError, match="zip archive"):
        fetch(url, look=partial_of(verify.look, kind=Kind.LORA, called="m"))

    assert model_hub.requests[0].bytes_sent < SIZE * 100


def test_a_file_above_the_limit_is_refused_before_it_comes(fetch: Fetcher, url: str) -> None:

    with pytest.raises(DownloadBudgetExceededError) as caught:
        fetch(url, max_bytes=SIZE - 1)

    assert fetch.got == b""
    assert caught.value.details == {"size_bytes": SIZE, "limit_bytes": SIZE - 1}


def test_a_file_of_unsaid_size_is_stopped_at_the_limit(
    fetch: Fetcher, model_hub: Hub, url: str
) -> None:
    model_hub.spoil(chunked=True, no_range=True)

    with pytest.raises(DownloadBudgetExceededError):
        fetch(url, max_bytes=1000)

    assert len(fetch.got) <= 1000


def test_room_is_made_for_what_came_of_a_file_of_unsaid_size(
    fetch: Fetcher, model_hub: Hub, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "_ROOM_STEP_BYTES", 100_000)
    model_hub.spoil(chunked=True, no_range=True)
    roomed: list[int] = []

    fetch(url, make_room=roomed.append)

    assert roomed == sorted(roomed)
    assert len(roomed) >= 3
    assert max(after - before for before, after in itertools.pairwise([0, *roomed])) < 200_000
    assert roomed[-1] == SIZE


def test_a_file_of_unsaid_size_ends_where_there_is_no_room(
    fetch: Fetcher, model_hub: Hub, url: str
) -> None:
    model_hub.spoil(chunked=True, no_range=True)
    refused = VolumeFullError("No room.", budget_bytes=1)

    def make_room(_: int) -> None:
        raise refused

    with pytest.raises(VolumeFullError) as caught:
        fetch(url, make_room=make_room)

    assert caught.value is refused


def test_a_full_disk_tells_how_large_a_file_of_unsaid_size_may_become(
    fetch: Fetcher, model_hub: Hub, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_hub.spoil(chunked=True, no_range=True)
    write, roomed = os.pwrite, list[int]()

    def full(handle: int, data: memoryview, offset: int) -> int:
        if offset + len(data) > 100_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(handle, data, offset)

    monkeypatch.setattr(os, "pwrite", full)

    with pytest.raises(VolumeFullError):
        fetch(url, make_room=roomed.append)

    assert len(roomed) == 1
    assert 50_000 < roomed[0] <= 200_000


def test_a_host_that_makes_no_connection_does_not_hold_a_cancelled_job(
    fetch: Fetcher,
) -> None:
    cancelled = threading.Event()

    with deaf() as url:
        timer = threading.Timer(0.2, cancelled.set)
        timer.start()
        started = time.monotonic()
        with pytest.raises(JobCancelledError):
            fetch(url, cancelled=cancelled, stall_s=30)

    assert time.monotonic() - started < 15
    timer.join()


def test_a_host_that_makes_no_connection_does_not_outlast_the_time_of_a_job(
    fetch: Fetcher,
) -> None:
    started = time.monotonic()

    with deaf() as url, pytest.raises(DownloadBudgetExceededError):
        fetch(url, max_s=0.3, stall_s=30)

    assert time.monotonic() - started < 15


def test_a_silent_host_is_given_up(fetch: Fetcher, model_hub: Hub, url: str) -> None:
    model_hub.spoil(stall=1000, etag="none", times=-1)
    started = time.monotonic()

    with pytest.raises(DownloadIncompleteError):
        fetch(url, stall_s=0.3)

    assert time.monotonic() - started < 15


def test_a_host_that_takes_the_request_and_never_answers_is_given_up(
    fetch: Fetcher, model_hub: Hub, url: str
) -> None:
    model_hub.spoil(delay_s=60, times=-1)

    with pytest.raises(SourceUnavailableError, match="did not answer"):
        fetch(url, stall_s=0.2)


def test_time_is_up_even_while_the_host_is_silent(fetch: Fetcher, model_hub: Hub, url: str) -> None:
    model_hub.spoil(stall=1000)
    started = time.monotonic()

    with pytest.raises(DownloadBudgetExceededError, match=r"not there after 0\.5 s"):
        fetch(url, max_s=0.5, stall_s=30)

    assert time.monotonic() - started < 15


@pytest.mark.parametrize("how", [{"stall": 1000}, {"delay_s": 60}, {"rate": 1000}])
def test_a_cancelled_job_lets_go_at_once(
    fetch: Fetcher, model_hub: Hub, url: str, how: dict[str, Any]
) -> None:
    model_hub.spoil(times=-1, **how)
    cancelled = threading.Event()
    timer = threading.Timer(0.3, cancelled.set)
    timer.start()
    started = time.monotonic()

    with pytest.raises(JobCancelledError):
        fetch(url, cancelled=cancelled, stall_s=30)

    assert time.monotonic() - started < 15
    timer.join()


def test_a_cancelled_job_does_not_wait_for_the_next_try(
    fetch: Fetcher, model_hub: Hub, url: str
) -> None:
    model_hub.spoil(status=503, retry_after="50", times=-1)
    cancelled = threading.Event()
    timer = threading.Timer(0.2, cancelled.set)
    timer.start()

    with pytest.raises(JobCancelledError):
        fetch(url, cancelled=cancelled)

    timer.join()


def test_a_redirect_to_another_host_does_not_get_the_token(
    fetch: Fetcher, model_hub: Hub, url: str
) -> None:
    assert fetch(url.replace("/m", "/redirect/m"), authorization="Bearer t").size_bytes == SIZE

    assert [(entry.host, entry.authorization) for entry in model_hub.requests] == [
        ("hub", True),
        ("cdn", False),
    ]


def test_a_redirect_within_a_host_keeps_the_token(fetch: Fetcher, model_hub: Hub, url: str) -> None:
    model_hub.spoil(redirect="/m", path="/start")

    fetch(url.replace("/m", "/start"), authorization="Bearer t")

    assert [entry.authorization for entry in model_hub.requests] == [True, True]


def test_a_token_does_not_come_back_with_a_redirect_to_its_host(
    fetch: Fetcher, model_hub: Hub, url: str
) -> None:
    elsewhere = model_hub.url.replace("127.0.0.1", "localhost")
    model_hub.spoil(redirect=f"{elsewhere}/back", path="/start")
    model_hub.spoil(redirect=url, path="/back")

    fetch(url.replace("/m", "/start"), authorization="Bearer t")

    assert [entry.authorization for entry in model_hub.requests] == [True, False, False]


def test_a_redirect_loop_ends(fetch: Fetcher, model_hub: Hub, url: str) -> None:
    model_hub.spoil(redirect="loop", times=-1)

    with pytest.raises(SourceUnavailableError, match="more than 5 times"):
        fetch(url)

    assert len(model_hub.requests) == 6


@pytest.mark.parametrize("target", ["file", "ftp://host/m", "http://[::1", "https://h:99999/"])
def test_a_redirect_to_what_may_not_be_asked_is_refused(
    fetch: Fetcher, model_hub: Hub, url: str, target: str
) -> None:
    model_hub.spoil(redirect=target)

    with pytest.raises(InvalidInputError):
        fetch(url)


def test_a_private_host_is_refused_and_not_asked(fetch: Fetcher, model_hub: Hub, url: str) -> None:
    with pytest.raises(InvalidInputError, match="not at a public address") as caught:
        fetch(url.replace("http:", "https:"), allow_private_hosts=False)

    assert caught.value.details["field"] == "url"
    assert model_hub.requests == []


def test_plain_http_is_refused(fetch: Fetcher, model_hub: Hub, url: str) -> None:
    with pytest.raises(InvalidInputError, match="https"):
        fetch(url, allow_private_hosts=False)

    assert model_hub.requests == []


def test_an_unknown_host_is_unavailable(fetch: Fetcher) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]

    with pytest.raises(SourceUnavailableError, match="could not be reached"):
        fetch(f"http://127.0.0.1:{port}/m")


def test_a_host_without_a_trusted_certificate_is_unavailable(
    fetch: Fetcher, model_hub: Hub, url: str
) -> None:
    with pytest.raises(SourceUnavailableError, match="certificate"):
        fetch(url.replace("http:", "https:"))

    assert model_hub.requests == []


def test_progress_is_told_now_and_then_and_at_the_end(
    fetch: Fetcher, model_hub: Hub, url: str
) -> None:
    model_hub.spoil(rate=400_000)
    told: list[Progress] = []
    started = time.monotonic()

    fetch(url, progress=told.append)

    # Four times a second, and at the end.
    assert 3 <= len(told) <= 4 * (time.monotonic() - started) + 2
    assert told[-1] == Progress(SIZE, SIZE)
    assert [step.done_bytes for step in told] == sorted(step.done_bytes for step in told)


SECRETS = ("signed-secret", "token-secret")


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(how, id=next(iter(how)))
        for how in (
            {"status": 403},
            {"status": 500},
            {"html": True},
            {"drop": True},
            {"cut": 5},
            {"gzip": True},
            {"redirect": "loop"},
            {"redirect": "ftp://h/m?X-Signature=signed-secret"},
        )
    ],
)
def test_no_error_shows_a_token_or_a_signature(
    fetch: Fetcher,
    model_hub: Hub,
    url: str,
    spoil: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    model_hub.spoil(times=-1, **spoil)

    with caplog.at_level("DEBUG"), pytest.raises(WorkerError) as caught:
        fetch(f"{url}?signature=signed-secret", authorization="Bearer token-secret", tries=2)

    shown = f"{caught.value.as_response()} {caught.value.__cause__!r} {caplog.text}"
    assert not any(secret in shown for secret in SECRETS)


@pytest.mark.parametrize(
    ("endpoints", "trusted"),
    [
        ({}, set()),
        ({"hf_endpoint": "https://huggingface.co"}, set()),
        (
            {"s3_endpoint": "http://10.0.0.5:9000", "civitai_endpoint": "https://mirror.example/c"},
            {("http", "10.0.0.5", 9000), ("https", "mirror.example", 443)},
        ),
    ],
)
def test_the_endpoints_that_the_operator_named_are_trusted(
    volume: Path, endpoints: dict[str, str], trusted: set[object]
) -> None:
    assert Limits.of(settings_for(volume, **endpoints)).trusted_origins == trusted


def test_limits_come_from_the_settings(volume: Path) -> None:
    settings = settings_for(volume, stall_s=7, allowed_hosts="models.example")

    assert Limits.of(settings) == Limits(
        7, allow_private_hosts=True, allowed_hosts=("models.example",)
    )
