"""How it starts, hangs, breaks and ends, which is what whoever watches over A1111 must see."""

import contextlib
import json
import socket
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import diskcache
import pytest
import requests

from tests.conftest import ROOT
from tests.contract.conftest import Start, StartProcess, Webui, WebuiProcess, pixels

TXT2IMG = "/sdapi/v1/txt2img"
SMALL = {"width": 64, "height": 64, "steps": 10}


class Starts:
    """One command, started again and again, as a worker starts its A1111."""

    def __init__(self, folder: Path, told: Any) -> None:
        self.file = folder / "starts.json"
        self.file.write_text(json.dumps(told))

    def once(self, *flags: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "simulator", "webui", "--port", "0"]
        return subprocess.Popen(
            [*command, "--starts", str(self.file), *flags],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def pids(self) -> list[int]:
        return [int(line) for line in self.file.with_name("starts.json.pids").read_text().split()]


@pytest.mark.slow
def test_each_start_can_be_told_something_else(tmp_path: Path) -> None:
    dies = {"kind": "die", "when": "booting", "exit_code": 1, "text": "no driver"}
    starts = Starts(tmp_path, {"step_ms": 7, "starts": [{"faults": [dies]}, {"step_ms": 9}]})

    with starts.once() as first:
        assert first.communicate(timeout=20) == ("", "no driver\n")
        assert first.returncode == 1
    shown = []
    for _ in range(2):
        with starts.once() as process:
            assert process.stdout is not None
            url = json.loads(process.stdout.readline())["url"]
            shown.append(requests.get(f"{url}/simulator/faults", timeout=30).json()["step_ms"])
            process.kill()
        assert starts.pids()[-1] == process.pid

    assert shown == [9, 7]
    assert starts.pids()[0] == first.pid


@pytest.mark.slow
def test_a_start_that_never_gets_ready_opens_no_port_and_ends_with_sigterm(tmp_path: Path) -> None:
    stalls = json.dumps({"kind": "stall", "when": "booting", "text": "waiting for the GPU"})
    with socket.socket() as held, contextlib.ExitStack() as stack:
        held.bind(("127.0.0.1", 0))  # Nobody else gets the number.
        port = held.getsockname()[1]
        flags = ("--fault", stalls, "--port", str(port))
        process = stack.enter_context(Starts(tmp_path, {}).once(*flags))
        assert process.stderr is not None
        assert process.stderr.readline() == "waiting for the GPU\n"

        with pytest.raises(requests.ConnectionError):
            requests.get(f"http://127.0.0.1:{port}/sdapi/v1/progress", timeout=30)
        process.terminate()

        assert process.wait(20) == -15


@pytest.mark.slow
def test_what_it_is_told_wrongly_ends_with_2() -> None:
    command = [sys.executable, "-m", "simulator", "webui", "--fault", '{"kind": "nonsense"}']

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (2, "no such kind: nonsense\n")


def posted(aside: ThreadPoolExecutor, webui: Webui, body: Any) -> Future[requests.Response]:
    """Post a job and return its answer to come, once it stands still."""
    answer = aside.submit(requests.post, webui.url + TXT2IMG, json=body, timeout=60)
    deadline = time.monotonic() + 30
    while "stall" in [fault["kind"] for fault in webui.get("/simulator/faults").json()["faults"]]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return answer


def test_an_interrupt_ends_a_stall_only_if_it_is_interruptible(webui: Webui) -> None:
    with ThreadPoolExecutor(1) as aside:
        webui.faults(faults=[{"kind": "stall", "after": 3, "interruptible": True}])
        stalled = posted(aside, webui, SMALL)
        webui.post("interrupt")
        assert stalled.result(30).status_code == 200

        webui.faults(faults=[{"kind": "stall", "after": 3}])
        stalled = posted(aside, webui, SMALL)
        webui.post("interrupt")
        time.sleep(0.2)
        assert not stalled.done()
        webui.faults(clear=True)
        assert stalled.result(30).status_code == 200


def test_a_deaf_job_goes_on_when_interrupted(webui: Webui) -> None:
    webui.faults(faults=[{"kind": "deaf"}, {"kind": "stall", "after": 3}])
    with ThreadPoolExecutor(1) as aside:
        deaf = posted(aside, webui, SMALL)
        assert webui.post("interrupt").status_code == 200
        webui.faults(clear=True)
        whole = deaf.result(20).json()

    assert pixels(whole) == pixels(webui.generate(**SMALL | {"prompt": "", "seed": seed(whole)}))
    assert webui.journal()["interrupts"] == 1


def seed(answer: dict[str, Any]) -> int:
    return int(json.loads(answer["info"])["seed"])


def test_loading_heeds_no_interrupt(webui: Webui) -> None:
    webui.generate()
    webui.faults(faults=[{"kind": "stall", "when": "loading"}])
    body = {**SMALL, "override_settings": {"sd_model_checkpoint": "beta"}}
    with ThreadPoolExecutor(1) as aside:
        loading = posted(aside, webui, body)
        webui.post("interrupt")
        time.sleep(0.2)
        assert not loading.done()
        webui.faults(clear=True)

        assert loading.result(30).status_code == 200


@pytest.mark.parametrize(
    "text",
    [
        None,
        "CUDA error: device-side assert triggered",
        "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx( handle, …`",
        "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
    ],
)
def test_a_broken_cuda_context_fails_every_job_until_the_process_ends(
    webui: Webui, text: str | None
) -> None:
    webui.faults(faults=[{"kind": "cuda", "after": 3} | ({"text": text} if text else {})])
    first = webui.post("txt2img", SMALL)
    webui.faults(clear=True)

    second = webui.post("txt2img", SMALL)

    assert (first.status_code, first.json()["error"]) == (500, "RuntimeError")
    said = text or "CUDA error: an illegal memory access was encountered\n"
    assert first.json()["errors"].startswith(said)
    assert second.json() == first.json()
    assert webui.get("memory").json()["cuda"]["error"].startswith(said)
    assert webui.get("progress").status_code == 200


def test_out_of_memory_in_sampling_fails_that_job_alone(webui: Webui) -> None:
    webui.faults(faults=[{"kind": "oom", "when": "sampling", "after": 3}])

    assert webui.post("txt2img", SMALL).json()["error"] == "OutOfMemoryError"
    assert webui.generate()["images"]


def test_out_of_memory_while_loading_spoils_pictures_until_another_load(webui: Webui) -> None:
    good = webui.generate()
    webui.faults(faults=[{"kind": "oom", "when": "loading"}])
    override = {"override_settings": {"sd_model_checkpoint": "beta"}}
    failed = webui.post("txt2img", {**SMALL, **override})

    spoilt = webui.generate()

    assert (failed.status_code, failed.json()["error"]) == (500, "OutOfMemoryError")
    assert spoilt["info"]["sd_model_hash"] == good["info"]["sd_model_hash"]
    assert pixels(spoilt) != pixels(good)
    webui.generate(**override)
    assert pixels(webui.generate()) == pixels(good)


def test_it_can_die_in_the_middle_of_an_answer(process: WebuiProcess) -> None:
    process.faults(
        faults=[
            {"kind": "half", "path": TXT2IMG},
            {"kind": "die", "when": "answering", "path": TXT2IMG, "exit_code": 5},
        ]
    )
    assert process.get("progress").status_code == 200

    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        requests.post(process.url + TXT2IMG, json=SMALL, timeout=30)

    assert process.process.wait(20) == 5


def test_a_leak_is_seen_in_proc(process: WebuiProcess) -> None:
    def resident_mb() -> float:
        pages = Path(f"/proc/{process.process.pid}/statm").read_text().split()[1]
        return int(pages) * 4096 / 1e6

    process.generate()
    before = resident_mb()
    process.faults(leak_mb=30)

    process.generate()

    assert resident_mb() - before > 25


def test_loading_and_hashing_take_time_by_size(webui: Webui, world: Path) -> None:
    size = (world / "Stable-diffusion" / "alpha.safetensors").stat().st_size
    webui.faults(hash_mb_s=size / 0.3e6)
    begun = time.monotonic()
    webui.post("options", {"sd_model_checkpoint": "below_beta"})
    assert time.monotonic() - begun > 0.25

    webui.faults(load_mb_s=size / 0.3e6, hash_mb_s=1e-9)
    begun = time.monotonic()
    webui.post("options", {"sd_model_checkpoint": "alpha"})
    assert time.monotonic() - begun > 0.25


def test_a_hash_that_the_worker_seeded_is_not_computed_again(
    start: Start, world: Path, tmp_path: Path
) -> None:
    flags = ("--models-dir", world, "--data-dir", tmp_path, "--skip-load-model-at-start")
    webui = start(*flags)
    assert webui.get("sd-models").json()[0]["sha256"] is None
    with diskcache.Cache(str(tmp_path / "cache" / "hashes")) as seeded:
        mtime = (world / "Stable-diffusion" / "alpha.safetensors").stat().st_mtime
        seeded["checkpoint/alpha.safetensors"] = {"mtime": mtime, "sha256": "ab" * 32}

    webui.post("refresh-checkpoints")
    answer = webui.generate()

    assert webui.get("sd-models").json()[0]["title"] == "alpha.safetensors [ababababab]"
    assert answer["info"]["sd_model_hash"] == "ababababab"
    journal = webui.journal()
    # The two embeddings are read when the first checkpoint is loaded.
    assert (journal["loads"], journal["hashed"]) == (1, 2)
    webui.generate(prompt="<lora:plain:1>")
    lora = world / "Lora" / "deep" / "plain.safetensors"
    assert webui.journal()["hashed"] == 3
    assert 0 < webui.journal()["hashed_bytes"] - journal["hashed_bytes"] < lora.stat().st_size


def test_a_process_finds_the_hashes_of_the_one_before(
    start_process: StartProcess, world: Path, tmp_path: Path
) -> None:
    flags = ("--models-dir", world, "--data-dir", tmp_path)
    first = start_process(*flags)
    first.generate()
    assert first.journal()["hashed"] == 3
    first.stop()

    second = start_process(*flags)
    second.generate()

    assert second.journal()["hashed"] == 0
