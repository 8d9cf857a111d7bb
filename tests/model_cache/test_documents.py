"""Input images by URL: what comes, and from where nothing is ever fetched."""

import socket
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from benchmarks.file_server import self_signed
from model_cache.documents import Budget, fetch_all
from model_cache.engine.limits import Limits
from schemas.errors import (
    DownloadBudgetExceededError,
    DownloadIncompleteError,
    InvalidInputError,
    JobCancelledError,
    SourceQuotaError,
    SourceUnavailableError,
    WorkerError,
)
from schemas.settings import CacheSettings
from tests.model_cache.asking import deaf
from tests.model_cache.conftest import Hub, wait_until

OPEN = Limits(stall_s=5, allow_private_hosts=True)
SMALL = Budget(max_bytes=1000, max_s=10, waits_s=(0.0, 0.0))


def fetched(
    urls: dict[str, str],
    limits: Limits = OPEN,
    budget: Budget = SMALL,
    cancelled: threading.Event | None = None,
) -> dict[str, bytes]:
    return fetch_all(urls, limits, budget, cancelled or threading.Event())


@pytest.fixture
def url(model_hub: Hub) -> str:
    (model_hub.root / "p.png").write_bytes(b"0123456789" * 100)
    return f"{model_hub.url}/p.png"


def test_each_url_brings_its_bytes(model_hub: Hub, url: str) -> None:
    for name in "abcdef":
        (model_hub.root / name).write_bytes(name.encode())
    urls = {f"init_images[{name}]": f"{model_hub.url}/{name}" for name in "abcdef"}

    assert fetched(urls) == {f"init_images[{name}]": name.encode() for name in "abcdef"}
    assert len(fetched({"mask": url})["mask"]) == 1000


def test_several_are_fetched_at_a_time(model_hub: Hub, url: str) -> None:
    model_hub.spoil(delay_s=60, times=4)
    cancelled, urls = threading.Event(), {str(number): url for number in range(4)}

    with ThreadPoolExecutor(1) as threads:
        fetching = threads.submit(fetched, urls, budget=Budget(4000, 60), cancelled=cancelled)
        try:
            wait_until(lambda: len(model_hub.requests) == 4)
        finally:
            cancelled.set()
        with pytest.raises(JobCancelledError):
            fetching.result()


def test_no_token_and_no_name_of_a_browser_is_sent(model_hub: Hub, url: str) -> None:
    fetched({"mask": url})

    assert model_hub.requests[0].authorization is False
    assert model_hub.requests[0].user_agent == "a1111-worker/0.1"


def test_a_redirect_is_followed(model_hub: Hub, url: str) -> None:
    assert len(fetched({"mask": url.replace("/p", "/redirect/p")})["mask"]) == 1000
    assert [request.host for request in model_hub.requests] == ["hub", "cdn"]


@pytest.mark.parametrize(
    "target",
    [
        pytest.param("http://127.0.0.1:1/x", id="loopback"),
        pytest.param("https://10.0.0.1/x", id="private"),
        pytest.param("https://169.254.169.254/latest/meta-data/", id="metadata"),
        pytest.param("https://[::ffff:127.0.0.1]/x", id="mapped"),
        pytest.param("https://0x7f000001/x", id="odd spelling"),
        pytest.param("http://example.org/x.png", id="plain http"),
        pytest.param("https://localhost/x", id="name of loopback"),
        pytest.param("https:///x", id="no host"),
        pytest.param("https://[/x", id="broken"),
        pytest.param("https://user:word@example.org/x", id="password"),
    ],
)
def test_what_is_not_public_is_not_asked(target: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        fetched({"init_images[1]": target}, Limits(stall_s=5))

    assert caught.value.details["field"] == "init_images[1]"


@pytest.mark.parametrize("target", ["file", "private", "metadata"])
def test_a_host_cannot_lead_inside(model_hub: Hub, url: str, target: str) -> None:
    """The host itself is trusted here, as a public one would be; where it leads to is not."""
    model_hub.spoil(redirect=target)
    settings = CacheSettings(hf_endpoint=model_hub.url)

    with pytest.raises(InvalidInputError):
        fetched({"mask": url}, Limits.of(settings))


def test_a_redirect_without_end_is_an_error(model_hub: Hub, url: str) -> None:
    model_hub.spoil(redirect="loop", times=-1)

    with pytest.raises(SourceUnavailableError, match="more than 5 times"):
        fetched({"mask": url})
    assert len(model_hub.requests) == 6


def test_only_allowed_hosts_are_asked(model_hub: Hub, url: str) -> None:
    limits = Limits(stall_s=5, allow_private_hosts=True, allowed_hosts=("images.example",))

    with pytest.raises(InvalidInputError, match=r"may not be fetched from 127\.0\.0\.1"):
        fetched({"mask": url}, limits)
    assert model_hub.requests == []


@pytest.mark.parametrize("how", [{}, {"chunked": True}, {"no_length": True}])
def test_what_is_too_large_is_refused(model_hub: Hub, url: str, how: dict[str, Any]) -> None:
    (model_hub.root / "p.png").write_bytes(bytes(50_000_000))
    model_hub.spoil(**how)

    with pytest.raises(InvalidInputError, match="more than 1000 bytes") as caught:
        fetched({"mask": url})
    assert caught.value.details["limit_bytes"] == 1000
    assert model_hub.requests[0].complete is False


def test_all_together_have_one_limit(url: str) -> None:
    budget = Budget(max_bytes=1999, max_s=10)

    with pytest.raises(InvalidInputError, match="more than 1999 bytes"):
        fetched({"mask": url, "latent_mask": url}, budget=budget)
    assert len(fetched({"mask": url}, budget=budget)["mask"]) == 1000


@pytest.mark.parametrize(
    ("status", "error"),
    [
        pytest.param(401, InvalidInputError, id="login"),
        pytest.param(404, InvalidInputError, id="nothing there"),
        pytest.param(429, SourceQuotaError, id="too many requests"),
        pytest.param(503, SourceUnavailableError, id="down"),
    ],
)
def test_a_refusal_names_the_field_and_no_secret(
    model_hub: Hub, url: str, status: int, error: type[WorkerError]
) -> None:
    model_hub.spoil(status=status, times=-1)

    with pytest.raises(error, match=str(status)) as caught:
        fetched({"mask": f"{url}?sig=planted-secret"})
    assert caught.value.details["field"] == "mask"
    assert str(caught.value).startswith("`mask`: 127.0.0.1/p.png answered")
    assert "planted-secret" not in str(caught.value.as_response())


@pytest.mark.parametrize(
    "how",
    [pytest.param({"status": 503}, id="busy"), pytest.param({"cut": 10}, id="broken connection")],
)
def test_what_passes_is_tried_again(model_hub: Hub, url: str, how: dict[str, Any]) -> None:
    model_hub.spoil(**how)

    assert len(fetched({"mask": url})["mask"]) == 1000


def test_a_connection_that_always_breaks_is_an_error(model_hub: Hub, url: str) -> None:
    model_hub.spoil(cut=10, times=-1)

    with pytest.raises(DownloadIncompleteError):
        fetched({"mask": url})


@pytest.mark.parametrize(
    "how",
    [
        pytest.param({"delay_s": 60}, id="no answer"),
        pytest.param({"rate": 100}, id="a drip"),
        pytest.param({"rate": 100, "no_length": True}, id="a drip of no known end"),
        pytest.param({"stall": 10, "no_length": True}, id="silence in the midst"),
    ],
)
def test_a_slow_host_has_no_more_time_than_there_is(
    model_hub: Hub, url: str, how: dict[str, Any]
) -> None:
    model_hub.spoil(times=-1, **how)
    started = time.monotonic()

    with pytest.raises(DownloadBudgetExceededError, match=r"0\.5 s"):
        fetched({"mask": url}, budget=Budget(1000, 0.5))
    assert time.monotonic() - started < 20


def test_a_cancelled_job_waits_for_no_host(url: str) -> None:
    cancelled = threading.Event()
    timer = threading.Timer(0.2, cancelled.set)
    timer.start()
    started = time.monotonic()

    with deaf() as silent, pytest.raises(JobCancelledError):
        fetched({"mask": silent, "latent_mask": url}, cancelled=cancelled)
    assert time.monotonic() - started < 20
    timer.join()


def test_a_job_that_is_cancelled_between_two_tries_does_not_wait_for_the_next(
    model_hub: Hub, url: str
) -> None:
    model_hub.spoil(status=503, times=-1)
    cancelled = threading.Event()
    timer = threading.Timer(0.2, cancelled.set)
    timer.start()
    started = time.monotonic()

    with pytest.raises(JobCancelledError):
        fetched({"mask": url}, budget=Budget(1000, 60, waits_s=(30.0,)), cancelled=cancelled)
    assert time.monotonic() - started < 10
    timer.join()


def test_a_host_that_is_started_anew_has_as_long_as_that_takes() -> None:
    budget = Budget(max_bytes=1000, max_s=60)

    assert 10 < sum(budget.waits_s) < budget.patience_s < 20
    assert list(budget.waits_s) == sorted(budget.waits_s)


# So long that a test that waits for a second try fails.
PATIENT = Budget(max_bytes=1000, max_s=60, waits_s=(30.0,))
PROMPT_S = 10


def require_given_up(
    url: str, budget: Budget, words: str, error: type[WorkerError] = InvalidInputError
) -> WorkerError:
    """See that a host is asked once, though it could be asked again after half a minute."""
    started = time.monotonic()
    with pytest.raises(error, match=words) as caught:
        fetched({"mask": url}, budget=budget)
    assert time.monotonic() - started < PROMPT_S
    return caught.value


def test_a_name_that_no_host_has_is_looked_up_once() -> None:
    # Whoever asks for it hears of no such name. Source: RFC 6761 section 6.4.
    error = require_given_up("https://hub.invalid/p.png", PATIENT, "names a host that there is not")

    assert error.hint == "Is the URL right?"


def test_a_host_with_a_certificate_of_its_own_making_is_asked_once(tmp_path: Path) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(*self_signed(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as threads:
        asked = threads.submit(refused_handshake, listener, tls)
        require_given_up(f"https://127.0.0.1:{listener.getsockname()[1]}/p", PATIENT, "certificate")

        assert asked.result() == "TLSV1_ALERT_UNKNOWN_CA"


def refused_handshake(listener: socket.socket, tls: ssl.SSLContext) -> str:
    """Take one connection and return why its client wants none of it."""
    connection, _ = listener.accept()
    with connection, pytest.raises(ssl.SSLError) as refused:
        tls.wrap_socket(connection, server_side=True).recv(1)
    return str(refused.value.reason)


def test_a_host_that_wants_more_patience_than_there_is_gets_none(model_hub: Hub, url: str) -> None:
    model_hub.spoil(status=429, retry_after=f"{PATIENT.patience_s + 1:.0f}", times=-1)

    require_given_up(url, PATIENT, "answered 429", SourceQuotaError)
    assert len(model_hub.requests) == 1


def test_a_host_that_takes_no_connection_until_the_patience_is_over_is_not_asked_again() -> None:
    budget = Budget(max_bytes=1000, max_s=60, waits_s=(30.0,), patience_s=0.1)

    with deaf() as silent:
        started = time.monotonic()
        with pytest.raises(SourceUnavailableError, match="could not be reached"):
            fetched({"mask": silent}, Limits(stall_s=0.3, allow_private_hosts=True), budget)
        assert time.monotonic() - started < PROMPT_S


def test_a_picture_that_broke_off_is_asked_for_again_however_long_it_took(
    model_hub: Hub, url: str
) -> None:
    model_hub.spoil(cut=10)

    budget = Budget(max_bytes=1000, max_s=60, waits_s=(0.0,), patience_s=0.0)
    assert len(fetched({"mask": url}, budget=budget)["mask"]) == 1000


def test_one_failure_ends_the_wait_for_the_others(model_hub: Hub, url: str) -> None:
    model_hub.spoil(delay_s=60, path="/slow")
    started = time.monotonic()

    with pytest.raises(InvalidInputError, match="404") as caught:
        fetched({"mask": f"{model_hub.url}/slow", "latent_mask": f"{url}.gone"})
    assert caught.value.details["field"] == "latent_mask"
    assert time.monotonic() - started < 20
