import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import InvalidInputError
from schemas.job import Img2Img, Txt2Img
from schemas.model_ref import Kind, Recalled
from schemas.settings import JobSettings
from tests.parsing import parse

LIMITS = JobSettings()
OPENAPI = Path(__file__).parents[3] / "shared" / "webui" / "openapi.json"


def refused(value: object, limits: JobSettings = LIMITS) -> dict[str, Any]:
    with pytest.raises(InvalidInputError) as caught:
        parse(value, limits)
    json.dumps(
        caught.value.as_response(), allow_nan=False, ensure_ascii=False
    ).encode()  # what the SDK will do
    return caught.value.details


def test_a_plain_prompt_is_txt2img() -> None:
    request = parse({"prompt": "a cat"}, LIMITS)

    assert isinstance(request.job, Txt2Img)
    assert request.job.webui_fields() == {"prompt": "a cat"}
    assert request.warnings == ()


def test_init_images_make_it_img2img() -> None:
    assert isinstance(parse({"init_images": ["x"]}, LIMITS).job, Img2Img)


@pytest.mark.parametrize(
    ("model", "schema"),
    [
        (Txt2Img, "StableDiffusionProcessingTxt2Img"),
        (Img2Img, "StableDiffusionProcessingImg2Img"),
    ],
)
def test_every_field_of_a1111_is_known_with_its_default(model: type[Txt2Img], schema: str) -> None:
    if not OPENAPI.exists():
        pytest.skip("no recordings beside this checkout")
    properties = json.loads(OPENAPI.read_text())["components"]["schemas"][schema]["properties"]

    assert set(properties) <= set(model.model_fields)
    for name, described in properties.items():
        if "default" in described:
            field = model.model_fields[name]
            assert field.get_default(call_default_factory=True) == described["default"], name


@pytest.mark.parametrize(
    ("field", "given", "taken"),
    [
        pytest.param("steps", "20", 20, id="digits"),
        pytest.param("steps", 2.7, 2, id="fraction"),
        pytest.param("cfg_scale", "7", 7.0, id="number in a string"),
        pytest.param("cfg_scale", 7, 7.0, id="integer"),
        pytest.param("prompt", 5, "5", id="prompt that is a number"),
        pytest.param("tiling", "true", True, id="bool in a string"),
        pytest.param("seed", 2**40, 2**40, id="large seed"),
        pytest.param("seed", -5, -5, id="negative seed"),
    ],
)
def test_coercions_are_those_of_a1111(field: str, given: object, taken: object) -> None:
    assert parse({field: given}, LIMITS).job.webui_fields() == {field: taken}


@pytest.mark.parametrize(
    ("value", "field"),
    [
        pytest.param(None, "input", id="nothing"),
        pytest.param([1], "input", id="a list"),
        pytest.param("x", "input", id="a string"),
        pytest.param({"steps": "abc"}, "steps", id="letters for a number"),
        pytest.param({"steps": "1e3"}, "steps", id="exponent for an integer"),
        pytest.param({"steps": 0}, "steps", id="no steps"),
        pytest.param({"steps": [1]}, "steps", id="a list for a number"),
        pytest.param({"width": -8}, "width", id="negative width"),
        pytest.param({"height": 0}, "height", id="no height"),
        pytest.param({"width": 4}, "width", id="too narrow to round"),
        pytest.param({"width": 100_000, "height": 100_000}, "width", id="too many pixels"),
        pytest.param({"batch_size": 0}, "batch_size", id="empty batch"),
        pytest.param({"batch_size": 5, "n_iter": 5}, "batch_size", id="too many pictures"),
        pytest.param({"steps": 100_000}, "steps", id="too many steps"),
        pytest.param({"seed": 2**70}, "seed", id="seed beyond 64 bits"),
        pytest.param({"cfg_scale": float("nan")}, "cfg_scale", id="NaN"),
        pytest.param({"cfg_scale": "nan"}, "cfg_scale", id="NaN in a string"),
        pytest.param({"x": {"y": [float("inf")]}}, "x.y[0]", id="infinity in an unknown field"),
        pytest.param({"prompt": "\ud800"}, "prompt", id="lone surrogate"),
        pytest.param({"a\udfff": 1}, "a?", id="lone surrogate in a name"),
        pytest.param({"prompt": "x" * 50_000_000}, "prompt", id="50 MB prompt"),
        pytest.param({"sampler_name": "x" * 60_000}, "sampler_name", id="endless sampler"),
        pytest.param({"styles": "one"}, "styles", id="string for a list"),
        pytest.param({"init_images": []}, "init_images", id="no init image"),
        pytest.param({"init_images": "abc"}, "init_images", id="string for init images"),
        pytest.param({"init_images": ["a", "b"]}, "init_images", id="more images than batch"),
        pytest.param({"loras": [{"name": ""}]}, "loras[0].name", id="empty LoRA name"),
        pytest.param({"loras": [{"name": " "}]}, "loras[0].name", id="blank LoRA name"),
        pytest.param({"loras": [{"scale": 1}]}, "loras[0]", id="LoRA without name and url"),
        pytest.param({"loras": ["a", {"name": "../b"}]}, "loras[1].name", id="path in a name"),
        pytest.param({"loras": [{"name": "a", "scale": "x"}]}, "loras[0].scale", id="scale"),
        pytest.param({"loras": ["a", "a"]}, "loras[1]", id="the same LoRA twice"),
        pytest.param({"checkpoint": {"name": "a", "hash": "12"}}, "checkpoint.hash", id="hash"),
        pytest.param({"checkpoint": {"name": "a", "nmae": "b"}}, "checkpoint.nmae", id="typo"),
        pytest.param({"checkpoint": 5}, "checkpoint", id="number for a checkpoint"),
        pytest.param(
            {"checkpoint": {"name": "a", "url": "file:///etc/passwd"}},
            "checkpoint.url",
            id="file URL",
        ),
        pytest.param({"checkpoint": "https://u:p@host/x"}, "checkpoint.url", id="password in URL"),
        pytest.param({"model": "a", "checkpoint": "b"}, "model", id="synonym and field"),
        pytest.param(
            {"enable_hr": True, "denoising_strength": 0.5, "width": 2048, "height": 2048},
            "width",
            id="hires beyond the limit",
        ),
        pytest.param(
            {"loras": ["a"], "disable_extra_networks": True},
            "disable_extra_networks",
            id="LoRAs off",
        ),
        pytest.param(
            {"infotext": "x\nSteps: 300, Sampler: Euler, Seed: 1"},
            "steps",
            id="limit in an infotext",
        ),
        pytest.param({"width": 1e308}, "width", id="width beyond all measure"),
        pytest.param({"enable_hr": True, "hr_scale": 1e308}, "hr_scale", id="endless scale"),
        pytest.param(
            {"firstphase_width": 2304, "firstphase_height": 2304},
            "width",
            id="first phase too large",
        ),
        pytest.param({"firstphase_width": -8}, "firstphase_width", id="negative first phase"),
        pytest.param(
            {"seed_resize_from_w": 8000, "seed_resize_from_h": 8000},
            "seed_resize_from_w",
            id="noise too large",
        ),
        pytest.param(
            {
                "width": 512,
                "height": 8,
                "enable_hr": True,
                "denoising_strength": 0.5,
                "hr_resize_x": 8,
                "hr_resize_y": 2048,
            },
            "width",
            id="crop of something huge",
        ),
        pytest.param(
            {"loras": [{"name": "a", "scale": 1, "weight": 2}]}, "loras[0].weight", id="two scales"
        ),
        pytest.param({"script_args": [0] * 200_000}, "script_args[199999]", id="endless list"),
        pytest.param({f"f{i}": 1 for i in range(1000)}, "f0", id="endless unknown fields"),
        pytest.param({"api": {"endpoint": "server-kill"}}, "api.endpoint", id="unknown endpoint"),
        pytest.param({"api": 1}, "api.endpoint", id="api that is a number"),
        pytest.param(
            {"api": {"endpoint": "txt2img"}, "payload": {}, "checkpoint": "b"},
            "checkpoint",
            id="a field beside the payload",
        ),
        pytest.param(
            {"batch_size": 10**3000, "n_iter": 10**3000}, "batch_size", id="numbers without end"
        ),
        pytest.param({"api": {"endpoint": "txt2img"}}, "payload", id="no payload"),
    ],
)
def test_what_cannot_work_is_refused_with_its_path(value: object, field: str) -> None:
    assert refused(value)["field"] == field


def test_nesting_without_end_is_refused() -> None:
    value: dict[str, Any] = {}
    for _ in range(100_000):
        value = {"a": value}

    assert refused(value)["field"].startswith("a.a.a")


def test_every_problem_is_listed() -> None:
    problems = refused({"steps": "a", "width": "b"})["problems"]

    assert {problem["field"] for problem in problems} == {"steps", "width"}


def test_null_means_not_given() -> None:
    job = parse({"prompt": "x", "width": None, "init_images": None}, LIMITS).job

    assert isinstance(job, Txt2Img)
    assert job.webui_fields() == {"prompt": "x"}


def test_an_unknown_field_goes_through_with_the_nearest_name() -> None:
    request = parse({"promt": "x", "zzz": 1}, LIMITS)

    assert request.job.webui_fields() == {"promt": "x", "zzz": 1}
    assert "`prompt`" in request.warnings[0]
    assert "did you mean" not in request.warnings[1]


def test_a_field_of_the_other_route_is_explained() -> None:
    assert "needs `init_images`" in parse({"mask": "x"}, LIMITS).warnings[0]
    assert (
        "beside `init_images`" in parse({"init_images": ["x"], "hr_scale": 2}, LIMITS).warnings[0]
    )


def test_a_size_is_rounded_down_as_a1111_does() -> None:
    request = parse({"width": 70, "height": "66"}, LIMITS)

    assert request.job.webui_fields() == {"width": 64, "height": 64}
    assert [warning.split()[0] for warning in request.warnings] == ["`width`", "`height`"]


def test_synonyms_are_taken_with_a_warning() -> None:
    request = parse({"model": "a", "num_inference_steps": 3, "guidance_scale": 4}, LIMITS)

    assert request.job.webui_fields() == {"steps": 3, "cfg_scale": 4.0}
    assert request.job.checkpoint is not None
    assert request.job.checkpoint.name == "a"
    assert len(request.warnings) == 3


def test_models_are_references_and_not_sent_to_a1111() -> None:
    job = parse(
        {
            "checkpoint": {"name": "c.safetensors", "url": "https://h/c", "hash": "AB" * 32},
            "vae": "v.safetensors",
            "loras": [{"name": "a", "weight": "0.5"}, "https://h/b.safetensors"],
            "embeddings": ["e"],
            "tokens": {"civitai": "s3cr3t"},
        },
        LIMITS,
    ).job

    assert job.webui_fields() == {}
    assert job.checkpoint is not None
    assert (job.checkpoint.name, job.checkpoint.hash) == ("c", "ab" * 32)
    assert job.vae is not None
    assert not isinstance(job.vae, str)
    assert (job.vae.kind, job.vae.name) == (Kind.VAE, "v")
    assert [(lora.name, lora.url, lora.scale) for lora in job.loras] == [
        ("a", None, 0.5),
        (None, "https://h/b.safetensors", 1.0),
    ]
    assert "s3cr3t" not in repr(job.tokens)


def test_null_inside_a_reference_means_not_given() -> None:
    job = parse({"api": None, "loras": [{"name": "a", "scale": None, "url": None}]}, LIMITS).job

    assert (job.loras[0].scale, job.loras[0].url) == (1.0, None)


def test_an_empty_list_for_an_object_is_an_empty_object() -> None:
    job = parse({"override_settings": [], "alwayson_scripts": []}, LIMITS).job

    assert job.webui_fields() == {"override_settings": {}, "alwayson_scripts": {}}


def test_the_token_of_a_url_is_not_in_an_error() -> None:
    url = "https://host/x.safetensors?token=s3cr3t"
    with pytest.raises(InvalidInputError) as caught:
        parse({"loras": [url, url]}, LIMITS)

    assert "s3cr3t" not in json.dumps(caught.value.as_response())


INFOTEXT = """a dog, <lora:x:1>
on a hill
Negative prompt: cat
Steps: 3, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 5, Seed: 99, Size: 72x64, \
Model hash: 0123456789, Model: other, VAE: v.safetensors, Denoising strength: 0.5, Clip skip: 2, \
Hires upscale: 2, Hires upscaler: Latent, Lora hashes: "x: 0123, y: 4567", FreeU: 1, Version: v1.10.1"""


def test_an_infotext_is_taken_apart_into_fields() -> None:
    request = parse({"infotext": INFOTEXT.replace("\\\n", ""), "seed": 7}, LIMITS)

    assert request.job.webui_fields() == {
        "prompt": "a dog, <lora:x:1>\non a hill",
        "negative_prompt": "cat",
        "steps": 3,
        "sampler_name": "DPM++ 2M",
        "scheduler": "Karras",
        "cfg_scale": 5.0,
        "seed": 7,
        "width": 72,
        "height": 64,
        "denoising_strength": 0.5,
        "enable_hr": True,
        "hr_scale": 2.0,
        "hr_upscaler": "Latent",
        "override_settings": {"CLIP_stop_at_last_layers": 2},
    }
    assert isinstance(request.job.checkpoint, Recalled)
    assert request.job.checkpoint.name == "other"
    assert request.job.vae is not None
    assert request.warnings == ("What the infotext says of 'FreeU' was left aside.",)


@pytest.mark.parametrize(
    ("own", "said"),
    [
        pytest.param({"sampler_index": "DDIM"}, "Sampler: Euler", id="the older field"),
        pytest.param(
            {"sampler_name": "DPM++ 2M Karras"},
            "Schedule type: Exponential",
            id="scheduler in a name",
        ),
        pytest.param({"override_settings": {"sd_vae": "v"}}, "VAE: None", id="VAE as an option"),
    ],
)
def test_what_a_request_says_in_its_own_way_wins_over_its_infotext(
    own: dict[str, Any], said: str
) -> None:
    infotext = f"x\nSteps: 2, Seed: 1, {said}"

    taken = parse({**own, "infotext": infotext}, LIMITS).job
    plain = parse({**own, "prompt": "x", "steps": 2, "seed": 1}, LIMITS).job
    assert taken.webui_fields() | {"override_settings": {}} == plain.webui_fields() | {
        "override_settings": {}
    }
    assert taken.vae is None


@pytest.mark.parametrize("text", ["a" * 50_000, "a\nb" + " " * 49_000 + "c"])
def test_no_infotext_takes_long_to_read(text: str) -> None:
    started = time.process_time()
    parse({"infotext": text}, LIMITS)

    assert time.process_time() - started < 1


def test_an_infotext_without_parameters_is_a_prompt() -> None:
    assert parse({"infotext": "a dog\non a hill"}, LIMITS).job.prompt == "a dog\non a hill"


def test_for_img2img_an_infotext_brings_no_prompt_and_no_size() -> None:
    # Source: A1111 1.10.1, modules/ui.py: the fields of the img2img tab name no API field.
    request = parse({"infotext": INFOTEXT.replace("\\\n", ""), "init_images": ["x"]}, LIMITS)

    fields = request.job.webui_fields()
    assert fields["steps"] == 3
    assert not {"prompt", "width", "cfg_scale"} & fields.keys()


def test_the_built_in_vaes_are_names_not_files() -> None:
    assert parse({"vae": "None"}, LIMITS).job.vae == "None"


def test_the_envelope_means_the_flat_form() -> None:
    enveloped = {
        "api": {"method": "POST", "endpoint": "/sdapi/v1/txt2img/"},
        "payload": {"prompt": "x"},
    }

    assert parse(enveloped, LIMITS) == parse({"prompt": "x"}, LIMITS)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=20,
    )
    | st.dictionaries(
        st.sampled_from(sorted({*Txt2Img.model_fields, *Img2Img.model_fields})),
        st.none() | st.integers() | st.floats() | st.text() | st.lists(st.text(max_size=3)),
    )
)
def test_any_json_gives_a_job_or_a_typed_error(value: object) -> None:
    try:
        request = parse(value, LIMITS)
    except InvalidInputError as error:
        json.dumps(error.as_response(), allow_nan=False, ensure_ascii=False).encode()
    else:
        json.dumps(request.job.webui_fields(), allow_nan=False, ensure_ascii=False).encode()


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"firstphase_width": 64}, "firstphase_height"),
        ({"firstphase_height": 64}, "firstphase_width"),
        ({"firstphase_width": 2, "firstphase_height": 64}, "firstphase_width"),
    ],
)
def test_a_first_pass_of_no_size_is_refused(fields: dict[str, Any], field: str) -> None:
    assert refused(fields)["field"] == field
    assert isinstance(parse({"firstphase_width": 64, "firstphase_height": 8}, LIMITS).job, Txt2Img)


def test_everything_that_cannot_work_is_told_at_once() -> None:
    problems = refused({"steps": 999, "batch_size": 99})["problems"]

    assert [problem["field"] for problem in problems] == ["batch_size", "steps"]


@pytest.mark.parametrize(
    "value",
    [
        {"": float("inf")},
        {"": "\ud800"},
        {"": 1, "api": {"endpoint": "samplers"}},
        {"api": {"endpoint": "/v1/health"}, "payload": {"": 1}},
        {"": 1} | {f"x{number}": 1 for number in range(101)},
    ],
)
def test_a_field_without_a_name_is_refused_by_that_of_the_whole(value: dict[str, Any]) -> None:
    assert refused(value)["field"] == "input"
