"""`webuiapi`, written for A1111's HTTP API, on the worker and on an A1111 beside it: the same calls."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import methodcaller
from typing import Any

import pytest
import webuiapi  # type: ignore[import-untyped]
from PIL import Image

from tests.clients.conftest import CANNY, Worker
from tests.clients.shim import shim
from tests.conftest import running

pytestmark = pytest.mark.slow

SIZE = (64, 64)
# A checkpoint that is named by each call: what one leaves in A1111 shows in the next one there.
ASKED = {
    "prompt": "a cat",
    "seed": 1,
    "subseed": 2,
    "steps": 2,
    "width": 64,
    "height": 64,
    "override_settings": {"sd_model_checkpoint": "alpha"},
}
# As A1111 lists it, with the hash of the simulator's file.
LISTED = f"{CANNY} [e3b0c442]"
LISTS = [
    *("get_samplers", "get_schedulers", "get_sd_vae", "get_upscalers", "get_latent_upscale_modes"),
    *("get_loras", "get_sd_models", "get_hypernetworks", "get_face_restorers"),
    *("get_realesrgan_models", "get_prompt_styles", "get_scripts", "get_embeddings"),
    *("refresh_checkpoints", "util_get_model_names", "util_get_sampler_names"),
    *("util_get_scheduler_names", "controlnet_version", "controlnet_model_list"),
    *("controlnet_module_list", "util_wait_for_ready"),
]

Call = Callable[[Any], Any]


@dataclass
class Clients:
    """The same client three times."""

    worker: Any
    behind: Any
    """On the A1111 that the worker keeps."""
    a1111: Any
    """On one of its own, that sees the same files."""

    def both(self, call: Call) -> tuple[Any, Any]:
        """Return what `call` gives through the worker, and of A1111 itself."""
        return call(self.worker), call(self.a1111)


@pytest.fixture(scope="module")
def clients(worker: Worker) -> Iterator[Clients]:
    links = worker.folder / "links"
    with running("webui", "--models-dir", links, "--controlnet") as alone, shim(worker.run) as port:
        urls = (f"http://127.0.0.1:{port}", worker.webui.url, alone.url)
        made = [webuiapi.WebUIApi(baseurl=f"{url}/sdapi/v1") for url in urls]
        yield Clients(*made)
        for client in made:
            client.session.close()


def drawn() -> Image.Image:
    picture = Image.new("RGB", SIZE)
    picture.paste("red", (8, 8, 40, 40))
    return picture


def hole() -> Image.Image:
    mask = Image.new("L", SIZE)
    mask.paste(255, (16, 16, 48, 48))
    return mask


def unit(**fields: Any) -> Any:
    given = {"image": drawn(), "module": "canny", "model": LISTED, **fields}
    return webuiapi.ControlNetUnit(**given)


def test_the_client_sees_that_controlnet_is_there(clients: Clients) -> None:
    assert clients.both(lambda client: client.has_controlnet) == (True, True)


@pytest.mark.parametrize(
    ("call", "count"),
    [
        pytest.param(lambda client: client.txt2img(**ASKED), 1, id="txt2img"),
        pytest.param(
            lambda client: client.txt2img(
                **ASKED, enable_hr=True, hr_upscaler=webuiapi.HiResUpscaler.LatentNearest
            ),
            1,
            id="hires fix",
        ),
        pytest.param(
            lambda client: client.txt2img(**ASKED, batch_size=2, n_iter=2), 4, id="several"
        ),
        pytest.param(
            lambda client: client.txt2img(**{**ASKED, "prompt": "a cat <lora:detail:0.5>"}),
            1,
            id="LoRA by tag",
        ),
        pytest.param(
            lambda client: client.txt2img(**ASKED, sampler_name="DPM++ 2M", scheduler="karras"),
            1,
            id="sampler and scheduler",
        ),
        pytest.param(
            lambda client: client.txt2img(**ASKED, script_name="Prompt matrix", script_args=[]),
            2,
            id="script",
        ),
        pytest.param(lambda client: client.img2img([drawn()], **ASKED), 1, id="img2img"),
        pytest.param(
            lambda client: client.img2img([drawn()], mask_image=hole(), inpainting_fill=1, **ASKED),
            1,
            id="inpainting",
        ),
        pytest.param(
            lambda client: client.txt2img(**ASKED, controlnet_units=[unit()]), 2, id="ControlNet"
        ),
        pytest.param(
            lambda client: client.img2img(
                [drawn()],
                **ASKED,
                controlnet_units=[unit(mask=hole(), control_mode=2, guidance_end=0.8)],
            ),
            2,
            id="ControlNet with a mask",
        ),
        pytest.param(
            lambda client: client.txt2img(**ASKED, controlnet_units=[unit(enabled=False)]),
            1,
            id="ControlNet that is off",
        ),
    ],
)
def test_pictures_are_those_of_a_direct_call(clients: Clients, call: Call, count: int) -> None:
    ours, theirs = clients.both(call)

    assert ours.json["images"] == theirs.json["images"]
    assert ours.info == {**theirs.info, "job_timestamp": ours.info["job_timestamp"]}
    assert len(ours.images) == count
    assert ours.json["warnings"] == []


def test_upscaled_pictures_are_those_of_a_direct_call(clients: Clients) -> None:
    for call in (
        lambda client: client.extra_single_image(
            drawn(), upscaler_1=webuiapi.Upscaler.Lanczos, upscaling_resize=1.5
        ),
        lambda client: client.extra_batch_images(
            [drawn(), hole()], ["a", "b"], upscaler_1="Nearest", upscaling_resize=1.5
        ),
    ):
        ours, theirs = clients.both(call)

        assert ours.json == theirs.json
        assert {image.size for image in ours.images} == {(96, 96)}


def test_png_info_tells_what_made_a_picture(clients: Clients) -> None:
    picture = clients.worker.txt2img(**ASKED)

    ours, theirs = clients.both(lambda client: client.png_info(picture.image))

    assert ours.json == theirs.json
    assert ours.info == picture.info["infotexts"][0]


@pytest.mark.parametrize("name", LISTS)
def test_a_list_is_that_of_a_direct_call(clients: Clients, name: str) -> None:
    call = methodcaller(name)

    assert call(clients.worker) == call(clients.behind)


def test_what_differs_by_the_moment_has_the_keys_of_a_direct_call(clients: Clients) -> None:
    for name in ("get_options", "get_cmd_flags", "get_memory", "get_progress"):
        ours, theirs = clients.both(methodcaller(name))

        assert ours.keys() == theirs.keys()


def test_a_model_that_the_client_sets_makes_the_next_picture(clients: Clients) -> None:
    plain = {name: value for name, value in ASKED.items() if name != "override_settings"}

    def set_and_draw(client: Any) -> tuple[str, Any]:
        client.util_set_model("deliberate")
        return client.util_get_current_model(), client.txt2img(**plain)

    ours, theirs = clients.both(set_and_draw)
    clients.worker.set_options({"sd_model_checkpoint": None})

    assert ours[0].startswith("deliberate_v2.safetensors")
    assert theirs[0].startswith("deliberate_v2.safetensors")
    assert ours[1].info["sd_model_name"] == "deliberate_v2"
    assert ours[1].json["images"] == theirs[1].json["images"]


def test_a_unit_without_an_image_uses_the_picture_to_begin_with(clients: Clients) -> None:
    """A1111 answers with the plain picture: the client sends an image that is an empty text."""
    begun = {"images": [drawn()], **ASKED}
    named = clients.worker.img2img(**begun, controlnet_units=[unit()])

    taken = clients.worker.img2img(**begun, controlnet_units=[unit(image=None)])

    assert taken.json["images"] == named.json["images"]


def test_maps_are_made_of_what_the_client_calls_controlnet_images(clients: Clients) -> None:
    """The extension does not know that name: a direct call of the client is refused."""
    found = clients.worker.controlnet_detect([drawn()], module="canny", processor_res=64)

    (made,) = found.images
    mapped = clients.a1111.custom_post(
        "controlnet/detect",
        {
            "controlnet_module": "canny",
            "controlnet_input_images": [webuiapi.raw_b64_img(drawn())],
            "controlnet_processor_res": 64,
            "controlnet_threshold_a": 64,
            "controlnet_threshold_b": 64,
        },
    )
    assert found.json == mapped.json
    assert made.getextrema() != ((0, 0), (0, 0), (0, 0))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        pytest.param(
            lambda client: client.interrogate(drawn()), "clip is not installed", id="no weights"
        ),
        pytest.param(
            lambda client: client.txt2img(**ASKED, sampler_name="Eulr a"), "Euler a", id="sampler"
        ),
        pytest.param(
            lambda client: client.txt2img(**ASKED, controlnet_units=[unit(image=None)]),
            r"ControlNet.args\[0\]` needs an `image`",
            id="no image",
        ),
        pytest.param(
            lambda client: client.txt2img(**ASKED, controlnet_units=[unit(model="canny_v9")]),
            "canny_v9",
            id="model",
        ),
        pytest.param(
            lambda client: client.txt2img(
                **ASKED, alwayson_scripts={}, adetailer=[webuiapi.ADetailer()]
            ),
            "ADetailer",
            id="extension",
        ),
        pytest.param(
            lambda client: client.txt2img(
                **ASKED, alwayson_scripts={}, animatediff=webuiapi.AnimateDiff()
            ),
            "animatediff",
            id="another extension",
        ),
    ],
)
def test_what_a1111_would_do_without_raises_in_the_client(
    clients: Clients, call: Call, words: str
) -> None:
    with pytest.raises(RuntimeError, match=words):
        call(clients.worker)


@pytest.mark.parametrize("name", ["interrupt", "skip"])
def test_an_interrupt_is_told_of_cancel(clients: Clients, name: str) -> None:
    told = getattr(clients.worker, name)()

    assert "/cancel/JOB_ID" in told["error"]
    assert told["code"] == "INVALID_INPUT"
