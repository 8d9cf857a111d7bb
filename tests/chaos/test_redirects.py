"""Hosts that lead astray: nothing is sent into the network, and nothing is kept."""

import socket
from collections.abc import Iterator

import pytest

from model_cache.engine import guard, web
from model_cache.engine.guard import WebSession
from schemas.errors import (
    InvalidInputError,
    SourceUnavailableError,
    WorkerError,
)
from tests.chaos.conftest import MIB, World
from tests.chaos.outcomes import outcome, require_no_harm
from tests.chaos.soundness import private, visible
from tests.model_cache.conftest import Shelf

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("pace")]


@pytest.fixture
def inside() -> Iterator[socket.socket]:
    """A listener at an address inside of the network, which nobody must ever reach."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.2", 0))
        listener.listen()
        listener.setblocking(False)
        yield listener


@pytest.fixture
def _public_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let 127.0.0.1 pass for a public address, and no other of what is private."""
    is_public = guard.is_public
    monkeypatch.setattr(guard, "is_public", lambda ip: ip == "127.0.0.1" or is_public(ip))
    monkeypatch.setattr(web, "WebSession", lambda **_: WebSession(allow_private=False))


@pytest.mark.allow_hosts(["127.0.0.1", "127.0.0.2"])
@pytest.mark.usefixtures("_public_hub")
@pytest.mark.parametrize(
    "spelt",
    ["127.0.0.2", "2130706434", "0x7f000002", "0177.0.0.2", "127.2", "[::ffff:127.0.0.2]"],
)
@pytest.mark.parametrize("at", ["first", "in the middle"])
def test_a_redirect_into_the_network_is_refused_and_nothing_is_sent_there(
    world: World, shelf: Shelf, inside: socket.socket, spelt: str, at: str
) -> None:
    model = world.model("m", MIB)
    target = f"http://{spelt}:{inside.getsockname()[1]}/m.safetensors"
    world.spoil(redirect=target, skip=0 if at == "first" else 1)

    error = outcome(shelf, model.url)

    assert type(error) is InvalidInputError, error
    assert "public" in str(error)
    with pytest.raises(BlockingIOError):
        inside.accept()
    assert visible(world.volume) == private(world.volume) == []
    require_no_harm(world, shelf, model)


@pytest.mark.parametrize(
    ("redirect", "expected"),
    [
        ("loop", SourceUnavailableError),
        ("file", InvalidInputError),
        ("private", InvalidInputError),
        ("metadata", InvalidInputError),
        ("ftp://127.0.0.1/m.safetensors", InvalidInputError),
        ("http://127.0.0.1:0/m.safetensors", InvalidInputError),
        ("http://[::1/m.safetensors", InvalidInputError),
    ],
)
@pytest.mark.usefixtures("_public_hub")
def test_a_redirect_that_leads_nowhere_ends_in_an_error(
    world: World, shelf: Shelf, redirect: str, expected: type[WorkerError]
) -> None:
    model = world.model("m", MIB)
    world.spoil(redirect=redirect)

    error = outcome(shelf, model.url)

    assert type(error) is expected, error
    assert len(world.hub.requests) <= 6
    assert visible(world.volume) == private(world.volume) == []
    require_no_harm(world, shelf, model)
