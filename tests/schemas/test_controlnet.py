"""ControlNet's units in every spelling, and what is refused before anything is asked."""

from typing import Any

import pytest

from schemas.controlnet import ControlNetUnit, images, module_of, with_images
from schemas.errors import InvalidInputError
from schemas.job import Generation
from schemas.request import Request, parse
from schemas.settings import JobSettings


def parsed(**fields: Any) -> Request:
    return parse({"prompt": "a cat", **fields}, JobSettings())


def job(**fields: Any) -> Generation:
    found = parsed(**fields).job
    assert isinstance(found, Generation)
    return found


def unit(**fields: Any) -> ControlNetUnit:
    (found,) = job(controlnet_args=[fields]).controlnet_args
    return found


def test_a_unit_is_enabled_unless_it_says_otherwise() -> None:
    assert unit(model="x").enabled
    assert not unit(model="x", enabled=False).enabled


@pytest.mark.parametrize("script", ["controlnet", "ControlNet", "CONTROLNET"])
def test_units_are_taken_out_of_the_scripts_and_the_others_stay(script: str) -> None:
    scripts = {script: {"args": [False, {"model": "x"}]}, "refiner": {"args": []}}

    found = job(alwayson_scripts=scripts)

    assert [one.at for one in found.controlnet_args] == [f"alwayson_scripts.{script}.args[1]"]
    assert found.alwayson_scripts == {"refiner": {"args": []}}
    assert "controlnet_args" not in found.webui_fields()


@pytest.mark.parametrize("entry", [None, {}, {"args": []}, {"args": None}])
def test_an_entry_without_units_asks_for_nothing(entry: object) -> None:
    found = job(alwayson_scripts={"controlnet": entry, "refiner": {"args": []}})

    assert found.controlnet_args == []
    assert found.alwayson_scripts == {"refiner": {"args": []}}


@pytest.mark.parametrize(
    ("alias", "name", "value"),
    [
        ("input_image", "image", "abc"),
        ("mask_image", "mask", "abc"),
        ("lowvram", "low_vram", True),
        ("guidance", "guidance_end", 0.5),
    ],
)
def test_older_names_of_fields_mean_the_same(alias: str, name: str, value: object) -> None:
    image = {} if name == "image" else {"image": "x"}

    assert unit(**image, **{alias: value}) == unit(**image, **{name: value})
    # The extension fails when both are there, even if they agree; clients send both.
    assert unit(**image, **{alias: value, name: value}) == unit(**image, **{name: value})


def test_null_and_empty_texts_are_not_given() -> None:
    assert unit(model="x", module=None, image="", mask=None) == unit(model="x")


@pytest.mark.parametrize("model", [None, "", "None", "none"])
def test_no_model_is_said_in_many_ways(model: object) -> None:
    assert unit(model=model, module="canny").model is None


def test_the_short_hash_is_told_from_the_name() -> None:
    named = unit(model="control_v11p_sd15_canny [30d35062]")

    assert named.model is not None
    assert (named.model.name, named.short_hash) == ("control_v11p_sd15_canny", "30d35062")


@pytest.mark.parametrize(
    "model",
    [
        "https://example.org/canny.safetensors",
        "hf:lllyasviel/ControlNet-v1-1/control_v11p_sd15_canny.pth",
        {"name": "canny", "url": "https://example.org/1"},
    ],
)
def test_a_model_may_be_a_reference(model: object) -> None:
    ref = unit(model=model).model

    assert ref is not None
    assert ref.url is not None
    assert ref.kind == "controlnet"


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (0, "Just Resize"),
        (1, "Crop and Resize"),
        ("2", "Resize and Fill"),
        ("Scale to Fit (Inner Fit)", "Crop and Resize"),
        ("Envelope (Outer Fit)", "Resize and Fill"),
        ("Just Resize", "Just Resize"),
    ],
)
def test_resize_modes_are_taken_as_numbers_and_old_names(given: object, meant: str) -> None:
    assert unit(resize_mode=given).resize_mode == meant


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (0, "Balanced"),
        (1, "My prompt is more important"),
        ("2", "ControlNet is more important"),
        ("Balanced", "Balanced"),
    ],
)
def test_control_modes_are_taken_as_numbers(given: object, meant: str) -> None:
    assert unit(control_mode=given).control_mode == meant


@pytest.mark.parametrize(
    ("fields", "pictures"),
    [
        pytest.param({"image": "a"}, [("a", None)], id="text"),
        pytest.param({"image": {"image": None, "mask": ""}}, [], id="nothing in an object"),
        pytest.param({"image": ["a", None]}, [("a", None)], id="pair without a mask"),
        pytest.param({"image": "a", "mask": "m"}, [("a", "m")], id="text and mask"),
        pytest.param({"image": {"image": "a"}}, [("a", None)], id="object"),
        pytest.param({"image": {"image": "a", "mask": "m"}}, [("a", "m")], id="both in an object"),
        pytest.param({"image": ["a", "m"]}, [("a", "m")], id="pair"),
        pytest.param({"image": ["a"]}, [("a", None)], id="list of one"),
        pytest.param(
            {"image": [{"image": "a"}, {"image": "b", "mask": "m"}]},
            [("a", None), ("b", "m")],
            id="several",
        ),
    ],
)
def test_pictures_are_taken_in_every_form(
    fields: dict[str, Any], pictures: list[tuple[str, str | None]]
) -> None:
    assert [(one.image, one.mask) for one in unit(**fields).pictures] == pictures


@pytest.mark.parametrize(
    ("fields", "at"),
    [
        ({"weight": 2.1}, ".weight"),
        ({"weight": "heavy"}, ".weight"),
        ({"guidance_start": -0.1}, ".guidance_start"),
        ({"guidance_end": 1.1}, ".guidance_end"),
        ({"guidance_start": 0.9, "guidance_end": 0.1}, ""),
        ({"control_mode": 3}, ".control_mode"),
        ({"resize_mode": "Squeeze"}, ".resize_mode"),
        ({"hr_option": "Never"}, ".hr_option"),
        ({"image": 5}, ".image"),
        ({"image": ["a", "b", "c"]}, ".image"),
        ({"image": [None, "m"]}, ".image"),
        ({"image": ["a", 5]}, ".image"),
        ({"image": [{"mask": "m"}]}, ".image[0].image"),
        ({"mask": "m"}, ""),
        ({"image": [{"image": "a"}, {"image": "b"}], "mask": "m"}, ""),
        ({"image": "a", "input_image": "b"}, ""),
        ({"module": "x" * 101}, ".module"),
        ({"model": 5}, ".model"),
        ({"model": {"url": "ftp://example.org/x"}}, ".model.url"),
        ({"model": "../x"}, ".model.name"),
        ({"processor_res": "large"}, ".processor_res"),
        ({"input_mode": "batch", "batch_images": "/etc"}, ""),
        ({"batch_image_files": ["/etc/passwd"]}, ""),
        ({"output_dir": "/tmp/x"}, ""),
        ({"ipadapter_input": ["gASV"]}, ""),
    ],
)
def test_what_cannot_work_is_refused_with_its_field(fields: dict[str, Any], at: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        job(controlnet_args=[{"model": "x"}, fields])

    assert caught.value.details["field"] == f"controlnet_args[1]{at}"


@pytest.mark.parametrize("units", [{"model": "x"}, "x", 5, ["x"], [[]]])
def test_units_must_be_a_list_of_objects(units: object) -> None:
    with pytest.raises(InvalidInputError, match="must be a"):
        job(controlnet_args=units)


def test_a_script_that_is_no_object_is_refused() -> None:
    with pytest.raises(InvalidInputError) as caught:
        job(alwayson_scripts={"controlnet": [{"model": "x"}]})

    assert caught.value.details["field"] == "alwayson_scripts.controlnet"


def test_units_in_two_places_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="are both given"):
        job(
            controlnet_args=[{"model": "x"}],
            alwayson_scripts={"controlnet": {"args": [{"model": "y"}]}},
        )


def test_what_the_extension_shows_as_its_default_is_taken() -> None:
    shown = {"is_ui": False, "input_mode": "simple", "batch_images": None, "batch_modifiers": []}

    assert parsed(controlnet_args=[{"model": "x", **shown}]).warnings == ()


def test_unknown_fields_are_told() -> None:
    warnings = parsed(controlnet_args=[{"model": "x", "guessmode": False}]).warnings

    assert warnings == ("`controlnet_args[0]`: unknown fields were left out: 'guessmode'.",)


# The table of RandomSeed's page, and the control types of the extension.
@pytest.mark.parametrize(
    ("model", "module"),
    [
        ("control_v11p_sd15_canny", "canny"),
        ("control_v11p_sd15_mlsd", "mlsd"),
        ("control_v11f1p_sd15_depth", "depth"),
        ("control_v11p_sd15_normalbae", "normal_bae"),
        ("control_v11p_sd15_seg", "segmentation"),
        ("control_v11p_sd15_inpaint", "inpaint"),
        ("control_v11p_sd15_lineart", "lineart"),
        ("control_v11p_sd15s2_lineart_anime", "lineart_anime"),
        ("control_v11p_sd15_openpose", "openpose"),
        ("control_v11p_sd15_scribble", "scribble_pidinet"),
        ("control_v11p_sdd15_softedge", "softedge_hed"),
        ("control_v11f1e_sd15_tile", "tile_resample"),
        ("control_v11e_sd15_shuffle", "shuffle"),
        ("Control_v11e_Sd15_ip2p", "none"),
        ("control_v1p_sd15_qrcode_monster", "none"),
        ("control_v1p_sd15_grcode_monster", "none"),
        ("diffusers_xl_canny_full", "canny"),
        ("control-lora-canny-rank256", "canny"),
        ("sd15_segmentation", "segmentation"),
        ("something_else", None),
        ("segue", None),
    ],
)
def test_the_module_is_told_from_the_models_name(model: str, module: str | None) -> None:
    assert module_of(model) == module


def test_what_is_no_image_is_told_how_images_are_written() -> None:
    with pytest.raises(InvalidInputError, match="base64, a data URI or an https URL"):
        unit(image=5)


def test_images_are_found_and_replaced_by_their_paths() -> None:
    units = job(
        controlnet_args=[
            {"image": "a", "mask": "m"},
            {"image": [{"image": "b"}, {"image": "c"}], "effective_region_mask": "r"},
            {"image": "d", "enabled": False},
        ]
    ).controlnet_args

    found = images(units)
    assert found == {
        "controlnet_args[0].image": "a",
        "controlnet_args[0].image.mask": "m",
        "controlnet_args[1].effective_region_mask": "r",
        "controlnet_args[1].image[0]": "b",
        "controlnet_args[1].image[1]": "c",
    }
    replaced = with_images(units, {at: text.upper() for at, text in found.items()})
    assert images(replaced) == {at: text.upper() for at, text in found.items()}
    assert replaced[2] == units[2]
    assert [one.at for one in replaced] == [one.at for one in units]


@pytest.mark.parametrize("args", [False, 0, True, "text"])
def test_arguments_that_are_no_list_are_refused(args: object) -> None:
    with pytest.raises(InvalidInputError, match="must be a list"):
        parse({"alwayson_scripts": {"controlnet": {"args": args}}}, JobSettings())
