"""ADetailer and ReActor, through the handler: what callers send, and what A1111 receives of it.

Their pages are simulated by their sources, and nothing of what they do: unverified against a live server.
"""

import base64
import io
from collections.abc import Iterator
from typing import Any

import pytest
import webuiapi  # type: ignore[import-untyped]
from PIL import Image

from tests.clients.conftest import CANNY, Worker, serving
from tests.clients.shim import shim

pytestmark = pytest.mark.slow

SMALL = {"prompt": "a sailor", "seed": 1, "steps": 1, "width": 64, "height": 64}
# ReActor's arguments as the older workers' pages have them, from the restorer on.
REST = [
    "CodeFormer",
    1,
    True,
    "Lanczos",
    2,
    1,
    False,
    True,
    1,
    0,
    0,
    False,
    0.8,
    False,
    False,
    "CUDA",
]
REST += [True, 0]
MODEL = "/runpod-volume/stable-diffusion-webui/models/insightface/inswapper_128.onnx"
# ADetailer's, as they have it.
UNIT = {
    "ad_model": "face_yolov8n.pt",
    "ad_prompt": "",
    "ad_confidence": 0.3,
    "ad_mask_k_largest": 0,
    "ad_dilate_erode": 32,
    "ad_mask_merge_invert": "None",
    "ad_inpaint_only_masked": True,
    "ad_use_steps": True,
    "ad_steps": 28,
    "ad_sampler": "DPM++ SDE Karras",
    "ad_controlnet_model": "None",
    "ad_controlnet_guidance_end": 1.0,
}


def face(mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (32, 32)).save(buffer, "PNG")
    return buffer.getvalue()


FACE = base64.b64encode(face()).decode()


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """The worker with both extensions, and the weights for CodeFormer."""
    folder = tmp_path_factory.mktemp("extended")
    with serving(folder, "--adetailer", "--reactor") as made:
        models = folder / "links" / "data" / "models"
        for name in (
            "Codeformer/codeformer-v0.1.0.pth",
            "GFPGAN/detection_Resnet50_Final.pth",
            "GFPGAN/parsing_parsenet.pth",
        ):
            (models / name).parent.mkdir(exist_ok=True)
            (models / name).touch()
        (folder / "hub" / "face.png").write_bytes(face())
        yield made


def asked(extended: Worker, scripts: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Return the scripts that A1111 receives for a request with `scripts`."""
    body = {**SMALL, "alwayson_scripts": scripts, **fields}
    answer = extended.run(
        {"api": {"method": "POST", "endpoint": "/sdapi/v1/txt2img"}, "payload": body}
    )
    assert "error" not in answer, answer
    found: dict[str, Any] = extended.sent()["alwayson_scripts"]
    return found


def test_what_the_older_workers_tell_reactor_reaches_it(extended: Worker) -> None:
    sent = asked(extended, {"reactor": {"args": [FACE, True, "0", "0", MODEL, *REST, None]}})

    assert sent == {
        "reactor": {"args": [FACE, True, "0", "0", "inswapper_128.onnx", *REST, "None"]}
    }


@pytest.mark.parametrize(
    "image", [f"data:image/png;base64,{FACE}", "{hub}/face.png"], ids=["data URI", "URL"]
)
def test_reactors_picture_may_be_written_as_any_other(extended: Worker, image: str) -> None:
    image = image.replace("{hub}", extended.hub.url)

    (args,) = asked(extended, {"ReActor": {"args": [image, True]}})["ReActor"].values()

    assert args[:3] == [FACE, True, "0"]
    # A1111's own default there is a name, at which ReActor does nothing.
    assert args[22:] == [0]


def test_reactors_picture_is_not_repeated_in_the_answer(extended: Worker) -> None:
    answer = extended.run({**SMALL, "alwayson_scripts": {"ReActor": {"args": [FACE, True]}}})

    assert extended.sent()["alwayson_scripts"]["ReActor"]["args"][0] == FACE
    repeated = answer["parameters"]["alwayson_scripts"]["ReActor"]["args"]
    assert repeated[:3] == [None, True, "0"]


def test_a_picture_that_reactor_fails_at_is_made_plain(extended: Worker) -> None:
    """OpenCV takes no image of one channel."""
    grey = base64.b64encode(face("L")).decode()

    args = asked(extended, {"reactor": {"args": [grey, True]}})["reactor"]["args"]

    with Image.open(io.BytesIO(base64.b64decode(args[0]))) as picture:
        assert picture.mode == "RGB"


def test_an_image_that_cannot_be_fetched_is_told_by_its_place(extended: Worker) -> None:
    scripts = {"reactor": {"args": [f"{extended.hub.url}/gone.png", True]}}

    answer = extended.run({**SMALL, "alwayson_scripts": scripts})

    assert answer["details"]["field"] == "alwayson_scripts.reactor.args[0]"


def test_what_the_older_workers_tell_adetailer_reaches_it(extended: Worker) -> None:
    sent = asked(extended, {"ADetailer": {"args": [True, False, UNIT]}})

    renamed = {**UNIT, "ad_mask_k": 0}
    del renamed["ad_mask_k_largest"]
    assert sent == {"ADetailer": {"args": [True, False, renamed]}}


def test_all_three_extensions_go_together(extended: Worker) -> None:
    unit = {"image": FACE, "model": CANNY, "module": "canny"}
    scripts = {
        "controlnet": {"args": [unit]},
        "reactor": {"args": [FACE, True, "0", "0", MODEL]},
        "adetailer": {"args": [UNIT]},
    }

    sent = asked(extended, scripts)

    assert sent["controlnet"]["args"][0]["model"].startswith(CANNY)
    assert sent["reactor"]["args"][4] == "inswapper_128.onnx"
    assert "ad_mask_k_largest" not in sent["adetailer"]["args"][0]


def test_webuiapis_extensions_arrive(extended: Worker) -> None:
    with shim(extended.run) as port:
        client = webuiapi.WebUIApi(baseurl=f"http://127.0.0.1:{port}/sdapi/v1")
        reactor = webuiapi.ReActor(img=Image.new("RGB", (32, 32)), upscaler_name="None")
        detailer = webuiapi.ADetailer(ad_model="face_yolov8n.pt")
        answer = client.txt2img(**SMALL, alwayson_scripts={}, reactor=reactor, adetailer=[detailer])
        client.session.close()

    sent = extended.sent()["alwayson_scripts"]
    assert len(answer.images) == 1
    assert sent["reactor"]["args"][20:] == ["CUDA", True, 0, "None"]
    (unit,) = [entry for entry in sent["ADetailer"]["args"] if isinstance(entry, dict)]
    assert unit["ad_mask_k"] == 0
    assert None not in unit.values()
