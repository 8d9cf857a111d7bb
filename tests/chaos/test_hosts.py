"""Hosts that break off, lie, refuse and lead astray: right bytes or one clear error, and no trace."""

import json
import random
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from model_cache.engine import guard, web
from model_cache.engine.guard import WebSession
from schemas.errors import (
    DownloadIncompleteError,
    InvalidInputError,
    ModelAccessDeniedError,
    ModelCorruptError,
    ModelNotFoundError,
    ModelUnsafeError,
    SourceQuotaError,
    SourceUnavailableError,
    WorkerError,
)
from simulator import models
from simulator.hub.faults import Fault, Rule
from tests.chaos.conftest import MIB, Chaos, Model, World, wait_until
from tests.chaos.soundness import private, require_right_bytes, visible
from tests.chaos.worker import Pace
from tests.model_cache.conftest import Shelf

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("pace")]

SECRET = "planted-secret"


@pytest.fixture
def shelf(world: World) -> Iterator[Shelf]:
    settings = {
        "hf_endpoint": world.hub.url,
        "civitai_endpoint": world.hub.url,
        "hf_token": SECRET,
        "civitai_token": SECRET,
        "stall_s": 0.6,
    }
    shelf = world.shelf(**settings)
    yield shelf
    shelf.cache.close()


def outcome(shelf: Shelf, url: str, name: str = "x", digest: str = "") -> WorkerError | None:
    """Return the error that an `ensure` ends in, None if it does not; any other is a failure."""
    try:
        shelf.ensure(name=name, url=url, hash=digest)
    except WorkerError as error:
        require_clear(error)
        return error
    return None


def require_clear(error: WorkerError) -> None:
    """It says what happened under its code, and shows nothing that is secret."""
    text = error.as_response()["error"]
    assert text.startswith(f"{error.code}: ")
    assert str(error).endswith(".")
    assert SECRET not in text
    assert "X-Signature" not in text


def require_no_harm(world: World, shelf: Shelf, model: Model, url: str = "") -> None:
    """What lies there is right, and once the host behaves the model can be had."""
    require_right_bytes(world.volume, world.hub.root)
    world.mend()
    done = shelf.ensure(name="x", url=url or model.url)
    assert done.model.sha256 == model.sha256
    shelf.cache.close()
    assert private(world.volume) == []
    world.require_sound()


# What a host does, and the error if it does so each time; None where the file can be had all the
# same.
WAYS: dict[str, tuple[dict[str, Any], type[WorkerError] | None]] = {
    "ranges ignored": ({"no_range": True}, None),
    "ranges shifted": ({"shift": 1000}, None),
    "ranges truncated": ({"short": 100_000}, None),
    "ranges over-long": ({"long": 70_000}, None),
    "bytes after the end": ({"junk": 4096}, None),
    "another ETag each time": ({"etag": "changing"}, None),
    "no ETag": ({"etag": "none"}, None),
    "a weak ETag": ({"etag": "weak"}, None),
    "chunks": ({"chunked": True}, None),
    "no Content-Length": ({"no_length": True}, None),
    "a Content-Length that is too large": ({"length": 1000}, DownloadIncompleteError),
    "a Content-Length that is too small": ({"length": -1000}, ModelCorruptError),
    "crumbs": ({"cut": 50_000}, DownloadIncompleteError),
    "cut off at once": ({"cut": 0}, DownloadIncompleteError),
    "no answer": ({"drop": True}, SourceUnavailableError),
    "silence in the middle": ({"stall": 100_000}, None),
    "gzip": ({"gzip": True}, ModelUnsafeError),
    "a web page": ({"html": True}, ModelUnsafeError),
    "a JSON text": ({"json_error": True}, ModelUnsafeError),
    "408": ({"status": 408}, SourceUnavailableError),
    "416": ({"status": 416}, ModelNotFoundError),
    "429": ({"status": 429, "retry_after": "0"}, SourceQuotaError),
    "429 for an hour": ({"status": 429, "retry_after": "3600"}, SourceQuotaError),
    "500": ({"status": 500}, SourceUnavailableError),
    "503": ({"status": 503}, SourceUnavailableError),
}


@pytest.mark.parametrize("how", WAYS)
def test_a_host_that_always_misbehaves_gives_right_bytes_or_one_clear_error(
    world: World, shelf: Shelf, chaos: Chaos, how: str
) -> None:
    model = world.model("m", MIB)
    fault, expected = WAYS[how]
    world.spoil(**fault)

    error = outcome(shelf, model.url)

    assert type(error) is (expected or type(None)), error
    assert len(visible(world.volume)) == (error is None)
    require_no_harm(world, shelf, model)
    chaos.tell("ways of a host to misbehave", 1, 1)


# One such answer is believed, whatever came before.
FINAL = {"gzip", "a web page", "a JSON text"}


def test_a_host_that_misbehaves_once_in_the_middle_gives_right_bytes_or_is_no_host_of_models(
    world: World, shelf: Shelf, chaos: Chaos
) -> None:
    for number, (how, (fault, _)) in enumerate(WAYS.items()):
        model = world.model(f"m{number}", MIB)
        rule = Rule(Fault(**fault), times=1, skip=1)
        world.hub.site.faults.rules.append(rule)
        before = len(visible(world.volume))

        error = outcome(shelf, model.url, f"x{number}")

        assert rule.hits == 1
        assert type(error) is (ModelUnsafeError if how in FINAL else type(None)), (how, error)
        assert len(visible(world.volume)) - before == (error is None)
        world.mend()
        again = shelf.ensure(name=f"x{number}", url=model.url)
        assert again.model.sha256 == model.sha256
        assert again.cached is (error is None)
        chaos.tell("ways of a host to misbehave once", 1, 1)
    shelf.cache.close()
    assert private(world.volume) == []
    world.require_sound()


def test_bytes_that_are_wrong_are_noticed_by_a_digest_and_never_kept(
    world: World, shelf: Shelf
) -> None:
    model = world.model("m", MIB)
    world.spoil(flip=600_000)

    error = outcome(shelf, model.url, digest=model.sha256)

    assert isinstance(error, ModelCorruptError)
    assert {error.details["expected"], error.details["actual"]} > {model.sha256}
    assert visible(world.volume) == private(world.volume) == []
    require_no_harm(world, shelf, model)


def test_a_host_that_drops_connections_at_random_bytes_gives_right_bytes(
    world: World, shelf: Shelf, chaos: Chaos, pace: Pace
) -> None:
    chance = random.Random(5)  # noqa: S311 - points in a file, no secrets

    for number in chaos.times("downloads with connections dropped at random bytes", 100):
        model = world.model(f"m{number}", MIB)
        for _ in range(8):
            cut = Fault(cut=chance.randrange(pace.segment_bytes))
            world.hub.site.faults.rules.append(Rule(cut, skip=chance.randrange(3)))

        assert outcome(shelf, model.url, f"x{number}") is None

        require_right_bytes(world.volume, world.hub.root)
        world.mend()
    shelf.cache.close()
    assert private(world.volume) == []
    world.require_sound()


def replace(model: Model, old: Path) -> str:
    """Put other bytes in the place of a model at its host; return their digest."""
    shutil.copy2(model.path, old)
    return models.write_lora(model.path, seed=old.name, size_bytes=model.size)


def test_a_file_that_changes_at_its_host_while_it_is_fetched_is_never_mixed(
    world: World, chaos: Chaos
) -> None:
    chance = random.Random(7)  # noqa: S311 - points in a file, no secrets
    for number in chaos.times("files that changed while they were fetched", 20, least=2):
        model = world.model(f"m{number}", MIB)
        world.spoil(rate=MIB)
        worker = world.worker(pace=Pace())
        worker.ask(name=f"x{number}", url=model.url)
        world.wait_until_sent(model, chance.randrange(MIB // 2))
        new = replace(model, world.hub.root / f"old{number}.safetensors")

        read = worker.answer()["read"]

        assert read in {new, model.sha256}
        assert worker.wait() == 0
        world.mend()
    world.require_sound()


def test_what_a_dead_worker_left_of_an_older_file_is_not_used(
    world: World, shelf: Shelf, pace: Pace
) -> None:
    model = world.model("m", MIB)
    world.spoil(skip=2, stall=0)
    worker = world.worker(pace=pace)
    worker.ask(name="x", url=model.url)
    world.wait_until_sent(model, MIB // 2)
    wait_until(lambda: any(path.suffix == ".json" for path in private(world.volume)))
    worker.kill()
    world.mend()
    new = replace(model, world.hub.root / "old.safetensors")
    before = world.sent(model)

    assert shelf.ensure(name="x", url=model.url).model.sha256 == new

    assert world.sent(model) - before >= model.size
    world.require_sound()


# What the companies' hosts refuse with: a mark at the host, or a status of one of its answers.
REFUSALS: dict[str, tuple[str, str | dict[str, Any], type[WorkerError]]] = {
    "civitai 401": ("urn:air", {"requires_token": True}, ModelAccessDeniedError),
    "civitai 403 early access": ("urn:air", {"answer": 403}, ModelAccessDeniedError),
    "civitai 404": ("urn:air", {"answer": 404}, ModelNotFoundError),
    "civitai 410 archived": ("urn:air", {"answer": 410}, ModelNotFoundError),
    "civitai unpublished": ("urn:air", {"status": "Draft"}, ModelNotFoundError),
    "civitai archived": ("urn:air", {"model": {"mode": "Archived"}}, ModelNotFoundError),
    "hf gated": ("hf:", ".gated", ModelAccessDeniedError),
    "hf private": ("hf:", ".private", ModelNotFoundError),
    "hf disabled": ("hf:", ".disabled", ModelAccessDeniedError),
}


def at_civitai(world: World) -> Model:
    """Put a model on the host as a version of a Civitai model."""
    model = world.model("civitai/5/m", MIB)
    return Model("urn:air:sd1:lora:civitai:5@5", model.sha256, model.size, model.path)


def at_hugging_face(world: World) -> Model:
    """Put a model on the host as a file of a repository."""
    model = world.model("huggingface/org/repo/m", MIB)
    return Model("hf:org/repo/m.safetensors", model.sha256, model.size, model.path)


@pytest.mark.parametrize("which", REFUSALS)
def test_a_refusal_of_a_company_is_one_clear_error_and_leaves_nothing(
    world: World, shelf: Shelf, chaos: Chaos, which: str
) -> None:
    form, mark, expected = REFUSALS[which]
    model = at_civitai(world) if form == "urn:air" else at_hugging_face(world)
    place = model.path.with_name(mark if isinstance(mark, str) else "simulator.json")
    place.write_text("" if isinstance(mark, str) else json.dumps(mark))

    error = outcome(shelf, model.url)

    assert type(error) is expected, error
    assert visible(world.volume) == private(world.volume) == []
    place.unlink()
    require_no_harm(world, shelf, model)
    chaos.tell("refusals of Civitai and Hugging Face", 1, 1)


STATUSES = {
    401: ModelAccessDeniedError,
    403: ModelAccessDeniedError,
    404: ModelNotFoundError,
    410: ModelNotFoundError,
    429: SourceQuotaError,
    500: SourceUnavailableError,
    503: SourceUnavailableError,
}


@pytest.mark.parametrize("host", ["hub", "cdn"])
@pytest.mark.parametrize("form", ["urn:air", "hf:"])
def test_a_status_of_a_company_or_of_what_lies_behind_it_is_one_clear_error(
    world: World, shelf: Shelf, chaos: Chaos, form: str, host: str
) -> None:
    model = at_civitai(world) if form == "urn:air" else at_hugging_face(world)
    for status, expected in STATUSES.items():
        fault = Fault(status=status, retry_after="0" if status == 429 else None)
        world.hub.site.faults.rules.append(Rule(fault, host=host, times=-1))

        error = outcome(shelf, model.url)

        assert type(error) is expected, (status, error)
        assert visible(world.volume) == private(world.volume) == []
        world.mend()
        chaos.tell("statuses of Civitai and Hugging Face", 1, 1)
    require_no_harm(world, shelf, model)


@pytest.mark.parametrize("form", ["urn:air", "hf:"])
def test_a_signed_link_that_expires_in_the_middle_is_asked_for_again(
    world: World, shelf: Shelf, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    Pace(segment_bytes=1 << 16).set(monkeypatch.setattr)
    model = at_civitai(world) if form == "urn:air" else at_hugging_face(world)
    world.spoil(rate=MIB // 2)

    def expire() -> None:
        world.wait_until_sent(model, MIB // 8)
        world.hub.site.links._secret = b"of links that are made from now on"

    expiring = threading.Thread(target=expire)
    expiring.start()
    error = outcome(shelf, model.url)
    expiring.join()

    assert error is None
    signed = [entry for entry in world.hub.requests if entry.host == "cdn"]
    assert any(entry.status == 403 for entry in signed)
    assert world.sent(model) < 1.5 * MIB
    require_no_harm(world, shelf, model)


# Redirects.


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
