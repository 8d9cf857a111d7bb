"""Pictures made again from what A1111 wrote below them."""

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from PIL import Image

from model_cache.cache import ModelCache
from schemas.errors import ModelIncompatibleError, ModelNotFoundError
from schemas.model_ref import Kind
from schemas.settings import CacheSettings, JobSettings, Settings, WebuiSettings
from simulator import models as files
from tests.conftest import running
from tests.worker.test_run import World, ignore, runner, settings

pytestmark = pytest.mark.slow

SMALL = {"steps": 4, "width": 64, "height": 64, "seed": 7, "sampler_name": "DDIM"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("recall")
    models = folder / "models"
    for name in ("night", "second", "other"):
        files.write_checkpoint(models / "checkpoints" / f"{name}.safetensors", seed=name)
    for name, base in (("ink", "sd1"), ("comma, name", "sd1"), ("xl", "sdxl")):
        files.write_lora(models / "loras" / f"{name}.safetensors", seed=name, base=base)
    files.write_vae(models / "vae" / "soft.safetensors", seed="soft")
    files.write_embedding(models / "embeddings" / "easyneg.safetensors", seed="neg")
    files.write_embedding(models / "embeddings" / "big.safetensors", seed="big", base="sdxl")
    with running("webui", "--models-dir", folder / "links") as webui:
        yield World(runner(settings(folder, webui)), webui, models)


def made(world: World, **fields: Any) -> dict[str, Any]:
    return dict(world.runner.run({"id": "j", "input": fields}, Event(), ignore))


def infotext(answer: dict[str, Any]) -> str:
    text = json.loads(answer["info"])["infotexts"][0]
    assert isinstance(text, str)
    return text


def pixels(answer: dict[str, Any]) -> bytes:
    """Return what is drawn, without the text in the file."""
    with Image.open(io.BytesIO(base64.b64decode(answer["images"][0]))) as image:
        return image.tobytes()


RICH = {
    "prompt": "a cat <lora:ink:0.7> <lora:comma, name:0.3>",
    "negative_prompt": "easyneg",
    "checkpoint": "night",
    "vae": "soft",
    "refiner_checkpoint": "second",
    "refiner_switch_at": 0.5,
    "override_settings": {"CLIP_stop_at_last_layers": 2},
    **SMALL,
}


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({}, id="refiner"),
        pytest.param(
            {
                "refiner_checkpoint": None,
                "enable_hr": True,
                "denoising_strength": 0.5,
                "hr_scale": 1.5,
                "hr_upscaler": "Latent",
                "hr_checkpoint_name": "second",
            },
            id="hires checkpoint",
        ),
    ],
)
def test_a_picture_is_made_again_byte_for_byte(world: World, fields: dict[str, Any]) -> None:
    first = made(world, **{**RICH, **fields})
    made(world, prompt="another", checkpoint="other", **SMALL)

    again = made(world, infotext=infotext(first))

    assert again["images"] == first["images"]
    assert infotext(again) == infotext(first)
    assert any("checkpoint `night` is `night` here" in text for text in again["warnings"])


def test_a_vae_that_is_called_as_the_checkpoint_is_taken_if_the_picture_had_it(
    tmp_path: Path,
) -> None:
    models = tmp_path / "models"
    files.write_checkpoint(models / "checkpoints" / "night.safetensors", seed="night")
    files.write_vae(models / "vae" / "night.safetensors", seed="of the same name")
    with running("webui", "--models-dir", tmp_path / "links") as webui:
        world = World(runner(settings(tmp_path, webui)), webui, models)
        pictures = {vae: made(world, prompt="a", vae=vae, **SMALL) for vae in ("None", "Automatic")}

        again = {vae: made(world, infotext=infotext(first)) for vae, first in pictures.items()}

    assert pictures["None"]["images"] != pictures["Automatic"]["images"]
    assert {vae: answer["images"] for vae, answer in again.items()} == {
        vae: answer["images"] for vae, answer in pictures.items()
    }


def test_files_that_were_renamed_since_are_known_by_their_hashes(tmp_path: Path) -> None:
    models = tmp_path / "models"
    night = models / "checkpoints" / "night.safetensors"
    ink = models / "loras" / "ink.safetensors"
    files.write_checkpoint(night, seed="night")
    files.write_checkpoint(models / "checkpoints" / "other.safetensors", seed="other")
    files.write_lora(ink, seed="ink")
    with running("webui", "--models-dir", tmp_path / "links") as webui:
        before = World(runner(settings(tmp_path, webui)), webui, models)
        first = made(before, prompt="a <lora:ink:1>", checkpoint="night", **SMALL)
        night.rename(night.with_name("moon.safetensors"))
        ink.rename(ink.with_name("inked.safetensors"))
        store = ModelCache(CacheSettings(volume=tmp_path))
        for kind in (Kind.CHECKPOINT, Kind.LORA):
            for model in store.models(kind):
                store.adopt(model, cancelled=Event())
        after = World(runner(settings(tmp_path, webui)), webui, models)

        again = made(after, infotext=infotext(first))

    assert pixels(again) == pixels(first)
    assert {model["name"] for model in again["models"]} == {"moon", "inked"}


def test_the_request_wins_over_the_infotext(world: World) -> None:
    text = infotext(made(world, prompt="x", checkpoint="night", **SMALL))

    answer = made(world, infotext=text, checkpoint="other")

    assert json.loads(answer["info"])["sd_model_name"] == "other"
    assert answer["warnings"] == []


def test_a_model_that_is_nowhere_is_named_with_what_the_infotext_says(world: World) -> None:
    text = "x\nSteps: 2, Sampler: DDIM, Seed: 1, Size: 64x64, Model: gone"

    with pytest.raises(ModelNotFoundError, match=r"checkpoint `gone`; it is not here") as caught:
        made(world, infotext=text)
    assert caught.value.details["field"] == "infotext"


def test_a_misfit_is_skipped_on_request_and_fails_else(world: World) -> None:
    plain = made(world, prompt="a  cat", checkpoint="night", **SMALL)
    fields = {"prompt": "a <lora:xl:1> cat", "checkpoint": "night", "loras": ["xl"], **SMALL}

    with pytest.raises(ModelIncompatibleError, match="`xl` is made for sdxl"):
        made(world, **fields)
    skipped = made(world, **fields, on_incompatible="skip")

    assert skipped["images"] == plain["images"]
    assert skipped["parameters"]["prompt"] == "a  cat"
    assert [model["kind"] for model in skipped["models"]] == ["checkpoint"]
    assert len(skipped["warnings"]) == 1
    assert skipped["warnings"][0].endswith("It was skipped.")


def test_a_setting_skips_misfits_unless_the_request_says_otherwise(
    world: World, tmp_path: Path
) -> None:
    configured = Settings(
        cache=CacheSettings(volume=world.models.parent),
        webui=WebuiSettings(port=int(world.webui.url.rpartition(":")[2]), links=tmp_path / "l"),
        job=JobSettings(on_incompatible="skip"),
    )
    lenient = World(runner(configured), world.webui, world.models)
    fields = {"prompt": "a cat", "checkpoint": "night", "loras": ["xl", "ink"], **SMALL}

    answer = made(lenient, **fields)

    assert answer["parameters"]["prompt"] == "<lora:ink:1> a cat"
    with pytest.raises(ModelIncompatibleError) as caught:
        made(lenient, **fields, on_incompatible="fail")
    assert caught.value.details["field"] == "loras[0]"


def test_an_embedding_that_does_not_fit_is_skipped_for_img2img_too(world: World) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "teal").save(buffer, "PNG")
    image = base64.b64encode(buffer.getvalue()).decode()
    fields = {"init_images": [image], "checkpoint": "night", "embeddings": ["big"], **SMALL}

    answer = made(world, prompt="big", on_incompatible="skip", **fields)

    assert [model["kind"] for model in answer["models"]] == ["checkpoint"]
    assert "read as words" in answer["warnings"][0]
