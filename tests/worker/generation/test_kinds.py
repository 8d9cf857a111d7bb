"""What each image of an answer is, where the simulator does not go: other extensions, rarer modules."""

from typing import Any

import pytest

from schemas.errors import WrongModelUsedError
from schemas.job import Generation
from schemas.request import parse
from schemas.settings import JobSettings
from worker.extensions.controlnet import Control, Controls
from worker.generation.kinds import settled

HIRES = {"enable_hr": True, "denoising_strength": 0.5}
OPTIONS = {"return_grid": True, "grid_only_if_multiple": True}


def job(**fields: Any) -> Generation:
    found = parse({"prompt": "a cat", **fields}, JobSettings()).job
    assert isinstance(found, Generation)
    return found


def controls(asked: Generation, *modules: str) -> Controls:
    pairs = zip(asked.controlnet_args, modules, strict=True)
    return Controls(
        [Control(unit, "x", {"module": module, "model": "x [0]"}) for unit, module in pairs]
    )


def answer(images: int, *units: dict[str, Any]) -> dict[str, Any]:
    return {
        "images": [str(number) for number in range(images)],
        "parameters": {"alwayson_scripts": {"controlnet": {"args": list(units)}}},
    }


@pytest.mark.parametrize(
    ("images", "fields", "kinds"),
    [
        pytest.param(1, {}, ["picture"], id="one"),
        pytest.param(3, {"n_iter": 2}, ["picture", "picture", "unknown"], id="an extension's"),
        pytest.param(1, {"n_iter": 2}, ["picture"], id="fewer than asked for"),
        pytest.param(2, {"script_name": "x/y/z plot"}, ["unknown"] * 2, id="a script's"),
        pytest.param(0, {"send_images": False}, [], id="none"),
        pytest.param(
            3, {"save_images": True, "n_iter": 2}, ["grid", "picture", "picture"], id="grid"
        ),
        pytest.param(
            2,
            {"save_images": True, "n_iter": 2, "do_not_save_grid": True},
            ["picture", "picture"],
            id="no grid",
        ),
    ],
)
def test_without_controlnet_kinds_follow_the_request(
    images: int, fields: dict[str, Any], kinds: list[str]
) -> None:
    assert settled(answer(images), job(**fields), Controls(), OPTIONS) == kinds


def test_a_mask_and_a_composite_follow_each_picture() -> None:
    asked = job(init_images=["a"], mask="b", n_iter=2)
    options = OPTIONS | {"return_mask": True, "return_mask_composite": True}

    assert settled(answer(6), asked, Controls(), options) == ["picture", "mask", "mask"] * 2


def test_a_module_that_makes_no_picture_has_one_map_with_hires_fix() -> None:
    asked = job(
        controlnet_args=[{"model": "x", "save_detected_map": False}, {"model": "y"}], **HIRES
    )
    given = answer(4)

    kinds = settled(given, asked, controls(asked, "ip-adapter_clip_sd15", "canny"), OPTIONS)

    assert kinds == ["picture", "detect_map", "detect_map"]
    assert given["images"] == ["0", "2", "3"]


def test_each_picture_of_a_unit_has_a_map() -> None:
    asked = job(controlnet_args=[{"model": "x", "image": [{"image": "a"}, {"image": "b"}]}])
    found = controls(asked, "ip-adapter-auto")

    assert settled(answer(3), asked, found, OPTIONS) == ["picture", "detect_map", "detect_map"]
    with pytest.raises(WrongModelUsedError):
        settled(answer(2), asked, found, OPTIONS)


def test_when_it_is_not_clear_whose_a_map_is_all_are_kept() -> None:
    asked = job(controlnet_args=[{"model": "x", "save_detected_map": False}])
    given = answer(3)

    kinds = settled(given, asked, controls(asked, "canny"), OPTIONS)

    assert kinds == ["picture", "detect_map", "detect_map"]
    assert len(given["images"]) == 3


def test_the_pictures_of_units_come_back_only_with_include_init_images() -> None:
    unit = {"image": "a", "module": "canny"}
    units = [{"model": "x", "image": "a"}]
    kept = job(controlnet_args=units, init_images=["a"], include_init_images=True)
    plain = job(controlnet_args=units)

    for asked, image in ((kept, "a"), (plain, None)):
        given = answer(2, unit)
        settled(given, asked, controls(asked, "canny"), OPTIONS)
        repeated = given["parameters"]["alwayson_scripts"]["controlnet"]["args"]
        assert repeated == [{"image": image, "module": "canny"}]
