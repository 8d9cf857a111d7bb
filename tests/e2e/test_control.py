"""The local ways to run the worker, and starts that fail, as real processes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import requests

from benchmarks.containers import free_port
from tests.conftest import ROOT

pytestmark = pytest.mark.slow


def plain_environment(**changes: str) -> dict[str, str]:
    return {**os.environ, **changes}  # noqa: TID251 - a child's PATH


def ended(*argv: str, folder: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run the worker in `folder` to its end."""
    return subprocess.run(
        [sys.executable, str(ROOT / "rp_handler.py"), *argv],
        cwd=folder,
        env=plain_environment(**environment),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_local_test_draws_the_picture_of_test_input(tmp_path: Path) -> None:
    (tmp_path / "test_input.json").write_bytes((ROOT / "test_input.json").read_bytes())

    done = ended(folder=tmp_path)

    assert done.returncode == 0, done.stderr
    assert "SIMULATED" in done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert max(map(len, done.stdout.splitlines())) < 200
    picture, record = re.findall(r"output/\S+", done.stdout)
    assert re.fullmatch(r"output/\d{8}-\d{6}-42\.png", picture)
    assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    answer = json.loads((tmp_path / record).read_text())["answer"]
    assert answer["backend"] == "simulator"
    assert answer["images"] == [Path(picture).name]
    assert Path(picture).name in (tmp_path / "output" / "index.html").read_text()


def test_a_local_run_that_is_ended_is_waited_for_and_leaves_nothing(tmp_path: Path) -> None:
    job = {"input": {"prompt": "a cat", "steps": 150, "width": 1024, "height": 1024, "n_iter": 16}}
    worker = subprocess.Popen(
        [sys.executable, str(ROOT / "rp_handler.py"), "--test_input", json.dumps(job)],
        cwd=tmp_path,
        env=plain_environment(COMMANDLINE_ARGS="--step-ms 100"),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert worker.stderr is not None
    with worker.stderr as log:
        assert any("A1111 answers after" in line for line in log)
        worker.send_signal(signal.SIGINT)
        said = log.read()

    assert worker.wait(30) == 130
    assert "Traceback" not in said
    assert not list(tmp_path.glob("output/*"))


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        pytest.param('{"input": {"checkpoint": "nope"}}', "MODEL_NOT_FOUND", id="bad model"),
        pytest.param("{bad", "--test_input is not JSON", id="bad JSON"),
    ],
)
def test_a_failed_local_test_exits_with_its_error(
    tmp_path: Path, argument: str, words: str
) -> None:
    done = ended("--test_input", argument, folder=tmp_path)

    assert done.returncode == 1
    assert words in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_wrong_settings_are_told_and_end_the_start() -> None:
    done = ended(folder=ROOT, A1111_CACHE_STAL_S="1", A1111_WEBUI_PORT="x")

    assert done.returncode == 78
    assert "A1111_CACHE_STAL_S: " in done.stderr
    assert "A1111_WEBUI_PORT: " in done.stderr
    assert "Traceback" not in done.stderr


def test_no_webui_on_a_worker_is_an_exit_with_a_clear_message(tmp_path: Path) -> None:
    done = ended(
        folder=ROOT,
        A1111_WEBUI_PORT="9",
        A1111_WEBUI_READY_TIMEOUT_S="1",
        A1111_WEBUI_LINKS=str(tmp_path / "links"),
        A1111_CACHE_VOLUME=str(tmp_path),
    )

    assert done.returncode == 1
    assert "BACKEND_NOT_READY: A1111 did not answer within 1 s." in done.stderr


def test_the_local_api_serves_a_job(tmp_path: Path) -> None:
    port = free_port()
    server = subprocess.Popen(
        [
            sys.executable,
            str(ROOT / "rp_handler.py"),
            "--rp_serve_api",
            "--rp_api_host=127.0.0.1",
            f"--rp_api_port={port}",
        ],
        cwd=tmp_path,
        env=plain_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        body = {"input": {"prompt": "a cat", "steps": 1, "width": 64, "height": 64}}
        answer = post_when_up(f"http://127.0.0.1:{port}/runsync", body)
    finally:
        server.terminate()
        server.wait(20)

    assert answer["status"] == "COMPLETED"
    assert answer["output"]["backend"] == "simulator"
    assert not list((tmp_path).glob("output/*"))


def post_when_up(url: str, body: object) -> dict[str, Any]:
    deadline = time.monotonic() + 40
    while True:
        try:
            answer: dict[str, Any] = requests.post(url, json=body, timeout=30).json()
        except requests.ConnectionError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
        else:
            return answer
