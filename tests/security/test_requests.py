"""What a stranger writes into a request, and what must not come of it."""

import base64
import json
import logging
import time
import zlib
from typing import Any

import pytest

from schemas.settings import JobSettings
from tests.security.conftest import SMALL, Worker
from tests.worker.calling import picture
from worker.generation.overrides import ALLOWED

pytestmark = pytest.mark.slow

# What ReActor takes, up to the choice of its source.
REACTOR: list[Any] = [
    picture(64),
    True,
    "0",
    "0",
    "inswapper_128.onnx",
    "None",
    1,
    True,
    "None",
    1,
    1,
]
REACTOR += [False, True, 1, 0, 0, False, 0.5, True, False, "CPU", False]

PATHS = ["../../x", "/etc/passwd", "..\\x", "a/../../b", "x\0.safetensors", ".worker/tmp/x", "~/x"]


@pytest.mark.parametrize("name", PATHS)
def test_no_name_of_a_model_leads_out_of_its_folder(worker: Worker, name: str) -> None:
    before = worker.visible()
    for fields in (
        {"checkpoint": name},
        {"vae": name},
        {"loras": [name]},
        {"embeddings": [{"name": name, "url": f"{worker.private.url}/x.safetensors"}]},
        {"refiner_checkpoint": name},
        {"override_settings": {"sd_model_checkpoint": name}},
    ):
        answer = worker.ask({**SMALL, **fields})
        assert answer["code"] in {"INVALID_INPUT", "MODEL_NOT_FOUND"}, answer
        assert answer["details"]["field"]

    assert worker.visible() == before


@pytest.mark.parametrize(
    "path", ["/etc", "../../etc/x", "/runpod-volume/models/loras/../../../x", "models/x"]
)
def test_nothing_is_fetched_to_where_no_models_are(worker: Worker, path: str) -> None:
    url = f"{worker.private.url}/x.safetensors"
    for endpoint, payload in (
        ("/v1/download", {"source_url": url, "download_path": path}),
        ("/v1/sync", {"repo_id": "org/repo", "sync_path": path}),
    ):
        # For the path, not for hosts that are private or dead.
        told = worker.call("POST", endpoint, payload)
        assert told["code"] == "INVALID_INPUT", told
        assert told["details"]["field"] in {"download_path", "sync_path"}

    assert not list(worker.folder.rglob("x.safetensors"))[1:]  # but for the hub's own


@pytest.mark.parametrize("kind", ["lora", "lyco", "hypernet", "LORA"])
@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "nope", ""])
def test_a_tag_names_a_file_that_a1111_may_see_or_the_job_is_refused(
    worker: Worker, kind: str, name: str
) -> None:
    before = worker.generated()
    tag = f"<{kind}:{name}:1>"
    for fields in (
        {"prompt": tag},
        {"enable_hr": True, "denoising_strength": 0.5, "hr_prompt": tag},
        {"infotext": f"{tag}\nSteps: 2, Sampler: Euler, Seed: 1, Size: 64x64"},
    ):
        body = {**SMALL, **fields}
        if "infotext" in fields:
            del body["prompt"]
        assert worker.ask(body)["code"] in {"INVALID_INPUT", "MODEL_NOT_FOUND"}

    assert worker.generated() == before


def test_tags_without_end_are_refused(worker: Worker) -> None:
    told = worker.require_refused({**SMALL, "prompt": "<lora:detail:0.1>" * 2000})

    assert told["details"]["field"] == "prompt"


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param(
            {
                "script_name": "prompts from file or textbox",
                "script_args": [False, False, "start", "--outpath_samples /tmp/x --prompt cat"],
            },
            id="a folder to write to",
        ),
        pytest.param(
            {"script_name": "X/Y/Z plot", "script_args": [1, "1-99999", []]},
            id="a hundred thousand pictures",
        ),
        pytest.param(
            {"script_name": "prompt matrix", "prompt": "|".join("abcdefghijklmnopqrstuvwxyz")},
            id="2 to the 25 pictures",
        ),
        pytest.param(
            {"script_name": "prompt matrix", "script_args": [False] * 4 + [0, True, "b", 0.5]},
            id="arguments that move into another script",
        ),
        pytest.param(
            {"alwayson_scripts": {"refiner": {"args": [True, "b", 0.5]}}},
            id="a checkpoint behind our back",
        ),
        pytest.param(
            {"alwayson_scripts": {"sampler": {"args": [100_000, "Euler", "Automatic"]}}},
            id="steps behind our back",
        ),
        pytest.param(
            {"alwayson_scripts": {"reactor": {"args": ["/etc/passwd"]}}},
            id="a path where ReActor takes a picture",
        ),
        pytest.param(
            {"alwayson_scripts": {"reactor": {"args": [*REACTOR[:16], True]}}},
            id="a picture that ReActor saves",
        ),
        pytest.param(
            {"alwayson_scripts": {"reactor": {"args": [*REACTOR, 2, "None", "/etc"]}}},
            id="a folder that ReActor reads",
        ),
        pytest.param(
            {"alwayson_scripts": {"reactor": {"args": [*REACTOR, 1, "../../etc/x.safetensors"]}}},
            id="a face that is a path",
        ),
        pytest.param(
            {"alwayson_scripts": {"adetailer": {"args": [True, False, {"ad_model": "/etc/x.pt"}]}}},
            id="a model of ADetailer that is a path",
        ),
        pytest.param({"script_name": "custom code", "script_args": ["1"]}, id="code"),
    ],
)
def test_no_script_does_more_than_a_request_may(worker: Worker, fields: dict[str, Any]) -> None:
    worker.require_refused({**SMALL, **fields})


def test_a_harmless_script_gets_as_many_arguments_as_it_has(worker: Worker) -> None:
    """Else those of the scripts after it would move: A1111 puts them all into one list."""
    answer = worker.ask({**SMALL, "script_name": "prompt matrix", "script_args": [True]})

    assert answer["images"]
    assert worker.generated()[-1]["script_args"] == [True, False, "positive", "comma", 0]


def test_no_option_of_a1111_but_those_that_change_the_picture_is_set(worker: Worker) -> None:
    options = worker.webui.get("/sdapi/v1/options")
    others = options.keys() - ALLOWED - {"sd_model_checkpoint", "sd_vae"}
    before = worker.posted()

    assert {"outdir_samples", "api_enable_requests", "samples_save", "temp_dir"} <= others
    for name in others:
        worker.require_refused({**SMALL, "override_settings": {name: options[name]}})
        assert worker.call("POST", "options", {name: options[name]})["code"] == "INVALID_INPUT"
    assert worker.posted() == before
    assert worker.webui.get("/sdapi/v1/options") == options


@pytest.mark.parametrize(
    "endpoint",
    [
        "server-kill",
        "/sdapi/v1/create/embedding",
        "/sdapi/v1/train/hypernetwork",
        "/internal/sysinfo",
        "/file=/etc/passwd",
        "/sdapi/v1/../../file=/etc/passwd",
        "/sdapi/v1/png-info/../server-stop",
        "//169.254.169.254/",
        "http://169.254.169.254/",
        "/sdapi/v1/samplers\r\nHost: x",
        "/simulator/faults",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_no_route_but_those_of_the_table_is_called(
    worker: Worker, method: str, endpoint: str
) -> None:
    before = len(worker.webui.get("/simulator/journal")["requests"])

    assert worker.call(method, endpoint)["code"] == "INVALID_INPUT"
    assert len(worker.webui.get("/simulator/journal")["requests"]) == before


def test_no_picture_of_a_job_is_left_on_the_disk_of_a1111(worker: Worker) -> None:
    saved = {**SMALL, "save_images": True, "batch_size": 2}

    assert len(worker.ask(saved)["images"]) >= 2
    assert not list(worker.data.rglob("*.png"))

    # The proof that it would have been.
    options = "/sdapi/v1/options"
    worker.webui.post(options, {"samples_save": True})
    worker.ask(saved)
    worker.webui.post(options, {"samples_save": False})
    assert list(worker.data.rglob("*.png"))


@pytest.mark.parametrize(
    "prefix", ["../x", "a/../../x", "/etc", "a//b", ".worker", "a\n", "~", "%2e"]
)
def test_no_picture_is_put_where_no_pictures_belong(worker: Worker, prefix: str) -> None:
    before = worker.visible()

    answer = worker.ask({**SMALL, "output": {"delivery": "volume", "prefix": prefix}})

    new = set(worker.visible()) - set(before)
    assert answer.get("code") == "INVALID_INPUT" or new
    assert all(path.is_relative_to(worker.volume / "outputs") for path in new)


@pytest.mark.parametrize(
    "url",
    [
        "{private}/x.safetensors",
        "http://169.254.169.254/latest/meta-data/",
        "https://169.254.169.254/latest/meta-data/",
        "https://[::ffff:127.0.0.1]/x",
        "https://localhost/x.safetensors",
        "https://2130706433/x",
        "https://0x7f.1/x",
        "file:///etc/passwd",
        "ftp://127.0.0.1/x",
        "gopher://127.0.0.1/x",
    ],
)
def test_no_url_of_a_request_reaches_a_private_host(worker: Worker, url: str) -> None:
    before = worker.private.get("/simulator/journal")["requests"]
    named = url.format(private=worker.private.url)
    for fields in (
        {"init_images": [named]},
        {"init_images": [picture()], "mask": named},
        {"controlnet_args": [{"image": named, "module": "canny"}]},
        {"alwayson_scripts": {"reactor": {"args": [named, True]}}},
        {"checkpoint": {"name": "x", "url": named}},
        {"loras": [named]},
    ):
        # Nobody listens at most of these: asked, they would be SOURCE_UNAVAILABLE.
        worker.require_refused({**SMALL, **fields})
    download = worker.call("POST", "/v1/download", {"kind": "lora", "url": named})
    assert download["code"] == "INVALID_INPUT", download
    info = worker.call("POST", "png-info", {"image": named})
    assert info["code"] == "INVALID_INPUT", info

    assert worker.private.get("/simulator/journal")["requests"] == before


def test_a_token_of_a_request_is_told_to_nobody(
    worker: Worker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = "s3cr3t-of-the-caller"
    url = f"https://user:{secret}@127.0.0.1/x.safetensors?token={secret}&X-Amz-Signature={secret}"
    answers = [
        worker.ask({**SMALL, "tokens": {"civitai": secret, "huggingface": secret}, **fields})
        for fields in (
            {},
            {"loras": [url]},
            {"loras": [url.replace(f"user:{secret}@", "")]},
            {"checkpoint": {"name": "x", "url": url}},
            {"loras": ["hf:org/repo/x.safetensors"]},
            {"tokens": {"civitai": [secret]}},
            {"init_images": [url]},
        )
    ]

    assert {logging.DEBUG, logging.INFO} <= {record.levelno for record in caplog.records}
    told = json.dumps([answers, worker.generated()]) + caplog.text
    assert secret not in told
    assert "hf_operators_own" not in told
    assert not [
        file
        for file in worker.volume.rglob("*")
        if file.is_file() and secret.encode() in file.read_bytes()
    ]


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(json.loads('{"a":' * 500 + "1" + "}" * 500), id="deep"),
        pytest.param({"x": [0] * 200_000}, id="many"),
        pytest.param({**SMALL, "seed": 10**4000}, id="a number without end"),
        pytest.param({**SMALL, "cfg_scale": float("nan")}, id="no number"),
        pytest.param({**SMALL, "prompt": "\ud800"}, id="half a character"),
        pytest.param({**SMALL, "width": 2**20, "height": 2**20}, id="a large picture"),
        pytest.param({**SMALL, "n_iter": 2**31 - 1}, id="many pictures"),
        pytest.param({**SMALL, "steps": 10**9}, id="many steps"),
        pytest.param({**SMALL, "prompt": "x" * 1_000_000}, id="a long prompt"),
        pytest.param({**SMALL, "styles": ["x"] * 50_000}, id="many styles"),
        pytest.param({**SMALL, "loras": ["detail"] * 5000}, id="many LoRAs"),
        pytest.param(
            {**SMALL, "init_images": [picture()], "mask": picture(), "mask_blur": 10**6},
            id="a blur as wide as a street",
        ),
        pytest.param(
            {**SMALL, "override_settings": {"ESRGAN_tile": 1, "ESRGAN_tile_overlap": 0}},
            id="tiles of a pixel",
        ),
        pytest.param(
            {**SMALL, "override_settings": {"DAT_tile": 64, "DAT_tile_overlap": 63}},
            id="tiles that hardly move",
        ),
        pytest.param({**SMALL, "max_download_gb": -1}, id="a limit below nothing"),
        pytest.param([1], id="no object"),
    ],
)
def test_a_request_asks_for_no_more_than_it_may(worker: Worker, value: Any) -> None:
    worker.require_refused(value)


@pytest.mark.parametrize(
    "prompt",
    ["<a" * 25_000, "<lora:" * 8000, ":" * 1999, "\n#" * 25_000, "|" * 50_000, "\\(" * 25_000],
    ids=lambda prompt: prompt[:6],
)
def test_no_prompt_holds_the_worker(worker: Worker, prompt: str) -> None:
    start = time.process_time()
    for fields in ({"prompt": prompt}, {"infotext": f"{prompt}\nSteps: 2, Seed: 1, {prompt}: 1"}):
        answer = worker.ask({**SMALL, **fields})
        assert "images" in answer or answer["code"] == "INVALID_INPUT"
    assert time.process_time() - start < 2


@pytest.mark.parametrize("field", ["prompt", "negative_prompt", "hr_prompt"])
@pytest.mark.parametrize(
    "prompt", ["(" * 50_000, "a, (b:1.2), " * 200, "[a|b]" * 400, "a AND " * 99]
)
def test_no_prompt_holds_a1111(worker: Worker, field: str, prompt: str) -> None:
    """Its parser takes an hour for the first, a minute for the second, and knows no interrupt."""
    told = worker.require_refused({**SMALL, "enable_hr": True, field: prompt})

    assert told["details"]["field"] == field


@pytest.mark.usefixtures("memory")
@pytest.mark.parametrize("side", [60_000, 2**31 - 1])
def test_a_small_file_does_not_become_a_large_picture(worker: Worker, side: int) -> None:
    png = bytearray(base64.b64decode(picture()))
    png[16:24] = side.to_bytes(4, "big") * 2
    # Else it would be refused as broken: IHDR ends with the CRC of its name and its 13 bytes.
    png[29:33] = zlib.crc32(png[12:29]).to_bytes(4, "big")
    bomb = base64.b64encode(png).decode()
    words = f"has {side} x {side} pixels; the limit is {JobSettings().max_input_pixels}."
    for fields in (
        {"init_images": [bomb]},
        {"init_images": [picture()], "mask": bomb},
        {"controlnet_args": [{"image": bomb, "module": "reference_only"}]},
    ):
        assert words in worker.require_refused({**SMALL, **fields})["error"]
    info = worker.call("POST", "png-info", {"image": bomb})
    assert info["code"] == "INVALID_INPUT"
    assert words in info["error"]


def test_after_all_of_this_the_next_job_gets_its_picture(worker: Worker) -> None:
    worker.require_well()
