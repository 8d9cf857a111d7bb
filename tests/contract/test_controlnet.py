"""Every exchange that was recorded from a live ControlNet is put to the simulated one again.

The recordings lie beside the checkout, in ../shared/webui; without them those tests are skipped. The
cases that matter most are tests of their own besides.
"""

import base64
import copy
import io
import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from simulator import models
from tests.conftest import ROOT
from tests.contract.conftest import Start, Webui, encoded, inside, pixels
from tests.contract.test_recordings import RANDOM

RECORDINGS = ROOT.parent / "shared" / "webui" / "recordings-controlnet"
recorded = pytest.mark.skipif(not RECORDINGS.is_dir(), reason="no recordings beside this checkout")

# Recordings that are not put again, each with the reason.
NOT_REPLAYED = {
    "cn_openapi_paths": "only some of the schema's paths were kept; compared in a test of its own",
    "cn_get_options": "only the options of this extension were kept, of which there are none",
    "cn_get_script_info": "only this extension's scripts were kept; compared in a test of its own",
    "cn_post_options_unit_count": "it changes what every later exchange is answered; a test of its own",
}
SIZE = (64, 64)
CONTROLNETS = ("control_v11f1p_sd15_depth", "control_v11p_sd15_canny")
THEIR_HASH = "30d35062"


def recordings() -> list[dict[str, Any]]:
    if not RECORDINGS.is_dir():
        return []
    found = [{"name": file.stem, **json.loads(file.read_text())} for file in RECORDINGS.iterdir()]
    return sorted(
        (one for one in found if one["name"] not in NOT_REPLAYED), key=lambda one: str(one["name"])
    )


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Webui]:
    """A simulator with the extension and the recorded server's two models."""
    folder = tmp_path_factory.mktemp("controlnet")
    models.write_checkpoint(folder / "Stable-diffusion" / "tiny_a.safetensors", seed="a")
    for name in CONTROLNETS:
        models.write_controlnet(folder / "ControlNet" / f"{name}.safetensors", seed=name)
    with inside("--models-dir", folder, "--controlnet", "--no-half") as webui:
        yield webui


def put_again(one: dict[str, Any], webui: Webui) -> tuple[int, Any]:
    """Send a recorded request, with our hash of the models in place of theirs."""
    request = one["request"]
    listed = webui.get("/controlnet/model_list").json()["model_list"]
    ours = listed[0].partition("[")[2].rstrip("]")
    body = json.loads(json.dumps(request["body"]).replace(THEIR_HASH, ours))
    arguments = {} if request["body"] is None else {"json": body}
    answer = webui.call(request["method"], request["path"], **arguments)
    return answer.status_code, json.loads(answer.text.replace(ours, THEIR_HASH))


def normal(answer: Any) -> Any:
    """Return an answer without what depends on the machine or on chance.

    Of generated pictures the recordings kept little more than the size.
    """
    answer = copy.deepcopy(answer)
    if not isinstance(answer, dict) or "images" not in answer:
        return answer
    answer["images"] = [_seen(text) for text in answer["images"]]
    if "parameters" in answer:
        answer["parameters"].pop("alwayson_scripts")  # with one hash for the other
        text = re.sub(r'(hash(?:": "|: ))[0-9a-f]{10}', r"\1…", answer["info"])
        info = json.loads(text)
        answer["info"] = {**info, **dict.fromkeys(RANDOM)}
    return answer


def _seen(text: str) -> tuple[int, int, int, bytes]:
    """Return width, height, colour type and the kind of the first chunk after the PNG's header."""
    data = base64.b64decode(text[:64])
    return (*struct.unpack(">IIxB", data[16:26]), data[37:41])


@recorded
@pytest.mark.parametrize("one", [pytest.param(one, id=one["name"]) for one in recordings()])
def test_a_recording_is_answered_as_it_was(one: dict[str, Any], extended: Webui) -> None:
    status, answer = put_again(one, extended)

    assert status == one["status"], answer
    assert normal(answer) == normal(one["response"])


def response(name: str) -> Any:
    return json.loads((RECORDINGS / f"{name}.json").read_text())["response"]


@recorded
def test_the_schema_has_the_recorded_paths(extended: Webui) -> None:
    paths = extended.get("/openapi.json").json()["paths"]
    ours = {path: entry for path, entry in paths.items() if "controlnet" in path}

    assert ours == response("cn_openapi_paths")["paths"]


@recorded
def test_script_info_tells_of_the_extension_as_recorded(extended: Webui) -> None:
    info = extended.get("script-info").json()

    assert [entry for entry in info if "controlnet" in entry["name"]] == response(
        "cn_get_script_info"
    )


def test_its_options_are_taken_and_not_shown(start: Start, tmp_path: Path) -> None:
    webui = start("--models-dir", tmp_path, "--controlnet")

    answer = webui.post("options", {"control_net_unit_count": 4})

    assert (answer.status_code, answer.json()) == (200, None)
    assert not [name for name in webui.options() if "control_net" in name]
    assert webui.get("/controlnet/settings").json() == {"control_net_unit_count": 4}


@pytest.fixture(scope="module")
def picture() -> str:
    image = Image.new("RGB", SIZE)
    image.paste("white", (16, 16, 48, 48))
    return encoded(image)


def units(*given: dict[str, Any]) -> dict[str, Any]:
    return {"alwayson_scripts": {"controlnet": {"args": list(given)}}}


def picture_of(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


def good(picture: str, **fields: Any) -> dict[str, Any]:
    return {"enabled": True, "image": picture, "module": "canny", "model": CONTROLNETS[1], **fields}


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param({"model": "nope"}, id="unknown model"),
        pytest.param({"model": f"{CONTROLNETS[1]} [deadbeef]"}, id="wrong hash"),
        pytest.param({"model": f"{CONTROLNETS[1]}.safetensors"}, id="with its suffix"),
        pytest.param({"model": "None"}, id="no model"),
        pytest.param({"image": None}, id="no image"),
        pytest.param({"image": "garbage!!"}, id="broken image"),
        pytest.param({"image": "http://127.0.0.1:1/x.png"}, id="URL"),
        pytest.param({"module": "softedge_hed"}, id="weights that are not there"),
    ],
)
def test_one_bad_unit_turns_all_off_and_the_infotext_lists_them(
    extended: Webui, picture: str, bad: dict[str, Any]
) -> None:
    plain = extended.generate()

    answer = extended.generate(**units(good(picture), good(picture, **bad)))

    assert len(answer["images"]) == 1
    assert pixels(answer) == pixels(plain)
    listed = answer["info"]["extra_generation_params"]
    assert {"ControlNet 0", "ControlNet 1"} <= listed.keys()
    assert "ControlNet 1" in answer["info"]["infotexts"][0]


def test_a_picture_with_an_alpha_channel_fails_as_silently(extended: Webui) -> None:
    clear = encoded(Image.new("RGBA", SIZE))

    assert len(extended.generate(**units(good(clear)))["images"]) == 1


def test_a_string_that_is_a_path_is_opened_as_a_file(
    extended: Webui, picture: str, tmp_path: Path
) -> None:
    file = tmp_path / "picture.png"
    file.write_bytes(base64.b64decode(picture))

    by_path = extended.generate(**units(good(str(file))))

    assert by_path["images"] == extended.generate(**units(good(picture)))["images"]


def test_any_part_of_a_models_name_means_the_shortest_one(extended: Webui, picture: str) -> None:
    named = extended.generate(**units(good(picture)))
    vague = extended.generate(**units(good(picture, model="Canny")))
    other = extended.generate(**units(good(picture, model="sd15_depth")))

    assert pixels(vague) == pixels(named)
    assert pixels(other) != pixels(named)


def test_units_beyond_the_third_and_disabled_ones_do_nothing(extended: Webui, picture: str) -> None:
    disabled = good(picture, enabled=False)

    answer = extended.generate(**units(disabled, disabled, disabled, good(picture)))

    assert pixels(answer) == pixels(extended.generate())
    assert len(answer["images"]) == 1


def test_maps_come_last_and_hires_fix_brings_two(extended: Webui, picture: str) -> None:
    hires = {"enable_hr": True, "hr_scale": 2, "hr_upscaler": "Latent", "denoising_strength": 0.5}

    answer = extended.generate(**units(good(picture)), **hires)

    sizes = [picture_of(one).size for one in answer["images"]]
    assert sizes == [(128, 128), (128, 128), (64, 64)]
    assert "parameters" not in picture_of(answer["images"][2]).info


def test_nothing_of_it_is_left_in_the_next_job(extended: Webui, picture: str) -> None:
    before = extended.generate()
    extended.generate(**units(good(picture)))

    assert extended.generate()["images"] == before["images"]


def test_preprocessors_find_their_weights_where_a_flag_says(start: Start, world: Path) -> None:
    models.write_controlnet(world / "ControlNet" / f"{CONTROLNETS[1]}.safetensors", seed="c")
    webui = start(
        "--models-dir", world, "--controlnet", "--controlnet-annotator-models-path", world
    )
    picture = encoded(Image.new("RGB", SIZE, "white"))

    assert len(webui.generate(**units(good(picture, module="depth_midas")))["images"]) == 2


def test_a_new_model_is_listed_when_the_list_is_asked(start: Start, tmp_path: Path) -> None:
    webui = start("--models-dir", tmp_path, "--controlnet", "--controlnet-dir", tmp_path / "more")
    models.write_controlnet(tmp_path / "more" / "new.safetensors", seed="new")

    assert webui.get("/controlnet/model_list?update=false").json() == {"model_list": []}
    (listed,) = webui.get("/controlnet/model_list").json()["model_list"]
    assert re.fullmatch(r"new \[[0-9a-f]{8}\]", listed)


def test_without_the_extension_there_is_nothing_of_it(steady: Webui) -> None:
    assert steady.get("/controlnet/version").status_code == 404
    assert steady.get("extensions").json() == []
    body = {"prompt": "", **units()}
    assert steady.post("txt2img", body).json()["detail"] == "Script 'controlnet' not found"


@pytest.mark.parametrize(
    ("route", "body", "field"),
    [
        ("detect", {"controlnet_input_images": "x"}, "controlnet_input_images"),
        ("detect", {"controlnet_module": {}}, "controlnet_module"),
        ("render_openpose_json", {"people": []}, "pose_data"),
        ("render_openpose_json", [{"people": []}], "canvas_width"),
    ],
)
def test_bodies_of_another_shape_are_refused(
    extended: Webui, route: str, body: object, field: str
) -> None:
    answer = extended.post(f"/controlnet/{route}", body)

    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"][-1] == field


def test_poses_have_a_canvas_each(extended: Webui) -> None:
    pose = {"people": [], "canvas_width": 64, "canvas_height": 32}

    answer = extended.post("/controlnet/render_openpose_json", [pose, pose]).json()

    assert answer["info"] == "Success"
    assert [picture_of(one).size for one in answer["images"]] == [(64, 32)] * 2


def test_a_mask_of_another_size_fails_as_silently(extended: Webui, picture: str) -> None:
    small = encoded(Image.new("RGB", (32, 32)))

    assert len(extended.generate(**units(good(picture, mask=small)))["images"]) == 1


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        pytest.param(None, "TypeError", id="null"),
        pytest.param([{"mask": "a", "mask_image": "b"}], "ValueError", id="two masks"),
        pytest.param([{"model": None}], "ValidationError", id="model null"),
        pytest.param([{"weight": None}], "ValidationError", id="weight null"),
        pytest.param([{"weight": -1}], "ValidationError", id="weight below 0"),
        pytest.param([{"weight": "heavy"}], "ValidationError", id="weight a word"),
        pytest.param([{"resize_mode": "Squeeze"}], "ValidationError", id="resize mode"),
    ],
)
def test_what_breaks_a_units_rules_fails_the_request(
    extended: Webui, given: object, kind: str
) -> None:
    body = {"prompt": "", "alwayson_scripts": {"controlnet": {"args": given}}}

    answer = extended.post("txt2img", body)

    assert (answer.status_code, answer.json()["error"]) == (500, kind)
