"""Civitai and Hugging Face that refuse, fail, or let a link expire: one clear error, or right bytes."""

import json
import threading
from typing import Any

import pytest

from schemas.errors import (
    ModelAccessDeniedError,
    ModelNotFoundError,
    SourceQuotaError,
    SourceUnavailableError,
    WorkerError,
)
from simulator.hub.faults import Fault, Rule
from tests.chaos.conftest import MIB, Chaos, Model, World
from tests.chaos.outcomes import outcome, require_no_harm
from tests.chaos.soundness import private, visible
from tests.chaos.worker import Pace
from tests.model_cache.conftest import Shelf

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("pace")]

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
    # Two seconds for all of it: it is not all there when the links expire.
    world.spoil(rate=MIB // 8)

    def expire() -> None:
        world.wait_until_sent(model, MIB // 8)
        world.hub.site.links._secret = b"of links that are made from now on"
        world.mend()

    expiring = threading.Thread(target=expire)
    expiring.start()
    error = outcome(shelf, model.url)
    expiring.join()

    assert error is None
    signed = [entry for entry in world.hub.requests if entry.host == "cdn"]
    assert any(entry.status == 403 for entry in signed)
    assert world.sent(model) < 1.5 * MIB
    require_no_harm(world, shelf, model)
