"""Requests of the systems that people come from: what A1111 received for each, and the answer.

`tests/seeds/` holds the bodies that their pages print, and what they turn into. `<image>` stands for
a picture, and `<sha256 of NAME>` for the digest of a file.
"""

import base64
import io
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Timer
from typing import Any

import pytest
from PIL import Image

from model_cache.cache import ModelCache
from schemas.errors import InvalidInputError, JobCancelledError, ModelIncompatibleError
from schemas.settings import CacheSettings, JobSettings, Settings, WebuiSettings
from simulator import models as files
from tests.conftest import Simulator, running
from tests.worker.keeping import kept
from worker.child.client import WebuiClient
from worker.run import Runner

pytestmark = pytest.mark.slow

SEEDS = Path(__file__).parent.parent / "seeds"
CASES = [
    pytest.param(case, id=f"{file.stem}: {case['name']}")
    for file in sorted(SEEDS.glob("*.json"))
    for case in json.loads(file.read_text())
]
OUR_KEYS = {"override_settings", "override_settings_restore_afterwards"}
ALIASES = {
    "Amanatsu": "amanatsu-illustrious-v11",
    "John6666__amanatsu-illustrious-v11-sdxl": "amanatsu-illustrious-v11",
    "PlantMilk (HempII)": "plantmilk",
    "stabilityai/stable-diffusion-xl-base-1.0": "sd_xl_base_1.0",
    "stabilityai/stable-diffusion-xl-refiner-1.0": "sd_xl_refiner_1.0",
}


def picture(kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "teal").save(buffer, kind)
    return buffer.getvalue()


PICTURE = base64.b64encode(picture()).decode()


@dataclass
class World:
    runner: Runner
    webui: Simulator
    hub: Simulator
    folder: Path
    digests: dict[str, str]

    def run(self, given: Any, *, cancelled: Event | None = None) -> dict[str, Any]:
        job = {"id": "job-1", "input": given}
        return dict(self.runner.run(job, cancelled or Event(), lambda _: None))

    def sent(self) -> tuple[str, dict[str, Any]]:
        """Return the route and the body of the last generation that A1111 received."""
        journal = self.webui.get("/simulator/journal")["requests"]
        entry = [e for e in journal if e["path"].endswith(("/txt2img", "/img2img"))][-1]
        return entry["path"].rpartition("/")[2], entry["body"]


def write_hub(folder: Path) -> dict[str, str]:
    """Write what the requests name by URL; return digests by the names in them."""
    huggingface, civitai = folder / "huggingface", folder / "civitai"
    (folder / "p.webp").parent.mkdir(parents=True, exist_ok=True)
    (folder / "p.webp").write_bytes(picture("WEBP"))
    (folder / "page.png").write_text("<html>")
    files.write_lora(huggingface / "user/model/model.safetensors", seed="tweaker")
    for name in ("refiner", "hires"):
        files.write_checkpoint(huggingface / "user/model" / f"{name}.safetensors", seed=name)
    files.write_checkpoint(civitai / "7777" / "anime.safetensors", seed="anime")
    (civitai / "7777" / "simulator.json").write_text(
        '{"modelId": 777, "model": {"type": "Checkpoint"}}'
    )
    deliberate = huggingface / "XpucT/Deliberate/Deliberate_v6.safetensors"
    return {
        "deliberate_v6": files.write_checkpoint(deliberate, seed="deliberate"),
        "landscape_enhancer": files.write_lora(civitai / "12345" / "l.safetensors", seed="land"),
    }


def write_volume(folder: Path) -> None:
    for name in ("deliberate", "plantmilk"):
        files.write_checkpoint(folder / "checkpoints" / f"{name}.safetensors", seed=name)
    for name, base in (
        ("amanatsu-illustrious-v11", "sdxl"),
        ("sd_xl_base_1.0", "sdxl"),
        ("sd_xl_refiner_1.0", "sdxl-refiner"),
    ):
        files.write_checkpoint(folder / "checkpoints" / f"{name}.safetensors", seed=name, base=base)
    for name in ("my-lora", "another-lora", "third-lora"):
        files.write_lora(folder / "loras" / f"{name}.safetensors", seed=name)
    qrcode = folder / "controlnet" / "control_v1p_sd15_qrcode_monster.safetensors"
    files.write_controlnet(qrcode, seed="qrcode")
    (folder / "aliases.json").write_text(json.dumps(ALIASES))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("older")
    write_volume(folder / "models")
    digests = write_hub(folder / "hub")
    with (
        running("hub", "--root", folder / "hub") as hub,
        running("webui", "--models-dir", folder / "links", "--controlnet") as webui,
    ):
        settings = Settings(
            cache=CacheSettings(
                volume=folder,
                allow_private_hosts=True,
                hf_endpoint=hub.url,
                civitai_endpoint=hub.url,
            ),
            webui=WebuiSettings(
                port=int(webui.url.rpartition(":")[2]),
                links=folder / "links",
                checkpoint="deliberate",
            ),
            job=JobSettings(max_input_mb=1, max_input_s=5),
        )
        client = WebuiClient(webui.url)
        runner = Runner(ModelCache(settings.cache), client, kept(client), settings)
        runner.show_models()
        yield World(runner, webui, hub, folder, digests)


def filled(value: Any, digests: dict[str, str]) -> Any:
    """Return `value` with real pictures and digests in it."""
    text = json.dumps(value).replace("<image>", PICTURE)
    for name, digest in digests.items():
        text = text.replace(f"<sha256 of {name}>", digest)
    return json.loads(text)


@pytest.mark.parametrize("case", CASES)
def test_a_request_of_an_older_system_becomes_what_a1111_understands(
    world: World, case: dict[str, Any]
) -> None:
    answer = world.run(filled(case["input"], world.digests))

    route, body = world.sent()
    expected = filled(case["sent"], world.digests)
    assert route == case["route"]
    if "unit" in case:
        unit = body.pop("alwayson_scripts")["controlnet"]["args"][0]
        assert filled(case["unit"], world.digests).items() <= unit.items()
        assert unit["model"].startswith(case["input"]["controlnet_args"][0]["model"] + " [")
    assert {name: entry for name, entry in body.items() if name not in OUR_KEYS} == expected
    checkpoint = case.get("checkpoint", "deliberate.safetensors")
    assert body["override_settings"]["sd_model_checkpoint"] == checkpoint
    assert answer["warnings"] == case["warnings"]
    for name in expected.keys() - {"init_images", "mask", "sampler_index"}:
        assert answer["parameters"][name] == expected[name], name
    assert json.loads(answer["info"])["sd_model_name"] == checkpoint.removesuffix(".safetensors")
    with Image.open(io.BytesIO(base64.b64decode(answer["images"][0]))) as drawn:
        scale = expected.get("hr_scale", 2.0) if expected.get("enable_hr") else 1
        wanted = (expected.get("width", 512) * scale, expected.get("height", 512) * scale)
        assert drawn.size == wanted


def test_the_answer_has_every_key_of_worker_a1111(world: World) -> None:
    answer = world.run({"prompt": "a", "steps": 1, "width": 64, "height": 64})

    assert isinstance(answer["images"], list)
    assert isinstance(answer["parameters"], dict)
    assert isinstance(answer["info"], str)
    assert {name: type(entry) for name, entry in answer["cache_info"].items()} == {
        "checkpoints_cached": int,
        "loras_cached": int,
        "total_cache_size_mb": float,
    }


SMALL = {"prompt": "a", "steps": 1, "width": 64, "height": 64}


def test_images_by_url_reach_a1111_as_base64(world: World) -> None:
    url = f"{world.hub.url}/p.webp"
    webp = base64.b64encode(picture("WEBP")).decode()

    world.run({**SMALL, "batch_size": 2, "init_images": [PICTURE, url], "mask": f" {url}"})

    _, body = world.sent()
    assert body["init_images"] == [PICTURE, webp]
    assert body["mask"] == webp


def test_an_image_by_url_may_be_called_image(world: World) -> None:
    world.run({**SMALL, "image": f"{world.hub.url}/redirect/p.webp"})

    assert world.sent()[1]["init_images"] == [base64.b64encode(picture("WEBP")).decode()]


@pytest.mark.parametrize(
    ("given", "field"),
    [
        pytest.param({"init_images": ["{hub}/gone.png"]}, "init_images[0]", id="nothing there"),
        pytest.param({"init_images": ["{hub}/page.png"]}, "init_images[0]", id="a page"),
        pytest.param({"init_images": ["file:///etc/passwd"]}, "init_images[0]", id="file"),
        pytest.param({"init_images": ["/etc/passwd"]}, "init_images[0]", id="path"),
        pytest.param({"init_images": ["ftp://h/p.png"]}, "init_images[0]", id="FTP"),
        pytest.param({"image": "{picture}", "mask": "{hub}/gone"}, "mask", id="mask"),
        pytest.param({"firstpass_image": "{hub}/gone"}, "firstpass_image", id="first pass"),
    ],
)
def test_what_leads_to_no_image_is_refused_by_its_field(
    world: World, given: dict[str, Any], field: str
) -> None:
    text = json.dumps(given).replace("{hub}", world.hub.url).replace("{picture}", PICTURE)

    with pytest.raises(InvalidInputError) as caught:
        world.run({**SMALL, **json.loads(text)})
    assert caught.value.details["field"] == field


def test_an_image_that_hides_a_huge_one_is_refused(world: World) -> None:
    Image.new("1", (8_192, 8_192)).save(world.folder / "hub" / "huge.png")

    with pytest.raises(InvalidInputError, match="8192 x 8192"):
        world.run({**SMALL, "image": f"{world.hub.url}/huge.png"})


def test_a_file_beyond_the_limit_of_the_settings_is_refused(world: World) -> None:
    (world.folder / "hub" / "long.png").write_bytes(picture() + bytes(1_000_000))

    with pytest.raises(InvalidInputError, match="more than 1000000 bytes"):
        world.run({**SMALL, "image": f"{world.hub.url}/long.png"})


def test_no_request_sends_the_worker_against_a_host(world: World) -> None:
    before = len(world.hub.get("/simulator/journal")["requests"])
    units = [{"model": "m", "image": f"{world.hub.url}/p.webp"}] * 65

    with pytest.raises(InvalidInputError, match="More than 64") as caught:
        world.run({**SMALL, "controlnet_args": units})
    assert caught.value.details["field"] == "controlnet_args[64].image"
    assert len(world.hub.get("/simulator/journal")["requests"]) == before


def test_a_job_that_is_cancelled_waits_for_no_image(world: World) -> None:
    world.hub.post("/simulator/faults", {"path": "/slow.png", "delay_s": 60})
    cancelled = Event()
    timer = Timer(0.3, cancelled.set)
    timer.start()
    started = time.monotonic()

    with pytest.raises(JobCancelledError):
        world.run({**SMALL, "image": f"{world.hub.url}/slow.png"}, cancelled=cancelled)
    assert time.monotonic() - started < 20
    timer.join()


def test_nothing_is_fetched_from_this_machine_by_default(world: World, tmp_path: Path) -> None:
    settings = Settings(
        cache=CacheSettings(volume=world.folder),
        webui=WebuiSettings(port=int(world.webui.url.rpartition(":")[2]), links=tmp_path / "l"),
    )
    client = WebuiClient(world.webui.url)
    runner = Runner(ModelCache(settings.cache), client, kept(client), settings)
    before = len(world.hub.get("/simulator/journal")["requests"])

    for url in (f"{world.hub.url}/p.webp", world.hub.url.replace("http", "https") + "/p.webp"):
        with pytest.raises(InvalidInputError):
            runner.run({"id": "j", "input": {**SMALL, "image": url}}, Event(), lambda _: None)
    assert len(world.hub.get("/simulator/journal")["requests"]) == before


def test_refiner_and_hires_checkpoint_are_fetched_like_any_checkpoint(world: World) -> None:
    host = "https://huggingface.co/user/model/resolve/main"
    hires = {"enable_hr": True, "hr_scale": 1.5, "hr_prompt": "b", "denoising_strength": 0.5}

    world.run(
        {
            **SMALL,
            **hires,
            "steps": 3,
            "refiner_checkpoint": f"{host}/refiner.safetensors",
            "hr_checkpoint_name": f"{host}/hires.safetensors",
        }
    )

    _, body = world.sent()
    assert body["refiner_checkpoint"] == "refiner.safetensors"
    assert body["hr_checkpoint_name"] == "hires.safetensors"
    held = {path.name for path in (world.folder / "models" / "checkpoints").iterdir()}
    assert {"refiner.safetensors", "hires.safetensors"} <= held


def test_a_lora_that_does_not_fit_fails_img2img_or_is_left_out_of_it(world: World) -> None:
    given = {**SMALL, "image": PICTURE, "checkpoint": "sd_xl_base_1.0", "loras": ["my-lora"]}

    with pytest.raises(ModelIncompatibleError) as caught:
        world.run(given)
    answer = world.run({**given, "on_incompatible": "skip"})

    assert caught.value.details["field"] == "loras[0]"
    assert world.sent()[1]["prompt"] == "a"
    assert any("my-lora" in warning for warning in answer["warnings"])


def test_the_words_that_a_page_has_for_a_hash_are_no_hash(world: World) -> None:
    """As worker-a1111's page prints them; its seed has the files' own in their place."""
    checkpoint = {"name": "deliberate", "hash": "optional_sha256_hash_for_verification"}

    with pytest.raises(InvalidInputError) as caught:
        world.run({**SMALL, "checkpoint": checkpoint})
    assert caught.value.details["field"] == "checkpoint.hash"
