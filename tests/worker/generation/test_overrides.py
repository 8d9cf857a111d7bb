import json
from pathlib import Path

import pytest

from schemas.errors import InvalidInputError
from worker.generation.overrides import ALLOWED, ALWAYS, CHOICES, checked

ORIGINAL = {
    "sd_model_checkpoint": "a",
    "sd_vae": "Automatic",
    "outdir_samples": "",
    "CLIP_stop_at_last_layers": 1,
    "eta_ddim": 0.0,
    "return_grid": True,
    "emphasis": "Original",
    "upscaler_for_img2img": None,
}
RECORDED = Path(__file__).parents[4] / "shared" / "webui" / "recordings" / "get_options.json"


def test_checkpoint_and_vae_are_left_to_their_fields() -> None:
    assert checked({"sd_model_checkpoint": "b", "sd_vae": "c", "return_grid": False}, ORIGINAL) == {
        "return_grid": False
    }


@pytest.mark.parametrize(
    ("key", "value"),
    [
        pytest.param("CLIP_stop_at_last_layers", 2, id="integer"),
        pytest.param("eta_ddim", 1, id="integer for a number"),
        pytest.param("upscaler_for_img2img", "Lanczos", id="string where null was"),
        pytest.param("upscaler_for_img2img", None, id="null"),
    ],
)
def test_a_fitting_value_is_taken(key: str, value: object) -> None:
    assert checked({key: value}, ORIGINAL) == {key: value}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        pytest.param("outdir_samples", "/runpod-volume", id="a path"),
        pytest.param("samples_save", True, id="saving"),
        pytest.param("no_such_option", 1, id="unknown"),
        pytest.param("CLIP_stop_at_last_layers", "abc", id="poison"),
        pytest.param("CLIP_stop_at_last_layers", 1.5, id="fraction"),
        pytest.param("CLIP_stop_at_last_layers", True, id="bool for a number"),
        pytest.param("return_grid", 1, id="number for a bool"),
        pytest.param("emphasis", None, id="null for a string"),
        pytest.param("eta_ddim", [1], id="list"),
        pytest.param("emphasis", "Orignal", id="misspelt choice"),
        pytest.param("CLIP_stop_at_last_layers", 99, id="beyond the range"),
    ],
)
def test_what_would_poison_or_escape_is_refused(key: str, value: object) -> None:
    with pytest.raises(InvalidInputError) as caught:
        checked({key: value}, ORIGINAL)

    assert caught.value.details["field"] == f"override_settings.{key}"


def test_every_allowed_option_exists_in_a1111() -> None:
    if not RECORDED.exists():
        pytest.skip("no recordings beside this checkout")
    options = json.loads(RECORDED.read_text())["response"]

    assert options.keys() >= ALLOWED | ALWAYS.keys() | CHOICES.keys()
    assert all(options[key] in choices for key, choices in CHOICES.items())
    assert not {key for key in ALLOWED if "dir" in key.split("_") or "path" in key or "url" in key}
