import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from model_cache.cache import ModelCache
from schemas.model_ref import Kind, ModelRef
from schemas.settings import CacheSettings, SettingsError
from simulator import models as files
from tests.conftest import Simulator, running
from worker.machine import preload

LORA = ModelRef(kind=Kind.LORA, url="https://example.org/x.safetensors")


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Simulator]:
    root = tmp_path / "hub"
    files.write_lora(root / "x.safetensors", seed="x", size_bytes=300_000)
    with running("hub", "--root", root) as simulator:
        yield simulator


@pytest.fixture
def cache(tmp_path: Path) -> ModelCache:
    volume = tmp_path / "volume"
    volume.mkdir()
    return ModelCache(CacheSettings(volume=volume, allow_private_hosts=True))


def test_models_are_listed_in_the_setting_or_in_a_file(tmp_path: Path) -> None:
    listed = tmp_path / "models.txt"
    listed.write_text("lora https://example.org/x.safetensors\n")

    assert preload.wanted("") == ()
    assert preload.wanted(str(listed)) == (LORA,)
    assert preload.wanted("lora https://example.org/x.safetensors; vae sharp") == (
        LORA,
        ModelRef(kind=Kind.VAE, name="sharp"),
    )


@pytest.mark.parametrize("text", ["lora", "/no/such/file", "model x"])
def test_what_is_no_list_of_models_is_a_wrong_setting(text: str) -> None:
    with pytest.raises(SettingsError, match="A1111_CACHE_PRELOAD"):
        preload.wanted(text)


@pytest.mark.slow
def test_what_can_be_fetched_is_there_afterwards_and_the_rest_is_logged(
    cache: ModelCache, hub: Simulator, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    here = ModelRef(kind=Kind.LORA, url=f"{hub.url}/x.safetensors")
    gone = ModelRef(kind=Kind.LORA, url=f"{hub.url}/gone.safetensors")

    work = preload.Preload(cache, [gone, here])
    work.wait()
    work.stop()

    assert [model.name for model in cache.models(Kind.LORA)] == ["x"]
    assert "Preload: the lora x fetched in" in caplog.text
    assert "gone.safetensors failed: MODEL_NOT_FOUND" in caplog.text


@pytest.mark.slow
def test_a_worker_that_ends_leaves_what_has_not_come(cache: ModelCache, hub: Simulator) -> None:
    slow = ModelRef(kind=Kind.LORA, url=f"{hub.url}/x.safetensors?fault-rate=1000")

    preload.Preload(cache, [slow]).stop()

    assert cache.models(Kind.LORA) == ()
