"""Results that arrive: the whole path of a job, while storage, disks and A1111 fail it.

What needs no whole worker has its tests elsewhere: stores and their words in tests/worker/test_bucket.py and
test_store.py, the ladder in test_output.py, formats in test_encode.py, local files in test_local.py.
"""

import base64
import io
import json
import math
import os
import random
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import requests
from PIL import Image, ImageChops, ImageStat

from schemas.errors import BackendFailedError, InvalidInputError
from schemas.settings import OutputSettings
from simulator import models as files
from tests.chaos import syscalls
from tests.conftest import Simulator, running
from tests.worker.calling import World, make_world, write_models
from tests.worker.stores import KEY, SECRET, proxied, rclone, rclone_serving, refusing
from worker.local import saving as local
from worker.pictures import exif
from worker.pictures.encode import format_of

pytestmark = pytest.mark.slow

JOB = {"checkpoint": "a", "prompt": "a cat", "steps": 1, "seed": 1, "width": 128, "height": 128}
TXT2IMG = "/sdapi/v1/txt2img"
CANNY = "control_v11p_sd15_canny"
Change = Callable[[dict[str, Any]], None]


@dataclass
class Place:
    """An A1111 with ControlNet, and the folders that every worker of these tests has."""

    folder: Path
    webui: Simulator

    @property
    def outputs(self) -> Path:
        return self.folder / "volume" / "outputs"

    def worker(self, url: str | None = None, **output: Any) -> World:
        """Return a worker with these settings, whose A1111 is at `url`."""
        webui = self.webui if url is None else replace(self.webui, url=url)
        return make_world(self.folder, webui, output=OutputSettings(**output))

    def answering(self, stack: ExitStack, change: Change, **output: Any) -> World:
        """Return a worker, and let `change` alter what A1111 answers to its generations."""
        way = stack.enter_context(proxied(self.webui.url))

        def changed(path: str, body: bytes) -> bytes:
            if path != TXT2IMG:
                return body
            answer = json.loads(body)
            change(answer)
            return json.dumps(answer).encode()

        way.change = changed
        return self.worker(way.url, **output)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("results")
    write_models(folder / "volume")
    files.write_controlnet(
        folder / "volume" / "models" / "controlnet" / f"{CANNY}.safetensors", seed="c"
    )
    with running("webui", "--models-dir", folder / "links", "--controlnet") as webui:
        yield Place(folder, webui)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as held:
        yield held


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A store that checks signatures; it has the bucket `pictures`."""
    if (program := rclone()) is None:
        pytest.skip("no rclone here (make rclone)")
    folder = tmp_path_factory.mktemp("rclone")
    (folder / "pictures").mkdir()
    with rclone_serving(program, folder) as url:
        yield url


def storage(
    url: str, bucket: str = "pictures", secret: str = SECRET, timeout_s: float = 60
) -> dict[str, Any]:
    """Return the settings of a bucket."""
    return {
        "bucket_endpoint": url,
        "bucket_name": bucket,
        "bucket_access_key_id": KEY,
        "bucket_secret_access_key": secret,
        "upload_timeout_s": timeout_s,
    }


def mounted(folder: Path, size: str) -> None:
    """Mount a file system of that size there, in memory."""
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("no right to mount a file system here")


def unmount(folder: Path) -> None:
    subprocess.run(["umount", "--lazy", folder], check=True)


def opened(image: str) -> Image.Image:
    """Return a picture that an answer holds in whatever way."""
    if image.startswith("http"):
        data = requests.get(image, timeout=10).content
    elif len(image) < 500:
        data = Path(image).read_bytes()
    else:
        data = base64.b64decode(image)
    picture = Image.open(io.BytesIO(data))
    picture.load()
    return picture


def speckled(side: int = 128) -> str:
    """Return a PNG, base64, that WebP without loss makes smaller, and nothing makes small."""
    soft = Image.radial_gradient("L").resize((side, side)).convert("RGB")
    grain = Image.frombytes("RGB", soft.size, random.Random(0).randbytes(3 * side**2))  # noqa: S311 - a picture
    file = io.BytesIO()
    Image.blend(soft, grain, 0.05).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        pytest.param({"bucket": "nowhere"}, "NoSuchBucket", id="bucket missing"),
        pytest.param({"secret": "another"}, "SignatureDoesNotMatch", id="wrong credentials"),
    ],
)
def test_a_store_that_refuses_costs_no_picture(
    place: Place, strict: str, fault: dict[str, Any], words: str
) -> None:
    plain = place.worker().run(JOB)

    answer = place.worker(**storage(strict, **fault)).run({**JOB, "output": {"delivery": "url"}})

    assert answer["images"] == plain["images"]
    assert answer["output"]["delivery"] == "base64"
    [warning] = answer["warnings"]
    assert "UPLOAD_FAILED" in warning
    assert words in warning
    assert "another" not in warning


@pytest.mark.parametrize(
    ("faults", "timeout_s", "words"),
    [
        pytest.param(
            [refusing("RequestTimeTooSkewed", 403)], 60, "clock is wrong", id="clock skew"
        ),
        pytest.param(["cut"] * 99, 1.5, "not uploaded within 1.5 s", id="broken in the middle"),
    ],
)
def test_an_upload_that_fails_is_passed_by_for_the_next_step_of_the_ladder(
    place: Place, strict: str, stack: ExitStack, faults: list[Any], timeout_s: float, words: str
) -> None:
    plain = place.worker().run(JOB)
    limit = len(json.dumps(plain)) - 500
    way = stack.enter_context(proxied(strict))
    worker = place.worker(max_run_bytes=limit, **storage(way.url))
    hasty = place.worker(max_run_bytes=limit, **storage(way.url, timeout_s=timeout_s))

    uploaded = worker.run(JOB)
    way.faults = faults
    answer = hasty.run(JOB)

    assert uploaded["output"]["delivery"] == "url"
    assert opened(uploaded["images"][0]).tobytes() == opened(plain["images"][0]).tobytes()
    assert (answer["output"]["format"], answer["output"]["delivery"]) == ("webp", "base64")
    same = opened(answer["images"][0]).convert("RGB")
    assert same.tobytes() == opened(plain["images"][0]).tobytes()
    assert len(json.dumps(answer)) <= limit
    failed, done = answer["warnings"]
    assert failed.startswith("`upload` failed")
    assert words in failed
    assert "They are WebP, without loss." in done


def test_a_volume_that_is_full_costs_no_picture_and_gets_no_half_of_one(place: Place) -> None:
    mounted(place.outputs, "16k")
    try:
        answer = place.worker().run({**JOB, "output": {"delivery": "volume"}})

        left = [path for path in place.outputs.rglob("*") if path.is_file()]
    finally:
        unmount(place.outputs)
    assert opened(answer["images"][0]).size == (128, 128)
    assert answer["output"]["delivery"] == "base64"
    assert "VOLUME_FULL" in answer["warnings"][0]
    assert left == []


def test_a_quota_that_is_told_at_fsync_alone_costs_no_picture(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = place.worker()
    fault = syscalls.Fault("fsync", folder="/outputs/", error="EDQUOT")
    struck = syscalls.install(fault, place.folder / "volume", monkeypatch.setattr)

    answer = worker.run({**JOB, "output": {"delivery": "volume"}})

    assert struck() == 1
    assert opened(answer["images"][0]).size == (128, 128)
    assert "VOLUME_FULL" in answer["warnings"][0]
    assert [path for path in place.outputs.rglob("*") if path.is_file()] == []


def test_a_full_disk_under_output_sends_a_local_run_elsewhere(
    place: Place,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refuge, output = tmp_path / "tmp", tmp_path / "output"
    refuge.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(refuge))
    answer = place.worker().run(JOB)
    mounted(output, "16k")
    try:
        code = local.told(answer, output, {})

        left = list(output.iterdir())
    finally:
        unmount(output)
    assert code == 1
    assert left == []
    assert f"{output} cannot be written: No space left on device." in capsys.readouterr().err
    [kept] = refuge.glob("*/*.png")
    assert kept.read_bytes() == base64.b64decode(answer["images"][0])


def half(answer: dict[str, Any]) -> None:
    answer["images"][1] = answer["images"][1][: 4 * 1000]


def spoilt(answer: dict[str, Any]) -> None:
    """Keep both ends of a picture, and lose what is between."""
    image = answer["images"][1]
    middle = base64.b64encode(bytes(6000)).decode()
    answer["images"][1] = image[:4000] + middle + image[4000 + len(middle) :]


def none(answer: dict[str, Any]) -> None:
    answer["images"][1] = None


@pytest.mark.parametrize(
    ("change", "output"),
    [
        pytest.param(half, {}, id="half"),
        pytest.param(none, {"format": "webp"}, id="null"),
        pytest.param(spoilt, {"format": "jpeg"}, id="broken in the middle"),
    ],
)
def test_a_broken_image_is_an_error_that_says_which_and_the_next_job_is_right(
    place: Place, stack: ExitStack, change: Change, output: dict[str, Any]
) -> None:
    job = {**JOB, "batch_size": 2, "output": output}
    worker = place.answering(stack, change)

    with pytest.raises(BackendFailedError, match="Image 1 ") as caught:
        worker.run(job)

    assert caught.value.details["image"] == 1
    assert len(place.worker().run(job)["images"]) == 2


def test_four_pictures_of_4096_are_encoded_in_the_memory_of_one(
    place: Place, stack: ExitStack
) -> None:
    side = 4096
    file = io.BytesIO()
    picture = Image.radial_gradient("L").resize((side, side)).convert("RGB")
    picture.save(file, "PNG", compress_level=1)
    large = base64.b64encode(file.getvalue()).decode()
    one = side * side * 5  # decoded and as JPEG: worker/pictures/encode.py

    def enlarge(answer: dict[str, Any]) -> None:
        answer["images"] = [large] * 4

    worker = place.answering(stack, enlarge, max_run_bytes=100_000_000)
    job = {**JOB, "batch_size": 4, "output": {"format": "jpeg"}}
    status = Path("/proc/self/status")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew; proc(5)
    before = resident(status, "VmRSS")
    answer = worker.run(job)
    grown = resident(status, "VmHWM") - before

    assert [opened(image).size for image in answer["images"]] == [(side, side)] * 4
    assert grown < 1.3 * one


def resident(status: Path, name: str) -> int:
    """Return a figure of a process's memory in bytes."""
    lines = status.read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "avif"])
def test_emoji_of_a_prompt_are_in_the_answer_and_in_the_picture(place: Place, kind: str) -> None:
    prompt = "a 🦊 in the snow, 日本, naïve"

    answer = place.worker().run({**JOB, "prompt": prompt, "output": {"format": kind}})

    told = json.loads(answer["info"])
    assert told["prompt"] == prompt
    assert format_of(base64.b64decode(answer["images"][0])) == kind
    assert exif.read(opened(answer["images"][0]))["parameters"] == told["infotexts"][0]


def test_half_a_character_in_a_prompt_is_refused_before_anything_is_drawn(place: Place) -> None:
    worker = place.worker()
    before = worker.requests(TXT2IMG)

    with pytest.raises(InvalidInputError) as caught:
        worker.run({**JOB, "prompt": "a \ud83d fox"})

    assert caught.value.details["field"] == "prompt"
    assert worker.requests(TXT2IMG) == before


def test_nan_in_info_costs_no_picture(place: Place, stack: ExitStack) -> None:
    def change(answer: dict[str, Any]) -> None:
        answer["info"] = json.dumps({**json.loads(answer["info"]), "cfg_scale": math.nan})

    answer = place.answering(stack, change).run(JOB)

    assert opened(answer["images"][0]).size == (128, 128)
    assert json.dumps(answer, allow_nan=False)
    assert math.isnan(json.loads(answer["info"])["cfg_scale"])


def test_nan_beside_info_is_an_error_and_no_result_that_is_lost(
    place: Place, stack: ExitStack
) -> None:
    def change(answer: dict[str, Any]) -> None:
        answer["parameters"]["cfg_scale"] = math.nan

    with pytest.raises(BackendFailedError, match="JSON cannot say"):
        place.answering(stack, change).run(JOB)


CALLS: dict[str, dict[str, Any]] = {
    "extra-single-image": {"image": speckled(), "upscaling_resize": 1, "upscaler_1": "Lanczos"},
    "extra-batch-images": {
        "imageList": [{"data": speckled(), "name": "1"}, {"data": speckled(), "name": "2"}],
        "upscaling_resize": 1,
        "upscaler_1": "Lanczos",
    },
    "/controlnet/detect": {
        "controlnet_module": "invert",
        "controlnet_input_images": [speckled()],
        "controlnet_processor_res": 128,
    },
}


def pictures(answer: dict[str, Any]) -> list[str]:
    return [answer["image"]] if "image" in answer else [*answer["images"]]


@pytest.mark.parametrize("route", CALLS)
def test_the_pictures_of_a_call_go_down_the_same_ladder(place: Place, route: str) -> None:
    plain = place.worker().post(route, **CALLS[route])
    small = place.worker(max_run_bytes=len(json.dumps(plain)) - 400)

    lossless = small.post(route, **CALLS[route])
    left = small.post(route, **CALLS[route], output={"ladder": ["volume"]})
    asked = small.post(route, **CALLS[route], output={"format": "jpeg"})

    for answer in (lossless, left):
        assert answer.keys() - plain.keys() == {"warnings"}
        assert "RunPod carries" in answer["warnings"][0]
        for image, before in zip(pictures(answer), pictures(plain), strict=True):
            same = opened(image).convert("RGB")
            assert same.tobytes() == opened(before).convert("RGB").tobytes()
    assert opened(pictures(lossless)[0]).format == "WEBP"
    assert Path(pictures(left)[0]).is_file()
    assert asked.keys() == plain.keys()
    assert {opened(image).format for image in pictures(asked)} == {"JPEG"}


def test_kinds_stay_beside_their_images_in_every_format_and_way(place: Place, strict: str) -> None:
    worker = place.worker(**storage(strict))
    unit = {"image": speckled(), "module": "canny", "model": CANNY}
    job = {**JOB, "batch_size": 2, "save_images": True, "controlnet_args": [unit]}
    plain = worker.run(job)
    assert plain["image_kinds"] == ["grid", "picture", "picture", "detect_map"]
    originals = [opened(image).convert("RGB") for image in plain["images"]]

    for kind in ("png", "jpeg", "webp", "avif"):
        for way in ("base64", "url", "volume"):
            answer = worker.run({**job, "output": {"format": kind, "delivery": way}})

            assert answer["output"] == {**answer["output"], "format": kind, "delivery": way}
            assert answer["image_kinds"] == plain["image_kinds"]
            found = [opened(image).convert("RGB") for image in answer["images"]]
            for index, picture in enumerate(found):
                assert nearest(picture, originals) == index, (kind, way)


def nearest(picture: Image.Image, originals: list[Image.Image]) -> int:
    """Return which of `originals` a picture is most like."""

    def distance(index: int) -> float:
        original = originals[index]
        if original.size != picture.size:
            return math.inf
        return sum(ImageStat.Stat(ImageChops.difference(picture, original)).mean)

    return min(range(len(originals)), key=distance)
