from pathlib import Path
from typing import Any

import pytest

from schemas.errors import InvalidInputError, ModelNotFoundError
from schemas.settings import JobSettings
from simulator.webui import catalogue
from tests.parsing import parse
from tests.worker.calling import picture
from worker.scripts import checked

LIMITS = JobSettings()
INFO = catalogue.script_info([])
TILE = {"width": 512, "height": 512}


def settled(
    fields: dict[str, Any], side: int = 512, limits: JobSettings = LIMITS, links: Path = Path()
) -> dict[str, Any]:
    """Return what changes in a request, img2img if it names a script of that tab alone."""
    pictures = [picture(side)]
    if fields.pop("img2img", False):
        fields = {"init_images": pictures, **fields}
    offered = {
        script["name"].lower(): script["args"]
        for script in INFO
        if script["is_img2img"] == ("init_images" in fields)
    }
    job = parse({"prompt": "a cat", **fields}, limits).job
    return checked(job, offered, pictures, limits, links)


def scripted(name: str, *args: Any, **fields: Any) -> dict[str, Any]:
    return {"script_name": name, "script_args": list(args), **fields}


def image_scripted(name: str, *args: Any, **fields: Any) -> dict[str, Any]:
    return scripted(name, *args, img2img=True, **fields)


@pytest.mark.parametrize(
    ("fields", "arguments"),
    [
        pytest.param(
            scripted("Prompt Matrix", prompt="a|b"),
            [False, False, "positive", "comma", 0],
            id="defaults",
        ),
        pytest.param(
            scripted("prompt matrix", True, False, "negative", "space", 10.0),
            [True, False, "negative", "space", 10],
            id="all, a number as another language writes it",
        ),
        pytest.param(
            image_scripted("loopback", 2, 1, "Lazy"), [2, 1.0, "Lazy", "None"], id="loopback"
        ),
        pytest.param(
            image_scripted("SD upscale", None, 64, "Lanczos", 2), [..., 64, 1, 2.0], id="by name"
        ),
        pytest.param(
            image_scripted("sd upscale", "", 64, 1, 1.5), [..., 64, 1, 1.5], id="by place"
        ),
        pytest.param(
            image_scripted("outpainting mk2", None, 64, 8, ["up"]),
            [..., 64, 8, ["up"], 1.0, 0.05],
            id="several choices",
        ),
        pytest.param(
            image_scripted("poor man's outpainting", 64, 4, "original"),
            [64, 4, 1, ["left", "right", "up", "down"]],
            id="poor man's outpainting",
        ),
    ],
)
def test_the_arguments_of_a_script_are_made_complete(
    fields: dict[str, Any], arguments: list[Any]
) -> None:
    found = settled(fields)["script_args"]

    assert len(found) == len(arguments)
    assert [value for value, wanted in zip(found, arguments, strict=True) if wanted is not ...] == [
        wanted for wanted in arguments if wanted is not ...
    ]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        pytest.param(
            scripted("prompts from file or textbox", False, False, "start", "--outpath_samples /x"),
            "script_name",
            id="a folder to write to",
        ),
        pytest.param(scripted("x/y/z plot", 1, "1-99999"), "script_name", id="any number"),
        pytest.param(image_scripted("img2img alternative test"), "script_name", id="own prompts"),
        pytest.param(
            scripted("prompt matrix", *[False] * 5, "other's argument"),
            "script_args",
            id="too many",
        ),
        pytest.param(scripted("prompt matrix", "yes"), "script_args[0]", id="no switch"),
        pytest.param(
            scripted("prompt matrix", False, False, "both"), "script_args[2]", id="no choice"
        ),
        pytest.param(
            scripted("prompt matrix", False, False, ["positive"]), "script_args[2]", id="a list"
        ),
        pytest.param(
            scripted("prompt matrix", False, False, "positive", "comma", 501),
            "script_args[4]",
            id="beyond its range",
        ),
        pytest.param(image_scripted("loopback", 2.5), "script_args[0]", id="half a loop"),
        pytest.param(image_scripted("loopback", True), "script_args[0]", id="true loops"),
        pytest.param(scripted("prompt matrix", prompt="a|b|c|d|e|f"), "script_args", id="32"),
        pytest.param(
            scripted("prompt matrix", prompt="|" * 40_000), "script_args", id="2 to the 40,000"
        ),
        pytest.param(
            scripted("prompt matrix", False, False, "negative", negative_prompt="a|b|c|d|e|f"),
            "script_args",
            id="32 negative ones",
        ),
        pytest.param(image_scripted("loopback", 4, n_iter=5), "script_args", id="loops"),
        pytest.param(
            image_scripted("loopback", 1, 0.5, "Lazy", "CLIP"), "script_args[3]", id="captions"
        ),
        pytest.param(
            image_scripted("sd upscale", None, 64, "LDSR ", 2), "script_args[2]", id="no upscaler"
        ),
        pytest.param(
            image_scripted("sd upscale", None, 64, 99, 2), "script_args[2]", id="no such place"
        ),
        pytest.param(
            image_scripted("sd upscale", None, 256, "Lanczos", 4, width=256, height=256),
            "script_args",
            id="tiles that overlap themselves",
        ),
        pytest.param(
            image_scripted("sd upscale", None, 240, "Lanczos", 4, width=256, height=256),
            "script_args",
            id="more tiles than pictures allowed",
        ),
    ],
)
def test_what_a_script_may_not_be_told_is_refused(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        settled(fields)

    assert caught.value.details["field"] == field


@pytest.mark.parametrize(
    "fields",
    [
        image_scripted("sd upscale", None, 64, "Lanczos", 4),
        image_scripted("outpainting mk2", None, 256),
        image_scripted("poor man's outpainting", 256),
    ],
    ids=lambda fields: str(fields["script_name"]),
)
def test_a_picture_that_would_become_too_large_is_refused(fields: dict[str, Any]) -> None:
    limits = JobSettings(max_pixels=1_000_000, max_input_pixels=1_000_000)

    with pytest.raises(InvalidInputError, match="the limit is 1000000"):
        settled(fields, side=700, limits=limits)


def test_an_upscaler_without_its_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()

    with pytest.raises(ModelNotFoundError) as caught:
        settled(image_scripted("sd upscale", None, 64, "LDSR"), links=tmp_path)

    assert caught.value.details["field"] == "script_args[2]"


def always_on(name: str, *args: Any) -> dict[str, Any]:
    return {"alwayson_scripts": {name: {"args": list(args)}}}


def detailed(**unit: Any) -> dict[str, Any]:
    return always_on("ADetailer", True, False, {"ad_model": "face_yolov8n.pt", **unit})


@pytest.mark.parametrize(
    "fields",
    [
        {"alwayson_scripts": {"refiner": {"args": []}, "seed": {}}},
        {**always_on("Soft Inpainting", True, 1.5, 1), "img2img": True},
        detailed(ad_prompt="a face, a/b", ad_confidence=0.4, ad_use_steps=True, ad_steps=20),
        detailed(ad_checkpoint=None, ad_use_checkpoint=False, ad_inpaint_width=1024),
    ],
    ids=["without arguments", "soft inpainting", "ADetailer", "ADetailer without a model"],
)
def test_a_script_that_is_always_on_may_be_told_what_is_harmless(fields: dict[str, Any]) -> None:
    assert settled(fields) == {}


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        pytest.param({"alwayson_scripts": {"Seed": [1]}}, "Seed", id="no object"),
        pytest.param({"alwayson_scripts": {"Seed": {"args": "x"}}}, "Seed", id="no list"),
        pytest.param(always_on("refiner", True, "b", 0.5), "refiner", id="a checkpoint"),
        pytest.param(always_on("extra options", "/etc"), "extra options", id="an option"),
        pytest.param(always_on("reactor", "/etc"), "reactor", id="an extension"),
        pytest.param(
            {**always_on("soft inpainting", True, 99), "img2img": True},
            "soft inpainting.args[1]",
            id="beyond its range",
        ),
        pytest.param(always_on("adetailer", "/etc"), "adetailer.args[0]", id="a text"),
        pytest.param(always_on("adetailer", *[True] * 20), "adetailer.args", id="too many"),
        pytest.param(detailed(ad_model="../x.pt"), "ADetailer.args[2].ad_model", id="a path"),
        pytest.param(detailed(ad_model={"x": 1}), "ADetailer.args[2].ad_model", id="an object"),
        pytest.param(
            detailed(ad_use_checkpoint=True, ad_checkpoint="b"),
            "ADetailer.args[2].ad_use_checkpoint",
            id="a checkpoint of its own",
        ),
        pytest.param(detailed(ad_steps=201), "ADetailer.args[2].ad_steps", id="steps"),
        pytest.param(detailed(ad_steps="9999"), "ADetailer.args[2].ad_steps", id="in quotes"),
        pytest.param(
            detailed(ad_inpaint_width=4096, ad_inpaint_height=4096),
            "ADetailer.args[2].ad_inpaint_width",
            id="a large picture",
        ),
        pytest.param(
            detailed(ad_dilate_erode=10**6), "ADetailer.args[2].ad_dilate_erode", id="a mask"
        ),
        pytest.param(
            detailed(ad_prompt="x" * 50_001), "ADetailer.args[2].ad_prompt", id="a long prompt"
        ),
    ],
)
def test_what_a_script_that_is_always_on_may_not_be_told_is_refused(
    fields: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        settled(fields)

    assert caught.value.details["field"] == f"alwayson_scripts.{field}"


def test_a_setting_adds_scripts_whose_arguments_are_not_looked_at() -> None:
    limits = JobSettings(scripts=("X/Y/Z plot", "Refiner"))

    settled(always_on("refiner", True, "b", 0.5), limits=limits)
    found = settled(scripted("x/y/z plot", 1, "1-3"), limits=limits)["script_args"]

    # Made complete, or what the others are told would move.
    assert found[:2] == [1, "1-3"]
    assert len(found) == 18
