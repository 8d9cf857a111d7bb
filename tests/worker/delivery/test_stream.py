"""Pictures handed out while a job goes on: the same as those of one answer, in pieces that travel."""

import base64
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from PIL import Image

from model_cache.cache import ModelCache
from schemas.errors import (
    BackendFailedError,
    JobCancelledError,
    OutputTooLargeError,
    WorkerError,
)
from schemas.settings import CacheSettings, OutputSettings, Settings, WebuiSettings
from simulator import models as files
from tests.conftest import Simulator, running
from tests.worker.keeping import kept
from tests.worker.meanwhile import as_soon_as, until
from worker.child.client import WebuiClient
from worker.delivery.output import size_bytes
from worker.run import Runner

pytestmark = pytest.mark.slow

CANNY = "control_v11p_sd15_canny"
SMALL: dict[str, Any] = {
    "prompt": "a cat",
    "checkpoint": "a",
    "steps": 2,
    "width": 64,
    "height": 64,
    "seed": 7,
    "subseed": 11,
}
Chunk = dict[str, Any]


def drawn(colour: str = "red", mode: str = "RGB") -> str:
    picture = Image.new("RGB", (64, 64))
    picture.paste(colour, (8, 8, 40, 40))
    output = io.BytesIO()
    picture.convert(mode).save(output, "PNG")
    return base64.b64encode(output.getvalue()).decode()


@dataclass
class Streamed:
    """What a job handed out, and its answer."""

    answer: dict[str, Any] = field(default_factory=dict)
    chunks: list[Chunk] = field(default_factory=list)
    progress: list[dict[str, Any]] = field(default_factory=list)

    @property
    def images(self) -> list[str]:
        """The pictures, put together again."""
        images: dict[int, str] = {}
        for chunk in self.chunks:
            images[chunk["index"]] = images.get(chunk["index"], "") + chunk["image"]
        assert list(images) == list(range(len(images)))
        return list(images.values())

    @property
    def firsts(self) -> list[Chunk]:
        """Of each picture the first chunk."""
        return [chunk for chunk in self.chunks if chunk.get("part", 1) == 1]


@dataclass
class World:
    webui: Simulator
    folder: Path
    runner: Runner

    def runs(self, **output: Any) -> Runner:
        """Return a runner of its own, with these settings of the output."""
        return made(self.webui, self.folder, OutputSettings(**output))

    def one(self, runner: Runner | None = None, **fields: Any) -> dict[str, Any]:
        """Return the answer of normal mode."""
        job = {"id": "job-1", "input": {**SMALL, **fields}}
        return dict((runner or self.runner).run(job, Event(), lambda _: None))

    def stream(
        self,
        runner: Runner | None = None,
        *,
        cancelled: Event | None = None,
        into: Streamed | None = None,
        on_chunk: Callable[[Chunk], None] = lambda _: None,
        **fields: Any,
    ) -> Streamed:
        found = into or Streamed()

        def emit(chunk: Chunk) -> None:
            found.chunks.append(chunk)
            on_chunk(chunk)

        job = {"id": "job-1", "input": {**SMALL, **fields}}
        ended = cancelled or Event()
        found.answer = (runner or self.runner).run(job, ended, found.progress.append, emit)
        return found

    def sent(self) -> list[dict[str, Any]]:
        """Return the bodies of the generations that A1111 received, oldest first."""
        journal = self.webui.get("/simulator/journal")
        asked = ("/txt2img", "/img2img")
        return [e["body"] for e in journal["requests"] if e["path"].endswith(asked)]

    def calls(self, **fields: Any) -> int:
        """Return how many calls of A1111 a streamed job is."""
        before = len(self.sent())
        self.stream(**fields)
        return len(self.sent()) - before


def made(webui: Simulator, folder: Path, output: OutputSettings) -> Runner:
    settings = Settings(
        cache=CacheSettings(volume=folder, local_root=folder / "local"),
        webui=WebuiSettings(port=int(webui.url.rpartition(":")[2]), links=folder / "links"),
        output=output,
    )
    client = WebuiClient(webui.url)
    runner = Runner(ModelCache(settings.cache), client, kept(client), settings)
    runner.show_models()
    return runner


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("stream")
    for name in "ab":
        files.write_checkpoint(folder / "models/checkpoints" / f"{name}.safetensors", seed=name)
    files.write_lora(folder / "models/loras/detail.safetensors", seed="detail")
    files.write_controlnet(folder / "models/controlnet" / f"{CANNY}.safetensors", seed="canny")
    styles = folder / "styles.csv"
    styles.write_text('name,prompt,negative_prompt\nsea,"{prompt}, the sea",fog\n')
    flags = ("--models-dir", folder / "links", "--controlnet", "--styles-file", styles)
    with running("webui", *flags) as webui:
        yield World(webui, folder, made(webui, folder, OutputSettings()))


def without_times(answer: dict[str, Any]) -> dict[str, Any]:
    """Return an answer without what no two of them share, its pictures and what tells of them."""
    info = json.loads(answer["info"])
    del info["job_timestamp"]
    apart = {"timings", "images", "image_kinds", "output", "warnings"}
    return {key: value for key, value in answer.items() if key not in apart} | {"info": info}


INPAINTING = {"init_images": [drawn()], "mask": drawn("white", "L"), "denoising_strength": 0.5}
MASKS = {"override_settings": {"return_mask": True}}
UNIT = {"image": drawn(), "model": CANNY, "module": "canny"}
SAME = {
    "three": {"n_iter": 3},
    "batches": {"n_iter": 2, "batch_size": 2},
    "one batch": {"batch_size": 2},
    "a variation": {"n_iter": 2, "batch_size": 2, "subseed": 3, "subseed_strength": 0.4},
    "seeds of the past": {"n_iter": 2, "seed": -5, "subseed": -7},
    "hires fix": {"n_iter": 2, "enable_hr": True, "denoising_strength": 0.5},
    "a picture": {"n_iter": 2, "init_images": [drawn()]},
    "inpainting": {"n_iter": 2, **INPAINTING, **MASKS},
    "noise under the mask": {"n_iter": 2, **INPAINTING, "inpainting_fill": 2},
    "init images": {"n_iter": 2, "batch_size": 2, "init_images": [drawn(), drawn("blue")]},
    "maps": {"n_iter": 2, "controlnet_args": [UNIT, {**UNIT, "save_detected_map": False}]},
    "a style": {"n_iter": 2, "styles": ["sea"]},
    "a LoRA": {"n_iter": 2, "loras": ["detail"], "prompt": "[a cat|a dog] AND a \u00e9\U0001f600"},
    "a script": {"n_iter": 2, "script_name": "prompt matrix", "prompt": "a cat|red"},
    "a grid": {"n_iter": 2, "save_images": True},
    "no images": {"n_iter": 2, "send_images": False},
}


@pytest.mark.parametrize("fields", SAME.values(), ids=SAME.keys())
def test_pictures_and_what_is_told_of_them_are_those_of_one_call(
    world: World, fields: dict[str, Any]
) -> None:
    whole = world.one(**fields)
    streamed = world.stream(**fields)

    assert streamed.images == whole["images"]
    assert [chunk["image_kind"] for chunk in streamed.chunks] == whole["image_kinds"]
    assert without_times(streamed.answer) == without_times(whole)
    assert (streamed.answer["images"], streamed.answer["image_kinds"]) == ([], [])
    for chunk in streamed.chunks:
        assert chunk["output"] == whole["output"]
        if "seed" in chunk:
            with Image.open(io.BytesIO(base64.b64decode(chunk["image"]))) as picture:
                assert picture.info["parameters"] == chunk["infotext"]
            assert f"Seed: {chunk['seed']}," in chunk["infotext"]
    assert whole["image_kinds"].count("picture") == len([c for c in streamed.chunks if "seed" in c])


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({}, id="one iteration"),
        pytest.param({"n_iter": 2, "save_images": True}, id="a grid of what is saved"),
        pytest.param({"n_iter": 2, "script_name": "loopback", **INPAINTING}, id="a script"),
        pytest.param(
            {"n_iter": 2, "alwayson_scripts": {"Extra options": {"args": []}}},
            id="one unknown to us",
        ),
        pytest.param({"n_iter": 2, **INPAINTING, "inpainting_fill": 2}, id="noise under the mask"),
        pytest.param(
            {"n_iter": 2, "batch_size": 2, "init_images": [drawn(), drawn("blue")]}, id="two images"
        ),
        pytest.param(
            {"n_iter": 2, "controlnet_args": [{**UNIT, "module": "shuffle"}]}, id="shuffled"
        ),
    ],
)
def test_what_an_iteration_alone_would_change_is_one_call(
    world: World, fields: dict[str, Any]
) -> None:
    assert world.calls(**fields) == 1


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({}, id="plain"),
        pytest.param({"inpainting_fill": 2, "init_images": [drawn()]}, id="no mask, no noise"),
        pytest.param({"controlnet_args": [UNIT]}, id="ControlNet"),
        pytest.param(
            {**INPAINTING, "alwayson_scripts": {"Soft Inpainting": {"args": []}}},
            id="soft inpainting",
        ),
    ],
)
def test_each_iteration_is_a_call(world: World, fields: dict[str, Any]) -> None:
    assert world.calls(n_iter=3, **fields) == 3


def test_a_seed_that_is_left_open_is_drawn_once(world: World) -> None:
    streamed = world.stream(n_iter=2, batch_size=2, seed=-1, subseed=-1)

    first = streamed.answer["seed"]
    assert first >= 0
    assert streamed.answer["seeds"] == [first, first + 1, first + 2, first + 3]
    assert [chunk["seed"] for chunk in streamed.chunks] == streamed.answer["seeds"]
    subseeds = [chunk["subseed"] for chunk in streamed.chunks]
    assert subseeds == list(range(subseeds[0], subseeds[0] + 4))
    assert streamed.answer["parameters"]["seed"] == -1
    assert world.stream(n_iter=2, seed=-1).answer["seed"] != first


def test_timings_and_progress_are_those_of_the_whole(world: World) -> None:
    streamed = Streamed()

    def tells(detail: str) -> bool:
        return any(told.get("detail") == detail for told in streamed.progress)

    def stand_still(after: int) -> None:
        fault = {"kind": "stall", "after": after}
        world.webui.post("/simulator/faults", {"clear": True, "faults": [fault]})

    def go_on() -> None:
        stand_still(4)  # in the second picture
        until(lambda: tells("2 of 2"))
        world.webui.post("/simulator/faults", {"clear": True})

    stand_still(1)
    with as_soon_as(lambda: tells("1 of 2"), go_on):
        world.stream(n_iter=2, steps=4, into=streamed)

    timings = streamed.answer["timings"]
    slices = [value for name, value in timings.items() if name not in {"total_s", "images_per_s"}]
    assert sum(slices) == pytest.approx(timings["total_s"], abs=0.0005)
    assert timings["images_per_s"] == pytest.approx(2 / timings["generate_s"], rel=0.01)
    told = [entry for entry in streamed.progress if entry["stage"] == "sampling"]
    percents = [entry["percent"] for entry in told]
    assert percents == sorted(percents)
    assert {entry["detail"] for entry in told} == {"1 of 2", "2 of 2"}
    assert not any("eta_s" in entry for entry in told)
    after = streamed.progress[streamed.progress.index(told[0]) :]
    assert {entry["stage"] for entry in after} <= {"sampling", "encoding"}


def test_no_other_job_comes_between_two_pictures(world: World) -> None:
    before = len(world.sent())
    others: list[Thread] = []

    def disturb(_: Chunk) -> None:
        other = Thread(target=world.one, kwargs={"checkpoint": "b"})
        other.start()
        others.append(other)

    world.webui.post("/simulator/faults", {"step_ms": 50})
    world.stream(n_iter=3, on_chunk=disturb)
    for other in others:
        other.join()
    world.webui.post("/simulator/faults", {"step_ms": 0})

    names = [body["override_settings"]["sd_model_checkpoint"][0] for body in world.sent()[before:]]
    assert names == ["a", "a", "a", "b", "b", "b"]


def test_a_picture_above_the_limit_of_a_chunk_comes_in_parts(world: World) -> None:
    large: dict[str, Any] = {"width": 512, "height": 512, "n_iter": 2, "steps": 1}
    runner = world.runs(max_chunk_bytes=200_000)

    streamed = world.stream(runner, **large)

    assert streamed.images == world.one(runner, **large)["images"]
    assert all(size_bytes(chunk) <= 200_000 for chunk in streamed.chunks)
    assert len(streamed.chunks) >= 4
    for chunk in streamed.chunks:
        assert base64.b64decode(chunk["image"], validate=True)
        assert ("seed" in chunk) == (chunk["part"] == 1)
    counts = [chunk["parts"] for chunk in streamed.firsts]
    assert [chunk["part"] for chunk in streamed.chunks] == [
        part for count in counts for part in range(1, count + 1)
    ]
    assert not any("warnings" in chunk for chunk in streamed.chunks)


def test_a_chunk_that_its_prompt_fills_is_told(world: World) -> None:
    with pytest.raises(OutputTooLargeError, match="stands beside a picture") as refused:
        world.stream(world.runs(max_chunk_bytes=10_000), prompt="a cat " * 2000)

    assert refused.value.details["limit_bytes"] == 10_000


def budget(world: World, pictures: float, **fields: Any) -> int:
    """Return a limit of the whole answer that so many of the job's pictures fit into."""
    whole = world.one(**fields)
    info = size_bytes(whole["info"]) + size_bytes(whole["parameters"])
    return int(50_000 + info * 1.2 + pictures * (len(whole["images"][0]) + 1000))


BUDGETED: dict[str, Any] = {"width": 256, "height": 256, "n_iter": 3, "steps": 1}


def test_what_the_whole_answer_has_no_room_for_leaves_by_the_ladder(world: World) -> None:
    limit = budget(world, 1.8, **BUDGETED)

    streamed = world.stream(world.runs(max_run_bytes=limit, ladder="volume"), **BUDGETED)

    ways = [chunk["output"]["delivery"] for chunk in streamed.chunks]
    assert ways == ["base64", "volume", "volume"]
    places = [Path(chunk["image"]) for chunk in streamed.chunks[1:]]
    assert [place.name for place in places] == ["1.png", "2.png"]
    assert base64.b64encode(places[1].read_bytes()).decode() == world.one(**BUDGETED)["images"][2]
    assert "RunPod carries" in streamed.chunks[1]["warnings"][0]
    everything = [*streamed.chunks, streamed.answer]
    assert sum(size_bytes(part) for part in everything) <= limit


def test_what_fits_nowhere_ends_the_job_and_what_was_handed_out_stays(world: World) -> None:
    limit, found = budget(world, 1.8, **BUDGETED), Streamed()
    runner = world.runs(max_run_bytes=limit, ladder="lossless_webp")

    with pytest.raises(OutputTooLargeError, match="Picture 1 has no room"):
        world.stream(runner, into=found, output={"delivery": "base64"}, **BUDGETED)

    assert [chunk["index"] for chunk in found.chunks] == [0]


def test_files_on_the_volume_are_numbered_on(world: World) -> None:
    streamed = world.stream(n_iter=2, batch_size=2, output={"delivery": "volume"})

    assert [Path(chunk["image"]).name for chunk in streamed.chunks] == [
        f"{index}.png" for index in range(4)
    ]
    assert {chunk["output"]["delivery"] for chunk in streamed.chunks} == {"volume"}


def test_a_format_is_that_of_every_chunk(world: World) -> None:
    streamed = world.stream(n_iter=2, output={"format": "webp", "quality": 50})

    for chunk in streamed.chunks:
        with Image.open(io.BytesIO(base64.b64decode(chunk["image"]))) as picture:
            assert picture.format == "WEBP"
        assert chunk["output"]["quality"] == 50


def test_a_cancel_between_two_pictures_ends_the_job(world: World) -> None:
    cancelled, found = Event(), Streamed()
    # The second stands still until it is interrupted.
    fault = {"kind": "stall", "after": SMALL["steps"], "interruptible": True}
    world.webui.post("/simulator/faults", {"faults": [fault]})
    before = len(world.sent())

    with pytest.raises(JobCancelledError):
        world.stream(n_iter=9, cancelled=cancelled, into=found, on_chunk=lambda _: cancelled.set())

    world.webui.post("/simulator/faults", {"clear": True})
    assert len(found.chunks) == 1
    assert len(world.sent()) - before <= 2
    assert world.stream(n_iter=2).images == world.one(n_iter=2)["images"]


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ({"kind": "fail"}, BackendFailedError),
        ({"kind": "oom"}, WorkerError),
    ],
)
def test_an_error_in_the_midst_leaves_the_pictures_before_it(
    world: World, fault: dict[str, Any], error: type[WorkerError]
) -> None:
    found = Streamed()
    strike = {"path": "/sdapi/v1/txt2img", "after": 2, **fault}
    world.webui.post("/simulator/faults", {"faults": [strike]})

    with pytest.raises(error):
        world.stream(n_iter=4, into=found)

    assert found.images == world.one(n_iter=2)["images"]


def test_a_chunk_that_nobody_takes_ends_the_job_before_the_next_goes_out(world: World) -> None:
    found, refused = Streamed(), Event()

    def refuse(chunk: Chunk) -> None:
        if chunk["index"] == 1:
            refused.set()
            raise BackendFailedError("No.")

    def go_on() -> None:
        world.webui.post("/simulator/faults", {"clear": True})

    # The third stands still until the second is refused.
    fault = {"kind": "stall", "after": 2 * SMALL["steps"]}
    world.webui.post("/simulator/faults", {"faults": [fault]})
    before = len(world.sent())
    with as_soon_as(refused.is_set, go_on), pytest.raises(BackendFailedError):
        world.stream(n_iter=9, into=found, on_chunk=refuse)

    assert [chunk["index"] for chunk in found.chunks] == [0, 1]
    assert len(world.sent()) - before < 9


@dataclass
class Shelf:
    """A store of a few lines: takes whatever is put, or refuses it."""

    url: str = ""
    status: int = 200
    names: list[str] = field(default_factory=list)

    def settings(self) -> dict[str, Any]:
        keys = {"bucket_access_key_id": "AKIDTESTING", "bucket_secret_access_key": "hidden-away"}
        return {"bucket_endpoint": self.url, "bucket_name": "b", "max_chunk_bytes": 20_000, **keys}


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    found = Shelf()

    class Store(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            found.names.append(self.path.rpartition("/")[2].partition("?")[0])
            self.send_response(found.status)
            self.send_header("ETag", '"0"')
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Store) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        found.url = f"http://127.0.0.1:{server.server_port}"
        yield found
        server.shutdown()


LARGE: dict[str, Any] = {"width": 256, "height": 256, "n_iter": 2, "steps": 1}


def test_a_picture_above_the_limit_of_a_chunk_is_uploaded_where_there_is_storage(
    world: World, shelf: Shelf
) -> None:
    streamed = world.stream(world.runs(**shelf.settings()), **LARGE)

    assert shelf.names == ["0.png", "1.png"]
    assert [chunk["output"]["delivery"] for chunk in streamed.chunks] == ["url", "url"]
    assert all(chunk["image"].startswith(shelf.url) for chunk in streamed.chunks)


def test_a_picture_whose_upload_fails_comes_in_parts_and_says_so(
    world: World, shelf: Shelf
) -> None:
    shelf.status = 403

    streamed = world.stream(world.runs(**shelf.settings()), **LARGE)

    assert streamed.images == world.one(**LARGE)["images"]
    assert {chunk["output"]["delivery"] for chunk in streamed.firsts} == {"base64"}
    for chunk in streamed.firsts:
        assert "`upload` failed" in chunk["warnings"][0]
