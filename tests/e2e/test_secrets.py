"""Secrets planted wherever one can be, and looked for in all that a worker says, sends and writes."""

import base64
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.container import Container, make_container, require_answers

pytestmark = pytest.mark.slow

OF_THE_ENVIRONMENT = {
    "A1111_CACHE_CIVITAI_TOKEN": "planted-env-civitai",
    "HF_TOKEN": "hf_planted-env-hub",
    "AWS_ACCESS_KEY_ID": "PLANTEDENVACCESS",
    "AWS_SECRET_ACCESS_KEY": "planted/env+secret/key",
    "SOMEBODYS_PASSWORD": "planted-env-password",
}
PROMPT = "planted prompt, a <lora:landscape_enhancer:0.8> red fox"
NEGATIVE = "planted negative prompt \U0001f98a"


class Watched:
    """A worker, and all that was heard of its jobs."""

    def __init__(self, container: Container) -> None:
        self.container = container
        self.heard: list[Any] = []
        self.planted = {*OF_THE_ENVIRONMENT.values(), container.env["RUNPOD_AI_API_KEY"]}

    def plant(self, name: str) -> str:
        """Return a secret that is no other's."""
        secret = f"planted-{name}-{len(self.planted)}"
        self.planted.add(secret)
        return secret

    def done(
        self, given: dict[str, Any], *, cancelled: bool = False, **beside: Any
    ) -> dict[str, Any]:
        """Return a job once it has ended, with all that it told meanwhile heard."""
        body = {**beside, "input": given}
        job_id = self.container._call("POST", "/run", body)["id"]
        deadline = time.monotonic() + 30
        while (job := self.container.status(job_id))["status"] in {"IN_QUEUE", "IN_PROGRESS"}:
            assert time.monotonic() < deadline, job
            self.heard.append(job)
            if cancelled and "output" in job:
                self.container.cancel(job_id)
            time.sleep(0.05)
        self.heard.append(job)
        return job


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    with make_container(
        tmp_path_factory.mktemp("secrets"),
        {},
        RUNPOD_LOG_LEVEL="DEBUG",
        A1111_LOG_LEVEL="DEBUG",
        RUNPOD_ENDPOINT_ID="endpoint",
        A1111_CACHE_CIVITAI_ENDPOINT="{hub}",
        A1111_OUTPUT_UPLOAD_TIMEOUT_S="2",
        **OF_THE_ENVIRONMENT,
    ) as container:
        watched = Watched(container)
        work(watched)
        yield watched


def work(watched: Watched) -> None:
    """Have jobs done that hold secrets in every place, well and not."""
    hub, plant = watched.container.hub.url, watched.plant
    model = {
        "name": "deliberate_v6",
        "url": f"{hub}/Deliberate_v6.safetensors?token={plant('query')}&type=Model",
    }
    style = f"{hub}/api/download/models/12345?token={plant('civitai-query')}"
    prompts: dict[str, Any] = {"prompt": PROMPT, "negative_prompt": NEGATIVE}
    config = {
        "accessId": plant("access"),
        "accessSecret": plant("access-secret"),
        "bucketName": "pictures",
        "endpointUrl": f"{hub}/none",
    }
    drawn = watched.done(
        {
            **prompts,
            "steps": 2,
            "checkpoint": model,
            "loras": [{"name": "landscape_enhancer", "url": style}],
            "tokens": {"civitai": plant("civitai"), "huggingface": plant("hub")},
            "output": {"delivery": "url"},
        },
        s3Config=config,
        webhook=f"https://example.com/done?signature={plant('webhook')}",
    )
    assert drawn["status"] == "COMPLETED", drawn
    assert PROMPT.split("> ")[1] in drawn["output"]["info"]
    assert "UPLOAD_FAILED" in " ".join(drawn["output"]["warnings"])

    bad: list[dict[str, Any]] = [
        {"checkpoint": f"{hub}/gone.safetensors?token={plant('gone')}"},
        {"checkpoint": f"http://me:{plant('password')}@{hub.partition('//')[2]}/a.safetensors"},
        {"checkpoint": {**model, "name": "other", "hash": "0" * 64}},
        {"sampler_name": "nope", "tokens": {"civitai": plant("unused")}},
        {"tokens": {"civitai": 5, "planted": plant("of-no-host")}},
        {"width": PROMPT, "token": plant("of-no-field")},
        {"init_images": [f"{hub}/no.png?X-Amz-Signature={plant('signature')}"]},
    ]
    for given in bad:
        failed = watched.done({**prompts, **given})
        assert failed["status"] == "FAILED", failed
    failed = watched.done(prompts, s3Config={"accessSecret": plant("of-no-shape")})
    assert failed["status"] == "FAILED", failed

    echo = plant("a1111")
    watched.container.faults(
        faults=[{"kind": "fail", "path": "/sdapi/v1/txt2img", "text": f"{PROMPT} {echo}"}]
    )
    echoed = watched.done({**prompts, "tokens": {"civitai": echo}})
    assert echoed["error"].startswith("BACKEND_FAILED: ")
    # It tells that it is being made, and is not done before it is cancelled.
    stall = {"kind": "stall", "when": "sampling", "interruptible": True}
    watched.container.faults(faults=[stall])
    endless = {**prompts, "tokens": {"civitai": plant("cancelled")}}
    assert watched.done(endless, cancelled=True)["status"] == "CANCELLED"
    fetched = watched.done(
        {
            "api": {"method": "POST", "endpoint": "/v1/prefetch"},
            "payload": {
                "models": [
                    {"kind": "lora", "url": f"{hub}/model.safetensors?token={plant('fetch')}"}
                ],
                "tokens": {"huggingface": plant("prefetch")},
            },
        }
    )
    assert fetched["status"] == "COMPLETED", fetched


def forms(secret: str) -> set[bytes]:
    """Return what a secret may look like: as it is, in JSON, in base64."""
    return {
        secret.encode(),
        json.dumps(secret)[1:-1].encode(),
        base64.b64encode(secret.encode())[:-4],
    }


def written(container: Container) -> Iterator[Path]:
    """Yield every file that the worker wrote: volume, links, caches, A1111's data, the log."""
    for path in container.folder.rglob("*"):
        if path.is_file() and container.files not in path.parents:
            yield path


def test_no_secret_is_in_a_line_a_file_an_answer_or_progress(watched: Watched) -> None:
    found = {str(path): path.read_bytes() for path in written(watched.container)}
    found["answers"] = json.dumps(watched.heard, ensure_ascii=False).encode()

    assert len(found) > 10
    assert any("cache_registry.json" in name for name in found)
    for secret in watched.planted:
        leaks = [name for name, text in found.items() if any(f in text for f in forms(secret))]
        assert leaks == [], secret


@pytest.mark.parametrize("prompt", [PROMPT, NEGATIVE, "red fox", "planted negative"])
def test_no_prompt_is_in_a_line_or_on_the_volume(watched: Watched, prompt: str) -> None:
    container = watched.container
    files = [container.log, *(path for path in written(container) if "volume" in path.parts)]
    files += [path for path in written(container) if "links" in path.parts]

    leaks = [path for path in files if any(form in path.read_bytes() for form in forms(prompt))]

    assert leaks == []


def test_every_line_of_the_worker_is_json_and_each_job_has_one_summary(watched: Watched) -> None:
    # But for one that is being written.
    lines = watched.container.log.read_text().rpartition("\n")[0].splitlines()
    first = next(index for index, line in enumerate(lines) if line.startswith("{"))
    ours = [json.loads(line) for line in lines[first:]]
    jobs = [line for line in ours if line.get("event") == "job"]

    assert [line for line in lines if "Traceback" in line] == []
    assert all(len(line) < 4096 for line in lines)
    assert {"requestId", "level", "message"} <= set.intersection(*map(set, ours))
    assert len({line["requestId"] for line in jobs}) == len(jobs) == 12
    assert [line["outcome"] for line in jobs].count("done") == 2
    assert [line["outcome"] for line in jobs].count("cancelled") == 1
    dumps = [line["message"] for line in ours if line["message"].startswith("Handler output: ")]
    assert len(dumps) >= 10
    assert all(dump.endswith(" characters, not shown") for dump in dumps)
    require_answers(watched.container)
