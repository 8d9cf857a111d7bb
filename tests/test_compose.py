"""What docker-compose.yml says, given to a worker without a container."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
import yaml  # type: ignore[import-untyped]  # comes with huggingface_hub, without types

from simulator import models
from tests.conftest import StartSimulator
from tests.recipe import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture
def port() -> Iterator[str]:
    """A number that nobody else gets until the worker listens there: it is held."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        yield str(held.getsockname()[1])


def test_a_worker_that_is_started_as_compose_does_answers_on_every_interface(
    tmp_path: Path, simulator: StartSimulator, port: str
) -> None:
    service = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["worker"]
    given = service["environment"]
    unset = {name: "" for name, value in given.items() if value == f"${{{name}:-}}"}
    command, *flags = service["command"]
    models.write_checkpoint(tmp_path / "models/checkpoints/c.safetensors", seed="c")
    webui = simulator("webui", "--models-dir", tmp_path / "links")
    log = tmp_path / "log"
    with log.open("wb") as out:
        worker = subprocess.Popen(
            [sys.executable, "-u", str(ROOT / "rp_handler.py"), *flags, "--rp_api_port", port],
            cwd=tmp_path,
            env={
                **os.environ,  # noqa: TID251 - a child's PATH
                **given,
                **unset,
                "A1111_CACHE_VOLUME": str(tmp_path),
                "A1111_WEBUI_PORT": webui.url.rpartition(":")[2],
                "A1111_WEBUI_LINKS": str(tmp_path / "links"),
            },
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        job = posted(f"http://127.0.0.1:{port}/runsync", {"input": {"prompt": "x", "steps": 1}})
        listening = Path("/proc/net/tcp").read_text()
    finally:
        worker.terminate()
        worker.wait(30)

    assert f" 00000000:{int(port):04X} " in listening  # proc(5): 0.0.0.0 in hexadecimal digits
    assert (command, set(given)) == ("worker", set(unset))
    assert job["status"] == "COMPLETED", log.read_text(errors="replace")[-3000:]


def posted(url: str, job: object, within_s: float = 60) -> dict[str, object]:
    """Post `job` once somebody listens there, and return the answer."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        with contextlib.suppress(requests.ConnectionError):
            answer: dict[str, object] = requests.post(url, json=job, timeout=60).json()
            return answer
        time.sleep(0.1)
    raise AssertionError(f"Nobody listens at {url} within {within_s} s.")
