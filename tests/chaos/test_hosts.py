"""Hosts that break off, lie and change their mind: right bytes or one clear error, and no trace."""

import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import (
    DownloadIncompleteError,
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
from tests.chaos.outcomes import outcome, require_no_harm
from tests.chaos.soundness import private, require_right_bytes, visible
from tests.chaos.worker import Pace
from tests.model_cache.conftest import Shelf

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("pace")]

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
