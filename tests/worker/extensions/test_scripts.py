from pathlib import Path
from typing import Any

import pytest

from schemas.errors import InvalidInputError, ModelNotFoundError
from schemas.settings import JobSettings
from simulator.webui import catalogue, extensions
from tests.parsing import parse
from tests.worker.calling import picture
from worker.extensions.scripts import checked, detectors, respelled, upscalers

LIMITS = JobSettings()
INFO = [
    *catalogue.script_info([], ["None", "Lanczos", "Nearest", "LDSR"]),
    *extensions.script_info(extensions.NAMES, ["None", "Lanczos", "R-ESRGAN 4x+"]),
]
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
    plain = respelled(job.alwayson_scripts, {}, limits)
    job = job.model_copy(update={"alwayson_scripts": plain})
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


# ReActor's, from the restorer on: a face model instead of a picture.
FACES = ["None", 1, True, "None", 1.0, 1, False, True, 1, 0, 2, False, 0.5, True, False, "CPU"]
FACES += [False, 1, "elena.safetensors", "", None, None, True, 0.5, 2.0]


def swapped(place: int, value: Any) -> dict[str, Any]:
    """Return a request that ReActor could do, but for one argument."""
    arguments = [picture(64), True, "0", "0", "inswapper_128.onnx", *FACES, "tab_single"]
    arguments[22:24] = [0, "None"]
    arguments[place] = value
    return always_on("reactor", *arguments)


@pytest.mark.parametrize(
    "fields",
    [
        {"alwayson_scripts": {"refiner": {"args": []}, "seed": {}}},
        {**always_on("Soft Inpainting", True, 1.5, 1), "img2img": True},
        detailed(ad_prompt="a face, a/b", ad_confidence=0.4, ad_use_steps=True, ad_steps=20),
        detailed(ad_checkpoint=None, ad_use_checkpoint=False, ad_inpaint_width=1024),
        detailed(ad_mask_k_largest=1, ad_tap_enable=True, is_api=[], ad_mask_merge_invert="Merge"),
        always_on("adetailer", {"ad_model": "hand_yolov8n.pt"}, {"ad_model": "None"}),
        always_on("reactor", picture(64), True),
        always_on("ReActor", picture(64), True, 0, "0,1", "inswapper_128.onnx", *FACES),
        always_on("reactor", None, False),
    ],
    ids=[
        "without arguments",
        "soft inpainting",
        "ADetailer",
        "ADetailer without a model",
        "ADetailer by its earlier names",
        "ADetailer twice, and no switch",
        "ReActor",
        "ReActor from a face model",
        "ReActor that does nothing",
    ],
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
        pytest.param(always_on("extension", "/etc"), "extension", id="an extension"),
        pytest.param(
            {**always_on("soft inpainting", True, 99), "img2img": True},
            "soft inpainting.args[1]",
            id="beyond its range",
        ),
        pytest.param(always_on("adetailer", "/etc"), "adetailer.args[0]", id="a text"),
        pytest.param(always_on("adetailer", *[True] * 20), "adetailer.args", id="too many"),
        pytest.param(detailed(ad_modle="x"), "ADetailer.args[2].ad_modle", id="an unknown name"),
        pytest.param(detailed(ad_confidence=30), "ADetailer.args[2].ad_confidence", id="percent"),
        pytest.param(detailed(ad_steps=True), "ADetailer.args[2].ad_steps", id="a switch"),
        pytest.param(detailed(ad_use_steps=1), "ADetailer.args[2].ad_use_steps", id="no switch"),
        pytest.param(detailed(ad_prompt=1), "ADetailer.args[2].ad_prompt", id="no text"),
        pytest.param(
            detailed(ad_mask_merge_invert="Both"),
            "ADetailer.args[2].ad_mask_merge_invert",
            id="no choice of ADetailer",
        ),
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


@pytest.mark.parametrize(
    ("place", "value"),
    [
        pytest.param(0, "/etc/passwd", id="a path as picture"),
        pytest.param(0, "", id="no picture"),
        pytest.param(0, {"image": "x"}, id="an object as picture"),
        pytest.param(0, "https://example.org/a.png", id="a URL that was not fetched"),
        pytest.param(1, "yes", id="no switch"),
        pytest.param(2, "0,1", id="two faces for one"),
        pytest.param(2, "first", id="no number"),
        pytest.param(3, [0], id="a list of faces"),
        pytest.param(4, "../../etc/passwd", id="a path to a model"),
        pytest.param(4, "buffalo.onnx", id="a model that is not there"),
        pytest.param(5, "RestoreFormer", id="a restorer that is not there"),
        pytest.param(6, 1.5, id="a share beyond 1"),
        pytest.param(8, "lollypop", id="an upscaler that is not there"),
        pytest.param(9, 9, id="a factor of 9"),
        pytest.param(13, 3, id="no such level"),
        pytest.param(14, "Female Only", id="a name where a number goes"),
        pytest.param(16, True, id="a picture saved on the server"),
        pytest.param(16, 0, id="a number for a switch"),
        pytest.param(20, "/dev/null", id="no such device"),
        pytest.param(22, 1, id="a face model without a name"),
        pytest.param(22, 2, id="a folder of the server"),
        pytest.param(22, True, id="a switch for a number"),
        pytest.param(23, "../x.safetensors", id="a path to a face"),
        pytest.param(24, "/workspace/faces", id="the folder"),
        pytest.param(25, ["/etc/passwd"], id="files of the server"),
        pytest.param(28, 0, id="a threshold of nothing"),
        pytest.param(29, 2.5, id="half a face"),
        pytest.param(30, "tab_multiple", id="the tab of those files"),
    ],
)
def test_what_reactor_may_not_be_told_is_refused(place: int, value: Any) -> None:
    """As its source says; unverified against a live server."""
    with pytest.raises(InvalidInputError) as caught:
        settled(swapped(place, value))

    # A face model is missed at its own place.
    at = 23 if (place, value) == (22, 1) and value is not True else place
    assert caught.value.details["field"] == f"alwayson_scripts.reactor.args[{at}]"


def test_reactor_gets_no_more_arguments_than_it_takes() -> None:
    fields = swapped(0, picture(64))
    fields["alwayson_scripts"]["reactor"]["args"].append("other's argument")

    with pytest.raises(InvalidInputError, match="has 32 arguments; the script takes 31"):
        settled(fields)


def test_reactor_makes_no_picture_larger_than_an_input_may_be() -> None:
    fields = swapped(8, "Lanczos")
    fields["alwayson_scripts"]["reactor"]["args"][9] = 2
    settled({**fields, **TILE})

    for larger in ({"width": 1024, "height": 1024}, {**TILE, "enable_hr": True}):
        with pytest.raises(InvalidInputError, match="the limit is 2000000"):
            settled({**fields, **larger}, limits=JobSettings(max_input_pixels=2_000_000))


@pytest.mark.parametrize(
    ("place", "name"), [(5, "CodeFormer"), (8, "R-ESRGAN 4x+")], ids=["restorer", "upscaler"]
)
def test_weights_that_reactor_would_do_without_are_missed(
    place: int, name: str, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()

    with pytest.raises(ModelNotFoundError) as caught:
        settled(swapped(place, name), links=tmp_path)

    assert caught.value.details["field"] == f"alwayson_scripts.reactor.args[{place}]"


@pytest.mark.parametrize(
    ("changes", "scripts", "wanted"),
    [
        pytest.param({8: "4x-Sharp"}, (), "4x-Sharp", id="named"),
        pytest.param({8: 1}, (), None, id="a number"),
        pytest.param({1: False, 8: "4x-Sharp"}, (), None, id="ReActor is off"),
        pytest.param({8: "4x-Sharp"}, ("ReActor",), None, id="not looked at"),
    ],
)
def test_an_upscaler_of_reactors_is_wanted_where_reactor_would_use_it(
    changes: dict[int, Any], scripts: tuple[str, ...], wanted: str | None
) -> None:
    arguments = [picture(64), True, "0", "0", "inswapper_128.onnx", "None", 1, True, "None"]
    for place, value in changes.items():
        arguments[place] = value
    job = parse({"prompt": "a cat", **always_on("reactor", *arguments)}, LIMITS).job

    found = upscalers(job, JobSettings(scripts=scripts))

    assert found == ({"alwayson_scripts.reactor.args[8]": wanted} if wanted else {})


def test_reactor_without_a_model_says_where_it_belongs() -> None:
    job = parse({"prompt": "a cat", **always_on("reactor", picture(64), True)}, LIMITS).job
    plain = respelled(job.alwayson_scripts, {}, LIMITS)
    (told,) = extensions.script_info(["reactor"], [])[:1]
    told["args"][4] |= {"label": "Model not found", "value": None, "choices": []}

    job = job.model_copy(update={"alwayson_scripts": plain})
    with pytest.raises(ModelNotFoundError) as caught:
        checked(job, {"reactor": told["args"]}, [], LIMITS, Path())

    assert "models/insightface" in caught.value.hint


def test_what_adetailer_tells_of_itself_goes_before_what_is_known_here() -> None:
    job = parse({"prompt": "a", **detailed(ad_new=0.5, ad_glow=True)}, LIMITS).job
    told = extensions.script_info(["adetailer"], [])[0]["args"]
    told[2]["value"] = {"ad_model": "x", "ad_new": 0.1, "ad_glow": False}

    assert checked(job, {"adetailer": told}, [], LIMITS, Path()) == {}
    told[2]["value"].pop("ad_new")
    with pytest.raises(InvalidInputError, match="no argument 'ad_new'"):
        checked(job, {"adetailer": told}, [], LIMITS, Path())


def test_a_setting_adds_scripts_whose_arguments_are_not_looked_at() -> None:
    limits = JobSettings(scripts=("X/Y/Z plot", "Refiner"))

    settled(always_on("refiner", True, "b", 0.5), limits=limits)
    found = settled(scripted("x/y/z plot", 1, "1-3"), limits=limits)["script_args"]

    # Made complete, or what the others are told would move.
    assert found[:2] == [1, "1-3"]
    assert len(found) == 18


def test_the_setting_takes_away_the_checks_of_the_others() -> None:
    limits = JobSettings(scripts=("ReActor", "adetailer"))
    sent = {
        "reactor": {"args": ["/faces/a.png"]},
        "ADetailer": {"args": [{"ad_mask_k_largest": 1}]},
    }

    assert respelled(sent, {}, limits) == sent
    assert settled({"alwayson_scripts": sent}, limits=limits) == {}
    assert detectors({"ADetailer": {"args": [{"ad_model": "own.pt"}]}}, limits) == {}
