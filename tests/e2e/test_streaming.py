"""Streaming mode, from the queue to A1111 and back: one worker for all of it, which is stopped in the end."""

import base64
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
from PIL import Image

from simulator import models
from tests.conftest import ROOT
from tests.e2e.container import Container, make_container, require_answers

pytestmark = pytest.mark.slow

PAGE = ROOT / "docs" / "streaming.md"
JOB = {"prompt": "a cat", "seed": 1, "subseed": 1, "width": 64, "height": 64, "checkpoint": "a"}
THREE = {**JOB, "steps": 5, "n_iter": 3}
# After the steps of the first picture.
STALL = {"kind": "stall", "when": "sampling", "interruptible": True, "after": 5}


@pytest.fixture(scope="module")
def container(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    folder = tmp_path_factory.mktemp("streaming")
    with make_container(folder, A1111_OUTPUT_STREAM="true") as made:
        path = made.volume / "models" / "checkpoints" / "a.safetensors"
        models.write_checkpoint(path, seed="a")
        made.until_ready()
        yield made


def reader(container: Container, job_id: str) -> Callable[[], list[Any]]:
    """Return what reads /stream, each time with all that came so far."""
    seen: list[Any] = []
    take, _, _ = container.env["RUNPOD_WEBHOOK_GET_JOB"].partition("/job-take/")
    headers = {"Authorization": container.env["RUNPOD_AI_API_KEY"]}

    def read() -> list[Any]:
        answer = requests.get(f"{take}/stream/{job_id}", headers=headers, timeout=10).json()
        seen.extend(entry["output"] for entry in answer["stream"])
        return seen

    return read


def begun(container: Container, wish: dict[str, Any]) -> tuple[str, Callable[[], list[Any]]]:
    """Let a job stand still in its second picture, until faults are cleared; return its id and its reader."""
    container.faults(faults=[STALL])
    job_id = container.run(wish)
    read = reader(container, job_id)
    container.until(lambda: bool(read()), "the first picture")
    container.until_struck()
    return job_id, read


def pictures(pieces: list[Any]) -> list[str]:
    return [piece["image"] for piece in pieces if "image" in piece]


def test_a_picture_can_be_read_while_the_next_is_drawn(container: Container) -> None:
    job_id, read = begun(container, THREE)

    assert len(pictures(read())) == 1
    assert "status" not in container.sent()[-1]
    container.faults(clear=True)
    job = container.wait(job_id, "COMPLETED", "FAILED")

    assert job["output"] == read()
    *chunks, answer = job["output"]
    assert [chunk["index"] for chunk in chunks] == [0, 1, 2]
    assert [chunk["seed"] for chunk in chunks] == answer["seeds"] == [1, 2, 3]
    assert (answer["images"], answer["backend"]) == ([], "simulator")
    assert all(base64.b64decode(chunk["image"]).startswith(b"\x89PNG") for chunk in chunks)
    (line,) = [line for line in container.said(job_id) if "done: txt2img" in line]
    assert "3 pictures as base64" in line


def test_commands_calls_and_mistakes_are_one_piece(container: Container) -> None:
    command = container.done({"api": {"method": "GET", "endpoint": "/v1/health"}})
    call = container.done({"api": {"method": "GET", "endpoint": "/sdapi/v1/samplers"}})
    mistake = container.done({**JOB, "steps": -1})

    assert (command["status"], len(command["output"])) == ("COMPLETED", 1)
    ((samplers,),) = (call["output"],)
    assert samplers[0]["name"]
    assert mistake["error"].startswith("INVALID_INPUT: ")
    assert [piece["code"] for piece in mistake["output"]] == ["INVALID_INPUT"]


def test_the_program_of_the_page_saves_the_pictures(container: Container) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    url = container.env["RUNPOD_WEBHOOK_GET_JOB"].partition("/sim/")[0]

    done = subprocess.run(
        [sys.executable, "-c", program.replace("ENDPOINT_ID", "sim")],
        cwd=container.folder,
        env={
            "HOME": str(container.folder),
            "RUNPOD_API_KEY": container.env["RUNPOD_AI_API_KEY"],
            "RUNPOD_ENDPOINT_BASE_URL": url,
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    seeds = set[str]()
    for index in range(4):
        with Image.open(container.folder / f"{index}.png") as picture:
            seeds |= set(re.findall(r"Seed: (\d+)", picture.info["parameters"]))
    assert len(seeds) == 4


def test_a_cancel_between_the_pictures_leaves_the_next_job_alone(container: Container) -> None:
    wish = {**THREE, "seed": 9, "n_iter": 9}
    job_id, read = begun(container, wish)

    container.cancel(job_id)

    job = container.done(THREE)
    assert container.status(job_id)["status"] == "CANCELLED"
    assert job["status"] == "COMPLETED"
    assert len(read()) == 1
    started = [entry["body"]["seed"] for entry in container.sent()]
    assert [seed for seed in started if seed in range(9, 18)] == [9, 10]


def test_an_a1111_that_dies_takes_no_picture_with_it(container: Container) -> None:
    job_id, read = begun(container, THREE)

    os.kill(container.webui_pid, signal.SIGKILL)

    job = container.wait(job_id, "COMPLETED", "FAILED")
    assert job["status"] == "FAILED"
    *chunks, told = job["output"]
    assert told["code"] == "BACKEND_CRASHED"
    assert chunks == read() != []
    container.until_ready(starts=2)
    assert pictures(container.done(THREE)["output"])[:1] == pictures(chunks)[:1]


def test_a_worker_that_is_told_to_stop_hands_out_the_rest(container: Container) -> None:
    job_id, read = begun(container, THREE)

    container.worker.send_signal(signal.SIGTERM)
    container.until(lambda: bool(container.said("The worker stops")), "the worker hears it")
    container.faults(clear=True)

    assert container.worker.wait(30) == 0
    job = container.status(job_id)
    assert job["status"] == "COMPLETED"
    assert (len(job["output"]), job["output"]) == (4, read())
    require_answers(container)
