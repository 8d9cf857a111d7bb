"""Jobs with ControlNet against the simulated extension, which falls back in silence as the real one does."""

import base64
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any, get_args

import pytest
from PIL import Image

from model_cache.cache import ModelCache
from schemas.controlnet import ControlNetUnit, module_of
from schemas.errors import (
    BackendFailedError,
    InvalidInputError,
    ModelIncompatibleError,
    ModelNotFoundError,
    WrongModelUsedError,
)
from schemas.result import ImageKind
from schemas.settings import CacheSettings, JobSettings, Settings, WebuiSettings
from simulator import models as files
from tests.conftest import ROOT, Simulator, running
from tests.worker.keeping import kept
from worker.child.client import WebuiClient
from worker.child.links import LinkFolder
from worker.extensions.controlnet import Extension
from worker.run import Runner

pytestmark = pytest.mark.slow

CANNY, DEPTH = "control_v11p_sd15_canny", "control_v11f1p_sd15_depth"


def drawn(size: tuple[int, int] = (64, 64), mode: str = "RGB", colour: str = "red") -> str:
    """Return a picture with an edge in it, as base64."""
    picture = Image.new("RGB", size)
    picture.paste(colour, (8, 8, 40, 40))
    output = io.BytesIO()
    picture.convert(mode).save(output, "PNG")
    return base64.b64encode(output.getvalue()).decode()


PICTURE = drawn()


@dataclass
class World:
    runner: Runner
    webui: Simulator
    hub: Simulator
    folder: Path

    def run(self, *units: Any, **fields: Any) -> dict[str, Any]:
        asked = {"controlnet_args": list(units)} if units else {}
        job = {"checkpoint": "a", "prompt": "a cat", "steps": 2, "width": 64, "height": 64}
        value = {**job, "seed": 1, **asked, **fields}
        return dict(self.runner.run({"id": "job-1", "input": value}, Event(), lambda _: None))

    def sent(self) -> list[dict[str, Any]]:
        """Return the bodies of the generations that A1111 received, oldest first."""
        journal = self.webui.get("/simulator/journal")
        asked = ("/txt2img", "/img2img")
        return [e["body"] for e in journal["requests"] if e["path"].endswith(asked)]

    def units(self) -> list[dict[str, Any]]:
        """Return the units that A1111 received last."""
        units: list[dict[str, Any]] = self.sent()[-1]["alwayson_scripts"]["controlnet"]["args"]
        return units


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("controlnet")
    volume, hub_files = folder / "models", folder / "hub"
    files.write_checkpoint(volume / "checkpoints" / "a.safetensors", seed="a")
    for name in (CANNY, DEPTH):
        files.write_controlnet(volume / "controlnet" / f"{name}.safetensors", seed=name)
    files.write_controlnet(volume / "controlnet" / "xl_canny.safetensors", seed="xl", base="sdxl")
    files.write_controlnet(volume / "controlnet" / "plain.safetensors", seed="plain")
    files.write_controlnet(hub_files / "control_v11p_sd15_mlsd.safetensors", seed="mlsd")
    files.write_controlnet(hub_files / "control_v11p_sd15_canny_fp16.safetensors", seed="fp16")
    for name in ("edge", "house", "depth"):
        (hub_files / f"{name}.png").write_bytes(base64.b64decode(PICTURE))
    extension = ("--controlnet", "--controlnet-annotator-models-path", folder / "annotators")
    with (
        running("webui", "--models-dir", folder / "links", *extension) as webui,
        running("hub", "--root", hub_files) as hub,
    ):
        settings = Settings(
            cache=CacheSettings(volume=volume, allow_private_hosts=True),
            webui=WebuiSettings(port=int(webui.url.rpartition(":")[2]), links=folder / "links"),
            job=JobSettings(),
        )
        client = WebuiClient(webui.url)
        runner = Runner(ModelCache(settings.cache), client, kept(client), settings)
        runner.show_models()
        yield World(runner, webui, hub, folder)


def unit(**fields: Any) -> dict[str, Any]:
    return {"image": PICTURE, "model": CANNY, **fields}


def test_a_unit_changes_the_picture_and_the_answer_ends_with_its_map(world: World) -> None:
    plain = world.run()
    controlled = world.run(unit(module="canny"))

    assert plain["image_kinds"] == ["picture"]
    assert controlled["image_kinds"] == ["picture", "detect_map"]
    assert len(controlled["images"]) == 2
    assert controlled["images"][0] != plain["images"][0]
    assert [model["kind"] for model in controlled["models"]] == ["checkpoint", "controlnet"]


@pytest.mark.parametrize("script", ["controlnet", "ControlNet", "CONTROLNET"])
def test_units_among_the_scripts_mean_the_same_in_any_case(world: World, script: str) -> None:
    one = world.run(unit(module="canny"))
    other = world.run(alwayson_scripts={script: {"args": [True, unit(module="canny")]}})

    assert other["images"] == one["images"]


def test_what_randomseed_sends_works(world: World) -> None:
    answer = world.run(
        {"input_image": PICTURE, "module": None, "model": CANNY},
        init_images=[PICTURE],
        include_init_images=True,
        denoising_strength=0.7,
        sampler_name="Euler a",
    )

    assert answer["image_kinds"] == ["picture", "detect_map"]
    assert world.units()[0]["module"] == "canny"
    assert world.units()[0]["enabled"] is True
    assert any("was taken to be `canny`" in warning for warning in answer["warnings"])


def test_a_model_by_url_is_fetched_and_listed_before_the_job(world: World) -> None:
    url = f"{world.hub.url}/control_v11p_sd15_mlsd.safetensors"

    # mlsd has weights of its own, which are not here; the picture itself needs none.
    first = world.run(unit(model={"name": "lines", "url": url}, module="none"))
    second = world.run(unit(model={"name": "lines", "url": url}, module="none"))

    assert first["models"][-1]["cached"] is False
    assert second["models"][-1]["cached"] is True
    assert world.units()[0]["model"].startswith("lines [")
    assert second["image_kinds"] == ["picture", "detect_map"]


def test_the_list_is_asked_again_only_when_a_link_is_new(world: World) -> None:
    def asked() -> int:
        journal = world.webui.get("/simulator/journal")
        return sum(e["path"] == "/controlnet/model_list" for e in journal["requests"])

    world.run(unit())
    before = asked()
    world.run(unit())
    assert asked() == before

    files.write_controlnet(world.folder / "hub" / "other_canny.safetensors", seed="other")
    world.run(unit(model=f"{world.hub.url}/other_canny.safetensors"))
    assert asked() == before + 1


def test_an_image_by_url_is_fetched_by_us(world: World) -> None:
    by_url = world.run(unit(image=f"{world.hub.url}/edge.png", module="canny"))

    assert by_url["images"] == world.run(unit(module="canny"))["images"]
    assert world.units()[0]["image"] == PICTURE


@pytest.mark.parametrize(
    ("fields", "at", "words"),
    [
        pytest.param({"module": "nope"}, "module", "no module 'nope'", id="module"),
        pytest.param({"module": "cany"}, "module", "'canny'", id="module nearly"),
        pytest.param({"image": None}, "image", "needs an `image`", id="no image"),
        pytest.param({"image": ""}, "image", "needs an `image`", id="empty image"),
        pytest.param({"image": "garbage!!"}, "image", "not an image", id="broken image"),
        pytest.param({"image": "/etc/hostname"}, "image", "not an image", id="path"),
        pytest.param({"mask": "garbage!!"}, "image.mask", "not an image", id="broken mask"),
        pytest.param(
            {"mask": drawn((32, 32))}, "image.mask", "of the same size", id="mask of another size"
        ),
        pytest.param(
            {"image": [{"image": PICTURE}, {"image": PICTURE}]}, "image", "one image", id="two"
        ),
        pytest.param({"model": None, "module": "canny"}, "model", "needs a `model`", id="no model"),
        pytest.param({"model": "None", "module": "none"}, "model", "needs a `model`", id="None"),
        pytest.param(
            {"model": f"{CANNY} [deadbeef]"}, "model", "not one with [deadbeef]", id="wrong hash"
        ),
        pytest.param(
            {"effective_region_mask": "x"}, "effective_region_mask", "not an image", id="region"
        ),
    ],
)
def test_a_unit_that_would_fail_in_silence_is_refused(
    world: World, fields: dict[str, Any], at: str, words: str
) -> None:
    before = len(world.sent())

    with pytest.raises(InvalidInputError) as caught:
        world.run(unit(), unit(**fields))

    assert caught.value.details["field"] == f"controlnet_args[1].{at}"
    assert words in f"{caught.value} {caught.value.hint}"
    assert len(world.sent()) == before


@pytest.mark.parametrize("name", ["canny", "nope"])
def test_a_vague_or_unknown_model_is_not_found(world: World, name: str) -> None:
    with pytest.raises(ModelNotFoundError):
        world.run(unit(model=name))


def test_a_model_is_named_with_its_hash_too(world: World) -> None:
    world.run(unit())
    listed = world.units()[0]["model"]

    assert world.run(unit(model=listed))["image_kinds"] == ["picture", "detect_map"]
    assert listed.startswith(f"{CANNY} [")
    assert world.run(unit(model=f"{CANNY}.safetensors"))["image_kinds"][-1] == "detect_map"


def test_a_unit_that_names_nothing_is_refused(world: World) -> None:
    with pytest.raises(InvalidInputError, match="neither a `model` nor a `module`"):
        world.run({"image": PICTURE})


def test_a_folder_that_the_extension_does_not_see_is_told(world: World, tmp_path: Path) -> None:
    extension = Extension(WebuiClient(world.webui.url), LinkFolder(tmp_path))

    with pytest.raises(BackendFailedError) as caught:
        extension.model("elsewhere")

    assert "--controlnet-dir" in caught.value.hint


def test_more_units_than_there_are_places_are_refused(world: World) -> None:
    with pytest.raises(
        InvalidInputError, match="4 ControlNet units are enabled; this WebUI takes 3"
    ):
        world.run(*[unit()] * 4)

    disabled = unit(enabled=False, image="garbage!!", model="nope")
    answer = world.run(disabled, disabled, disabled, unit())
    assert answer["image_kinds"] == ["picture", "detect_map"]


def test_without_an_enabled_unit_nothing_is_controlled(world: World) -> None:
    answer = world.run(unit(enabled=False))

    assert answer["images"] == world.run()["images"]
    assert "controlnet" not in world.sent()[-1].get("alwayson_scripts", {})


def test_weights_that_are_not_there_fail_the_job_and_withhold_the_picture(world: World) -> None:
    with pytest.raises(WrongModelUsedError, match="without ControlNet") as caught:
        world.run(unit(module="softedge_hed"))

    assert caught.value.details["kind"] == "controlnet"
    assert world.run(unit())["image_kinds"] == ["picture", "detect_map"]


def test_maps_that_are_not_wanted_are_proof_all_the_same(world: World) -> None:
    answer = world.run(unit(save_detected_map=False), unit(model=DEPTH, module="none"))

    assert answer["image_kinds"] == ["picture", "detect_map"]
    assert answer["images"][1] == world.run(unit(model=DEPTH, module="none"))["images"][1]
    with pytest.raises(WrongModelUsedError):
        world.run(unit(module="softedge_hed", save_detected_map=False))


def test_images_that_are_not_wanted_are_proof_all_the_same(world: World) -> None:
    answer = world.run(unit(), send_images=False)

    assert answer["images"] == answer["image_kinds"] == []
    assert answer["parameters"]["send_images"] is False
    with pytest.raises(WrongModelUsedError):
        world.run(unit(module="softedge_hed"), send_images=False)


def test_an_operators_option_does_not_take_the_maps_away(world: World) -> None:
    world.webui.post("/sdapi/v1/options", {"control_net_no_detectmap": True})

    assert world.run(unit())["image_kinds"] == ["picture", "detect_map"]


@pytest.mark.parametrize(
    ("fields", "kinds"),
    [
        pytest.param({"n_iter": 2}, ["picture"] * 2, id="several rounds"),
        pytest.param({"batch_size": 2}, ["picture"] * 2, id="a batch"),
        pytest.param(
            {"n_iter": 2, "save_images": True}, ["grid", "picture", "picture"], id="with a grid"
        ),
        pytest.param({"save_images": True}, ["picture"], id="one picture has no grid"),
    ],
)
def test_maps_are_told_from_pictures(
    world: World, fields: dict[str, Any], kinds: list[str]
) -> None:
    answer = world.run(unit(), unit(model=DEPTH, module="none"), **fields)

    assert answer["image_kinds"] == [*kinds, "detect_map", "detect_map"]
    assert len(answer["images"]) == len(answer["image_kinds"])


def test_hires_fix_brings_two_maps_of_a_unit(world: World) -> None:
    hires = {"enable_hr": True, "denoising_strength": 0.5, "hr_upscaler": "Latent"}
    answer = world.run(unit(save_detected_map=False), unit(model=DEPTH, module="none"), **hires)

    assert answer["image_kinds"] == ["picture", "detect_map", "detect_map"]
    sizes = [Image.open(io.BytesIO(base64.b64decode(one))).size for one in answer["images"]]
    assert sizes == [(128, 128), (128, 128), (64, 64)]


@pytest.fixture
def annotators(world: World) -> Iterator[None]:
    """The weights of every module, for one test."""
    (world.folder / "annotators").mkdir()
    yield
    (world.folder / "annotators").rmdir()


@pytest.mark.usefixtures("annotators")
def test_a_module_that_makes_no_picture_has_one_map_with_hires_fix(world: World) -> None:
    hires = {"enable_hr": True, "denoising_strength": 0.5, "hr_upscaler": "Latent"}
    face = unit(module="instant_id_face_embedding", image=drawn((48, 48)))

    answer = world.run(face, unit(module="canny", save_detected_map=False), **hires)

    assert answer["image_kinds"] == ["picture", "detect_map"]
    size = Image.open(io.BytesIO(base64.b64decode(answer["images"][1]))).size
    assert size == (48, 48)  # What it looked at, and not the edges.


@pytest.mark.usefixtures("annotators")
def test_each_of_several_pictures_has_a_map(world: World) -> None:
    several = [{"image": PICTURE}, {"image": drawn(colour="blue")}]

    answer = world.run(unit(module="ip-adapter_clip_sd15", image=several))

    assert answer["image_kinds"] == ["picture", "detect_map", "detect_map"]
    assert answer["images"][1] != answer["images"][2]
    with pytest.raises(InvalidInputError, match="takes one image"):
        world.run(unit(module="canny", image=several))


def test_a_part_of_a_modules_name_is_told_what_it_may_mean(world: World) -> None:
    with pytest.raises(InvalidInputError, match="knows no module 'tile'") as caught:
        world.run(unit(module="tile"))

    assert "'tile_resample'" in caught.value.hint


def test_a_mask_in_the_answer_is_no_map(world: World) -> None:
    answer = world.run(
        unit(image=None, module="inpaint_only"),
        init_images=[PICTURE],
        mask=drawn(colour="white"),
        override_settings={"return_mask": True},
    )

    assert answer["image_kinds"] == ["picture", "mask", "detect_map"]


def test_what_a_script_adds_is_unknown(world: World) -> None:
    answer = world.run(unit(), prompt="a cat|happy", script_name="prompt matrix")

    assert set(answer["image_kinds"]) == {"unknown"}
    assert len(answer["images"]) == len(answer["image_kinds"]) == 4
    assert any("cannot be checked" in warning for warning in answer["warnings"])


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "LA"])
def test_a_picture_of_any_mode_is_sent_with_three_channels(world: World, mode: str) -> None:
    world.run(unit(image=drawn(mode=mode)))

    sent = Image.open(io.BytesIO(base64.b64decode(world.units()[0]["image"])))
    assert sent.mode == "RGB"


def test_a_picture_that_lies_on_its_side_is_set_upright_for_its_mask(world: World) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    output = io.BytesIO()
    Image.new("RGB", (48, 32)).save(output, "JPEG", exif=exif)
    lying = base64.b64encode(output.getvalue()).decode()

    answer = world.run(unit(image=lying, mask=drawn((32, 48))))

    assert answer["image_kinds"] == ["picture", "detect_map"]


def test_in_img2img_a_unit_without_image_looks_at_the_init_image(world: World) -> None:
    without = world.run(unit(image=None, module="canny"), init_images=[PICTURE])
    same = world.run(unit(module="canny"), init_images=[PICTURE])

    assert without["images"] == same["images"]


def test_a_value_out_of_a_sliders_range_is_told(world: World) -> None:
    answer = world.run(unit(module="canny", threshold_a=9000, processor_res=1, threshold_b=64))

    body = world.units()[0]
    assert "threshold_a" not in body
    assert "processor_res" not in body
    assert body["threshold_b"] == 64
    told = [warning for warning in answer["warnings"] if "is outside" in warning]
    assert len(told) == 2


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("CANNY", "canny"),
        ("None", "none"),
        ("invert (from white bg & black line)", "invert"),
        ("t2ia_color_grid", "color"),
        ("tile-resample", "tile_resample"),
    ],
)
def test_modules_are_taken_in_every_spelling(world: World, module: str, name: str) -> None:
    world.run(unit(module=module))

    assert world.units()[0]["module"] == name


def test_a_model_whose_name_tells_nothing_is_told(world: World) -> None:
    answer = world.run(unit(model="plain"))

    assert world.units()[0]["module"] == "none"
    assert any("cannot be told" in warning for warning in answer["warnings"])


def test_a_module_that_needs_no_model_works_without_one(world: World) -> None:
    answer = world.run({"image": PICTURE, "module": "reference_only"})

    assert world.units()[0]["model"] == "None"
    assert answer["image_kinds"] == ["picture", "detect_map"]


def test_a_model_for_another_architecture_is_refused(world: World) -> None:
    with pytest.raises(ModelIncompatibleError) as caught:
        world.run(unit(model="xl_canny"))

    assert caught.value.details["field"] == "controlnet_args[0].model"


def test_a_model_for_another_architecture_is_skipped_on_request(world: World) -> None:
    answer = world.run(unit(model="xl_canny"), unit(), on_incompatible="skip")

    assert answer["image_kinds"] == ["picture", "detect_map"]
    assert len(world.units()) == 1
    assert any("xl_canny" in warning for warning in answer["warnings"])


def test_the_answer_does_not_repeat_the_pictures_that_came(world: World) -> None:
    answer = world.run(unit(mask=drawn(colour="white")))

    assert PICTURE not in json.dumps(answer["parameters"])
    repeated = answer["parameters"]["alwayson_scripts"]["controlnet"]["args"][0]
    assert repeated["image"] is repeated["mask"] is None


def test_without_the_extension_the_error_names_it(world: World, tmp_path: Path) -> None:
    with running("webui", "--models-dir", tmp_path / "links") as webui:
        settings = Settings(
            cache=CacheSettings(volume=world.folder / "models"),
            webui=WebuiSettings(port=int(webui.url.rpartition(":")[2]), links=tmp_path / "links"),
        )
        client = WebuiClient(webui.url)
        runner = Runner(ModelCache(settings.cache), client, kept(client), settings)
        value = {"prompt": "a cat", "controlnet_args": [unit()]}

        with pytest.raises(InvalidInputError, match="sd-webui-controlnet"):
            runner.run({"id": "job-1", "input": value}, Event(), lambda _: None)


PAGE = (ROOT / "docs" / "controlnet.md").read_text()


@pytest.mark.parametrize("example", re.findall(r'```json\n(\{"input".*?)```', PAGE, re.DOTALL))
def test_the_requests_of_the_page_work(world: World, example: str) -> None:
    text = example.replace("iVBORw0KGgo…", PICTURE).replace("https://example.org", world.hub.url)
    value = json.loads(text)["input"]
    asked = value.get("controlnet_args") or value["alwayson_scripts"]["controlnet"]["args"]

    answer = dict(world.runner.run({"id": "job-1", "input": value}, Event(), lambda _: None))

    assert answer["image_kinds"] == ["picture", *["detect_map"] * len(asked)]


def test_the_page_names_every_field_of_a_unit() -> None:
    rows = [line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}

    assert set(ControlNetUnit.model_fields) <= named


def test_the_page_names_every_kind_of_image() -> None:
    for kind in get_args(ImageKind):
        assert f"| `{kind}` |" in PAGE


def test_the_page_names_the_modules_that_names_of_models_mean() -> None:
    rows = re.findall(r"^\| (`[^|]*) \| `(\w+)` \|$", PAGE, re.MULTILINE)
    meant = {part: module for parts, module in rows for part in re.findall(r"`(\w+)`", parts)}

    assert len(meant) == 15
    for part, module in meant.items():
        assert module_of(f"control_v11p_sd15_{part}") == module
