"""A request to the simulated A1111 that is watched: what ends it, and what is told of it."""

import base64
import io
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import requests
from PIL import Image

from schemas.errors import (
    BackendCrashedError,
    BackendFailedError,
    BackendOutOfMemoryError,
    BackendStalledError,
    JobCancelledError,
)
from simulator import models as files
from tests.conftest import Simulator, running
from tests.worker.meanwhile import as_soon_as, has_struck, until
from worker.child.client import WebuiClient
from worker.child.watch import Attendants, Patience, Watcher

pytestmark = pytest.mark.slow

BODY = {"prompt": "a cat", "steps": 20, "width": 64, "height": 64, "seed": 1}
PATIENCE = Patience(total_s=60, stall_s=30, load_s=0, reload_s=0, stop_s=30)


@dataclass
class World:
    webui: Simulator
    watcher: Watcher
    folder: Path
    told: list[dict[str, Any]] = field(default_factory=list)
    given_up: list[str] = field(default_factory=list)
    cancelled: Event = field(default_factory=Event)

    def post(
        self,
        patience: Patience = PATIENCE,
        *,
        previews: bool = False,
        on_sampling: Callable[[], None] | None = None,
        **changes: Any,
    ) -> Any:
        attendants = Attendants(
            self.cancelled,
            self.told.append,
            has_ended=lambda: self.webui.process.poll() is not None,
            give_up=self.give_up,
            previews=previews,
            loads="tiny",
            on_sampling=on_sampling,
        )
        return self.watcher.post("txt2img", {**BODY, **changes}, patience, attendants)

    def give_up(self, reason: str) -> None:
        self.given_up.append(reason)
        self.webui.process.kill()

    def fault(self, **fault: Any) -> None:
        self.webui.post("/simulator/faults", {"faults": [fault]})

    def instead(self, *faults: dict[str, Any]) -> None:
        """Let it go on; from now on these strike."""
        self.webui.post("/simulator/faults", {"clear": True, "faults": faults})

    def is_struck(self) -> bool:
        return has_struck(self.webui)

    def has_told(self, name: str, text: str = "") -> bool:
        return any(str(told[name]).startswith(text) for told in self.told if name in told)

    def journal(self) -> dict[str, Any]:
        found: dict[str, Any] = self.webui.get("/simulator/journal")
        return found


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    files.write_checkpoint(tmp_path / "Stable-diffusion" / "tiny.safetensors", seed="t")
    with running(
        "webui", "--models-dir", tmp_path, "--step-ms", 20, "--skip-load-model-at-start"
    ) as webui:
        yield World(webui, Watcher(WebuiClient(webui.url)), tmp_path)


def test_a_death_is_noticed_long_before_a_stall_would_be(world: World) -> None:
    world.fault(kind="stall")
    ended = []

    def end() -> None:
        os.kill(world.webui.process.pid, signal.SIGKILL)
        ended.append(time.monotonic())

    with as_soon_as(world.is_struck, end), pytest.raises(BackendCrashedError):
        world.post()

    assert time.monotonic() - ended[0] < PATIENCE.stall_s / 2


def test_a_stall_that_an_interrupt_ends_costs_the_job_alone(world: World) -> None:
    world.fault(kind="stall", after=5, interruptible=True)

    with pytest.raises(BackendStalledError, match="no change"):
        world.post(replace(PATIENCE, stall_s=1.5))

    assert world.given_up == []
    assert world.post(steps=2)["images"]


def test_a_stall_that_nothing_ends_is_given_up(world: World) -> None:
    world.fault(kind="stall", after=5)
    start = time.monotonic()

    with pytest.raises(BackendStalledError, match="no change"):
        world.post(replace(PATIENCE, stall_s=1.5, stop_s=1))

    assert world.given_up == ["it did not stop when it was interrupted"]
    assert 2.5 <= time.monotonic() - start < 20


def test_a_request_that_is_never_begun_is_a_stall_too(world: World) -> None:
    world.fault(kind="hang", path="/sdapi/v1/txt2img")

    with pytest.raises(BackendStalledError):
        world.post(replace(PATIENCE, stall_s=1, stop_s=0.5))

    assert len(world.given_up) == 1


def test_loading_may_take_as_long_as_its_bytes_do(world: World) -> None:
    world.webui.post("/simulator/faults", {"load_s": 3})

    answer = world.post(replace(PATIENCE, stall_s=1, load_s=30), steps=2)

    assert answer["images"]
    assert {"stage": "loading", "percent": 0, "detail": "tiny"} in world.told


def test_a_cancel_while_loading_waits_for_the_load_that_nothing_can_stop(world: World) -> None:
    world.fault(kind="stall", when="loading")

    def cancel() -> None:
        world.cancelled.set()
        # At the third one a second has passed since the first.
        until(lambda: world.journal()["interrupts"] >= 3)
        world.instead()

    with as_soon_as(world.is_struck, cancel), pytest.raises(JobCancelledError):
        world.post(replace(PATIENCE, stall_s=1, load_s=60, stop_s=0.5), steps=150)

    assert world.given_up == []
    world.cancelled.clear()
    assert world.post(steps=2)["images"]


def test_what_a1111_answers_to_a_cancelled_job_is_kept_as_the_cause(world: World) -> None:
    world.fault(kind="stall", when="loading")

    def cancel() -> None:
        world.cancelled.set()
        until(lambda: world.journal()["interrupts"] > 0)
        deaf = {"kind": "deaf", "path": "/sdapi/v1/interrupt", "times": 0}
        world.instead(deaf, {"kind": "oom", "when": "sampling"})

    with as_soon_as(world.is_struck, cancel), pytest.raises(JobCancelledError) as told:
        world.post(replace(PATIENCE, load_s=60))

    assert isinstance(told.value.__cause__, BackendOutOfMemoryError)


def test_progress_of_an_odd_shape_hinders_no_job(world: World) -> None:
    odd = {"state": {"job": "x", "job_no": "one", "job_count": [2], "sampling_step": None}}
    for body in ("[]", '"text"', json.dumps(odd), '{"state": 7}'):
        world.fault(kind="fail", status=200, shape="text", text=body, path="/sdapi/v1/progress")

    assert world.post(steps=150, n_iter=2)["images"]


def test_a_job_that_heeds_no_interrupt_is_given_up_after_a_cancel(world: World) -> None:
    world.fault(kind="deaf", path="/sdapi/v1/interrupt", times=0)
    world.webui.post("/simulator/faults", {"step_ms": 400})

    with (
        as_soon_as(lambda: bool(world.told), world.cancelled.set),
        pytest.raises(JobCancelledError),
    ):
        world.post(replace(PATIENCE, stop_s=1), steps=150)

    assert len(world.given_up) == 1


def test_a_job_that_takes_too_long_is_interrupted(world: World) -> None:
    world.webui.post("/simulator/faults", {"step_ms": 200})

    with pytest.raises(BackendStalledError, match=r"no answer in 1 s"):
        world.post(replace(PATIENCE, total_s=1), steps=150)

    assert world.given_up == []
    assert world.webui.get("/sdapi/v1/progress")["state"]["job"] == ""


def test_progress_that_hangs_hinders_no_job(world: World) -> None:
    world.fault(kind="hang", path="/sdapi/v1/progress", times=0)

    assert world.post(steps=100)["images"]
    assert world.told == []


def test_a_picture_that_somebody_else_interrupted_is_withheld_after_a_cancel(world: World) -> None:
    """A late interrupt of ours cannot be told from one of somebody else's."""
    world.fault(kind="stall", after=5, interruptible=True)
    with as_soon_as(world.is_struck, world.cancelled.set), pytest.raises(JobCancelledError):
        world.post()
    world.cancelled.clear()
    world.fault(kind="stall", after=5, interruptible=True)

    def interrupt() -> None:
        requests.post(f"{world.webui.url}/sdapi/v1/interrupt", timeout=10)

    with (
        as_soon_as(world.is_struck, interrupt),
        pytest.raises(BackendFailedError, match="was interrupted"),
    ):
        world.post()

    assert world.post(steps=2)["images"]


def test_previews_are_small_jpegs_and_only_there_when_asked_for(world: World) -> None:
    world.fault(kind="stall", after=5)
    with as_soon_as(lambda: world.has_told("stage", "sampling"), world.instead):
        world.post(width=512, height=512)
    assert all("preview" not in told for told in world.told)
    world.told.clear()

    world.fault(kind="stall", after=15)
    with as_soon_as(lambda: world.has_told("preview"), world.instead):
        world.post(width=512, height=512, previews=True)

    previews = [told["preview"] for told in world.told if "preview" in told]
    with Image.open(io.BytesIO(base64.b64decode(previews[0]))) as picture:
        assert picture.format == "JPEG"
        assert max(picture.size) <= 256


def test_progress_tells_steps_and_which_picture(world: World) -> None:
    world.webui.post("/simulator/faults", {"step_ms": 0})
    world.fault(kind="stall", after=20)
    start = time.monotonic()

    def go_on() -> None:
        world.instead({"kind": "stall", "after": 100})
        until(lambda: world.has_told("detail", "3 of 3"))
        world.instead()

    with as_soon_as(lambda: world.has_told("detail", "1 of 3"), go_on):
        world.post(steps=50, n_iter=3)

    sampling = [told for told in world.told if told["stage"] == "sampling"]
    assert {told["steps"] for told in sampling} == {50}
    assert [told["percent"] for told in sampling] == sorted(told["percent"] for told in sampling)
    assert len(world.told) <= 1 + time.monotonic() - start


def test_the_end_of_a_load_is_seen_once_and_soon(world: World) -> None:
    world.post(steps=1)
    files.write_checkpoint(world.folder / "Stable-diffusion" / "other.safetensors", seed="o")
    world.webui.post("/sdapi/v1/refresh-checkpoints")
    world.fault(kind="stall", when="loading")
    world.told.clear()
    seen: list[float] = []

    def see() -> None:
        seen.append(time.monotonic())
        world.instead()

    with as_soon_as(lambda: bool(world.told), lambda: world.instead({"kind": "stall", "after": 5})):
        world.post(on_sampling=see, override_settings={"sd_model_checkpoint": "other"})

    # Only then it draws on.
    assert len(seen) == 1
    # Of a load, A1111 says as little as when it does nothing; of the time after the last step not always.
    stages = list(dict.fromkeys(told["stage"] for told in world.told))
    assert stages in (["loading", "sampling"], ["loading", "sampling", "encoding"])
