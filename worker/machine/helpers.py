"""Weights that A1111 does without in silence: face restoration, upscalers, interrogation.

Where one is missing A1111 tries to fetch it in the midst of the job, and without the network answers
200 with the picture as it was (recorded: extras_single_codeformer, extras_single_gfpgan,
txt2img_restore_faces, interrogate_default). So a request that needs one is judged before.

    <links>/data/models/Codeformer/codeformer-v0.1.0.pth     `data` leads to A1111's data folder;
    <links>/data/models/GFPGAN/GFPGANv1.4.pth                preflight links there what it finds in
    <links>/data/models/RealESRGAN/RealESRGAN_x4plus.pth     the image, beside A1111, on the volume
    <links>/ESRGAN/…                                         upscalers: models as others, see links.py
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.errors import ModelNotFoundError
from schemas.job import Generation, Img2Img, Txt2Img
from schemas.model_ref import Kind
from worker.child import links as link_folder
from worker.machine.places import DATA

# Folders of A1111's `models` that hold helpers of its own and of well-known extensions (ADetailer,
# ReActor). ESRGAN is not here: it is a folder of links to upscalers.
FOLDERS = (
    "Codeformer",
    "GFPGAN",
    "RealESRGAN",
    "DAT",
    "SwinIR",
    "ScuNET",
    "LDSR",
    "BLIP",
    "CLIP",
    "torch_deepdanbooru",
    "VAE-approx",
    "VAE-taesd",
    "adetailer",
    "insightface",
    "reactor",
)
# Homes of A1111's `models` on a volume, as people have them.
HOMES = ("models", "stable-diffusion-webui/models", "stable-diffusion-webui-forge/models")


@dataclass(frozen=True)
class HelperFile:
    """One file that A1111 loads, and where it would fetch it from."""

    folder: str
    """Below A1111's `models`."""
    name: str
    """As A1111 saves it."""
    url: str
    pattern: str = ""
    """What A1111 takes in its place; empty: nothing else."""

    @property
    def path(self) -> str:
        """Where it belongs, below `models`."""
        return f"{self.folder}/{self.name}"

    def is_in(self, links: Path, sources: Iterable[Path]) -> bool:
        """Return whether it is in a folder of links, or in one of `sources`, laid out as `models`."""
        if self.folder == link_folder.FOLDERS[Kind.UPSCALER]:
            sources = [links]
        return any(
            file.is_file()
            for source in sources
            for file in (source / self.folder).glob(self.pattern or self.name)
        )


_GITHUB = "https://github.com"
_REALESRGAN = f"{_GITHUB}/xinntao/Real-ESRGAN/releases/download"
_DAT = f"{_GITHUB}/n0kovo/dat_upscaler_models/raw/main/DAT"
_KAIR = f"{_GITHUB}/cszn/KAIR/releases/download/v1.0"
_LDSR = "https://heibox.uni-heidelberg.de/f"
# Both kinds of face restoration find faces by these, in the folder of GFPGAN.
# Source: A1111 1.10.1, modules/face_restoration_utils.py, patch_facexlib; facexlib 0.3.0.
_FACES = (
    HelperFile(
        "GFPGAN",
        "detection_Resnet50_Final.pth",
        f"{_GITHUB}/xinntao/facexlib/releases/download/v0.1.0/detection_Resnet50_Final.pth",
    ),
    HelperFile(
        "GFPGAN",
        "parsing_parsenet.pth",
        f"{_GITHUB}/xinntao/facexlib/releases/download/v0.2.2/parsing_parsenet.pth",
    ),
)
_SCUNET = HelperFile("ScuNET", "ScuNET.pth", f"{_KAIR}/scunet_color_real_gan.pth")


def _realesrgan(path: str) -> tuple[HelperFile, ...]:
    return (HelperFile("RealESRGAN", path.rpartition("/")[2], f"{_REALESRGAN}/{path}"),)


CODEFORMER = "CodeFormer"
GFPGAN = "GFPGAN"

# By the names that A1111 lists, and the two interrogators. An upscaler that is not here is a file that
# is here, or needs none.
# Source: A1111 1.10.1, modules/codeformer_model.py, gfpgan_model.py, realesrgan_model.py, dat_model.py,
# esrgan_model.py, interrogate.py, deepbooru.py; extensions-builtin/{LDSR,ScuNET,SwinIR}; recorded:
# get_upscalers, get_realesrgan_models.
HELPERS: Mapping[str, tuple[HelperFile, ...]] = {
    CODEFORMER: (
        HelperFile(
            "Codeformer",
            "codeformer-v0.1.0.pth",
            f"{_GITHUB}/sczhou/CodeFormer/releases/download/v0.1.0/codeformer.pth",
            pattern="*.pth",
        ),
        *_FACES,
    ),
    GFPGAN: (
        HelperFile(
            "GFPGAN",
            "GFPGANv1.4.pth",
            f"{_GITHUB}/TencentARC/GFPGAN/releases/download/v1.3.0/GFPGANv1.4.pth",
            pattern="*GFPGAN*.pth",
        ),
        *_FACES,
    ),
    "R-ESRGAN General 4xV3": _realesrgan("v0.2.5.0/realesr-general-x4v3.pth"),
    "R-ESRGAN General WDN 4xV3": _realesrgan("v0.2.5.0/realesr-general-wdn-x4v3.pth"),
    "R-ESRGAN AnimeVideo": _realesrgan("v0.2.5.0/realesr-animevideov3.pth"),
    "R-ESRGAN 4x+": _realesrgan("v0.1.0/RealESRGAN_x4plus.pth"),
    "R-ESRGAN 4x+ Anime6B": _realesrgan("v0.2.2.4/RealESRGAN_x4plus_anime_6B.pth"),
    "R-ESRGAN 2x+": _realesrgan("v0.2.1/RealESRGAN_x2plus.pth"),
    "DAT x2": (HelperFile("DAT", "DAT_x2.pth", f"{_DAT}/DAT_x2.pth"),),
    "DAT x3": (HelperFile("DAT", "DAT_x3.pth", f"{_DAT}/DAT_x3.pth"),),
    "DAT x4": (HelperFile("DAT", "DAT_x4.pth", f"{_DAT}/DAT_x4.pth"),),
    # A1111 lists it only while no other upscaler is in its folder of links.
    "ESRGAN_4x": (HelperFile("ESRGAN", "ESRGAN_4x.pth", f"{_KAIR}/ESRGAN.pth"),),
    "LDSR": (
        HelperFile("LDSR", "model.ckpt", f"{_LDSR}/578df07c8fc04ffbadf3/?dl=1", "model.*"),
        HelperFile("LDSR", "project.yaml", f"{_LDSR}/31a76b13ea27482981b4/?dl=1"),
    ),
    # One file for both: A1111 saves whichever it fetches under the name of the extension.
    "ScuNET GAN": (_SCUNET,),
    "ScuNET PSNR": (_SCUNET,),
    "SwinIR 4x": (
        HelperFile(
            "SwinIR",
            "SwinIR_4x.pth",
            f"{_GITHUB}/JingyunLiang/SwinIR/releases/download/v0.0/"
            "003_realSR_BSRGAN_DFOWMFC_s64w8_SwinIR-L_x4_GAN.pth",
        ),
    ),
    "clip": (
        HelperFile(
            "BLIP",
            "model_base_caption_capfilt_large.pth",
            "https://storage.googleapis.com/sfr-vision-language-research/BLIP/models/"
            "model_base_caption_capfilt_large.pth",
            pattern="*.pth",
        ),
        HelperFile(
            "CLIP",
            "ViT-L-14.pt",
            "https://openaipublic.azureedge.net/clip/models/"
            "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836/ViT-L-14.pt",
        ),
    ),
    "deepdanbooru": (
        HelperFile(
            "torch_deepdanbooru",
            "model-resnet_custom_v3.pt",
            f"{_GITHUB}/AUTOMATIC1111/TorchDeepDanbooru/releases/download/v1/"
            "model-resnet_custom_v3.pt",
            pattern="*.pt",
        ),
    ),
}


def missing(helper: str, links: Path) -> list[HelperFile]:
    """Return the files that `helper`, a name of `HELPERS`, lacks; `links` is A1111_WEBUI_LINKS."""
    return lacking(helper, links, [links / DATA / "models"])


def lacking(helper: str, links: Path, sources: Sequence[Path]) -> list[HelperFile]:
    """Return the files of `helper` that no folder of `sources`, laid out as `models`, has."""
    return [file for file in HELPERS.get(helper, ()) if not file.is_in(links, sources)]


def require_helpers(job: Generation, links: Path, options: Mapping[str, Any] | None = None) -> None:
    """Refuse a generation that A1111 would do without a helper.

    Args:
        job: the request.
        links: A1111_WEBUI_LINKS. Where it has no `data` nothing is judged: preflight was not run,
            so somebody else started that A1111, or it is the simulator.
        options: A1111's own, for what the request leaves to them.

    Raises:
        ModelNotFoundError: the first helper that is missing, with where it belongs.
    """
    _require(_of_generation(job, {**(options or {}), **job.override_settings}), links)


def require_upscaler(field: str, name: str, links: Path) -> None:
    """Refuse the upscaler that `field` names, as `require_helpers` does."""
    _require([(field, name)], links)


def require_extras(payload: Mapping[str, Any], links: Path) -> None:
    """Refuse the body of an extra-single-image or extra-batch-images, as `require_helpers` does."""
    _require(_of_extras(payload), links)


def require_interrogator(payload: Mapping[str, Any], links: Path) -> None:
    """Refuse the body of an interrogate, as `require_helpers` does."""
    _require([("model", payload.get("model") or "clip")], links)


def _of_generation(job: Generation, options: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    asked = job.restore_faces
    # Source: A1111 1.10.1, modules/processing.py, StableDiffusionProcessing.__post_init__.
    if asked or (asked is None and options.get("face_restoration")):
        yield "restore_faces", options.get("face_restoration_model") or CODEFORMER
    if isinstance(job, Txt2Img) and job.enable_hr:
        yield "hr_upscaler", job.hr_upscaler
    if isinstance(job, Img2Img):
        yield "override_settings.upscaler_for_img2img", options.get("upscaler_for_img2img")


def _of_extras(payload: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    if payload.get("gfpgan_visibility"):
        yield "gfpgan_visibility", GFPGAN
    if payload.get("codeformer_visibility"):
        yield "codeformer_visibility", CODEFORMER
    yield "upscaler_1", payload.get("upscaler_1")
    if payload.get("extras_upscaler_2_visibility"):
        yield "upscaler_2", payload.get("upscaler_2")


def _require(needed: Iterable[tuple[str, Any]], links: Path) -> None:
    if not (links / DATA).is_dir():
        return
    for field, helper in needed:
        absent = missing(helper, links) if isinstance(helper, str) else []
        if absent:
            files = ", ".join(f"models/{file.path} ({file.url})" for file in absent)
            raise ModelNotFoundError(
                f"{helper} is not installed here: {len(absent)} of its files are missing.",
                hint=f"Put on the volume, for workers that start from then on: {files}.",
                field=field,
                missing=[file.path for file in absent],
            )


def link_helpers(models: Path, sources: Iterable[Path]) -> int:
    """Link into A1111's `models` every helper of `sources` that it does not have; return how many.

    Args:
        models: A1111's folder, on the container's disk; made if need be.
        sources: folders laid out alike, the nearest first; they need not exist. Read, never
            written: what A1111 fetches by itself goes to the container's disk.

    Raises:
        OSError: a link cannot be made.
    """
    linked = 0
    for folder in FOLDERS:
        (models / folder).mkdir(parents=True, exist_ok=True)
        for source in sources:
            for file in _files(source / folder):
                linked += _link(file, models / folder / file.relative_to(source / folder))
    return linked


def _files(folder: Path) -> Iterator[Path]:
    for place, _, names in os.walk(folder):
        yield from (Path(place, name) for name in sorted(names) if not name.startswith("."))


def _link(file: Path, link: Path) -> bool:
    if link.exists():
        return False
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)  # of an earlier start, to a file that has gone
    link.symlink_to(file)
    return True
