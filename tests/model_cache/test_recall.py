"""Models that infotexts name, on a volume and on a host that answers like Civitai."""

import json
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from model_cache.cache import ModelCache
from model_cache.engine.download import Allowance
from model_cache.models import Ensured
from model_cache.recall import Recall
from schemas.errors import JobCancelledError, ModelNotFoundError, SourceUnavailableError
from schemas.model_ref import Kind, Recalled
from schemas.settings import CacheSettings
from simulator import models
from tests.model_cache.conftest import Hub, settings_for


@pytest.fixture
def settings(volume: Path, model_hub: Hub) -> CacheSettings:
    return settings_for(volume, civitai_endpoint=model_hub.url)


def recalled(settings: CacheSettings, kind: Kind, name: str, digest: str | None) -> Ensured:
    recall = Recall(ModelCache(settings), settings, {}, Allowance.of(settings))
    return recall.ensure(Recalled(kind=kind, name=name, hash=digest), cancelled=Event())


def brought(volume: Path, name: str, seed: str = "", **more: Any) -> str:
    """Put a LoRA on the volume as people do, and return its SHA-256."""
    path = volume / "models" / "loras" / f"{name}.safetensors"
    return models.write_lora(path, seed=seed or name, **more)


def on_civitai(hub: Hub, *, hashes: dict[str, str] | None = None) -> str:
    """Offer a LoRA as version 7, and return its SHA-256."""
    folder = hub.root / "civitai" / "7"
    sha256 = models.write_lora(folder / "ink_v2.safetensors", seed="ink")
    known = {"SHA256": sha256.upper(), "AutoV2": sha256[:10].upper(), **(hashes or {})}
    files = {"ink_v2.safetensors": {"hashes": known}}
    (folder / "simulator.json").write_text(json.dumps({"modelId": 99, "files": files}))
    return sha256


def adopted(settings: CacheSettings) -> ModelCache:
    cache = ModelCache(settings)
    for model in cache.models(Kind.LORA):
        cache.adopt(model, cancelled=Event())
    return cache


def test_a_hash_says_which_file_it_is_whatever_it_is_called(
    volume: Path, settings: CacheSettings
) -> None:
    brought(volume, "renamed", "ink")
    brought(volume, "ink", "another")
    cache = adopted(settings)
    model = cache.find(Kind.LORA, "renamed")
    assert model is not None

    found = recalled(settings, Kind.LORA, "ink", model.autov3)

    assert (found.model.name, found.checked) == ("renamed", "autov3")
    assert found.warnings[-1] == (
        f"The infotext's lora `ink` is `renamed` here, found by its hash {model.autov3}."
    )
    assert sorted(path.name for path in (volume / "models" / "loras").iterdir()) == [
        "ink.safetensors",
        "renamed.safetensors",
    ]


def test_a_file_that_nobody_hashed_is_hashed_when_it_has_the_name(
    volume: Path, settings: CacheSettings
) -> None:
    sha256 = brought(volume, "ink")

    assert recalled(settings, Kind.LORA, "ink", sha256[:10]).model.sha256 == sha256


def test_a_name_without_a_hash_is_enough(volume: Path, settings: CacheSettings) -> None:
    brought(volume, "ink")

    found = recalled(settings, Kind.LORA, "ink", None)

    assert found.model.name == "ink"
    assert found.warnings[-1].endswith("found by its name alone.")


def test_a_name_without_a_hash_may_be_an_alias(
    volume: Path, settings: CacheSettings, model_hub: Hub
) -> None:
    models.write_lora(model_hub.root / "ink.safetensors", seed="ink")
    (volume / "models").mkdir()
    aliases = {"My Ink": f"{model_hub.url}/ink.safetensors"}
    (volume / "models" / "aliases.json").write_text(json.dumps(aliases))

    assert recalled(settings, Kind.LORA, "My Ink", None).model.name == "ink"


def test_the_hash_that_a_loras_header_notes_counts_as_a1111_lists_that(
    volume: Path, settings: CacheSettings
) -> None:
    brought(volume, "ink", metadata={"sshs_model_hash": "0" * 64})

    assert recalled(settings, Kind.LORA, "ink", "0" * 12).model.name == "ink"


def test_an_embedding_gets_the_name_that_the_prompt_says(
    volume: Path, settings: CacheSettings
) -> None:
    path = volume / "models" / "embeddings" / "renamed.safetensors"
    sha256 = models.write_embedding(path, seed="neg")
    cache = ModelCache(settings)
    cache.adopt(cache.models(Kind.EMBEDDING)[0], cancelled=Event())

    found = recalled(settings, Kind.EMBEDDING, "easyneg", sha256[:12])

    assert found.model.name == "easyneg"


@pytest.mark.parametrize("form", ["SHA256", "AutoV2", "AutoV3"])
def test_what_is_not_here_is_fetched_from_civitai_by_its_hash(
    volume: Path, settings: CacheSettings, model_hub: Hub, form: str
) -> None:
    autov3 = adopted_autov3(volume, settings)
    sha256 = on_civitai(model_hub, hashes={"AutoV3": autov3.upper()})
    brought(volume, "ink", "another version")
    digest = {"SHA256": sha256, "AutoV2": sha256[:10], "AutoV3": autov3}[form]

    found = recalled(settings, Kind.LORA, "ink", digest)

    assert found.model.sha256 == sha256
    assert found.model.name == f"ink-{sha256[:8]}"
    assert not found.cached
    assert recalled(settings, Kind.LORA, "ink", digest).cached


def adopted_autov3(volume: Path, settings: CacheSettings) -> str:
    """Return the AutoV3 of the file that `on_civitai` offers, which is not left here."""
    path = volume / "models" / "loras" / "probe.safetensors"
    models.write_lora(path, seed="ink")
    model = adopted(settings).find(Kind.LORA, "probe")
    assert model is not None
    path.unlink()
    return model.autov3


@pytest.mark.parametrize(
    ("digest", "hint"),
    [
        pytest.param("0123456789", "Civitai knows no file", id="unknown there too"),
        pytest.param(None, "It gives no hash", id="no hash"),
    ],
)
def test_what_is_nowhere_is_told_as_the_infotext_says_it(
    volume: Path, settings: CacheSettings, digest: str | None, hint: str
) -> None:
    (volume / "models").mkdir(parents=True, exist_ok=True)

    with pytest.raises(ModelNotFoundError, match="names the checkpoint `night`") as caught:
        recalled(settings, Kind.CHECKPOINT, "night", digest)
    assert hint in caught.value.hint
    assert caught.value.details["hash"] == digest


def test_another_version_of_the_name_is_told_with_its_hash(
    volume: Path, settings: CacheSettings
) -> None:
    sha256 = brought(volume, "ink")

    with pytest.raises(ModelNotFoundError) as caught:
        recalled(settings, Kind.LORA, "ink", "0123456789")
    assert f"`ink` here has the hash {sha256[:10]}" in caught.value.hint


def test_a_host_that_may_not_be_asked_is_not_asked(volume: Path, model_hub: Hub) -> None:
    settings = settings_for(volume, civitai_endpoint=model_hub.url, allowed_hosts=("h.example",))

    with pytest.raises(ModelNotFoundError) as caught:
        recalled(settings, Kind.LORA, "ink", "0123456789")
    assert "Civitai was not asked" in caught.value.hint
    assert model_hub.requests == []


@pytest.mark.slow  # it is asked three times
def test_a_host_that_is_down_is_no_answer(settings: CacheSettings, model_hub: Hub) -> None:
    model_hub.spoil(path="/api/v1/*", times=9, status=503)

    with pytest.raises(SourceUnavailableError):
        recalled(settings, Kind.LORA, "ink", "0123456789")


def test_a_version_that_no_longer_lists_the_file_is_not_taken(
    settings: CacheSettings, model_hub: Hub
) -> None:
    sha256 = on_civitai(model_hub)
    marks = model_hub.root / "civitai" / "7" / "simulator.json"
    marks.write_text(json.dumps({"model": {"name": "x", "type": "LORA", "mode": "Archived"}}))

    with pytest.raises(ModelNotFoundError):
        recalled(settings, Kind.LORA, "ink", sha256[:10])


def test_a_cancel_ends_the_search(settings: CacheSettings) -> None:
    cancelled = Event()
    cancelled.set()
    recall = Recall(ModelCache(settings), settings, {}, Allowance.of(settings))

    with pytest.raises(JobCancelledError):
        recall.ensure(Recalled(kind=Kind.LORA, name="ink", hash="0123456789"), cancelled=cancelled)
