"""Upscalers and other helpers, whose weights A1111 finds in folders of theirs or does without."""

from pathlib import Path
from typing import Any

import pytest

from tests.contract.conftest import Start, Webui, encoded, picture, pixels


def names(webui: Webui) -> list[str]:
    return [entry["name"] for entry in webui.get("upscalers").json()]


@pytest.mark.parametrize("flagged", [True, False])
def test_upscalers_in_esrgans_folder_are_listed_from_the_start_on(
    start: Start, world: Path, tmp_path: Path, *, flagged: bool
) -> None:
    folder = tmp_path / "upscalers" if flagged else world / "ESRGAN"
    folder.mkdir()
    (folder / "4x-Sharp.pth").write_bytes(b"weights")
    flags = ("--esrgan-models-path", folder) if flagged else ()

    webui = start("--models-dir", world, *flags)

    (folder / "later.pth").write_bytes(b"weights")
    webui.post("refresh-checkpoints")
    assert "later" not in names(webui)
    assert "ESRGAN_4x" not in names(webui)
    assert names(webui)[:4] == ["None", "Lanczos", "Nearest", "4x-Sharp"]
    listed = webui.get("upscalers").json()[3]
    assert listed["model_path"] == str(folder / "4x-Sharp.pth")
    large = webui.generate(enable_hr=True, hr_upscaler="4x-Sharp", hr_scale=2, denoising_strength=0)
    assert large["info"]["extra_generation_params"]["Hires upscaler"] == "4x-Sharp"


def test_an_upscaler_that_would_be_fetched_only_resizes(steady: Webui) -> None:
    small = encoded(picture(steady.generate()))

    answers = [
        steady.post("extra-single-image", {"image": small, "upscaler_1": name}).json()
        for name in ("ESRGAN_4x", "Lanczos")
    ]

    assert "Postprocess upscaler: ESRGAN_4x" in answers[0]["html_info"]
    assert image(answers[0]) == image(answers[1])


def image(answer: dict[str, Any]) -> bytes:
    return pixels({"images": [answer["image"]]})


def test_the_flags_of_all_helper_folders_are_taken(start: Start, world: Path) -> None:
    flags = [
        *("codeformer", "gfpgan", "esrgan", "bsrgan", "realesrgan", "dat", "clip", "ldsr"),
        *("scunet", "swinir"),
    ]
    given = [word for name in flags for word in (f"--{name}-models-path", f"/helpers/{name}")]

    shown = start("--models-dir", world, *given).get("cmd-flags").json()

    assert {shown[f"{name}_models_path"] for name in flags} == {f"/helpers/{n}" for n in flags}
