"""Misbehaviour on request, by which those who speak to the WebUI are tested."""

import json
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.conftest import ROOT
from tests.contract.conftest import Start, StartProcess, Webui, WebuiProcess, pixels

TXT2IMG = "/sdapi/v1/txt2img"


def test_a_request_can_be_made_to_fail_once(webui: Webui) -> None:
    webui.faults(
        faults=[{"kind": "fail", "path": TXT2IMG, "status": 503, "error": "Busy", "text": "later"}]
    )

    assert webui.get("progress").status_code == 200
    failed = webui.post("txt2img", {})
    assert failed.status_code == 503
    assert failed.json() == {"error": "Busy", "detail": "", "body": "", "errors": "later"}
    assert webui.generate()["images"]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("handler", {"error": "RuntimeError", "detail": "", "body": "", "errors": "x"}),
        ("validation", {"detail": [{"loc": ["body"], "msg": "x", "type": "value_error"}]}),
        ("routing", {"detail": "x"}),
    ],
)
def test_a_failure_comes_in_any_shape(webui: Webui, shape: str, expected: Any) -> None:
    webui.faults(faults=[{"kind": "fail", "shape": shape, "text": "x"}])

    assert webui.get("progress").json() == expected


def test_a_failure_can_be_mere_text(webui: Webui) -> None:
    webui.faults(faults=[{"kind": "fail", "shape": "text", "text": "Bad Gateway", "status": 502}])

    answer = webui.get("progress")

    assert (answer.status_code, answer.text) == (502, "Bad Gateway")


def test_faults_can_wait_for_the_third_request(webui: Webui) -> None:
    webui.faults(faults=[{"kind": "fail", "path": "/sdapi/v1/progress", "after": 2, "times": 2}])

    codes = [webui.get("progress").status_code for _ in range(5)]

    assert codes == [200, 200, 500, 500, 200]


def test_a_fault_may_be_given_at_the_start(start: Start, world: Path) -> None:
    fault = json.dumps({"kind": "fail", "path": "/sdapi/v1/progress"})
    webui = start("--models-dir", world, "--fault", fault)

    assert webui.get("progress").status_code == 500


def test_out_of_memory_has_the_name_of_pytorchs_error(webui: Webui) -> None:
    webui.faults(faults=[{"kind": "oom", "path": TXT2IMG}])

    answer = webui.post("txt2img", {})

    assert (answer.status_code, answer.json()["error"]) == (500, "OutOfMemoryError")
    assert answer.json()["errors"].startswith("CUDA out of memory.")


def test_a_connection_can_be_dropped(webui: Webui) -> None:
    webui.faults(faults=[{"kind": "drop"}])

    with pytest.raises(requests.ConnectionError):
        requests.get(f"{webui.url}/sdapi/v1/progress", timeout=30)
    assert webui.get("progress").status_code == 200


def test_an_answer_can_break_off_in_the_middle(webui: Webui) -> None:
    webui.faults(faults=[{"kind": "half", "path": TXT2IMG}])

    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        requests.post(webui.url + TXT2IMG, json={"width": 64, "height": 64}, timeout=30)
    assert webui.journal()["jobs"] == 1


def test_an_answer_can_be_no_json(webui: Webui) -> None:
    webui.faults(faults=[{"kind": "not_json"}])

    answer = webui.get("progress")

    assert answer.status_code == 200
    assert answer.text.startswith("<html>")


def test_an_answer_can_be_huge(webui: Webui) -> None:
    webui.faults(faults=[{"kind": "huge", "bytes": 5_000_000}])

    assert len(webui.get("progress").json()["images"][0]) == 5_000_000


def test_a_request_can_hang_until_faults_are_cleared(webui: Webui) -> None:
    webui.faults(faults=[{"kind": "hang", "path": "/sdapi/v1/samplers"}])

    with ThreadPoolExecutor(1) as aside:
        hanging = aside.submit(requests.get, f"{webui.url}/sdapi/v1/samplers", timeout=20)
        time.sleep(0.2)
        assert not hanging.done()
        assert webui.get("progress").status_code == 200
        webui.faults(clear=True)
        assert hanging.result().status_code == 200


def test_a_job_can_stall_between_two_steps(webui: Webui) -> None:
    webui.faults(faults=[{"kind": "stall", "after": 3}])
    body = {"width": 64, "height": 64, "steps": 20}

    with ThreadPoolExecutor(1) as aside:
        stalled = aside.submit(requests.post, webui.url + TXT2IMG, json=body, timeout=20)
        deadline = time.monotonic() + 20
        while webui.get("progress").json()["state"]["sampling_step"] != 2:
            assert time.monotonic() < deadline
        states = [webui.get("progress").json()["state"] for _ in range(2)]
        assert states[0] == states[1]
        assert states[0]["sampling_step"] == 2
        webui.faults(clear=True)
        assert stalled.result().status_code == 200


def test_steps_and_loads_can_be_made_slow_while_it_runs(webui: Webui) -> None:
    webui.generate()
    webui.faults(step_ms=20, load_s=0.3)

    begun = time.monotonic()
    webui.generate(steps=10)
    assert time.monotonic() - begun > 0.2
    begun = time.monotonic()
    webui.post("options", {"sd_model_checkpoint": "beta"})
    assert time.monotonic() - begun > 0.3


def test_slowness_changes_no_picture(webui: Webui) -> None:
    quick = webui.generate()
    webui.faults(step_ms=5)

    assert pixels(webui.generate()) == pixels(quick)


def test_memory_can_leak_with_every_job(process: WebuiProcess) -> None:
    process.generate()
    before = process.get("memory").json()["ram"]["used"]
    process.faults(leak_mb=20)

    for _ in range(3):
        process.generate()

    assert process.get("memory").json()["ram"]["used"] - before > 50 << 20


@pytest.mark.parametrize(
    ("fault", "code"), [({"exit_code": 7}, 7), ({"signal": 9}, -9), ({"signal": 11}, -11)]
)
def test_it_can_die_while_idle(process: WebuiProcess, fault: Any, code: int) -> None:
    process.faults(faults=[{"kind": "die", "when": "idle", **fault}])

    assert process.process.wait(20) == code


def test_dying_while_idle_waits_for_the_running_job(process: WebuiProcess) -> None:
    process.generate()
    process.faults(step_ms=20)
    body = {"width": 64, "height": 64, "steps": 40}
    with ThreadPoolExecutor(1) as aside:
        running = aside.submit(requests.post, process.url + TXT2IMG, json=body, timeout=20)
        while not (process.get("progress").json()["state"]["job"] or running.done()):
            time.sleep(0.01)
        process.faults(faults=[{"kind": "die", "when": "idle"}])

        assert running.result().status_code == 200

    assert process.process.wait(20) == -9


@pytest.mark.parametrize("when", ["sampling", "answering"])
def test_it_can_die_in_the_midst_of_a_job(process: WebuiProcess, when: str) -> None:
    process.faults(faults=[{"kind": "die", "when": when, "after": 1 if when == "answering" else 3}])
    process.get("progress")

    with pytest.raises(requests.ConnectionError):
        process.generate(steps=10)

    assert process.process.wait(20) == -9


def test_it_can_die_while_loading_a_checkpoint(process: WebuiProcess) -> None:
    process.generate()
    process.faults(faults=[{"kind": "die", "when": "loading", "exit_code": 1}])

    with pytest.raises(requests.ConnectionError):
        process.post("options", {"sd_model_checkpoint": "beta"})

    assert process.process.wait(20) == 1


@pytest.mark.parametrize(
    "order",
    [
        {"nonsense": 1},
        {"faults": [{"kind": "nonsense"}]},
        {"faults": [{"kind": "fail", "nonsense": 1}]},
        {"faults": [{"kind": "die", "when": "never"}]},
        {"faults": ["fail"]},
    ],
)
def test_an_order_that_means_nothing_is_refused(steady: Webui, order: Any) -> None:
    assert steady.post("/simulator/faults", order).status_code == 422
    assert steady.get("/simulator/faults").json()["faults"] == []


def test_the_journal_tells_what_was_asked_and_cuts_pictures(webui: Webui) -> None:
    webui.generate(prompt="a <lora:detail:1>")
    webui.post("img2img", {"init_images": ["A" * 5000]})
    webui.post("refresh-loras")

    journal = webui.journal()
    asked = [(entry["method"], entry["path"], entry["status"]) for entry in journal["requests"]]
    assert asked == [
        ("POST", "/sdapi/v1/txt2img", 200),
        ("POST", "/sdapi/v1/img2img", 500),
        ("POST", "/sdapi/v1/refresh-loras", 200),
    ]
    assert journal["requests"][0]["body"]["prompt"] == "a <lora:detail:1>"
    assert len(journal["requests"][1]["body"]["init_images"][0]) < 100
    assert journal["refreshes"] == {"loras": 1}
    assert journal["loads"] == 1
    assert journal["lora_applies"] == 2
    webui.post("/simulator/reset-journal")
    assert webui.journal()["requests"] == []
    assert webui.journal()["loads"] == 0


def test_the_port_opens_after_the_boot(start_process: StartProcess, world: Path) -> None:
    begun = time.monotonic()

    start_process("--models-dir", world, "--boot-s", "0.6")

    assert time.monotonic() - begun > 0.6


def test_a_slow_load_at_the_start_delays_the_first_job_alone(
    start_process: StartProcess, world: Path
) -> None:
    stall = json.dumps({"kind": "stall", "when": "loading"})
    webui = start_process("--models-dir", world, "--load-s", "0.1", "--fault", stall)

    assert webui.get("progress").json()["state"]["job"] == ""
    with ThreadPoolExecutor(1) as aside:
        first = aside.submit(requests.post, webui.url + TXT2IMG, json={"steps": 1}, timeout=60)
        time.sleep(0.2)
        assert not first.done()
        webui.faults(clear=True)
        assert first.result().status_code == 200
    assert webui.journal()["loads"] == 1


def test_a_port_that_is_taken_ends_with_3(world: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ended = run("--models-dir", world, "--port", taken.getsockname()[1])

    assert ended.returncode == 3
    assert "address already in use" in ended.stderr


def test_an_unknown_flag_ends_with_2(world: Path) -> None:
    assert run("--models-dir", world, "--nonsense").returncode == 2


def run(*flags: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "simulator", "webui", *map(str, flags)]
    return subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)


def test_the_flags_of_a_real_start_are_taken(
    start_process: StartProcess, world: Path, tmp_path: Path
) -> None:
    webui = start_process(
        *("--api", "--nowebui", "--skip-load-model-at-start", "--no-download-sd-model"),
        *("--skip-prepare-environment", "--server-name", "127.0.0.1", "--models-dir", world),
        *("--data-dir", tmp_path, "--xformers", "--opt-sdp-attention", "--api-log"),
    )

    flags = webui.get("cmd-flags").json()
    assert (flags["nowebui"], flags["xformers"], flags["medvram"]) == (True, True, False)
    assert flags["port"] == webui.url.rsplit(":", 1)[1]


def test_the_server_can_be_killed_only_with_its_flag(
    start_process: StartProcess, world: Path
) -> None:
    process = start_process("--models-dir", world, "--api-server-stop")

    assert process.post("server-stop").text == "Stopping."
    assert process.post("server-restart").status_code == 501
    with pytest.raises(requests.ConnectionError):
        process.post("server-kill")
    assert process.process.wait(20) == 0
