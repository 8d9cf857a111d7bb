"""Start the simulated WebUI, in a thread or as a process, and talk to it over its socket."""

import base64
import contextlib
import io
import json
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import requests
from PIL import Image

from simulator import models
from simulator.loopback import in_background, listening
from simulator.webui import flags
from simulator.webui.app import Server
from simulator.webui.program import Program
from tests.conftest import NURSERY

API = "/sdapi/v1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "start_process" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


class Webui:
    """A simulator that listens at `url`."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.session = requests.Session()

    def call(self, method: str, path: str, **arguments: Any) -> requests.Response:
        path = path if path.startswith("/") else f"{API}/{path}"
        return self.session.request(
            method, self.url + path, timeout=30, **{"allow_redirects": False, **arguments}
        )

    def get(self, path: str, **arguments: Any) -> requests.Response:
        return self.call("GET", path, **arguments)

    def post(self, path: str, body: object = None, **arguments: Any) -> requests.Response:
        return self.call("POST", path, json=body, **arguments)

    def generate(self, **fields: Any) -> dict[str, Any]:
        """Return the answer of a small txt2img with `info` parsed; it must be a 200."""
        body = {"prompt": "a cat", "steps": 2, "width": 64, "height": 64, "seed": 1, **fields}
        answer = self.post("txt2img", body)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        found["info"] = json.loads(found["info"])
        return found

    def options(self) -> dict[str, Any]:
        found: dict[str, Any] = self.get("options").json()
        return found

    def journal(self) -> dict[str, Any]:
        found: dict[str, Any] = self.get("/simulator/journal").json()
        return found

    def faults(self, **order: Any) -> None:
        assert self.post("/simulator/faults", order).status_code == 200


class WebuiProcess(Webui):
    """A simulator that runs as a process of its own; what it says goes to `log`."""

    def __init__(self, arguments: list[str], log: Path) -> None:
        command = ("simulator", "webui", "--port", "0", *arguments)
        with log.open("wb") as file:
            self.process = NURSERY.start(*command, stderr=file.fileno())
        line = self.process.stdout.readline()
        assert line, f"the simulator did not start: {log.read_text()}"
        super().__init__(json.loads(line)["url"])

    def stop(self) -> int:
        """End it by SIGTERM, or at once if that takes too long, and return its exit status."""
        self.session.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.communicate()
        return self.process.wait()


@contextlib.contextmanager
def inside(
    *arguments: object, environment: Mapping[str, str] = MappingProxyType({})
) -> Iterator[Webui]:
    """Run a simulator in a thread of this process, which starts in milliseconds."""
    with tempfile.TemporaryDirectory() as scratch:
        given = flags.parse([str(argument) for argument in arguments], environment, Path(scratch))
        program = Program(given)
        # Not in the background: a load at start that ends after a test's first call writes its
        # checkpoint into the options, as A1111's does.
        if not given.skip_load:
            program.model.get()
        with in_background(lambda: listening(Server(program).application())) as url:
            webui = Webui(url)
            try:
                yield webui
            finally:
                webui.session.close()


Start = Callable[..., Webui]
StartProcess = Callable[..., WebuiProcess]


@pytest.fixture
def start() -> Iterator[Start]:
    """Run simulators beside the test, until it ends: `start("--models-dir", folder, …)`."""
    with contextlib.ExitStack() as stack:
        yield lambda *arguments, **more: stack.enter_context(inside(*arguments, **more))


@pytest.fixture
def start_process(tmp_path: Path) -> Iterator[StartProcess]:
    """Start simulators as processes, for what only a process does."""
    running: list[WebuiProcess] = []

    def started(*arguments: object) -> WebuiProcess:
        log = tmp_path / f"webui-{len(running)}.log"
        running.append(WebuiProcess([str(argument) for argument in arguments], log))
        return running[-1]

    yield started
    for webui in running:
        webui.stop()


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A models folder of the test's own."""
    return lay_out(tmp_path / "models")


@pytest.fixture
def webui(start: Start, world: Path, tmp_path: Path) -> Webui:
    """A simulator of the test's own on `world`; it keeps its config in `data` beside it."""
    return start("--models-dir", world, "--data-dir", tmp_path / "data", "--no-half")


@pytest.fixture
def process(start_process: StartProcess, world: Path, tmp_path: Path) -> WebuiProcess:
    """The same as a process."""
    return start_process("--models-dir", world, "--data-dir", tmp_path / "data", "--no-half")


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Webui]:
    """A simulator that a module's tests share; they leave its files and options as they are."""
    world = lay_out(tmp_path_factory.mktemp("steady") / "models")
    with inside("--models-dir", world, "--no-half") as webui:
        yield webui


def lay_out(folder: Path) -> Path:
    """Write a models folder: checkpoints alpha, below/beta and broken (NaN), LoRAs, VAEs, a style."""
    checkpoints = folder / "Stable-diffusion"
    models.write_checkpoint(checkpoints / "alpha.safetensors", seed="alpha")
    models.write_checkpoint(checkpoints / "below" / "beta.safetensors", seed="beta")
    models.write_checkpoint(checkpoints / "broken.safetensors", seed="broken", nan=True)
    loras = folder / "Lora"
    models.write_lora(
        loras / "detail.safetensors", seed="d", metadata=models.kohya_metadata("sd1", "more detail")
    )
    models.write_lora(loras / "deep" / "plain.safetensors", seed="p")
    models.write_lora(loras / "foreign.safetensors", seed="f", base="sd2")
    models.write_vae(folder / "VAE" / "soft.safetensors", seed="soft")
    models.write_embedding(folder / "embeddings" / "charm.safetensors", seed="charm")
    models.write_embedding(folder / "embeddings" / "wide.safetensors", seed="wide", base="sd2")
    (folder / "styles.csv").write_text('name,prompt,negative_prompt\nOil,"oil, {prompt}",flat\n')
    return folder


def picture(answer: dict[str, Any], index: int = 0) -> Image.Image:
    """Return a picture of an answer."""
    image = Image.open(io.BytesIO(base64.b64decode(answer["images"][index])))
    image.load()
    return image


def pixels(answer: dict[str, Any], index: int = 0) -> bytes:
    """Return what is seen of a picture, which its infotext is no part of."""
    return picture(answer, index).tobytes()


def encoded(image: Image.Image) -> str:
    """Return a picture as a request carries it."""
    output = io.BytesIO()
    image.save(output, "PNG")
    return base64.b64encode(output.getvalue()).decode()
