"""Corners that few requests reach, where A1111's answer is odd but known."""

import base64
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from simulator import models
from tests.contract.conftest import Start, StartProcess, Webui, encoded, picture, pixels

SMALL = {"prompt": "a cat", "steps": 2, "width": 64, "height": 64, "seed": 1}


def error(webui: Webui, path: str, body: Any) -> tuple[str, str]:
    answer = webui.post(path, body)
    assert answer.status_code == 500, answer.text
    return answer.json()["error"], answer.json()["errors"] or answer.json()["detail"]


@pytest.mark.parametrize(
    ("path", "arguments", "text"),
    [
        (
            "create/embedding",
            {"name": "x", "num_vectors_per_token": 1},
            "create_embedding() missing 1 required positional argument: 'overwrite_old'",
        ),
        (
            "create/embedding",
            {},
            (
                "create_embedding() missing 3 required positional arguments: "
                "'name', 'num_vectors_per_token', and 'overwrite_old'"
            ),
        ),
        (
            "create/hypernetwork",
            {"name": "x"},
            (
                "create_hypernetwork() missing 2 required positional arguments: "
                "'enable_sizes' and 'overwrite_old'"
            ),
        ),
        (
            "create/hypernetwork",
            {"name": "x", "nope": 1},
            "create_hypernetwork() got an unexpected keyword argument 'nope'",
        ),
    ],
)
def test_creating_with_wrong_arguments_fails_as_a_call_does(
    steady: Webui, path: str, arguments: Any, text: str
) -> None:
    assert error(steady, path, arguments) == ("TypeError", text)


def test_creating_and_training_say_that_nothing_is_made(steady: Webui) -> None:
    whole = {"name": "x", "num_vectors_per_token": 1, "overwrite_old": True}

    assert "makes no model files" in steady.post("create/embedding", whole).json()["info"]
    assert "trains nothing" in steady.post("train/embedding", {}).json()["info"]
    assert "trains nothing" in steady.post("train/hypernetwork", {}).json()["info"]


@pytest.mark.parametrize(
    ("fields", "kind", "text"),
    [
        (
            {"batch_size": None},
            "TypeError",
            "unsupported operand type(s) for *: 'NoneType' and 'int'",
        ),
        (
            {"steps": None},
            "TypeError",
            "unsupported operand type(s) for //: 'NoneType' and 'NoneType'",
        ),
        (
            {"cfg_scale": None},
            "TypeError",
            "unsupported operand type(s) for *: 'float' and 'NoneType'",
        ),
        (
            {"width": None, "enable_hr": True, "denoising_strength": 0.5},
            "TypeError",
            "unsupported operand type(s) for *: 'NoneType' and 'float'",
        ),
        (
            {"override_settings": {"sd_model_checkpoint": ["alpha"]}},
            "TypeError",
            "unhashable type: 'list'",
        ),
        (
            {"infotext": "x\nSteps: 2, Seed: abc, Size: 64x64"},
            "ValueError",
            "invalid literal for int() with base 10: 'abc'",
        ),
    ],
    ids=str,
)
def test_null_and_worse_fail_as_pythons_operators_do(
    steady: Webui, fields: Any, kind: str, text: str
) -> None:
    body = {key: value for key, value in SMALL.items() if "infotext" not in fields or key != "seed"}

    assert error(steady, "txt2img", {**body, **fields}) == (kind, text)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([False, False, "both"], "Unknown prompt type both"),
        ([False, False, "positive", "dot"], "Unknown variations delimiter dot"),
    ],
)
def test_the_prompt_matrix_knows_its_choices(steady: Webui, arguments: Any, text: str) -> None:
    body = {**SMALL, "script_name": "prompt matrix", "script_args": arguments}

    assert error(steady, "txt2img", body)[1] == text


def test_the_prompt_matrix_of_a_negative_prompt(steady: Webui) -> None:
    answer = steady.generate(
        negative_prompt="bad|worse",
        script_name="prompt matrix",
        script_args=[True, True, "negative", "space", 4],
    )

    assert answer["info"]["all_negative_prompts"] == ["bad", "worse bad"]
    assert answer["info"]["all_seeds"] == [1, 2]


def test_another_script_is_passed_over(steady: Webui) -> None:
    assert pixels(steady.generate(script_name="x/y/z plot")) == pixels(steady.generate())


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"sampler_name": "Euler a", "eta": 0.5}, "Eta: 0.5"),
        ({"sampler_name": "DDIM", "eta": 0.5}, "Eta DDIM: 0.5"),
        ({"override_settings": {"s_churn": 0.5}}, "Sigma churn: 0.5"),
        ({"override_settings": {"token_merging_ratio": 0.3}}, "Token merging ratio: 0.3"),
        ({"override_settings": {"randn_source": "CPU"}}, "RNG: CPU"),
        ({"tiling": True}, "Tiling: True"),
        ({"seed_resize_from_w": 32, "seed_resize_from_h": 48}, "Seed resize from: 32x48"),
        ({"restore_faces": True}, "Face restoration: CodeFormer"),
    ],
    ids=str,
)
def test_what_is_out_of_the_ordinary_is_in_the_infotext(
    webui: Webui, fields: Any, said: str
) -> None:
    answer = webui.generate(**fields)

    assert f", {said}" in answer["info"]["infotexts"][0]
    assert pixels(answer) != pixels(webui.generate(seed=2))


def test_img2img_notes_its_noise(webui: Webui) -> None:
    body = {**SMALL, "init_images": [encoded(Image.new("RGB", (64, 64)))]}
    webui.post("options", {"img2img_extra_noise": 0.1})

    answer = webui.post("img2img", {**body, "initial_noise_multiplier": 0.8}).json()

    text = json.loads(answer["info"])["infotexts"][0]
    assert "Noise multiplier: 0.8, Extra noise: 0.1" in text


@pytest.mark.parametrize("mode", [0, 1, 2, 3, 9])
def test_every_resize_mode_gives_the_size_that_was_asked_for(steady: Webui, mode: int) -> None:
    init = encoded(Image.new("RGB", (100, 40), "red"))

    answer = steady.post("img2img", {**SMALL, "init_images": [init], "resize_mode": mode})

    assert picture(answer.json()).size == (64, 64)


def test_a_mask_on_a_size_that_is_no_multiple_of_8_fails(steady: Webui) -> None:
    body = {**SMALL, "width": 70, "init_images": [encoded(Image.new("RGB", (64, 64)))]}
    body |= {"mask": encoded(Image.new("L", (64, 64), 255)), "inpaint_full_res": False}

    assert error(steady, "img2img", body) == ("ValueError", "images do not match")


def test_a_mask_may_be_the_alpha_of_a_picture_and_may_be_returned(webui: Webui) -> None:
    webui.post("options", {"return_mask": True})
    mask = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    mask.paste((0, 0, 0, 200), (0, 0, 32, 64))
    body = {**SMALL, "init_images": [encoded(Image.new("RGB", (64, 64)))], "mask": encoded(mask)}

    answer = webui.post("img2img", {**body, "inpaint_full_res": False, "mask_blur": 0}).json()

    assert len(answer["images"]) == 2
    assert picture(answer, 1).getpixel((4, 4)) == (255, 255, 255)
    assert picture(answer, 1).getpixel((60, 4)) == (0, 0, 0)


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"n_rows": 1}, (256, 64)),
        ({"n_rows": 0}, (128, 128)),
        ({"grid_prevent_empty_spots": True}, (128, 128)),
        ({"return_grid": False}, (64, 64)),
    ],
    ids=str,
)
def test_the_grid_follows_the_options(webui: Webui, options: Any, size: tuple[int, int]) -> None:
    webui.post("options", options)

    answer = webui.generate(batch_size=2, n_iter=2, save_images=True)

    assert picture(answer).size == size


def test_a_vae_beside_a_checkpoint_or_named_for_it_is_used(webui: Webui, world: Path) -> None:
    folder = world / "Stable-diffusion"
    models.write_vae(folder / "alpha.vae.safetensors", seed="near")
    (folder / "below" / "beta.json").write_text('{"vae": "soft.safetensors"}')
    webui.post("refresh-vae")

    near = webui.generate(override_settings={"sd_model_checkpoint": "beta"})
    beside = webui.generate()

    assert near["info"]["sd_vae_name"] == "soft.safetensors"
    assert beside["info"]["sd_vae_name"] == "alpha.vae.safetensors"
    assert "alpha.vae" not in [one["model_name"] for one in webui.get("sd-models").json()]


def test_a_vae_that_was_deleted_fails_the_job(webui: Webui, world: Path) -> None:
    webui.generate()
    (world / "VAE" / "soft.safetensors").unlink()

    kind, text = error(webui, "txt2img", {"override_settings": {"sd_vae": "soft.safetensors"}})

    assert kind == "AssertionError"
    assert "doesn't exist" in text
    # The override leaked, and taking it back after the next job fails again.
    assert error(webui, "txt2img", {"override_settings": {"sd_vae": "None"}})[0] == kind
    webui.post("options", {"sd_vae": "None"})
    assert webui.generate()["info"]["sd_vae_name"] is None


@pytest.fixture
def foreign(webui: Webui, world: Path) -> dict[str, Any]:
    """What asks for a VAE whose shapes are not those of the checkpoints here."""
    models.write_vae(world / "VAE" / "flux_ae.safetensors", seed="ae", channels=16)
    webui.post("refresh-vae")
    return {"override_settings": {"sd_vae": "flux_ae.safetensors"}}


def test_a_vae_that_fits_in_part_spoils_pictures_until_another_load(
    webui: Webui, foreign: dict[str, Any]
) -> None:
    webui.post("options", {"sd_vae": "None"})  # Else the override leaks, and is in the way.
    good = webui.generate()
    kind, text = error(webui, "txt2img", SMALL | foreign)
    spoilt = webui.generate()

    assert kind == "RuntimeError"
    assert "size mismatch for decoder.conv_in.weight: copying a param with shape" in text
    assert "torch.Size([512, 16, 3, 3]) from checkpoint" in text
    assert spoilt["info"]["sd_vae_name"] is None
    assert pixels(spoilt) != pixels(good)
    webui.generate(override_settings={"sd_model_checkpoint": "beta"})
    back = webui.generate(override_settings={"sd_model_checkpoint": "alpha"})
    assert pixels(back) == pixels(good)


def test_a_vae_that_fails_with_its_checkpoint_brings_back_the_one_before(
    webui: Webui, foreign: dict[str, Any], world: Path
) -> None:
    good = webui.generate()
    near = world / "Stable-diffusion" / "below" / "beta.vae.safetensors"
    models.write_vae(near, seed="near", channels=16)
    webui.post("refresh-vae")
    beta = {"override_settings": {"sd_model_checkpoint": "beta"}}
    error(webui, "txt2img", SMALL | beta)
    assert pixels(webui.generate()) == pixels(good)

    # With an override that leaked, the one before gets that VAE in part.
    error(webui, "txt2img", SMALL | foreign)
    error(webui, "txt2img", SMALL | beta)
    webui.post("options", {"sd_vae": "None"})
    spoilt = webui.generate()

    assert spoilt["info"]["sd_model_hash"] == good["info"]["sd_model_hash"]
    assert spoilt["info"]["sd_vae_name"] is None
    assert pixels(spoilt) != pixels(good)


def test_an_option_whose_change_fails_goes_back_in_silence(webui: Webui, world: Path) -> None:
    webui.generate()
    before = webui.options()["sd_model_checkpoint"]
    (world / "Stable-diffusion" / "below" / "beta.safetensors").unlink()

    assert webui.post("options", {"sd_model_checkpoint": "beta"}).status_code == 200

    assert webui.options()["sd_model_checkpoint"] == before


def test_a_checkpoint_may_be_named_on_the_command_line(
    start: Start, world: Path, tmp_path: Path
) -> None:
    models.write_checkpoint(tmp_path / "own.safetensors", seed="own")

    webui = start("--models-dir", world, "--ckpt", tmp_path / "own.safetensors")

    assert webui.generate()["info"]["sd_model_name"] == "own"
    assert webui.get("sd-models").json()[0]["model_name"] == "own"


def test_a_vae_may_be_named_on_the_command_line(start: Start, world: Path) -> None:
    webui = start("--models-dir", world, "--vae-path", world / "VAE" / "soft.safetensors")

    assert webui.generate()["info"]["sd_vae_name"] == "soft.safetensors"


def test_a_hypernetwork_is_listed(webui: Webui, world: Path) -> None:
    (world / "hypernetworks").mkdir()
    (world / "hypernetworks" / "hyper.pt").write_bytes(b"x")

    assert [one["name"] for one in webui.get("hypernetworks").json()] == ["hyper"]


def test_a_config_beside_a_checkpoint_is_named(webui: Webui, world: Path) -> None:
    config = world / "Stable-diffusion" / "alpha.yaml"
    config.write_text("model: {}")

    assert webui.get("sd-models").json()[0]["config"] == str(config)


def test_the_lora_of_an_infotext_is_called_as_it_is_called_here(webui: Webui, world: Path) -> None:
    answer = webui.generate(prompt="<lora:detail:1> a cat")
    (world / "Lora" / "detail.safetensors").rename(world / "Lora" / "renamed.safetensors")
    webui.post("refresh-loras")
    webui.generate(prompt="<lora:renamed:1>")

    found = webui.post("png-info", {"image": answer["images"][0]}).json()

    assert found["parameters"]["Prompt"] == "<lora:more detail:1> a cat"


def test_a_deleted_lora_leaves_its_trace_in_text_that_was_encoded_with_it(
    webui: Webui, world: Path
) -> None:
    plain = webui.generate()
    prompt = "a cat <lora:detail:1>"
    with_lora = webui.generate(prompt=prompt)
    (world / "Lora" / "detail.safetensors").unlink()

    right_after = webui.generate(prompt=prompt)

    assert "Lora hashes" not in right_after["info"]["infotexts"][0]
    assert pixels(right_after) not in {pixels(plain), pixels(with_lora)}
    webui.generate()
    assert pixels(webui.generate(prompt=prompt)) == pixels(plain)


@pytest.fixture
def site() -> Iterator[str]:
    """A web server that serves a picture, and nonsense."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            content = encoded(Image.new("RGB", (64, 64), "red")) if "red" in self.path else "eA=="
            self.wfile.write(base64.b64decode(content))

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_urls_of_pictures_are_fetched_when_the_config_allows_local_ones(
    start: Start, world: Path, tmp_path: Path, site: str
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "config.json").write_text('{"api_forbid_local_requests": false}')
    webui = start("--models-dir", world, "--data-dir", data)

    assert webui.post("png-info", {"image": f"{site}/red.png"}).status_code == 200
    assert error(webui, "png-info", {"image": f"{site}/x"})[1] == "Invalid image url"
    kind, _ = error(webui, "png-info", {"image": "http://127.0.0.1:1/x"})
    assert kind == "ConnectionError"


def test_urls_can_be_forbidden_altogether(start: Start, world: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "config.json").write_text('{"api_enable_requests": false}')
    webui = start("--models-dir", world, "--data-dir", data)

    body = {"image": "https://example.org/x.png"}
    assert error(webui, "png-info", body)[1] == "Requests not allowed"


def test_a_restart_needs_the_environment_to_allow_it(
    start_process: StartProcess,
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SD_WEBUI_RESTART", "tmp/restart")
    webui = start_process("--models-dir", world, "--data-dir", tmp_path, "--api-server-stop")

    with pytest.raises(OSError, match=r"closed|reset|aborted"):
        webui.post("server-restart")

    assert webui.process.wait(20) == 0
    assert (tmp_path / "tmp" / "restart").exists()
