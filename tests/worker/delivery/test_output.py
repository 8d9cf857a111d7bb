import base64
import io
import json
import random
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from schemas.errors import (
    BackendFailedError,
    InvalidInputError,
    JobCancelledError,
    OutputTooLargeError,
)
from schemas.job import Txt2Img
from schemas.output import Output
from schemas.settings import CacheSettings, OutputSettings, Settings
from tests.worker.stores import bucket_at
from worker.caller import Caller
from worker.clock import Clock
from worker.delivery import output
from worker.delivery.output import fitting, foresee, send, size_bytes
from worker.delivery.parcel import Sent
from worker.delivery.wish import Wish, Wishes

Send = Callable[..., Any]


def noise(side: int = 64, seed: int = 1, mode: str = "RGB") -> str:
    """Return a PNG, as base64, that nothing makes much smaller without loss."""
    data = random.Random(seed).randbytes(side * side * len(mode))  # noqa: S311 - a picture, no secret
    png = io.BytesIO()
    Image.frombytes(mode, (side, side), data).save(png, "PNG")
    return base64.b64encode(png.getvalue()).decode()


def cloudy(side: int = 96) -> str:
    """Return a PNG, as base64, that WebP packs better: a smooth picture with a little noise."""
    picture = Image.radial_gradient("L").resize((side, side)).convert("RGB")
    grain = random.Random(7).randbytes(side * side)  # noqa: S311 - a picture, no secret
    speckle = Image.frombytes("L", (side, side), grain)
    picture = Image.blend(picture, speckle.convert("RGB"), 0.02)
    png = io.BytesIO()
    picture.save(png, "PNG", compress_level=1)
    return base64.b64encode(png.getvalue()).decode()


def made(sent: Sent) -> dict[str, Any]:
    return {"images": sent.images, "output": sent.output, "warnings": [*sent.warnings]}


def opened(image: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(image)))


@pytest.fixture
def wishes(tmp_path: Path) -> Callable[..., Wish]:
    """Return a maker of wishes: `output`, the field; `limit`, of the answer in bytes; settings."""

    def make(field: dict[str, Any], limit: int, *, volume: bool = True, **settings: Any) -> Wish:
        cache = CacheSettings(
            volume=tmp_path, local_root=tmp_path / "" if not volume else Path("/x")
        )
        whole = Settings(cache=cache, output=OutputSettings(max_run_bytes=limit, **settings))
        return Wishes(whole).of(Output.model_validate(field), {"id": "job-1"})

    return make


@pytest.fixture
def caller() -> Caller:
    return Caller(Event(), lambda _: None, ExitStack(), Clock())


@given(st.lists(st.text()), st.dictionaries(st.text(), st.text() | st.integers()))
def test_the_measure_is_what_the_sdk_sends(images: list[str], rest: dict[str, Any]) -> None:
    result = {**rest, "images": images}

    sent = json.dumps({"output": result}, ensure_ascii=False).encode(errors="surrogatepass")

    assert size_bytes(result) == len(sent)


@pytest.mark.parametrize("value", [None, "text", 5, [], [{"name": "Euler"}], {"image": "é"}])
def test_every_answer_of_a1111_is_measured_as_it_is_sent(value: Any) -> None:
    assert size_bytes(value) == len(json.dumps({"output": value}, ensure_ascii=False).encode())


def test_an_answer_exactly_at_the_limit_goes_and_one_byte_over_does_not() -> None:
    answer = {"images": ["x" * 1500]}
    limit = size_bytes(answer)

    assert fitting(answer, limit) is answer
    with pytest.raises(OutputTooLargeError) as caught:
        fitting(answer, limit - 1)
    assert caught.value.details["size_bytes"] == limit
    assert caught.value.details["limit_bytes"] == limit - 1


@pytest.mark.parametrize("value", [float("nan"), b"bytes", "\ud800"])
def test_what_json_cannot_say_is_an_error_not_a_loss(value: object) -> None:
    with pytest.raises(BackendFailedError):
        fitting({"images": [], "parameters": {"x": value}}, 1000)


def test_pictures_that_fit_are_not_touched(wishes: Callable[..., Wish], caller: Caller) -> None:
    images = [noise(seed=1), noise(seed=2)]

    answer = send(images, wishes({}, 100_000), made, caller)

    assert answer["images"] == images
    assert answer["warnings"] == []
    assert answer["output"] == {
        "format": "png",
        "lossless": True,
        "quality": None,
        "delivery": "base64",
    }


def test_pictures_that_are_too_large_become_webp_with_the_same_pixels(
    wishes: Callable[..., Wish], caller: Caller
) -> None:
    image = cloudy()

    answer = send([image], wishes({}, len(image)), made, caller)

    assert answer["output"]["format"] == "webp"
    assert opened(answer["images"][0]).convert("RGB").tobytes() == opened(image).tobytes()
    assert f"RunPod carries {len(image)}" in answer["warnings"][0]


def test_pictures_that_nothing_makes_smaller_go_to_the_volume(
    wishes: Callable[..., Wish], caller: Caller, tmp_path: Path
) -> None:
    images = [noise(seed=1), noise(seed=2)]

    answer = send(images, wishes({"prefix": "people/ann"}, 2_000), made, caller)

    assert answer["output"]["delivery"] == "volume"
    assert answer["images"] == [
        str(tmp_path / "outputs" / "people" / "ann" / "job-1" / f"{index}.png") for index in (0, 1)
    ]
    kept = [base64.b64encode(Path(path).read_bytes()).decode() for path in answer["images"]]
    assert kept == images


def test_nothing_is_lost_of_the_picture_unless_the_caller_allows_it(
    wishes: Callable[..., Wish], caller: Caller
) -> None:
    image = noise()

    with pytest.raises(OutputTooLargeError) as caught:
        send([image], wishes({}, 9_000, volume=False), made, caller)
    assert caught.value.details["tried"] == ["inline", "lossless_webp"]

    answer = send([image], wishes({"allow_lossy": True}, 9_000, volume=False), made, caller)
    assert answer["output"]["lossless"] is False
    assert f"quality {answer['output']['quality']}" in answer["warnings"][0]


def test_the_quality_sinks_no_lower_than_the_floor(
    wishes: Callable[..., Wish], caller: Caller
) -> None:
    def arrives(limit: int, floor: int) -> int:
        wish = wishes({"format": "jpeg"}, limit, volume=False, min_quality=floor)
        quality: int = send([noise()], wish, made, caller)["output"]["quality"]
        return quality

    sizes = {
        quality: size_bytes(
            send([noise()], wishes({"format": "jpeg", "quality": quality}, 10**6), made, caller)
        )
        for quality in (80, 65, 50)
    }

    assert sizes[80] > sizes[65] > sizes[50]
    assert arrives(sizes[80], floor=50) == 80
    assert arrives(sizes[50] + 300, floor=50) == 50
    with pytest.raises(OutputTooLargeError):
        arrives(sizes[50] - 300, floor=50)


@pytest.mark.parametrize(
    ("field", "arrives_by"),
    [
        pytest.param({"ladder": ["volume", "lossless_webp"]}, "volume", id="the request's order"),
        pytest.param({"delivery": "base64"}, "base64", id="base64 alone"),
        pytest.param({"ladder": ["lossless_webp"]}, "base64", id="one step"),
    ],
)
def test_the_request_chooses_the_ladder(
    field: dict[str, Any], arrives_by: str, wishes: Callable[..., Wish], caller: Caller
) -> None:
    image = cloudy()

    answer = send([image], wishes(field, len(image)), made, caller)

    assert answer["output"]["delivery"] == arrives_by


def test_pictures_go_to_the_volume_at_once_when_that_is_asked_for(
    wishes: Callable[..., Wish], caller: Caller
) -> None:
    answer = send([noise()], wishes({"delivery": "volume"}, 10**6), made, caller)

    assert Path(answer["images"][0]).is_file()
    assert answer["warnings"] == []


def test_a_job_that_is_done_twice_leaves_its_pictures_once(
    wishes: Callable[..., Wish], caller: Caller, tmp_path: Path
) -> None:
    wish = wishes({"delivery": "volume"}, 10**6)

    send([noise(seed=1)], wish, made, caller)
    answer = send([noise(seed=2)], wish, made, caller)

    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files == [Path(answer["images"][0])]
    assert base64.b64encode(files[0].read_bytes()).decode() == noise(seed=2)


def test_a_cancel_ends_a_delivery_to_the_volume_between_two_pictures(
    wishes: Callable[..., Wish], caller: Caller, tmp_path: Path
) -> None:
    class Written(Event):
        """Is set as soon as a picture is there."""

        def is_set(self) -> bool:
            return any(path.stat().st_size for path in tmp_path.rglob("*.part"))

    wish = wishes({"delivery": "volume"}, 10**6)

    with pytest.raises(JobCancelledError, match="written"):
        send([noise()] * 3, wish, made, replace(caller, cancelled=Written()))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_volume_that_is_gone_is_passed_by_with_a_warning(
    wishes: Callable[..., Wish],
    caller: Caller,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    wish = wishes({"delivery": "volume"}, 10**6)
    tmp_path.rmdir()

    answer = send([noise()], wish, made, caller)

    assert answer["images"] == [noise()]
    assert "VOLUME_MISSING" in answer["warnings"][0]
    assert caplog.messages == answer["warnings"]


def test_time_lost_on_a_way_that_failed_is_no_encoding(
    wishes: Callable[..., Wish],
) -> None:
    now = 0.0

    def report(progress: dict[str, Any]) -> None:
        nonlocal now
        now += {"uploading": 100, "encoding": 1}[progress["stage"]]

    caller = Caller(Event(), report, ExitStack(), Clock(now=lambda: now))
    image = cloudy()
    wish = replace(
        wishes({}, len(image)),
        ways=("upload", "inline", "lossless_webp"),
        bucket=bucket_at("http://127.0.0.1:9", "b", allow_private=False),
    )

    answer = send([image], wish, made, caller)

    timings = caller.clock.timings()
    assert answer["output"]["format"] == "webp"
    assert "UPLOAD_FAILED" in answer["warnings"][0]
    assert (timings["encode_s"], timings["deliver_s"]) == (1, 100)


def test_what_the_endpoint_cannot_do_by_its_settings_is_told_with_each_answer(
    wishes: Callable[..., Wish], caller: Caller
) -> None:
    for delivery, volume in (("url", True), ("volume", False)):
        wish = wishes({}, 10**6, volume=volume, delivery=delivery)

        answer = send([noise()], wish, made, caller)

        assert answer["output"]["delivery"] == "base64"
        assert answer["warnings"] == [*wish.warnings]
        assert f"A1111_OUTPUT_DELIVERY is `{delivery}`" in answer["warnings"][0]


def test_lossless_is_not_left_out_where_the_endpoints_format_loses_something(
    wishes: Callable[..., Wish],
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        wishes({"lossless": True}, 1000, format="jpeg")
    assert caught.value.details["field"] == "output.lossless"
    assert wishes({"lossless": True}, 1000, format="webp").target.lossless


def test_without_a_network_volume_or_storage_there_is_no_asking_for_them(
    wishes: Callable[..., Wish],
) -> None:
    for delivery in ("volume", "url"):
        with pytest.raises(InvalidInputError) as caught:
            wishes({"delivery": delivery}, 1000, volume=False)
        assert caught.value.details["field"] == "output.delivery"


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(noise()[:4000], id="half a picture"),
        pytest.param(base64.b64encode(b"<html>").decode(), id="a page"),
        pytest.param("nonsense", id="no base64"),
        pytest.param("", id="nothing"),
        pytest.param(None, id="null"),
    ],
)
def test_an_image_that_is_none_is_an_error_that_says_which(
    broken: Any, wishes: Callable[..., Wish], caller: Caller
) -> None:
    with pytest.raises(BackendFailedError, match="Image 1 ") as caught:
        send([noise(), broken], wishes({}, 10**6), made, caller)
    assert caught.value.details["image"] == 1


def test_a_job_that_is_cancelled_is_not_encoded(wishes: Callable[..., Wish]) -> None:
    cancelled = Event()
    cancelled.set()
    caller = Caller(cancelled, lambda _: None, ExitStack(), Clock())

    with pytest.raises(JobCancelledError):
        send([noise()], wishes({"format": "webp"}, 10**6), made, caller)


def test_an_answer_without_pictures_is_measured_too(
    wishes: Callable[..., Wish], caller: Caller
) -> None:
    assert send([], wishes({}, 1000), made, caller)["output"] is None
    with pytest.raises(OutputTooLargeError):
        send([], wishes({}, 10), made, caller)


@pytest.mark.parametrize(
    ("field", "ends"),
    [
        pytest.param({}, True, id="png"),
        pytest.param({"format": "webp", "lossless": True}, True, id="webp without loss"),
        pytest.param({"format": "jpeg"}, False, id="jpeg"),
        pytest.param({"allow_lossy": True}, False, id="loss allowed"),
    ],
)
def test_what_cannot_arrive_is_refused_before_it_is_drawn(
    field: dict[str, Any], *, ends: bool, wishes: Callable[..., Wish]
) -> None:
    job = Txt2Img(width=4096, height=4096, batch_size=4)

    foresee(wishes(field, 10_000_000), job)  # it may go to the volume
    alone = wishes(field, 10_000_000, volume=False)
    if not ends:
        foresee(alone, job)
        return
    with pytest.raises(OutputTooLargeError, match="Nothing was drawn"):
        foresee(alone, job)


def test_hires_fix_counts_when_the_size_is_foreseen(wishes: Callable[..., Wish]) -> None:
    wish = wishes({}, 1_000_000, volume=False)
    small = Txt2Img(width=1024, height=1024)

    foresee(wish, small)
    with pytest.raises(OutputTooLargeError):
        foresee(wish, small.model_copy(update={"enable_hr": True, "hr_scale": 4.0}))


def test_the_ways_are_those_of_the_ladder() -> None:
    assert output.__doc__ is not None
    assert all(rung in output.__doc__ for rung in OutputSettings().ladder)
