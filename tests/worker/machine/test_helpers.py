import json
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import ModelNotFoundError
from schemas.job import Img2Img, Txt2Img
from worker.machine.helpers import (
    CODEFORMER,
    FOLDERS,
    GFPGAN,
    HELPERS,
    link_helpers,
    missing,
    require_extras,
    require_helpers,
    require_interrogator,
)

ROOT = Path(__file__).parents[3]
RECORDED = ROOT.parent / "shared" / "webui" / "recordings"
BUILT_IN = {"None", "Lanczos", "Nearest"}


@pytest.fixture
def links(tmp_path: Path) -> Path:
    """A folder of links as preflight makes it, without any helper."""
    (tmp_path / "links" / "data" / "models").mkdir(parents=True)
    return tmp_path / "links"


def install(links: Path, *helpers: str) -> None:
    for helper in helpers:
        for file in HELPERS[helper]:
            path = links / "data" / "models" / file.path
            path.parent.mkdir(exist_ok=True)
            path.touch()


@pytest.mark.parametrize(
    ("fields", "options", "field"),
    [
        pytest.param({"restore_faces": True}, {}, "restore_faces", id="faces"),
        pytest.param({}, {"face_restoration": True}, "restore_faces", id="faces by option"),
        pytest.param(
            {"enable_hr": True, "hr_upscaler": "R-ESRGAN 4x+"}, {}, "hr_upscaler", id="hires"
        ),
    ],
)
def test_a_generation_that_needs_what_is_missing_is_refused(
    links: Path, fields: dict[str, Any], options: dict[str, Any], field: str
) -> None:
    with pytest.raises(ModelNotFoundError, match="is not installed here") as caught:
        require_helpers(Txt2Img(**fields), links, options)

    assert caught.value.details["field"] == field
    assert "Put on the volume" in caught.value.hint
    assert "https://" in caught.value.hint


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({}, id="nothing special"),
        pytest.param({"restore_faces": False}, id="no faces"),
        pytest.param({"hr_upscaler": "R-ESRGAN 4x+"}, id="hires is off"),
        pytest.param({"enable_hr": True, "hr_upscaler": "Latent"}, id="needs no file"),
        pytest.param({"enable_hr": True, "hr_upscaler": "4x-UltraSharp"}, id="a file of people"),
        pytest.param({"enable_hr": True}, id="A1111's own choice"),
    ],
)
def test_a_generation_that_needs_no_helper_passes(links: Path, fields: dict[str, Any]) -> None:
    require_helpers(Txt2Img(**fields), links)

    assert missing(CODEFORMER, links)


def test_the_restorer_that_is_asked_for_is_the_one_that_must_be_there(links: Path) -> None:
    install(links, GFPGAN)
    gfpgan = {"face_restoration_model": "GFPGAN"}

    require_helpers(Txt2Img(restore_faces=True, override_settings=gfpgan), links)
    require_helpers(Txt2Img(restore_faces=True), links, gfpgan)

    with pytest.raises(ModelNotFoundError) as caught:
        require_helpers(Txt2Img(restore_faces=True), links)
    assert caught.value.details["missing"] == ["Codeformer/codeformer-v0.1.0.pth"]


def test_the_upscaler_of_an_img2img_must_be_there(links: Path) -> None:
    job = Img2Img(init_images=["…"], override_settings={"upscaler_for_img2img": "SwinIR 4x"})

    with pytest.raises(ModelNotFoundError, match=r"^SwinIR 4x is not installed"):
        require_helpers(job, links)

    install(links, "SwinIR 4x")
    require_helpers(job, links)


@pytest.mark.parametrize(
    ("payload", "helper"),
    [
        pytest.param({"gfpgan_visibility": 0.5}, "GFPGAN", id="gfpgan"),
        pytest.param({"codeformer_visibility": 1}, "CodeFormer", id="codeformer"),
        pytest.param({"upscaler_1": "LDSR"}, "LDSR", id="first"),
        pytest.param(
            {"upscaler_2": "DAT x2", "extras_upscaler_2_visibility": 0.1}, "DAT x2", id="second"
        ),
        pytest.param({"upscaler_1": "Lanczos", "upscaler_2": "DAT x2"}, None, id="unused"),
        pytest.param({"gfpgan_visibility": 0, "upscaler_1": "None"}, None, id="none"),
        pytest.param({"upscaler_1": ["LDSR"]}, None, id="not ours to judge"),
    ],
)
def test_extras_need_what_they_name(
    links: Path, payload: dict[str, Any], helper: str | None
) -> None:
    if helper is not None:
        with pytest.raises(ModelNotFoundError, match=f"^{helper} is not installed"):
            require_extras(payload, links)
        install(links, helper)

    require_extras(payload, links)


def test_interrogation_needs_its_models(links: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"^clip is not installed here: 2 of"):
        require_interrogator({}, links)

    install(links, "deepdanbooru")
    require_interrogator({"model": "deepdanbooru"}, links)


def test_an_upscaler_that_people_brought_under_the_name_of_a1111s_is_enough(links: Path) -> None:
    (links / "ESRGAN").mkdir()
    (links / "ESRGAN" / "ESRGAN_4x.pth").touch()

    require_extras({"upscaler_1": "ESRGAN_4x"}, links)

    assert missing("ESRGAN_4x", links) == []


def test_what_a1111_would_take_instead_is_enough(links: Path) -> None:
    install(links, CODEFORMER)
    file = links / "data" / "models" / "Codeformer" / "codeformer-v0.1.0.pth"
    file.rename(file.with_name("codeformer.pth"))

    assert missing(CODEFORMER, links) == []


def test_an_a1111_that_somebody_else_started_is_not_judged(tmp_path: Path) -> None:
    require_helpers(Txt2Img(restore_faces=True), tmp_path)

    assert missing(CODEFORMER, tmp_path)


@pytest.mark.skipif(not RECORDED.is_dir(), reason="no recordings beside this checkout")
@pytest.mark.parametrize(
    "recording", ["get_upscalers", "get_realesrgan_models", "get_face_restorers"]
)
def test_every_helper_that_a1111_lists_is_known_with_its_address(recording: str) -> None:
    listed = json.loads((RECORDED / f"{recording}.json").read_text())["response"]

    addresses = {
        entry["name"]: entry.get("model_path") or entry.get("path")
        for entry in listed
        if entry["name"] not in BUILT_IN
    }
    assert addresses.keys() <= HELPERS.keys()
    for name, address in addresses.items():
        # A1111 fetches the other file's address for both. Source: extensions-builtin/ScuNET.
        if address and name != "ScuNET PSNR":
            assert HELPERS[name][0].url == address


def test_links_are_made_to_what_is_there_and_follow_it(tmp_path: Path) -> None:
    image, volume, models = (tmp_path / name for name in ("image", "volume", "models"))
    for source in (image, volume):
        (source / "BLIP").mkdir(parents=True)
        (source / "BLIP" / "caption.pth").write_text(source.name)
    nested = volume / "insightface" / "models" / "buffalo_l"
    nested.mkdir(parents=True)
    (nested / "det.onnx").touch()
    (models / "CLIP").mkdir(parents=True)
    (models / "CLIP" / "ViT-L-14.pt").symlink_to(tmp_path / "gone")
    (volume / "CLIP").mkdir()
    (volume / "CLIP" / "ViT-L-14.pt").touch()

    linked = link_helpers(models, [image, volume, tmp_path / "absent"])

    assert linked == 3
    assert (models / "BLIP" / "caption.pth").read_text() == "image"
    assert (models / "insightface" / "models" / "buffalo_l" / "det.onnx").exists()
    assert (models / "CLIP" / "ViT-L-14.pt").exists()
    assert link_helpers(models, [image, volume]) == 0


def test_every_helper_has_a_folder_that_is_linked() -> None:
    folders = {file.folder for files in HELPERS.values() for file in files}

    assert folders - {"ESRGAN"} <= set(FOLDERS)
