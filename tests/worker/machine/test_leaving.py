"""Signals that come while the worker starts or does a local job, sent at named steps."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from worker.machine import leaving

NUMBERS = [signal.SIGINT, signal.SIGTERM]
# A worker that is sent SIGTERM when the system has just made the first thread of its preload.
STRUCK = """
import os, signal, sys
import rp_handler

def strike(frame, event, called):
    made = event == "c_return" and getattr(called, "__name__", "") == "start_new_thread"
    if made and frame.f_locals["self"].name.startswith("preload"):
        sys.setprofile(None)
        print("struck", flush=True)
        os.kill(os.getpid(), signal.SIGTERM)

sys.setprofile(strike)
sys.exit(rp_handler.main())
"""


@pytest.fixture
def _restored() -> Iterator[None]:
    """Signals mean afterwards what they meant before."""
    before = [signal.getsignal(number) for number in NUMBERS]
    yield
    for number, handler in zip(NUMBERS, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.usefixtures("_restored")
@pytest.mark.parametrize("number", NUMBERS)
def test_a_local_run_that_is_ended_is_never_ended_within_a_step(number: signal.Signals) -> None:
    steps = []

    async def work() -> None:
        try:
            os.kill(os.getpid(), number)
            steps.append("the step goes on")
            await asyncio.sleep(60)
        finally:
            steps.append("the job has ended")

    with pytest.raises(SystemExit) as left:
        asyncio.run(leaving.unless_told(work()))

    assert left.value.code == 128 + number
    assert steps == ["the step goes on", "the job has ended"]


@pytest.mark.usefixtures("_restored")
@pytest.mark.parametrize("number", NUMBERS)
def test_what_is_to_be_kept_whole_is_left_at_its_end(number: signal.Signals) -> None:
    steps = []

    def kept() -> None:
        with leaving.kept_whole():
            os.kill(os.getpid(), number)
            steps.append("it goes on")
        steps.append("nobody told")

    with pytest.raises(SystemExit) as left:
        kept()

    assert left.value.code == 128 + number
    assert steps == ["it goes on"]


@pytest.mark.usefixtures("_restored")
@pytest.mark.parametrize("number", NUMBERS)
def test_after_that_the_process_is_left_at_once_again(number: signal.Signals) -> None:
    with leaving.kept_whole():
        pass

    with pytest.raises(SystemExit) as left:
        os.kill(os.getpid(), number)

    assert left.value.code == 128 + number


def test_a_worker_that_is_stopped_while_its_preload_begins_leaves_it(tmp_path: Path) -> None:
    (tmp_path / "volume").mkdir()
    # A host that takes connections and says nothing.
    with socket.create_server(("127.0.0.1", 0)) as host:
        done = subprocess.run(
            [sys.executable, "-c", STRUCK, "--test_input", '{"input": {"prompt": "a cat"}}'],
            cwd=tmp_path,
            env={
                "PATH": os.environ["PATH"],  # noqa: TID251 - a child's
                "PYTHONPATH": str(ROOT),
                "A1111_CACHE_VOLUME": str(tmp_path / "volume"),
                "A1111_CACHE_PRELOAD": f"lora http://127.0.0.1:{host.getsockname()[1]}/x.safetensors",
                "A1111_CACHE_ALLOW_PRIVATE_HOSTS": "true",
                "A1111_WEBUI_LINKS": str(tmp_path / "links"),
                "A1111_WEBUI_PORT": "9",
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    assert "struck" in done.stdout
    assert "/x.safetensors was left when the worker ended." in done.stderr
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
