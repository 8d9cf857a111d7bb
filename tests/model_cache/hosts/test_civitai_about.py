import json
import threading
from typing import Any

import pytest

from model_cache import about
from model_cache.engine.download import Allowance
from model_cache.hosts import civitai, civitai_about
from model_cache.turns import Errand
from schemas.errors import (
    InvalidInputError,
    ModelAccessDeniedError,
    ModelNotFoundError,
    SourceUnavailableError,
)
from schemas.model_ref import Kind
from simulator import models
from tests.model_cache.asking import asker_for
from tests.model_cache.conftest import Hub, Shelf, settings_for, shelf_on


def put(hub: Hub, version: int, **marks: Any) -> None:
    folder = hub.root / "civitai" / str(version)
    models.write_lora(folder / "style.safetensors", seed=str(version))
    (folder / "simulator.json").write_text(json.dumps({"modelId": 99, **marks}))


def asked(hub: Hub, url: str) -> dict[str, Any]:
    asker = asker_for(hub)
    reference = civitai.read(url, asker.settings)
    assert reference is not None
    try:
        return civitai_about.by_reference(reference, asker)
    finally:
        asker.web.close()


def by_hash(hub: Hub, digest: str) -> dict[str, Any]:
    asker = asker_for(hub)
    try:
        return civitai_about.by_hash(digest, asker)
    finally:
        asker.web.close()


def test_a_page_tells_all_versions_and_a_version_itself_alone(model_hub: Hub) -> None:
    put(model_hub, 7, trainedWords=["ink", "style"], baseModel="SDXL 1.0")
    put(model_hub, 8, model={"name": "Ink", "type": "LORA"})

    page = asked(model_hub, "civitai:model:99")
    version = asked(model_hub, "civitai:version:7")

    assert page["model"] == {"id": 99, "name": "Ink", "type": "LORA"}
    assert [one["id"] for one in page["versions"]] == [8, 7]
    (told,) = version["versions"]
    assert (told["base_model"], told["trained_words"]) == ("SDXL 1.0", ["ink", "style"])
    (file,) = told["files"]
    assert (file["kind"], file["name"], file["primary"]) == ("lora", "style.safetensors", True)
    assert file["url"] == "civitai:version:7:file:700"
    assert file["size_bytes"] == (model_hub.root / "civitai/7/style.safetensors").stat().st_size


def test_a_file_is_known_by_any_of_its_hashes(model_hub: Hub) -> None:
    put(model_hub, 7)
    hashes = asked(model_hub, "civitai:version:7")["versions"][0]["files"][0]["hashes"]

    for digest in hashes.values():
        assert by_hash(model_hub, digest)["versions"][0]["id"] == 7
    with pytest.raises(ModelNotFoundError) as refused:
        by_hash(model_hub, "0" * 64)
    assert refused.value.details["field"] == "hash"
    model_hub.spoil(status=403)
    with pytest.raises(ModelAccessDeniedError, match="403"):
        by_hash(model_hub, "0" * 64)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("trainedWords", "ink"),
        ("trainedWords", [1, None, "x" * 9999]),
        ("name", 5),
        ("files", {"style.safetensors": {"id": "5"}}),
        ("files", {"style.safetensors": {"sizeKB": 1e999, "hashes": ["x"], "name": None}}),
        ("model", {"name": "x" * 9999, "type": {}}),
    ],
)
def test_an_answer_of_another_shape_is_told_without_what_cannot_be_meant(
    model_hub: Hub, field: str, value: Any
) -> None:
    put(model_hub, 7, **{field: value})

    told = asked(model_hub, "civitai:version:7")

    assert len(json.dumps(told, allow_nan=False)) < 3000
    assert [one["id"] for one in told["versions"]] == [7]


@pytest.mark.parametrize("url", ["civitai:version:7", "civitai:model:99"])
def test_an_answer_that_is_none_of_civitais_is_no_model_without_files(
    model_hub: Hub, url: str
) -> None:
    put(model_hub, 7)
    model_hub.spoil(json_error=True)

    with pytest.raises(SourceUnavailableError, match="has no `"):
        asked(model_hub, url)


def test_what_is_here_is_marked_by_hash_and_by_source(model_hub: Hub, shelf: Shelf) -> None:
    put(model_hub, 7)
    put(model_hub, 8)
    settings = settings_for(shelf.volume, civitai_endpoint=model_hub.url)
    cache = shelf_on(shelf.volume, civitai_endpoint=model_hub.url)
    cache.ensure(Kind.LORA, url="civitai:version:7", name="ink")
    errand = Errand(threading.Event(), Allowance.of(settings))

    told = about.of_url("https://civitai.com/models/99", settings, errand, {})
    about.mark_present(told, cache.cache)

    here = {one["id"]: one["files"][0]["here"] for one in told["versions"]}
    assert here == {7: [{"kind": "lora", "name": "ink"}], 8: []}
    with pytest.raises(InvalidInputError, match="no model of Civitai"):
        about.of_url("https://example.org/x", settings, errand, {})
