"""What Forge has that A1111 has not, as its sources say; unverified against a live server."""

import subprocess
import sys
from pathlib import Path

import pytest

from simulator import models
from tests.conftest import ROOT
from tests.contract.conftest import Start, Webui, pixels


@pytest.fixture
def forge(start: Start, world: Path) -> Webui:
    models.write_vae(world / "text_encoder" / "clip_l.safetensors", seed="t")
    return start("--models-dir", world, "--forge", "--attention-pytorch", "--always-low-vram")


def test_modules_are_listed_in_place_of_vaes(forge: Webui, world: Path) -> None:
    assert forge.get("sd-vae").status_code == 404
    assert forge.get("sd-modules").json() == [
        {"model_name": "soft.safetensors", "filename": str(world / "VAE" / "soft.safetensors")},
        {
            "model_name": "clip_l.safetensors",
            "filename": str(world / "text_encoder" / "clip_l.safetensors"),
        },
    ]
    assert forge.post("refresh-vae").status_code == 200


def test_nothing_can_be_trained(forge: Webui) -> None:
    assert forge.post("train/embedding", {}).status_code == 404
    assert forge.post("train/hypernetwork", {}).status_code == 404


def test_a_vae_is_chosen_among_the_modules(forge: Webui, world: Path) -> None:
    own = forge.generate()
    module = str(world / "VAE" / "soft.safetensors")
    soft = forge.generate(override_settings={"forge_additional_modules": [module]})

    assert own["info"]["sd_vae_name"] is None
    assert soft["info"]["sd_vae_name"] == "soft.safetensors"
    assert pixels(soft) != pixels(own)
    assert forge.options()["forge_preset"] == "sd"


def test_a1111_has_neither_its_route_nor_its_option(steady: Webui) -> None:
    assert steady.get("sd-modules").status_code == 404
    assert steady.post("options", {"forge_additional_modules": []}).status_code == 500


@pytest.mark.slow
def test_a1111_does_not_take_its_flags(world: Path) -> None:
    command = [sys.executable, "-m", "simulator", "webui", "--models-dir", str(world)]

    done = subprocess.run(
        [*command, "--attention-pytorch"], cwd=ROOT, capture_output=True, check=False
    )

    assert done.returncode == 2
