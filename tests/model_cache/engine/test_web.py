import socket
import threading
import time
from collections.abc import Callable

import pytest

from model_cache.engine import guard
from model_cache.engine.answers import TryAgainError
from model_cache.engine.web import Web
from model_cache.hosts.urls import origin
from schemas.errors import InvalidInputError, JobCancelledError
from tests.model_cache.asking import deaf
from tests.model_cache.conftest import Hub


def anything() -> None:
    return


def web(require: Callable[[], None] = anything, *allowed: str) -> Web:
    return Web(stall_s=30, allow_private_hosts=True, require=require, allowed_hosts=allowed)


@pytest.fixture
def url(model_hub: Hub) -> str:
    (model_hub.root / "m").write_bytes(b"0123456789")
    return f"{model_hub.url}/m"


@pytest.mark.parametrize("allowed", ["127.0.0.1", "0.0.1"])
def test_an_allowed_host_and_its_sub_domains_are_asked(url: str, allowed: str) -> None:
    asking = web(anything, allowed)

    with asking.watching():
        assert asking.ask(url).response.content == b"0123456789"


def test_another_host_is_refused_and_not_asked(model_hub: Hub, url: str) -> None:
    with pytest.raises(InvalidInputError, match=r"from 127\.0\.0\.1\."):
        web(anything, "models.example").ask(url)

    assert model_hub.requests == []


def test_where_an_allowed_host_leads_may_be_asked_again(model_hub: Hub, url: str) -> None:
    asking = web(anything, "localhost")
    first = asking.ask(url.replace("127.0.0.1", "localhost").replace("/m", "/redirect/m"))

    again = asking.ask_again(first.url, first.authorization, {"Range": "bytes=3-4"})

    assert again.url == first.url != url
    assert again.response.content == b"34"
    assert [request.host for request in model_hub.requests] == ["hub", "cdn", "cdn"]
    first.response.close()
    asking.close()


def test_a_redirect_is_returned_as_it_is_where_none_is_followed(url: str) -> None:
    answer = web().ask(url.replace("/m", "/redirect/m"), redirects=0)

    assert answer.response.status_code == 302
    answer.response.close()


def test_an_answer_shows_neither_its_signature_nor_its_token(url: str) -> None:
    answer = web().ask(f"{url}?sig=signed-secret", authorization="Bearer token-secret")

    assert "secret" not in repr((answer.url and answer,))
    answer.response.close()


def test_a_wait_for_a_silent_host_ends_with_the_job(model_hub: Hub, url: str) -> None:
    model_hub.spoil(delay_s=60)
    over = threading.Event()

    def require() -> None:
        if over.is_set():
            raise JobCancelledError("Over.")

    asking = web(require)
    timer = threading.Timer(0.2, over.set)
    timer.start()
    started = time.monotonic()

    with asking.watching(), pytest.raises(JobCancelledError):
        asking.ask(url)

    assert time.monotonic() - started < 15
    timer.join()


def test_a_closed_web_opens_no_connection(model_hub: Hub, url: str) -> None:
    asking = web()
    asking.close()

    with pytest.raises(TryAgainError):
        asking.ask(url)

    assert model_hub.requests == []


def guarded(*trusted: str) -> Web:
    return Web(stall_s=5, require=anything, trusted_origins=frozenset(map(origin, trusted)))


def test_a_trusted_origin_may_be_private_and_without_tls(url: str) -> None:
    asking = guarded(url)

    with asking.watching():
        assert asking.ask(url).response.content == b"0123456789"
        again = asking.ask_again(url, "", {"Range": "bytes=3-4"})
        assert again.response.content == b"34"


def test_a_trusted_origin_may_redirect_within_itself(model_hub: Hub, url: str) -> None:
    model_hub.spoil(redirect=url, path="/start")
    asking = guarded(url)

    with asking.watching():
        assert asking.ask(url.replace("/m", "/start")).response.content == b"0123456789"


def test_another_port_of_a_trusted_host_is_not_trusted(url: str) -> None:
    trusted = url.rpartition(":")[0] + ":1"

    with pytest.raises(InvalidInputError):
        guarded(trusted).ask(url)


def test_where_a_trusted_origin_redirects_to_is_not_trusted(model_hub: Hub, url: str) -> None:
    elsewhere = url.replace("127.0.0.1", "localhost")
    model_hub.spoil(redirect=elsewhere, path="/start")

    with pytest.raises(InvalidInputError):
        guarded(url, elsewhere).ask(url.replace("/m", "/start"))

    assert [request.path for request in model_hub.requests] == ["/start"]


def test_a_redirect_to_a_trusted_origin_opens_nothing_for_another(
    model_hub: Hub, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "is_public", "::1".__eq__)
    asking = guarded(url)
    asking._schemes = {"http"}  # There is no public host here that has a certificate.
    assert asking.ask(url).response.content == b"0123456789"  # A connection is kept.

    with socket.create_server(("::1", 0), family=socket.AF_INET6) as public:

        def lead_back() -> None:
            connection, _ = public.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(f"HTTP/1.1 302 Found\r\nLocation: {url}\r\n\r\n".encode())

        leading = threading.Thread(target=lead_back, daemon=True)
        leading.start()
        with pytest.raises(InvalidInputError, match=r"127\.0\.0\.1.* not at a public address"):
            asking.ask(f"http://[::1]:{public.getsockname()[1]}/m")
        leading.join()

    assert len(model_hub.requests) == 1
    asking.close()


def test_a_host_that_makes_no_connection_does_not_hold_a_web_that_is_closed() -> None:
    asking = web()
    threading.Timer(0.2, asking.close).start()
    started = time.monotonic()

    with deaf() as url, pytest.raises(TryAgainError):
        asking.ask(url)

    assert time.monotonic() - started < 15
