"""A1111's other routes, called as jobs against the simulated A1111."""

import base64
import contextlib
import io
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from schemas.errors import (
    BackendFailedError,
    InvalidInputError,
    JobCancelledError,
    ModelNotFoundError,
    OutputTooLargeError,
)
from schemas.routes import ROUTES
from schemas.settings import JobSettings, OutputSettings, Settings, WebuiSettings
from simulator import models as files
from tests.conftest import running
from tests.worker.calling import SMALL, World, make_world, picture, write_models
from tests.worker.meanwhile import has_struck, until
from worker.api.callcheck import Checks
from worker.generation.session import Session

pytestmark = pytest.mark.slow

LONG = {**SMALL, "steps": 6}
EXTRAS = "/sdapi/v1/extra-single-image"
LISTS = [route.path for route in ROUTES if route.method == "GET" and not route.brought_by]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("calls")
    write_models(folder / "volume")
    argv = ("--models-dir", folder / "links", "--controlnet")
    with running("webui", *argv) as webui:
        yield make_world(folder, webui)


def go_on(world: World) -> None:
    world.webui.post("/simulator/faults", {"clear": True})


@contextlib.contextmanager
def holding(world: World) -> Iterator[Future[Any]]:
    """Begin a generation that stands still between two steps, until it may `go_on`."""
    world.webui.post("/simulator/faults", {"faults": [{"kind": "stall", "after": 2}]})
    with ThreadPoolExecutor(1) as threads:
        generation = threads.submit(world.run, {"prompt": "x", "checkpoint": "a", **LONG})
        try:
            until(lambda: has_struck(world.webui))
            yield generation
        finally:
            go_on(world)


@pytest.fixture
def held(world: World) -> Iterator[Future[Any]]:
    """A generation for the length of a test, see `holding`."""
    with holding(world) as generation:
        yield generation


@pytest.mark.parametrize("path", LISTS)
def test_a_list_is_what_a1111_answers(world: World, path: str) -> None:
    answer, theirs = world.get(path), world.webui.get(path)

    if path.endswith("/memory"):  # It differs from one moment to the next.
        assert answer.keys() == theirs.keys()
    else:
        assert answer == theirs


def test_a_route_takes_its_query(world: World) -> None:
    assert world.get("/controlnet/module_list", alias_names=True) == world.webui.get(
        "/controlnet/module_list?alias_names=true"
    )


def test_what_this_webui_lacks_is_told_with_the_extension_that_brings_it(world: World) -> None:
    for path, name in (
        ("/adetailer/v1/ad_model", "ADetailer"),
        ("/reactor/models", "ReActor"),
        ("/tagger/v1/interrogators", "wd14-tagger"),
        ("/sdapi/v1/sd-modules", "Forge"),
    ):
        with pytest.raises(InvalidInputError) as caught:
            world.get(path)

        assert name in caught.value.hint


def test_forge_lists_modules_in_place_of_vaes(tmp_path: Path) -> None:
    """As its source says; unverified against a live server."""
    write_models(tmp_path / "volume")
    with running("webui", "--models-dir", tmp_path / "links", "--forge") as webui:
        world = make_world(tmp_path, webui)

        assert [module["model_name"] for module in world.get("sd-modules")] == ["soft.safetensors"]
        with pytest.raises(InvalidInputError) as caught:
            world.get("sd-vae")
        assert "sd-modules" in caught.value.hint


def test_extras_enlarge_a_picture(world: World) -> None:
    answer = world.post(
        "extra-single-image", image=picture(), upscaler_1="Lanczos", upscaling_resize=2
    )

    assert answer.keys() == {"html_info", "image"}
    with Image.open(io.BytesIO(base64.b64decode(answer["image"]))) as enlarged:
        assert enlarged.size == (128, 128)


def test_extras_take_several_pictures_also_as_data_uris(world: World) -> None:
    images = [
        {"data": picture(), "name": "1"},
        {"data": f"data:image/png;base64,{picture()}", "name": "2"},
    ]

    assert len(world.post("extra-batch-images", imageList=images)["images"]) == 2


def test_a_picture_may_be_a_url(world: World, tmp_path: Path) -> None:
    saved = tmp_path / "x.png"
    saved.write_bytes(base64.b64decode(picture()))
    with running("hub", "--root", tmp_path) as hub:
        answer = world.post("png-info", image=f"{hub.url}/x.png")

    assert answer["info"] == ""


def with_text(text: str) -> str:
    chunks = PngInfo()
    chunks.add_text("parameters", text, zip=True)
    return picture(pnginfo=chunks)


@pytest.mark.parametrize(
    ("endpoint", "payload", "field"),
    [
        pytest.param("png-info", {"image": "bm8="}, "image", id="no picture"),
        pytest.param(
            "extra-batch-images",
            {"imageList": [{"data": "bm8=", "name": "n"}]},
            "imageList[0].data",
            id="one of several",
        ),
        pytest.param(
            "controlnet/detect",
            {"controlnet_input_images": ["/etc/passwd"]},
            "controlnet_input_images[0]",
            id="path of the server",
        ),
        pytest.param(
            "extra-single-image",
            {"image": picture(), "upscaler_1": "lanczos"},
            "upscaler_1",
            id="unknown upscaler",
        ),
        pytest.param(
            "extra-single-image",
            {"image": picture(), "upscaler_1": "Lanczos", "upscaling_resize": 100},
            "upscaling_resize",
            id="too large",
        ),
        pytest.param(
            "extra-single-image",
            {
                "image": picture(),
                "upscaler_1": "Lanczos",
                "resize_mode": 1,
                "upscaling_resize_w": 9000,
            },
            "upscaling_resize",
            id="too large to fit a size",
        ),
        pytest.param("interrogate", {"image": picture(), "model": "nope"}, "model", id="unknown"),
        pytest.param(
            "png-info", {"image": with_text("a" * 50_000)}, "image", id="a text that never ends"
        ),
        pytest.param(
            "controlnet/detect",
            {"controlnet_input_images": [picture(8, 20_000)]},
            "controlnet_input_images[0]",
            id="a thread",
        ),
        pytest.param(
            "controlnet/detect",
            {"controlnet_input_images": [picture()], "controlnet_module": "cany"},
            "controlnet_module",
            id="unknown module",
        ),
        pytest.param(
            "controlnet/detect",
            {"controlnet_input_images": [picture()], "controlnet_module": "clip_vision"},
            "controlnet_module",
            id="module without a map",
        ),
        pytest.param(
            "controlnet/detect",
            {"controlnet_input_images": [picture()], "controlnet_module": "inpaint_only"},
            "controlnet_masks",
            id="no mask",
        ),
        pytest.param(
            "controlnet/detect",
            {
                "controlnet_input_images": [picture()],
                "controlnet_masks": [picture(8)],
                "controlnet_module": "inpaint_only",
            },
            "controlnet_masks[0]",
            id="mask of another size",
        ),
    ],
)
def test_what_a1111_would_fail_at_is_an_error_of_the_request(
    world: World, endpoint: str, payload: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        world.post(endpoint, **payload)

    assert caught.value.details["field"] == field


def test_more_pictures_than_allowed_are_refused(world: World) -> None:
    images = [{"data": picture(8), "name": str(n)} for n in range(17)]

    with pytest.raises(InvalidInputError, match="more than 16"):
        world.post("extra-batch-images", imageList=images)


def test_an_upscaler_whose_weights_are_missing_is_refused(tmp_path: Path, world: World) -> None:
    write_models(tmp_path / "volume")
    (tmp_path / "links" / "data").mkdir(parents=True)
    fresh = make_world(tmp_path, world.webui)

    with pytest.raises(ModelNotFoundError, match="CodeFormer"):
        fresh.post("extra-single-image", image=picture(), codeformer_visibility=1)
    with pytest.raises(ModelNotFoundError, match="clip"):
        fresh.post("interrogate", image=picture())


def test_a_caption_that_a1111_could_not_make_is_an_error(world: World) -> None:
    with pytest.raises(BackendFailedError, match="describe"):
        world.post("interrogate", image=picture())


def test_the_infotext_of_a_picture_is_read(world: World) -> None:
    made = world.run({"prompt": "a cat", "checkpoint": "a", **SMALL})["images"][0]

    answer = world.post("/sdapi/v1/png-info/", image=made)

    assert answer["info"].startswith("a cat\nSteps: 2")
    assert answer["parameters"]["Model"] == "a"


def test_a_module_of_controlnet_makes_maps(world: World) -> None:
    answer = world.post(
        "/controlnet/detect", controlnet_module="canny", controlnet_input_images=[picture()]
    )

    assert len(answer["images"]) == 1


def test_modules_and_pictures_are_made_what_the_extension_takes(world: World) -> None:
    see_through = Image.new("RGBA", (64, 64), (255, 0, 0, 90))
    output = io.BytesIO()
    see_through.save(output, "PNG")
    sent = base64.b64encode(output.getvalue()).decode()

    # In another case the extension knows no module, and it fails at a fourth channel.
    answer = world.post(
        "/controlnet/detect", controlnet_module="Canny", controlnet_input_images=[sent]
    )

    assert len(answer["images"]) == 1


def test_a_refresh_shows_what_came_to_the_volume_and_what_has_gone(world: World) -> None:
    file = world.volume / "models" / "checkpoints" / "later.safetensors"
    files.write_checkpoint(file, seed="later")

    assert world.post("refresh-checkpoints") is None
    assert "later" in [entry["model_name"] for entry in world.get("sd-models")]

    file.unlink()
    world.post("refresh-checkpoints")
    assert "later" not in [entry["model_name"] for entry in world.get("sd-models")]


def test_what_was_fetched_is_listed_at_once_and_after_a_running_job(
    world: World, tmp_path: Path
) -> None:
    files.write_checkpoint(tmp_path / "one.safetensors", seed="one")
    files.write_checkpoint(tmp_path / "two.safetensors", seed="two")
    files.write_vae(tmp_path / "three.safetensors", seed="three")

    def listed() -> set[str]:
        found = {entry["model_name"] for entry in [*world.get("sd-models"), *world.get("sd-vae")]}
        return found & {"one", "two", "three.safetensors"}

    with running("hub", "--root", tmp_path) as hub:
        world.post(
            "v1/prefetch", models=[{"kind": "checkpoint", "url": f"{hub.url}/one.safetensors"}]
        )
        assert listed() == {"one"}
        world.post("options", sd_model_checkpoint=f"{hub.url}/two.safetensors")
        assert listed() == {"one", "two"}
        world.post("options", sd_model_checkpoint=None)

        three = {"kind": "vae", "url": f"{hub.url}/three.safetensors"}
        with holding(world) as running_job:
            world.post("v1/prefetch", models=[three])
            assert listed() == {"one", "two"}  # Its lists are not made anew while it draws.
            assert not running_job.done()
        running_job.result()

    assert listed() == {"one", "two", "three.safetensors"}


def test_the_models_of_controlnet_are_read_beside_a_job_as_they_are(
    world: World, held: Future[Any]
) -> None:
    assert world.get("/controlnet/model_list?update=false") == {"model_list": []}
    assert not held.done()


@pytest.mark.parametrize("name", ["refresh-vae", "refresh-loras", "refresh-embeddings"])
def test_the_other_lists_are_refreshed_too(world: World, name: str) -> None:
    world.made(checkpoint="a")
    before = world.requests(f"/sdapi/v1/{name}")

    assert world.post(name) is None
    assert world.requests(f"/sdapi/v1/{name}") > before


def test_an_unloaded_checkpoint_comes_back_by_itself(world: World) -> None:
    job = {"prompt": "a cat", "checkpoint": "a", **SMALL}
    before = world.run(job)["images"]

    assert world.post("unload-checkpoint") == {}
    assert world.run(job)["images"] == before
    assert world.post("reload-checkpoint") == {}
    assert world.run(job)["images"] == before


def test_nothing_is_loaded_only_to_be_unloaded(tmp_path: Path) -> None:
    write_models(tmp_path / "volume")
    argv = ("--models-dir", tmp_path / "links", "--skip-load-model-at-start", "--nowebui")
    with running("webui", *argv) as webui:
        world = make_world(tmp_path, webui)

        answers = [
            world.post(name)
            for name in ("unload-checkpoint", "reload-checkpoint", "refresh-embeddings")
        ]

        assert answers == [{}, {}, None]
        assert webui.get("/simulator/journal")["loads"] == 0


def test_what_only_asks_does_not_wait_for_a_running_generation(
    world: World, held: Future[Any]
) -> None:
    for name in ("samplers", "options", "sd-models", "memory", "progress"):
        assert world.get(name)
    world.post("png-info", image=picture())

    assert not held.done()
    go_on(world)
    assert held.result()["images"]


def test_what_takes_a1111s_place_waits_for_a_running_generation(
    world: World, held: Future[Any]
) -> None:
    before = world.requests(EXTRAS)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(world.post, "extra-single-image", image=picture())
        time.sleep(0.1)

        assert world.requests(EXTRAS) == before
        go_on(world)
        assert waiting.result()["image"]
    assert held.result()["images"]


def test_a_call_that_waits_can_be_cancelled(world: World, held: Future[Any]) -> None:
    cancelled = Event()
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(world.post, "extra-single-image", cancelled, image=picture())
        cancelled.set()

        assert isinstance(waiting.exception(), JobCancelledError)
    assert not held.done()
    go_on(world)
    assert held.result()["images"]


def test_a_long_infotext_is_read_all_the_same(world: World) -> None:
    text = ", ".join(["a lighthouse, 50 mm, (dusk:1.2)"] * 500) + "\nSteps: 20, Seed: 1"

    assert world.post("png-info", image=with_text(text))["info"] == text


def test_a_failed_call_is_typed_and_the_next_works(world: World) -> None:
    path = "/sdapi/v1/extra-single-image"
    faults = [{"path": path, "times": 1, "kind": "fail", "status": 500}]
    world.webui.post("/simulator/faults", {"faults": faults})

    with pytest.raises(BackendFailedError):
        world.post(path, image=picture())

    assert world.post(path, image=picture())["image"]


def test_an_answer_too_large_for_runpod_is_an_error(world: World, tmp_path: Path) -> None:
    write_models(tmp_path / "volume")
    small = make_world(tmp_path, world.webui, output=OutputSettings(max_run_bytes=1000))

    with pytest.raises(OutputTooLargeError):
        small.get("samplers")


def test_a_route_that_a_setting_adds_is_called(world: World, tmp_path: Path) -> None:
    write_models(tmp_path / "volume")
    limits = JobSettings(extra_routes=("POST /sdapi/v1/create/embedding",))
    wider = make_world(tmp_path, world.webui, job=limits)

    answer = wider.post("create/embedding", name="x", num_vectors_per_token=1, overwrite_old=False)

    assert "info" in answer


def test_no_option_of_a_job_reaches_a_call(world: World) -> None:
    before = world.webui.get("/sdapi/v1/options")["ESRGAN_tile"]
    world.made(checkpoint="a", override_settings={"ESRGAN_tile": before + 8})
    assert world.webui.get("/sdapi/v1/options")["ESRGAN_tile"] == before + 8

    world.post("extra-single-image", image=picture())

    assert world.webui.get("/sdapi/v1/options")["ESRGAN_tile"] == before


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        pytest.param({"source_image": None}, "source_image", id="no source"),
        pytest.param({"upscaler": "nope"}, "upscaler", id="unknown upscaler"),
        pytest.param({"face_restorer": "nope"}, "face_restorer", id="unknown restorer"),
        pytest.param({"upscaler": "Lanczos", "face_restorer": "GFPGAN"}, None, id="all known"),
    ],
)
def test_a_face_swap_names_nothing_that_reactor_would_do_without(
    world: World, fields: dict[str, Any], wrong: str | None
) -> None:
    """As ReActor's source says; unverified against a live server."""
    route = next(route for route in ROUTES if route.path == "/reactor/image")
    payload = {"source_image": picture(), "target_image": picture(), **fields}
    settings = Settings(webui=WebuiSettings(links=world.volume))

    def check(session: Session) -> Any:
        return Checks(settings).checked(route, payload, session)

    if wrong is None:
        assert world.runner.access.asked(Event(), check) == payload
        return
    with pytest.raises(InvalidInputError) as caught:
        world.runner.access.asked(Event(), check)
    assert caught.value.details["field"] == wrong


def test_a_picture_that_is_only_fitted_without_an_upscaler_is_not_judged_by_its_size(
    world: World,
) -> None:
    assert world.post("extra-single-image", image=picture(), upscaling_resize=1000)["image"]
