import logging
import socket
import threading
import time

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from model_cache.engine.guard import BlockedAddressError, WebSession, is_public
from tests.model_cache.conftest import Hub


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("::ffff:8.8.8.8", True),
        ("2002:0808:0808::1", True),
        ("64:ff9b::808:808", True),
        ("127.0.0.1", False),
        ("0.0.0.0", False),  # noqa: S104 - an address to refuse
        ("10.0.0.1", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("100.64.0.1", False),
        ("169.254.169.254", False),
        ("224.0.0.1", False),
        ("240.0.0.1", False),
        ("168.63.129.16", False),
        ("168.63.129.17", True),
        ("192.88.99.1", False),
        ("::ffff:168.63.129.16", False),
        ("64:ff9b::c058:6301", False),
        ("255.255.255.255", False),
        ("::", False),
        ("::1", False),
        ("::127.0.0.1", False),
        ("fe80::1%eth0", False),
        ("fec0::1", False),
        ("fd00::1", False),
        ("ff02::1", False),
        ("::ffff:10.0.0.1", False),
        ("2002:7f00:1::", False),
        ("64:ff9b::7f00:1", False),
        ("2001:0:4136:e378:8000:63bf:f5ff:fffe", False),
    ],
)
def test_an_address_is_public_or_not(address: str, *, public: bool) -> None:
    assert is_public(address) is public


@given(st.ip_addresses(v=4))
def test_an_address_inside_of_another_is_judged_like_itself(address: object) -> None:
    number = int(address)  # type: ignore[call-overload]
    mapped = f"::ffff:{number >> 16:x}:{number & 0xFFFF:x}"

    assert is_public(mapped) is is_public(str(address))


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "localhost", "localhost.", "LOCALHOST", "127.1", "2130706433"),
        *("0x7f000001", "0177.0.0.1", "0.0.0.0", "[::ffff:127.0.0.1]", "%6cocalhost"),  # noqa: S104
    ],
)
def test_no_spelling_of_a_private_host_is_asked(model_hub: Hub, host: str) -> None:
    port = model_hub.url.rpartition(":")[2]

    with WebSession(allow_private=False) as session, pytest.raises(BlockedAddressError):
        session.get(f"http://{host}:{port}/x", timeout=5)

    assert model_hub.requests == []


def test_a_private_port_that_nobody_listens_on_looks_like_one_that_is_open() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]

    with WebSession(allow_private=False) as session, pytest.raises(BlockedAddressError):
        session.get(f"https://127.0.0.1:{port}/x", timeout=5)


def test_a_name_that_turns_private_after_the_check_is_caught_at_the_socket(
    model_hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve = socket.getaddrinfo
    answers = iter(["8.8.8.8", "127.0.0.1"])

    def rebinding(_host: object, *rest: object, **more: object) -> object:
        return resolve(next(answers), *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    port = model_hub.url.rpartition(":")[2]

    with (
        WebSession(allow_private=False) as session,
        pytest.raises(BlockedAddressError, match=r"127\.0\.0\.1"),
    ):
        session.get(f"http://models.example:{port}/x", timeout=5)

    assert model_hub.requests == []


def test_a_name_that_does_not_resolve_is_no_private_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> object:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)

    with WebSession(allow_private=False) as session, pytest.raises(requests.ConnectionError):
        session.get("https://models.example/x", timeout=5)


def test_private_hosts_are_asked_where_that_is_allowed(model_hub: Hub) -> None:
    with WebSession(allow_private=True) as session:
        assert session.get(f"{model_hub.url}/x", timeout=5).status_code == 404


def test_proxies_of_the_environment_are_not_used(
    model_hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")

    with WebSession(allow_private=True) as session:
        assert session.get(f"{model_hub.url}/x", timeout=5).status_code == 404


def test_a_cut_ends_a_wait_for_a_silent_host(model_hub: Hub) -> None:
    model_hub.spoil(delay_s=60)
    started = time.monotonic()

    with WebSession(allow_private=True) as session:
        cutter = threading.Timer(0.2, session.cut)
        cutter.start()
        with pytest.raises(requests.ConnectionError):
            session.get(f"{model_hub.url}/x", timeout=30)
        cutter.join()

    assert time.monotonic() - started < 20


def test_no_url_gets_into_the_log(model_hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), WebSession(allow_private=True) as session:
        session.get(f"{model_hub.url}/x?token=secret-token", timeout=5)

    assert "secret-token" not in caplog.text
