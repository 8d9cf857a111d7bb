"""The request of the README and its bad relatives, through /runsync and the real SDK loop."""

import base64
import io
import json
import time
from typing import Any, get_args

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from simulator import models
from tests.e2e.conftest import Stack
from worker.clock import Slice

pytestmark = pytest.mark.slow

PROMPT = "a beautiful landscape with mountains and lake"


def done(job: dict[str, Any]) -> dict[str, Any]:
    assert job["status"] == "COMPLETED", job.get("error")
    output: dict[str, Any] = job["output"]
    return output


def failed(job: dict[str, Any], code: str) -> dict[str, Any]:
    assert job["status"] == "FAILED", job
    assert job["error"].startswith(f"{code}: ")
    output: dict[str, Any] = job["output"]
    assert output["code"] == code
    return output


@pytest.fixture(scope="module", autouse=True)
def twice(stack: Stack) -> list[dict[str, Any]]:
    """The answers to the request of the README, asked twice: each test finds its models there."""
    return [done(stack.runsync(stack.request())) for _ in range(2)]


def test_the_request_of_the_readme_twice_with_one_fetch_per_model(
    stack: Stack, twice: list[dict[str, Any]]
) -> None:
    first, second = twice

    tagged = f"<lora:landscape_enhancer:0.8> <lora:detail_tweaker:0.5> {PROMPT}"
    assert first["parameters"]["prompt"] == tagged
    assert first["images"] == second["images"]
    with Image.open(io.BytesIO(base64.b64decode(first["images"][0]))) as picture:
        assert picture.size == (512, 512)
        assert picture.info["parameters"].startswith(tagged)
    info = json.loads(first["info"])
    assert info["sd_model_name"] == "deliberate_v6"
    assert (info["sampler_name"], first["parameters"]["scheduler"]) == ("DPM++ 2M", "Karras")
    assert (first["seed"], first["seeds"]) == (42, [42])
    assert [model["cached"] for model in first["models"]] == [False, False, False]
    assert [model["cached"] for model in second["models"]] == [True, True, True]
    assert first["models"][0]["sha256"] == stack.digests["checkpoint"]
    assert second["cache_info"]["checkpoints_cached"] == 1
    assert second["cache_info"]["loras_cached"] == 2
    assert second["backend"] == "simulator"
    assert set(stack.fetches().values()) == {1.0}


def test_timings_add_up(stack: Stack) -> None:
    timings = done(stack.runsync(stack.request()))["timings"]

    parts = sum(timings[name] for name in get_args(Slice))
    assert parts == pytest.approx(timings["total_s"], abs=1e-9)
    assert timings["images_per_s"] == pytest.approx(1 / timings["generate_s"], abs=0.001)
    assert timings.keys() == {*get_args(Slice), "total_s", "images_per_s"}


def test_progress_is_seen_while_the_job_runs_and_none_after_it(stack: Stack) -> None:
    stack.faults(step_ms=200)
    job_id = stack.run({"prompt": "a cat", "steps": 150, "width": 64, "height": 64})
    seen: list[int] = []
    while (job := stack.status(job_id))["status"] in {"IN_QUEUE", "IN_PROGRESS"}:
        if "output" in job:
            seen.append(job["output"]["percent"])
        if len({*seen}) == 3:
            stack.faults(step_ms=0)
        time.sleep(0.1)
    stack.faults(step_ms=0)

    assert job["status"] == "COMPLETED"
    assert seen == sorted(seen)
    assert len({*seen}) >= 3
    assert stack.queue.get("/simulator/journal")["late"] == []


def test_a_request_without_a_checkpoint_gets_the_only_one(stack: Stack) -> None:
    output = done(stack.runsync({"prompt": "a cat", "steps": 2, "seed": 1}))

    assert json.loads(output["info"])["sd_model_name"] == "deliberate_v6"


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        pytest.param({"prompt": "\u00e9" * 60_000}, "INVALID_INPUT", "prompt", id="long prompt"),
        pytest.param({"init_images": ["bm90IGFuIGltYWdl"]}, "INVALID_INPUT", "image", id="image"),
        pytest.param({"sampler_name": "Eulr a"}, "INVALID_INPUT", "'Euler a'", id="sampler"),
        pytest.param(
            {"sampler_name": "euler a"}, "INVALID_INPUT", "'Euler a'", id="sampler's case"
        ),
        pytest.param({"scheduler": "nope"}, "INVALID_INPUT", "scheduler", id="scheduler"),
        pytest.param({"styles": ["nope"]}, "INVALID_INPUT", "styles", id="style"),
        pytest.param({"script_name": "nope"}, "INVALID_INPUT", "script_name", id="script"),
        pytest.param(
            {"alwayson_scripts": {"nope": {"args": [1]}}}, "INVALID_INPUT", "nope", id="extension"
        ),
        pytest.param({"checkpoint": "deliberat_v6"}, "MODEL_NOT_FOUND", "deliberate_v6", id="near"),
        pytest.param({"vae": "nope.safetensors"}, "MODEL_NOT_FOUND", "nope", id="VAE"),
        pytest.param({"prompt": "<lora:nope:1> x"}, "MODEL_NOT_FOUND", "nope", id="tag"),
        pytest.param({"prompt": "<lora:../../x:1>"}, "INVALID_INPUT", "", id="path in a tag"),
        pytest.param({"prompt": "<hypernet:x:1>"}, "INVALID_INPUT", "x", id="hypernetwork"),
        pytest.param(
            {"override_settings": {"outdir_samples": "/x"}},
            "INVALID_INPUT",
            "outdir",
            id="path option",
        ),
        pytest.param({"loras": [{"name": "../x"}]}, "INVALID_INPUT", "loras[0].name", id="path"),
    ],
)
def test_bad_input_is_a_typed_error(
    stack: Stack, change: dict[str, Any], code: str, words: str
) -> None:
    job = stack.runsync(stack.request() | change)

    assert "traceback" not in json.dumps(failed(job, code)).lower()
    assert words in job["error"]


@pytest.mark.parametrize("value", [None, [], "text", 5, {}])
def test_whatever_input_is_the_worker_lives(stack: Stack, value: Any) -> None:
    job = stack.runsync(value)

    if value == {}:
        done(job)
    else:
        failed(job, "INVALID_INPUT")


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        pytest.param("?fault-status=404", "MODEL_NOT_FOUND", id="404"),
        pytest.param("?fault-status=401", "MODEL_ACCESS_DENIED", id="401"),
        pytest.param("?fault-html=1", "MODEL_UNSAFE", id="a page with status 200"),
        pytest.param("?fault-json_error=1", "MODEL_UNSAFE", id="an error with status 200"),
        pytest.param("?fault-flip=5000", "MODEL_CORRUPT", id="another digest"),
    ],
)
def test_a_bad_download_is_a_typed_error_and_leaves_nothing(
    stack: Stack, fault: str, code: str
) -> None:
    checkpoint = {
        "name": "fresh",
        "url": f"{stack.hub.url}/Deliberate_v6.safetensors{fault}",
        "hash": stack.digests["lora"] if code != "MODEL_CORRUPT" else "0" * 64,
    }

    failed(stack.runsync({"prompt": "x", "steps": 1, "checkpoint": checkpoint}), code)

    assert [file.name for file in stack.volume.rglob("fresh*")] == []
    assert list((stack.volume / "models" / ".worker" / "tmp").iterdir()) == []


def test_a_pickle_is_refused(stack: Stack) -> None:
    (stack.files / "evil.safetensors").write_bytes(b"\x80\x02csystem\n" + b"\0" * 5000)
    lora = {"name": "evil", "url": f"{stack.hub.url}/evil.safetensors"}

    failed(stack.runsync({"prompt": "x", "steps": 1, "loras": [lora]}), "MODEL_UNSAFE")

    assert list(stack.volume.rglob("evil*")) == []


def test_commands_of_the_older_workers_are_jobs(stack: Stack) -> None:
    def call(endpoint: str, payload: Any) -> dict[str, Any]:
        return stack.runsync(
            {"api": {"method": "POST", "endpoint": f"/v1/{endpoint}"}, "payload": payload}
        )

    repository = stack.files / "huggingface" / "org" / "repo" / "Lora"
    models.write_lora(repository / "synced.safetensors", seed="synced")
    url = f"{stack.hub.url}/model.safetensors"
    downloaded = done(call("download", {"source_url": url, "download_path": "loras/loaded"}))
    synced = done(call("sync", {"repo_id": "org/repo", "sync_path": "/runpod-volume/models"}))

    assert (downloaded["msg"], downloaded["source_url"]) == ("Download successful", url)
    assert synced["synced_files"] == [str(stack.volume / "models/loras/synced.safetensors")]
    names = {lora["name"] for lora in done(call("loras", None))["loras"]}
    assert {"loaded", "synced"} <= names
    outside = {"source_url": url, "download_path": "/etc/loaded"}
    assert failed(call("download", outside), "INVALID_INPUT")["details"]["field"] == "download_path"


LIMITS = {"run": 10_000_000, "runsync": 20_000_000}
# As much as Pillow reads of a compressed chunk (PngImagePlugin.MAX_TEXT_CHUNK), in words that A1111's
# reader of infotexts gets over soon (worker/api/callcheck.py).
_TEXT = 62_500 * "fifteen letters."


def reading(chars: int) -> dict[str, Any]:
    """Return a job whose answer grows by a byte with each of so many characters."""
    info = PngInfo()
    for start in range(0, max(LIMITS.values()), len(_TEXT)):
        info.add_itxt(f"{start:08}", _TEXT[: max(0, chars - start)], zip=True)
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=info)
    image = base64.b64encode(file.getvalue()).decode()
    return {"api": {"method": "POST", "endpoint": "png-info"}, "payload": {"image": image}}


@pytest.mark.parametrize("route", LIMITS)
def test_a_result_exactly_at_the_limit_arrives_and_one_byte_more_is_told(
    stack: Stack, route: str
) -> None:
    def answered(chars: int) -> dict[str, Any]:
        if route == "runsync":
            return stack.runsync(reading(chars))
        return stack.wait(stack.run(reading(chars)), "COMPLETED", "FAILED", within_s=60)

    def travelled(job: dict[str, Any]) -> int:
        return len(json.dumps({"output": job["output"]}, ensure_ascii=False).encode())

    limit = LIMITS[route]
    chars = limit - travelled(answered(0))

    at_the_limit, over = answered(chars), answered(chars + 1)

    assert at_the_limit["status"] == "COMPLETED", at_the_limit["error"]
    assert travelled(at_the_limit) == limit
    assert over["error"].startswith("OUTPUT_TOO_LARGE: ")
    assert over["output"]["details"]["size_bytes"] == limit + 1
    assert stack.queue.get("/simulator/journal")["violations"] == []


def test_after_all_bad_jobs_the_same_worker_serves_the_next(stack: Stack) -> None:
    done(stack.runsync({"prompt": "a cat", "steps": 1, "width": 64, "height": 64}))

    journal = stack.queue.get("/simulator/journal")

    assert journal["violations"] == []
    assert journal["late"] == []
    assert all(job["answers"] == 1 and job["takes"] == 1 for job in journal["jobs"])
    assert stack.worker.poll() is None
