"""The model store seen from outside: references, limits, secrets, through the real SDK loop."""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from model_cache.hosts.aliases import LOOK_EVERY_S
from simulator import models
from simulator.pickles import write_pickle
from tests.e2e.conftest import Stack, make_stack

pytestmark = pytest.mark.slow

OWN_TOKEN, SENT_TOKEN = "hf_planted_in_the_environment", "planted-in-the-request"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("store")
    repo = folder / "hub" / "huggingface" / "org" / "repo"
    models.write_checkpoint(repo / "base.safetensors", seed="base")
    models.write_lora(folder / "hub" / "civitai" / "456" / "style.safetensors", seed="style")
    with make_stack(
        folder,
        HF_ENDPOINT="{hub}",
        HF_TOKEN=OWN_TOKEN,
        A1111_CACHE_CIVITAI_ENDPOINT="{hub}",
        A1111_CACHE_PRELOAD="lora {hub}/model.safetensors name=preloaded; lora {hub}/gone",
    ) as made:
        made.until(lambda: bool(made.said("Preload: the lora preloaded")), "it is preloaded")
        yield made


def done(job: dict[str, Any]) -> dict[str, Any]:
    assert job["status"] == "COMPLETED", job.get("error")
    output: dict[str, Any] = job["output"]
    return output


def used(output: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {model["name"]: model for model in output["models"]}


def test_models_of_hugging_face_and_civitai_come_by_reference_and_are_kept(store: Stack) -> None:
    request = {
        "prompt": "a lighthouse",
        "checkpoint": "hf:org/repo/base.safetensors",
        "loras": ["urn:air:sd1:lora:civitai:456@456", "preloaded"],
        "tokens": {"civitai": SENT_TOKEN},
    }

    first, second = (used(done(store.runsync(request))) for _ in range(2))

    assert list(first) == ["base", "style", "preloaded"]
    assert [model["cached"] for model in first.values()] == [False, False, True]
    assert [model["cached"] for model in second.values()] == [True, True, True]
    digest = first["style"]["sha256"]
    short = {"name": "style", "hash": digest[:10]}
    checked = used(done(store.runsync({**request, "loras": [short]})))
    assert checked["style"]["checked"] == "autov2"


def test_an_alias_means_its_reference(store: Stack) -> None:
    aliases = store.volume / "models" / "aliases.json"
    time.sleep(LOOK_EVERY_S)
    aliases.write_text(json.dumps({"house style": "hf:org/repo/base.safetensors"}))

    output = done(store.runsync({"prompt": "a lighthouse", "checkpoint": "house style"}))

    assert list(used(output)) == ["base"]


def test_a_job_may_ask_for_less_than_the_settings_allow(store: Stack) -> None:
    models.write_lora(store.files / "large.safetensors", seed="large", size_bytes=500_000)
    request = {
        "prompt": "a lighthouse",
        "checkpoint": "hf:org/repo/base.safetensors",
        "loras": [f"{store.hub.url}/large.safetensors"],
        "max_download_gb": 0.0001,
    }

    job = store.runsync(request)

    assert job["error"].startswith("DOWNLOAD_BUDGET_EXCEEDED: ")
    assert job["output"]["details"]["limit_bytes"] == 100_000


def test_a_pickle_is_neither_fetched_nor_shown(store: Stack) -> None:
    write_pickle(store.files / "old.ckpt", seed="old")

    job = store.runsync({"prompt": "a lighthouse", "checkpoint": f"{store.hub.url}/old.ckpt"})

    assert job["error"].startswith("MODEL_UNSAFE: ")


def test_no_token_is_written_anywhere(store: Stack) -> None:
    """After all jobs above: the log, and every file on the volume."""
    answer = store.runsync(
        {
            "prompt": "a lighthouse",
            "checkpoint": f"{store.hub.url}/gone.safetensors?token={SENT_TOKEN}",
            "tokens": {"huggingface": SENT_TOKEN},
        }
    )

    written = [json.dumps(answer).encode(), store.log.read_bytes()]
    written += [path.read_bytes() for path in store.volume.rglob("*") if path.is_file()]
    for secret in (OWN_TOKEN, SENT_TOKEN):
        assert all(secret.encode() not in text for text in written)
