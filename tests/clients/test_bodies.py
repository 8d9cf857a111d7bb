"""What the older workers' own scripts, pages and Postman collections send, through the handler.

The bodies have their fields and shapes, with prompts, names and sizes of ours; `<image>` stands for a
picture.
Source: generativelabs/runpod-worker-a1111 0ceef9e (a fork of ashleykleynhans/runpod-worker-a1111),
tests/, docs/api/, schemas/ and RunPod_A1111_Worker.postman_collection.json;
nik-devs/runpod-worker-forge 4700c42, schemas/txt2img.py.
"""

import base64
import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from schemas.request import parse
from schemas.settings import JobSettings
from tests.clients.conftest import Worker

BODIES: list[dict[str, Any]] = json.loads((Path(__file__).parent / "bodies.json").read_text())
GENERATIONS = [body for body in BODIES if body["endpoint"].endswith("2img")]
GETS = [
    *("embeddings", "extensions", "face-restorers", "hypernetworks", "latent-upscale-modes"),
    *("loras", "memory", "sd-models", "options", "prompt-styles", "realesrgan-models", "samplers"),
    *("schedulers", "script-info", "scripts", "upscalers", "sd-vae"),
]
REFRESHES = ("refresh-checkpoints", "refresh-embeddings", "refresh-loras", "refresh-vae")


def picture() -> str:
    drawn = Image.new("RGB", (48, 64))
    drawn.paste("red", (8, 8, 40, 40))
    # As their scripts read one from a file.
    output = io.BytesIO()
    drawn.save(output, "JPEG")
    return base64.b64encode(output.getvalue()).decode()


PICTURE = picture()


def envelope(body: dict[str, Any]) -> dict[str, Any]:
    payload = json.loads(json.dumps(body["payload"]).replace("<image>", PICTURE))
    return {
        "api": {"method": body["method"], "endpoint": body["endpoint"]},
        "payload": payload,
    }


def named(bodies: list[dict[str, Any]]) -> list[Any]:
    return [pytest.param(body, id=body["name"]) for body in bodies]


@pytest.mark.slow
@pytest.mark.parametrize("body", named([body for body in BODIES if "checkpoint" in body]))
def test_a_body_of_the_older_workers_gives_its_pictures(
    worker: Worker, body: dict[str, Any]
) -> None:
    answer = worker.run(envelope(body))

    assert "error" not in answer, answer
    units = body.get("units", [])
    first, *maps = answer["image_kinds"]
    # Hires fix brings a second map of a unit.
    assert (first, set(maps)) == ("picture", {"detect_map"} if units else set())
    assert len(maps) >= len(units)
    asked, sent = body["payload"], worker.sent()
    assert sent["override_settings"]["sd_model_checkpoint"] == body["checkpoint"]
    if "vae" in body:
        assert sent["override_settings"]["sd_vae"] == body["vae"]
    taken = sent.get("alwayson_scripts", {}).get("controlnet", {}).get("args", [])
    assert [unit["model"].partition(" [")[0] for unit in taken] == units
    assert all(unit["enabled"] for unit in taken)
    assert sent["prompt"] == asked["prompt"]
    with Image.open(io.BytesIO(base64.b64decode(answer["images"][0]))) as drawn:
        scale = asked["hr_scale"] if asked.get("enable_hr") else 1
        assert drawn.size == (asked["width"] * scale, asked["height"] * scale)


@pytest.mark.slow
@pytest.mark.parametrize("body", named([body for body in BODIES if "error" in body]))
def test_what_cannot_be_done_here_is_told_by_its_name(worker: Worker, body: dict[str, Any]) -> None:
    answer = worker.run(envelope(body))

    assert answer["code"] == body["error"]
    assert body["words"] in json.dumps(answer)
    assert "refresh_worker" not in answer


@pytest.mark.slow
@pytest.mark.parametrize("body", named([body for body in BODIES if "answer" in body]))
def test_their_own_commands_answer_as_they_did(worker: Worker, body: dict[str, Any]) -> None:
    assert body["answer"].items() <= worker.run(envelope(body)).items()


@pytest.mark.slow
def test_an_empty_payload_does_where_a_route_takes_none(worker: Worker) -> None:
    """Every entry of the Postman collection has one."""
    called = [("GET", f"/sdapi/v1/{name}") for name in GETS]
    called += [("GET", "/controlnet/model_list")]
    called += [("POST", f"/sdapi/v1/{name}") for name in REFRESHES]

    for method, endpoint in called:
        answer = worker.run({"api": {"method": method, "endpoint": endpoint}, "payload": {}})

        assert not isinstance(answer, dict) or "error" not in answer, (endpoint, answer)
        assert (answer is None) == (method == "POST"), endpoint


@pytest.mark.slow
def test_the_model_and_the_vae_that_were_set_make_the_next_picture(worker: Worker) -> None:
    def set_options(**options: str | None) -> Any:
        return worker.run(
            {"api": {"method": "POST", "endpoint": "/sdapi/v1/options"}, "payload": options}
        )

    assert set_options(sd_model_checkpoint="deliberate_v2") is None
    assert set_options(sd_vae="vae-ft-mse-840000-ema-pruned.safetensors") is None
    try:
        answer = worker.run(envelope(GENERATIONS[0]))
    finally:
        set_options(sd_model_checkpoint=None, sd_vae=None)

    info = json.loads(answer["info"])
    assert info["sd_model_name"] == "deliberate_v2"
    assert info["sd_vae_name"] == "vae-ft-mse-840000-ema-pruned.safetensors"


@pytest.mark.parametrize("body", named(GENERATIONS))
def test_the_order_of_the_fields_means_nothing(body: dict[str, Any]) -> None:
    given = envelope(body)
    fields = list(given["payload"].items())
    shuffled = random.Random(0).sample(fields, len(fields))  # noqa: S311 - no secret

    told = [
        parse({**given, "payload": one}, JobSettings())
        for one in (given["payload"], dict(shuffled))
    ]

    assert told[0].job == told[1].job
    assert sorted(told[0].warnings) == sorted(told[1].warnings)
