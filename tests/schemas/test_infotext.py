from typing import Any

import pytest

from schemas.errors import InvalidInputError
from schemas.job import Img2Img, Txt2Img
from schemas.model_ref import ModelRef, Recalled, RecalledLora
from schemas.request import parse
from schemas.settings import JobSettings

LIMITS = JobSettings()
SETTINGS = "Steps: 3, Sampler: DDIM, Seed: 9, Size: 64x64"
MODELS = (
    "Model hash: 67535CD6E4, Model: night, VAE hash: cdc4c5eb28, VAE: soft.safetensors,"
    " Refiner: second [0123456789], Refiner switch at: 0.5, Hires upscale: 2,"
    " Hires checkpoint: third [abcdef0123], Denoising strength: 0.5"
)


def said(text: str, *, written: str = "x", **own: Any) -> Txt2Img:
    """Return the job that an infotext with the labels in `text` means."""
    job = parse({"infotext": f"{written}\n{SETTINGS}, {text}", **own}, LIMITS).job
    assert isinstance(job, Txt2Img)
    return job


def short(ref: object) -> tuple[str | None, str | None]:
    assert isinstance(ref, ModelRef)
    return ref.name, ref.hash


def test_every_model_of_an_infotext_is_named_with_its_hash() -> None:
    job = said(MODELS)

    assert short(job.checkpoint) == ("night", "67535cd6e4")
    assert short(job.vae) == ("soft", "cdc4c5eb28")
    assert short(job.refiner_checkpoint) == ("second", "0123456789")
    assert short(job.hr_checkpoint_name) == ("third", "abcdef0123")
    assert isinstance(job.checkpoint, Recalled)
    assert job.refiner_switch_at == 0.5


def test_what_names_no_file_stays_as_it_is() -> None:
    job = said("VAE: None, Hires upscale: 2, Hires checkpoint: Use same checkpoint")

    assert job.vae == "None"
    assert job.hr_checkpoint_name == "Use same checkpoint"
    assert job.checkpoint is None


@pytest.mark.parametrize(
    ("own", "field"),
    [
        pytest.param({"checkpoint": "mine"}, "checkpoint", id="checkpoint"),
        pytest.param({"model": "mine"}, "checkpoint", id="a synonym"),
        pytest.param({"vae": "mine"}, "vae", id="VAE"),
        pytest.param({"refiner_checkpoint": "mine"}, "refiner_checkpoint", id="refiner"),
    ],
)
def test_a_model_that_the_request_names_wins(own: dict[str, str], field: str) -> None:
    ref = getattr(said(MODELS, **own), field)

    assert short(ref) == ("mine", None)
    assert not isinstance(ref, Recalled)


def test_a_checkpoint_among_the_options_of_the_request_wins() -> None:
    job = said(MODELS, override_settings={"sd_model_checkpoint": "mine", "sd_vae": None})

    assert job.checkpoint is None
    assert short(job.vae) == ("soft", "cdc4c5eb28")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("Model: night", ("night", None), id="no hash"),
        pytest.param("Model hash: 67535cd6e4", ("67535cd6e4", "67535cd6e4"), id="no name"),
        pytest.param("Model hash: 7460a6fa, Model: old", ("old", None), id="A1111's first hash"),
        pytest.param("Model hash: a1b2c3d4e5f6, Model: x", ("x", "a1b2c3d4e5f6"), id="12 digits"),
        pytest.param(
            "Model hash: 67535cd6e4, Model: ../x", ("67535cd6e4", "67535cd6e4"), id="no file's name"
        ),
    ],
)
def test_a_model_is_known_by_what_the_infotext_tells(
    text: str, expected: tuple[str | None, str | None]
) -> None:
    assert short(said(text).checkpoint) == expected


@pytest.mark.parametrize(
    ("version", "vae"),
    [("v1.10.1", "None"), ("1.6.0-RC", "None"), ("v1.5.2", None), ("f0.0.17", None), ("", None)],
)
def test_a_picture_without_a_vae_had_none_if_its_webui_would_have_told(
    version: str, vae: str | None
) -> None:
    assert said(f"Model: night, Version: {version}").vae == vae
    assert said(f"Version: {version}").vae is None


def test_a_name_that_no_file_can_have_is_refused() -> None:
    with pytest.raises(InvalidInputError) as caught:
        said("Model: ../x")
    assert caught.value.details["field"] == "infotext"


def test_the_loras_are_those_of_the_tags_whose_hashes_are_told() -> None:
    job = said(
        'Lora hashes: "ink: 33d3e6c49382, comma name: 0123456789ab, other: 0123456789ab"',
        written="a <lora:ink:0.5> <lyco:comma, name:1> <lora:unlisted:1> <lora:ink:1>",
    )

    assert [short(lora) for lora in job.loras] == [
        ("ink", "33d3e6c49382"),
        ("comma, name", "0123456789ab"),
    ]
    assert all(isinstance(lora, RecalledLora) for lora in job.loras)


def test_the_loras_and_embeddings_of_the_request_come_first_and_win() -> None:
    job = said(
        'Lora hashes: "ink: 33d3e6c49382, two: 0123456789ab", TI hashes: "Neg: 0123456789ab"',
        written="<lora:ink:1> <lora:two:1> neg",
        loras=["ink.safetensors", {"name": "own"}],
        embeddings=["mine"],
    )

    assert [short(lora) for lora in job.loras] == [
        ("ink", None),
        ("own", None),
        ("two", "0123456789ab"),
    ]
    assert [short(ref) for ref in job.embeddings] == [("mine", None), ("Neg", "0123456789ab")]


@pytest.mark.parametrize(
    "own",
    [
        pytest.param({"prompt": "another"}, id="a prompt of the request"),
        pytest.param({"disable_extra_networks": True}, id="networks switched off"),
    ],
)
def test_a_lora_that_no_prompt_applies_is_not_asked_for(own: dict[str, Any]) -> None:
    assert said('Lora hashes: "ink: 33d3e6c49382"', written="<lora:ink:1>", **own).loras == []


def test_a_hires_prompt_counts_where_there_is_a_second_pass() -> None:
    text = 'Lora hashes: "ink: 33d3e6c49382", Hires prompt: "<lora:ink:1>"'

    assert said(text).loras == []
    assert len(said(f"{text}, Hires upscale: 2, Denoising strength: 0.5").loras) == 1


def test_for_img2img_the_models_are_taken_too() -> None:
    job = parse({"infotext": f"x\n{SETTINGS}, {MODELS}", "init_images": ["x"]}, LIMITS).job

    assert isinstance(job, Img2Img)
    assert short(job.checkpoint) == ("night", "67535cd6e4")
    assert job.model_extra == {}


def test_an_infotext_of_diffusionapi_brings_its_loras_and_names() -> None:
    request = parse(
        {
            "infotext": "a lake\nNegative prompt: fog\nSteps: 30, Sampler: Euler a, Seed: 5,"
            " Size: 512x512, Model: stable-diffusion-v1-5, Model hash: a1b2c3d4e5f6, VAE: soft,"
            " VAE hash: f6e5d4c3b2a1, LoRAs: anime_style:0.8, detail_enhancer:-0.6,"
            " Memory before: 2048.5 MB, Version: DiffusionAPI v1.0"
        },
        LIMITS,
    )

    job = request.job
    assert isinstance(job, Txt2Img)
    assert [(lora.name, lora.scale) for lora in job.loras] == [
        ("anime_style", 0.8),
        ("detail_enhancer", -0.6),
    ]
    assert short(job.checkpoint) == ("stable-diffusion-v1-5", None)
    assert short(job.vae) == ("soft", None)
    assert (job.steps, job.seed, job.width) == (30, 5, 512)
    assert request.warnings == ("What the infotext says of 'Memory before' was left aside.",)
