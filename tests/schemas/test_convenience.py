"""What callers of other systems write, and the request that it becomes."""

import time
from typing import Any

import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st

from schemas.convenience import SYNONYMS
from schemas.errors import InvalidInputError
from schemas.job import Img2Img, Txt2Img
from schemas.request import Request, parse
from schemas.settings import JobSettings

LIMITS = JobSettings()
DATA = "data:image/png;base64,iVBORw0KGgo="


def request(**fields: Any) -> Request:
    return parse(fields, LIMITS)


def sent(**fields: Any) -> dict[str, Any]:
    job = request(**fields).job
    assert isinstance(job, Txt2Img | Img2Img)
    return job.webui_fields()


def refused(**fields: Any) -> str:
    with pytest.raises(InvalidInputError) as caught:
        request(**fields)
    return str(caught.value.details["field"])


HIRES = {"hr_scale": 2.0, "hr_upscaler": "Latent", "hr_second_pass_steps": 20}


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        pytest.param({"num_inference_steps": 3}, {"steps": 3}, id="steps"),
        pytest.param({"guidance_scale": "4"}, {"cfg_scale": 4.0}, id="CFG scale"),
        pytest.param({"int_images": [DATA]}, {"init_images": [DATA]}, id="RandomSeed's images"),
        pytest.param(
            {"image": DATA, "inpainting_mask_inverse": 1},
            {"init_images": [DATA], "inpainting_mask_invert": 1},
            id="image and inverse mask",
        ),
        pytest.param({"sampler_name": "DPM ++ SDE"}, {"sampler_name": "DPM++ SDE"}, id="a space"),
        pytest.param({"scheduler_type": "default"}, {"scheduler": "Automatic"}, id="default"),
        pytest.param({"scheduler_type": "karras"}, {"scheduler": "Karras"}, id="karras"),
        pytest.param({"scheduler_type": "exponential"}, {"scheduler": "Exponential"}, id="exp"),
        pytest.param({"scheduler_type": "ddim"}, {"scheduler": "DDIM"}, id="ddim"),
        pytest.param({"scheduler_type": "pndm"}, {"scheduler": "Automatic"}, id="pndm"),
        pytest.param({"scheduler_type": "SGM Uniform"}, {"scheduler": "SGM Uniform"}, id="A1111's"),
        pytest.param(
            {"scheduler_type": "karras", "sampler_name": "DPM++ 2M Karras"},
            {"scheduler": "Karras", "sampler_name": "DPM++ 2M Karras"},
            id="both say karras",
        ),
        pytest.param(
            {"scheduler_type": "exponential", "sampler_name": "DPM++ 2M Karras"},
            {"scheduler": "Exponential", "sampler_name": "DPM++ 2M"},
            id="the type wins",
        ),
        pytest.param(
            {"hires": {"enabled": True}},
            {"enable_hr": True, **HIRES, "denoising_strength": 0.4},
            id="hires with its defaults",
        ),
        pytest.param(
            {
                "hires": {
                    "enabled": "true",
                    "scale": "1.5",
                    "upscaler": "ESRGAN_4x",
                    "steps": 8,
                    "denoising_strength": 0.3,
                }
            },
            {
                "enable_hr": True,
                "hr_scale": 1.5,
                "hr_upscaler": "ESRGAN_4x",
                "hr_second_pass_steps": 8,
                "denoising_strength": 0.3,
            },
            id="hires in full",
        ),
        pytest.param({"hires": {"enabled": False, "scale": 2}}, {}, id="hires off"),
        pytest.param({"hires": []}, {}, id="hires as PHP writes nothing"),
        pytest.param(
            {"hires": {"enabled": True, "steps": None}, "hr_second_pass_steps": 5},
            {"enable_hr": True, **HIRES, "hr_second_pass_steps": 5, "denoising_strength": 0.4},
            id="a field wins over a default of hires",
        ),
        pytest.param(
            {"image": DATA, "hires": {"enabled": True}}, {"init_images": [DATA]}, id="img2img"
        ),
        pytest.param(
            {"enable_hr": True},
            {"enable_hr": True, "denoising_strength": 0.75},
            id="hires without a strength",
        ),
        pytest.param(
            {"refiner_checkpoint": "r"}, {"refiner_switch_at": 0.8}, id="refiner without a switch"
        ),
        pytest.param(
            {"refiner_checkpoint": "r", "refiner_switch_at": 0.5},
            {"refiner_switch_at": 0.5},
            id="refiner with its switch",
        ),
        pytest.param({"refiner_checkpoint": ""}, {}, id="no refiner, as an empty name"),
        pytest.param({"refiner_checkpoint": "None"}, {}, id="no refiner, by A1111's name for none"),
        pytest.param({"hr_checkpoint_name": ""}, {}, id="no hires checkpoint"),
        pytest.param({"steps": 5, "num_inference_steps": 5}, {"steps": 5}, id="twice the same"),
    ],
)
def test_another_spelling_means_a1111s_own_field(
    given: dict[str, Any], taken: dict[str, Any]
) -> None:
    assert sent(**given) == taken


@pytest.mark.parametrize(
    ("given", "name", "scale"),
    [
        pytest.param("detail", "detail", 1.0, id="name"),
        pytest.param("detail:0.8", "detail", 0.8, id="name and scale"),
        pytest.param("detail.safetensors:-1", "detail", -1.0, id="negative"),
        pytest.param("detail:.5", "detail", 0.5, id="no zero"),
        pytest.param("style:night", "style:night", 1.0, id="colon in a name"),
        pytest.param("style:night:2", "style:night", 2.0, id="colon in a name, and scale"),
        pytest.param("style:nan", "style:nan", 1.0, id="not a number"),
        pytest.param(":2", ":2", 1.0, id="no name"),
        pytest.param({"name": "v:2", "scale": 0.5}, "v:2", 0.5, id="object"),
    ],
)
def test_a_lora_as_a_string_may_end_in_its_scale(given: object, name: str, scale: float) -> None:
    job = request(loras=[given]).job

    assert isinstance(job, Txt2Img)
    assert [(lora.name, lora.scale) for lora in job.loras] == [(name, scale)]


@pytest.mark.parametrize(
    "url", ["https://h:8080/x.safetensors", "civitai:version:456", "hf:org/repo/x.safetensors@1"]
)
def test_a_reference_in_loras_is_not_taken_apart(url: str) -> None:
    job = request(loras=[url]).job

    assert isinstance(job, Txt2Img)
    assert [(lora.url, lora.scale) for lora in job.loras] == [(url, 1.0)]


def test_a_model_may_be_called_by_a_label() -> None:
    job = request(model="PlantMilk (HempII)").job

    assert isinstance(job, Txt2Img)
    assert job.checkpoint is not None
    assert job.checkpoint.name == "PlantMilk (HempII)"


@pytest.mark.parametrize(
    ("given", "field"),
    [
        pytest.param({"image": 5}, "image", id="image that is a number"),
        pytest.param({"image": DATA, "init_images": ["x"]}, "image", id="two images"),
        pytest.param({"hires": True}, "hires", id="hires that is no object"),
        pytest.param({"hires": {"enabled": "often"}}, "hires.enabled", id="enabled"),
        pytest.param({"hires": {"enabled": True, "scale": 0}}, "hires.scale", id="no scale"),
        pytest.param({"hires": {"enabled": True, "sclae": 2}}, "hires.sclae", id="typo"),
        pytest.param(
            {"hires": {"enabled": True, "scale": 3}, "hr_scale": 2}, "hires.scale", id="two scales"
        ),
        pytest.param(
            {"hires": {"enabled": True}, "enable_hr": False}, "hires.enabled", id="on and off"
        ),
        pytest.param({"scheduler_type": "karras", "scheduler": "Beta"}, "scheduler_type", id="two"),
        pytest.param({"steps": 4, "num_inference_steps": 5}, "num_inference_steps", id="steps"),
        pytest.param({"loras": "a:1"}, "loras", id="a string for a list"),
        pytest.param(
            {"hires": {"enabled": True, "scale": 8}, "width": 1024, "height": 1024},
            "width",
            id="hires beyond the limit",
        ),
    ],
)
def test_what_contradicts_itself_or_cannot_be_meant_is_refused(
    given: dict[str, Any], field: str
) -> None:
    assert refused(**given) == field


@pytest.mark.parametrize(
    ("given", "told"),
    [
        pytest.param({"model": "a"}, "`model` was taken as `checkpoint`", id="synonym"),
        pytest.param({"image": DATA}, "`image` was taken as `init_images`", id="image"),
        pytest.param({"sampler_name": "DPM ++ SDE"}, "taken as 'DPM++ SDE'", id="sampler"),
        pytest.param({"fileType": "jpg"}, "`output.format` 'jpg', `output.quality` 85", id="JPEG"),
        pytest.param(
            {"jpeg_quality": 1}, "`output.format` 'jpeg', `output.quality` 1", id="quality"
        ),
        pytest.param({"hires": {"enabled": True}}, "`hires` was taken as", id="hires"),
        pytest.param({"hires": {"scale": 2}}, "has no `enabled`", id="hires without enabled"),
        pytest.param({"image": DATA, "hires": {"enabled": True}}, "no meaning beside", id="both"),
        pytest.param({"scheduler_type": "pndm"}, '"PLMS"', id="PNDM"),
        pytest.param({"enable_hr": True}, "0.75 was taken", id="strength"),
        pytest.param({"refiner_checkpoint": "r"}, "0.8 was taken", id="switch"),
    ],
)
def test_a_change_is_told(given: dict[str, Any], told: str) -> None:
    assert any(told in warning for warning in request(**given).warnings)


def test_pictures_that_are_png_anyway_need_no_warning() -> None:
    assert request(fileType="PNG", jpeg_quality=85).warnings == ()


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({"fileType": "jpg"}, {"format": "jpeg", "quality": 85}),
        ({"fileType": "JPG", "jpeg_quality": 70}, {"format": "jpeg", "quality": 70}),
        ({"fileType": "png", "jpeg_quality": 70}, {"format": "png"}),
        ({"fileType": "webp"}, {"format": "webp", "quality": 85}),
        ({"jpeg_quality": 60}, {"format": "jpeg", "quality": 60}),
        (
            {"fileType": "jpg", "output": {"prefix": "a"}},
            {"format": "jpeg", "prefix": "a", "quality": 85},
        ),
    ],
)
def test_a_file_type_says_how_the_pictures_leave(
    given: dict[str, Any], meant: dict[str, Any]
) -> None:
    job = request(**given).job

    assert isinstance(job, Txt2Img)
    assert job.output.model_dump(exclude_unset=True) == meant


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"fileType": "gif"}, "fileType"),
        ({"fileType": ["png"]}, "fileType"),
        ({"fileType": "png", "output": {"format": "jpeg"}}, "fileType"),
        ({"jpeg_quality": 0}, "output.quality"),
        ({"output": "png"}, "output"),
        ({"output": "png", "jpeg_quality": 5}, "output"),
        ({"output": {"format": "jpeg", "lossless": True}}, "output"),
        ({"output": {"prefix": "../x"}}, "output.prefix"),
        ({"output": {"ladder": ["upload", "upload"]}}, "output.ladder"),
        ({"output": {"size": 1}}, "output.size"),
    ],
)
def test_a_way_that_is_none_is_refused_by_its_name(given: dict[str, Any], field: str) -> None:
    assert refused(**given) == field


def test_an_infotext_says_the_strength_and_the_switch_before_we_do() -> None:
    said = (
        "x\nSteps: 3, Sampler: Euler, Seed: 1, Size: 64x64, Denoising strength: 0.2, "
        "Hires upscale: 2, Refiner: r, Refiner switch at: 0.3"
    )

    fields = sent(infotext=said)
    assert (fields["denoising_strength"], fields["refiner_switch_at"]) == (0.2, 0.3)


@pytest.mark.parametrize("name", ["image", "int_images", "init_images"])
def test_each_spelling_of_the_image_makes_the_envelope_img2img(name: str) -> None:
    payload = {"prompt": "x", name: DATA if name == "image" else [DATA]}

    job = parse({"api": {"method": "POST", "endpoint": "img2img"}, "payload": payload}, LIMITS).job
    assert isinstance(job, Img2Img)
    with pytest.raises(InvalidInputError, match="txt2img takes none"):
        parse({"api": {"method": "POST", "endpoint": "txt2img"}, "payload": payload}, LIMITS)


@drawn(
    st.dictionaries(
        st.sampled_from(
            [
                *(*SYNONYMS, "image", "hires", "scheduler_type", "loras", "fileType"),
                *("jpeg_quality", "sampler_name", "refiner_checkpoint", "enable_hr", "steps"),
            ]
        ),
        st.none()
        | st.integers()
        | st.text(max_size=9)
        | st.lists(st.text(max_size=9) | st.integers(), max_size=3)
        | st.dictionaries(
            st.sampled_from(["enabled", "scale", "upscaler", "steps", "name", "x"]),
            st.booleans() | st.integers() | st.text(max_size=5),
        ),
    )
)
def test_whatever_these_fields_hold_there_is_a_job_or_a_typed_error(value: dict[str, Any]) -> None:
    try:
        job: object = parse(value, LIMITS).job
    except InvalidInputError as error:
        job = error.details["field"]
    assert isinstance(job, Txt2Img | Img2Img) or job


def test_a_weight_of_many_digits_is_read_in_a_moment() -> None:
    start = time.process_time()

    refused(prompt="x", loras=["a:" + "1" * 100_000 + "x"])

    assert time.process_time() - start < 1
