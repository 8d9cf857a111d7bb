"""Who may ask A1111 and when, with a real process in its place that dies and hangs."""

import base64
import contextlib
import io
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import requests
from PIL import Image

from model_cache.cache import ModelCache
from schemas.errors import (
    BackendCrashedError,
    BackendStalledError,
    InvalidInputError,
    JobCancelledError,
)
from schemas.model_ref import Kind
from schemas.settings import CacheSettings, Settings, WebuiSettings
from simulator import models as files
from simulator.pickles import write_pickle
from simulator.webui import starts
from tests.conftest import ROOT
from tests.worker.keeping import kept
from tests.worker.meanwhile import as_soon_as, until
from worker.child.client import WebuiClient
from worker.child.links import LinkFolder
from worker.child.process import WebuiProcess, spawn
from worker.child.webui import State, Webui
from worker.generation.access import Access
from worker.generation.catalog import UnlistedError
from worker.generation.session import Session
from worker.run import Runner

pytestmark = pytest.mark.slow

EXTRAS = "/sdapi/v1/extra-single-image"


class World:
    """A runner whose A1111, the simulator, is its own child."""

    def __init__(self, folder: Path) -> None:
        # Nobody else gets the number between two processes: it is held, and nothing listens there.
        self.held = socket.socket()
        self.held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.held.bind(("127.0.0.1", 0))
        port = int(self.held.getsockname()[1])
        files.write_checkpoint(folder / "models" / "checkpoints" / "a.safetensors", seed="a")
        links = folder / "links"
        self.url = f"http://127.0.0.1:{port}"
        self._argv = [sys.executable, "-m", "simulator", "webui", "--port", str(port)]
        self.starts = folder / "starts.json"
        self._argv += ["--models-dir", str(links), "--starts", str(self.starts), "--reactor"]
        settings = Settings(
            cache=CacheSettings(volume=folder, allow_pickle=(Kind.UPSCALER,)),
            webui=WebuiSettings(port=port, links=links, stop_s=0.3),
        )
        client = WebuiClient(self.url)

        def answers() -> bool:
            with contextlib.suppress(requests.RequestException):
                return requests.get(f"{self.url}/sdapi/v1/memory", timeout=2).ok
            return False

        self.webui = Webui(self._start(), self._start, answers, ready_timeout_s=60)
        self.runner = Runner(ModelCache(settings.cache), client, self.webui, settings)
        self.runner.show_models()
        self.webui.ready(Event())

    def _start(self) -> WebuiProcess:
        return spawn(self._argv, ROOT)

    def break_by(self, **fault: Any) -> None:
        requests.post(f"{self.url}/simulator/faults", json={"faults": [fault]}, timeout=30)

    def has_struck(self) -> bool:
        """Return whether A1111 has met each of its faults."""
        return not requests.get(f"{self.url}/simulator/faults", timeout=30).json()["faults"]

    def run(
        self, method: str, endpoint: str, cancelled: Event | None = None, **payload: Any
    ) -> Any:
        value = {"api": {"method": method, "endpoint": endpoint}, "payload": payload}
        return self.runner.run({"id": "j", "input": value}, cancelled or Event(), lambda _: None)

    def make(self, **fields: Any) -> dict[str, Any]:
        job = {"prompt": "a", "steps": 1, "width": 64, "height": 64, **fields}
        return dict(self.runner.run({"id": "j", "input": job}, Event(), lambda _: None))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    with made.held:
        yield made
        made.webui.stop(1)


def picture() -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def test_what_only_asks_is_answered_by_the_next_process_when_one_dies(world: World) -> None:
    process = world.webui.life.process
    assert process is not None
    process.stop(0)

    assert world.run("GET", "samplers")
    assert world.webui.life.number == 2


def test_a_call_during_which_a1111_dies_is_an_error_and_the_next_works(world: World) -> None:
    world.break_by(kind="drop", path=EXTRAS, times=1)

    with pytest.raises(BackendCrashedError):
        world.run("POST", EXTRAS, image=picture())

    assert world.run("POST", EXTRAS, image=picture())["image"]
    assert world.webui.life.number == 2


def test_a_call_that_does_not_end_when_it_is_cancelled_costs_a_restart(world: World) -> None:
    world.break_by(kind="hang", path=EXTRAS)
    cancelled = Event()

    with as_soon_as(world.has_struck, cancelled.set), pytest.raises(JobCancelledError):
        world.run("POST", EXTRAS, cancelled, image=picture())

    assert world.run("POST", EXTRAS, image=picture())["image"]
    assert world.webui.life.number == 2


def write_upscaler(folder: Path, name: str) -> None:
    write_pickle(folder / "models" / "upscalers" / f"{name}.pth", seed=name)


def test_an_upscaler_that_came_after_a1111_started_costs_one_restart(
    world: World, tmp_path: Path
) -> None:
    """A1111 looks for upscalers when it starts, and no route makes it look again."""
    write_upscaler(tmp_path, "4x-Sharp")

    assert world.run("POST", EXTRAS, image=picture(), upscaler_1="4x-Sharp")["image"]
    hires = {"enable_hr": True, "hr_upscaler": "4x-Sharp", "hr_scale": 2, "denoising_strength": 0.5}
    assert world.make(**hires)["images"]
    assert world.webui.restarts == ("the upscaler 4x-Sharp came after it had started",)


def test_the_restart_for_an_upscaler_waits_for_the_job_that_is_being_drawn(
    world: World, tmp_path: Path
) -> None:
    requests.post(f"{world.url}/simulator/faults", json={"step_ms": 40}, timeout=30)
    with ThreadPoolExecutor(1) as threads:
        drawn = threads.submit(world.make, steps=20)
        until(world.runner.access.line.is_anothers)
        write_upscaler(tmp_path, "4x-Sharp")

        world.run("POST", EXTRAS, image=picture(), upscaler_1="4x-Sharp")

        assert drawn.result()["images"]
    assert len(world.webui.restarts) == 1


def test_whoever_is_cancelled_while_a1111_starts_for_his_upscaler_waits_no_longer(
    world: World, tmp_path: Path
) -> None:
    write_upscaler(tmp_path, "4x-Sharp")
    held = {"kind": "die", "when": "booting", "signal": signal.SIGSTOP, "text": "A1111 is held"}
    starts.tell(world.starts, {"faults": [held]})
    cancelled = Event()
    wish: dict[str, Any] = {"image": picture(), "upscaler_1": "4x-Sharp"}
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(world.run, "POST", EXTRAS, cancelled, **wish)
        until(lambda: len(starts.begun(world.starts)) == 2)
        cancelled.set()

        assert isinstance(asked.exception(), JobCancelledError)
        assert world.webui.state is State.STARTING

    again = starts.begun(world.starts)[-1]
    until(lambda: Path(f"/proc/{again}/stat").read_text().rpartition(") ")[2][0] == "T")
    os.kill(again, signal.SIGCONT)
    assert world.run("POST", EXTRAS, **wish)["image"]
    assert len(world.webui.restarts) == 1


def swap(upscaler: str) -> dict[str, Any]:
    """Return ReActor's arguments up to its upscaler."""
    arguments = [picture(), True, "0", "0", "inswapper_128.onnx", "None", 1, True, upscaler]
    return {"alwayson_scripts": {"reactor": {"args": arguments}}}


def enlarge(upscaler: str) -> dict[str, Any]:
    return {
        "init_images": [picture()],
        "script_name": "SD upscale",
        "script_args": [None, 8, upscaler, 2],
    }


@pytest.mark.parametrize("script", [enlarge, swap])
def test_a_script_may_name_an_upscaler_that_came_after_a1111_started(
    world: World, tmp_path: Path, script: Callable[[str], dict[str, Any]]
) -> None:
    write_upscaler(tmp_path, "4x-Sharp")

    for _ in range(2):
        assert world.make(**script("4x-Sharp"))["images"]

    assert world.webui.restarts == ("the upscaler 4x-Sharp came after it had started",)


def test_two_jobs_that_want_the_same_new_upscaler_cost_one_restart(
    world: World, tmp_path: Path
) -> None:
    write_upscaler(tmp_path, "4x-Sharp")

    def ask(_number: int) -> Any:
        return world.run("POST", EXTRAS, image=picture(), upscaler_1="4x-Sharp")["image"]

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(ask, range(4)))

    assert len(world.webui.restarts) == 1


def test_an_a1111_of_somebody_elses_is_not_taken_for_started_again(
    world: World, tmp_path: Path
) -> None:
    client = WebuiClient(world.url)
    theirs = kept(client)
    access = Access(
        client, LinkFolder(tmp_path / "other"), theirs, came_later=lambda _name, _started: True
    )

    def wants(_session: Session) -> None:
        raise UnlistedError("There is none.")

    with pytest.raises(UnlistedError):
        access.asked(Event(), wants)
    theirs.stop(0)

    assert theirs.restarts == ()


def test_an_upscaler_that_a1111_does_not_list_is_refused_and_costs_no_restart_after_the_first(
    world: World, tmp_path: Path
) -> None:
    # A1111 looks for .pt and .pth.
    files.write_upscaler(tmp_path / "models" / "upscalers" / "odd.safetensors", seed="odd")

    for _ in range(2):
        with pytest.raises(InvalidInputError, match="knows no 'odd'"):
            world.run("POST", EXTRAS, image=picture(), upscaler_1="odd")
    with pytest.raises(InvalidInputError, match=r"knows no '\.\./none'"):
        world.run("POST", EXTRAS, image=picture(), upscaler_1="../none")
    with pytest.raises(InvalidInputError, match="knows no 'none'") as caught:
        world.make(**swap("none"))

    assert caught.value.details["field"] == "alwayson_scripts.reactor.args[8]"
    assert len(world.webui.restarts) == 1


def test_silence_while_another_job_has_its_turn_costs_no_restart(
    world: World, tmp_path: Path
) -> None:
    access = Access(WebuiClient(world.url), LinkFolder(tmp_path / "other"), world.webui)

    def silent(_session: Session) -> None:
        raise BackendStalledError("A1111 gave no answer.")

    with ThreadPoolExecutor(1) as threads, access.turn(Event()):
        asked = threads.submit(access.asked, Event(), silent)
        assert isinstance(asked.exception(), BackendStalledError)

    assert world.webui.life.number == 1
    assert world.webui.restarts == ()


def test_whoever_waits_for_a_turn_can_be_cancelled(tmp_path: Path) -> None:
    client = WebuiClient("http://127.0.0.1:9")
    access = Access(client, LinkFolder(tmp_path), kept(client))
    cancelled = Event()
    cancelled.set()

    with access.turn(Event()), ThreadPoolExecutor(1) as threads:

        def wait() -> None:
            with access.turn(cancelled):
                raise AssertionError("there is one place")

        assert isinstance(threads.submit(wait).exception(), JobCancelledError)
