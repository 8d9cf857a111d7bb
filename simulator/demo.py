"""`make demo`: the whole path on this machine, one request twice.

Queue, model hosts and A1111 are simulators; the worker is the real one, driven by the real RunPod SDK.
The first run fetches three models, the second finds them.
"""

import base64
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests
from tqdm import tqdm

from simulator import models

ROOT = Path(__file__).parent.parent
OUTPUT = ROOT / "output"
READY_S = 60.0
LOOK_S = 0.1
TWICE = 2
MEGA = 1_000_000


def main() -> int:
    """Run the demo; return 0 if both jobs gave a picture and each model was fetched once."""
    with (
        tempfile.TemporaryDirectory(prefix="a1111-demo-") as folder,
        contextlib.ExitStack() as stack,
    ):
        work = Path(folder)
        names = _write_models(work / "hub")
        links = work / "links"
        hub = stack.enter_context(_server("hub", "--root", work / "hub"))
        webui = stack.enter_context(
            _server("webui", "--models-dir", links, "--step-ms", "60", "--load-s", "1")
        )
        queue = stack.enter_context(_server("queue", "--hold-s", "2"))
        print(f"model hosts  {hub}\nA1111        {webui}  (simulated)\nqueue        {queue}")
        stack.enter_context(_worker(work, queue, webui, links))
        request = _request(hub, names)
        answers = [_runsync(queue, request, number) for number in (1, 2)]
        fetched = _fetches(hub)
        print("\nhow often each file was sent, both runs together:")
        for file, copies in fetched.items():
            print(f"  {copies:g} x {file}")
        drawn = all(answer.get("images") for answer in answers)
        # A little more than one: a connection that a busy machine keeps silent is asked again.
        once = all(1 <= copies < TWICE for copies in fetched.values())
        return 0 if drawn and once else 1


def _write_models(hub: Path) -> dict[str, str]:
    """Write what the request names; sizes are such that a progress bar has something to show."""
    checkpoint, civitai = hub / "Deliberate_v6.safetensors", hub / "civitai" / "12345"
    return {
        "checkpoint": models.write_checkpoint(checkpoint, seed="deliberate", size_bytes=60 * MEGA),
        "landscape_enhancer": models.write_lora(
            civitai / "landscape.safetensors",
            seed="landscape",
            size_bytes=9 * MEGA,
            metadata=models.kohya_metadata("sd1", "landscape_enhancer"),
        ),
        "detail_tweaker": models.write_lora(
            hub / "model.safetensors", seed="detail", size_bytes=9 * MEGA
        ),
    }


def _request(hub: str, digests: dict[str, str]) -> dict[str, Any]:
    slow = "?fault-rate=15000000"  # bytes a second, as if the host were far away
    return {
        "input": {
            "prompt": "a beautiful landscape with mountains and lake",
            "negative_prompt": "blurry, bad quality, low resolution",
            "steps": 25,
            "cfg_scale": 7.5,
            "width": 512,
            "height": 512,
            "sampler_name": "DPM++ 2M Karras",
            "seed": 42,
            "checkpoint": {
                "name": "deliberate_v6",
                "url": f"{hub}/Deliberate_v6.safetensors{slow}",
                "hash": digests["checkpoint"],
            },
            "loras": [
                {
                    "name": "landscape_enhancer",
                    "url": f"{hub}/api/download/models/12345",
                    "scale": 0.8,
                },
                {"name": "detail_tweaker", "url": f"{hub}/model.safetensors", "scale": 0.5},
            ],
        }
    }


@contextlib.contextmanager
def _server(*argv: object) -> Iterator[str]:
    """Run one simulator as a process of its own; yield its URL."""
    child = subprocess.Popen(
        [sys.executable, "-m", "simulator", *map(str, argv), "--port", "0"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        if child.stdout is None or not (line := child.stdout.readline()):
            raise RuntimeError(f"the simulator {argv[0]} did not start")
        yield json.loads(line)["url"]
    finally:
        child.terminate()
        child.communicate()


@contextlib.contextmanager
def _worker(work: Path, queue: str, webui: str, links: Path) -> Iterator[None]:
    """Run the worker as RunPod would: by environment variables, in a process of its own."""
    volume = work / "runpod-volume"
    volume.mkdir()
    log = work / "worker.log"
    environment = {
        **os.environ,  # noqa: TID251 - a child's PATH
        **requests.get(f"{queue}/simulator/env", timeout=10).json(),
        "RUNPOD_LOG_LEVEL": "WARN",
        "A1111_CACHE_VOLUME": str(volume),
        "A1111_CACHE_ALLOW_PRIVATE_HOSTS": "true",
        "A1111_WEBUI_PORT": webui.rpartition(":")[2],
        "A1111_WEBUI_LINKS": str(links),
    }
    with log.open("wb") as out:
        child = subprocess.Popen(
            [sys.executable, "-u", str(ROOT / "rp_handler.py")],
            cwd=work,
            env=environment,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + READY_S
        while not _journal(queue)["counts"].get("job-take"):
            if child.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the worker did not start:\n{log.read_text()}")
            time.sleep(LOOK_S)
        print("worker       takes jobs")
        yield
    finally:
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(20)
        # The SDK's ping process would outlive a worker that had to be killed.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, 9)
        child.wait()


def _journal(server: str) -> dict[str, Any]:
    journal: dict[str, Any] = requests.get(f"{server}/simulator/journal", timeout=10).json()
    return journal


def _runsync(queue: str, request: dict[str, Any], number: int) -> dict[str, Any]:
    """Post to /runsync, show the job's progress meanwhile, and then what came of it."""
    environment = requests.get(f"{queue}/simulator/env", timeout=10).json()
    url = environment["RUNPOD_WEBHOOK_GET_JOB"].partition("/job-take/")[0] + "/runsync"
    headers = {"Authorization": f"Bearer {environment['RUNPOD_AI_API_KEY']}"}
    print(f"\nPOST {url}  (run {number})")
    done: list[dict[str, Any]] = []
    thread = threading.Thread(
        target=lambda: done.append(
            requests.post(url, json=request, headers=headers, timeout=120).json()
        )
    )
    started = time.monotonic()
    thread.start()
    with tqdm(total=100, unit="%", bar_format="  {desc:12} {bar:40} {n:3.0f} %") as bar:
        while thread.is_alive():
            _show_progress(queue, bar)
            thread.join(LOOK_S)
        bar.set_description_str("done")
        bar.update(100 - bar.n)
    job = done[0]
    output: dict[str, Any] = job.get("output") or {}
    if job["status"] != "COMPLETED":
        print(f"  {job['status']}: {job.get('error')}")
        return output
    _show_result(output, number, time.monotonic() - started)
    return output


def _show_progress(queue: str, bar: "tqdm[Any]") -> None:
    for job in _journal(queue)["jobs"]:
        if job["status"] == "IN_PROGRESS" and job["progress"]:
            progress = job["progress"][-1]
            if isinstance(progress, dict) and "stage" in progress:
                bar.set_description_str(progress["stage"])
                bar.n = progress["percent"]
                bar.refresh()


def _show_result(output: dict[str, Any], number: int, seconds: float) -> None:
    OUTPUT.mkdir(exist_ok=True)
    for index, image in enumerate(output["images"]):
        file = OUTPUT / f"demo-{number}-{index}.png"
        file.write_bytes(base64.b64decode(image))
        print(f"  picture   {file.relative_to(ROOT)}")
    print(f"  prompt    {output['parameters']['prompt']}")
    for model in output["models"]:
        how = "cached" if model["cached"] else f"fetched in {model['download_s']} s"
        print(f"  {model['kind']:12}{model['name']:20} {how}")
    print(f"  timings   {json.dumps(output['timings'])}  ({seconds:.1f} s with the queue)")
    print(f"  cache     {json.dumps(output['cache_info'])}")
    for warning in output["warnings"]:
        print(f"  warning   {warning}")
    print(f"  backend   {output['backend']}")


def _fetches(hub: str) -> dict[str, float]:
    """Return how many times each file's bytes went out: 1.0 is once."""
    return {file: seen["copies"] for file, seen in _journal(hub)["files"].items()}


if __name__ == "__main__":
    sys.exit(main())
