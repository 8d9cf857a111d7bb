"""The ControlNet extension: its models, preprocessors and routes, and what it does to a job.

Whatever fails while units are applied is printed, and the job goes on without any of them: status 200,
the plain picture, and every unit in the infotext as if it had worked.

What a preprocessor draws is not simulated; its map only follows from its input. Preprocessors with
weights of their own work where `--controlnet-annotator-models-path` names a folder: nothing is fetched.

Source: sd-webui-controlnet v1.1.455 (56cec5b), scripts/controlnet.py, scripts/global_state.py and
scripts/api.py; recorded from it on A1111 1.10.1.
"""

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops, ImageFilter, ImageOps, UnidentifiedImageError

from simulator.webui import catalogue, controlnet_units, draw, pictures, weights
from simulator.webui.controlnet_units import Unit
from simulator.webui.failure import HttpError, WebuiError
from simulator.webui.job import Job
from simulator.webui.options import Options

Fields = dict[str, Any]

DEFAULT_UNITS = 3
SCRIPTS = ("controlnet", "controlnet m2m")
UNIT_COUNT = "control_net_unit_count"
NO_MAPS = "control_net_no_detectmap"
# Taken by POST /options and as overrides, and shown by no route.
OPTIONS = frozenset({UNIT_COUNT, NO_MAPS})

_SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors")
# Source: A1111 1.10.1, modules/sd_models.py, model_hash.
_HASHED_FROM, _HASHED_BYTES = 0x100000, 0x10000
_WITHOUT_WEIGHTS = (
    *("none", "canny", "invert", "threshold", "shuffle", "color", "scribble_xdog", "inpaint"),
    *("inpaint_only", "lineart_standard", "tile_resample", "tile_colorfix", "tile_colorfix+sharp"),
    *("reference_only", "reference_adain", "reference_adain+attn", "recolor_luminance"),
    *("recolor_intensity", "blur_gaussian"),
)
# Preprocessors that make no picture, and those that look at several.
# Source: sd-webui-controlnet v1.1.455, scripts/preprocessor, `returns_image`;
# internal_controlnet/args.py, accepts_multiple_inputs.
_NO_PICTURE = ("ip-adapter", "revision", "clip_vision", "instant_id_face_embedding")
_SEVERAL_INPUTS = ("ip-adapter", "instant_id_face_embedding")
_RESIZE = {"Just Resize": 0, "Crop and Resize": 1, "Resize and Fill": 2}


@dataclass(frozen=True)
class Control:
    """One unit, applied."""

    unit: Unit
    maps: tuple[Image.Image, ...]
    """One for each picture that it looks at."""
    is_drawn: bool
    """Whether its preprocessor makes pictures; else each map is what it looked at."""
    decided: str
    """Digest of all of it that the picture depends on."""


class ControlNet:
    """The extension, as long as the program runs."""

    def __init__(self, folders: list[Path], annotators: Path | None, options: Options) -> None:
        """Read the lists.

        Args:
            folders: where models are looked for, with all folders below.
            annotators: where preprocessors have their weights, None if nowhere.
            options: those of the program.
        """
        self._folders = folders
        self._annotators = annotators
        self.options = options
        self._slots = options.data.get(UNIT_COUNT, DEFAULT_UNITS)
        self.models: dict[str, Path] = {}
        """By "name [hash]", sorted by file name."""
        self.update()

    def update(self) -> None:
        """Look for models again."""
        found = [path for folder in self._folders for path in folder.rglob("*")]
        found = sorted((path for path in found if path.suffix in _SUFFIXES), key=lambda p: p.name)
        self.models = {f"{path.stem} [{_old_hash(path)}]": path for path in found if path.is_file()}

    def units(self, always_on: Fields | None) -> list[Unit]:
        """Return the enabled units in a request's `alwayson_scripts`.

        Raises:
            WebuiError: see `controlnet_units.parse`.
        """
        for name, script in (always_on or {}).items():
            if name.lower() == SCRIPTS[0]:
                return controlnet_units.parse(script, self._slots)
        return []

    def apply(self, job: Job) -> list[Control]:
        """Write the units into the infotext; return what they do, nothing if one of them fails."""
        for number, unit in enumerate(job.controlnet):
            job.extra[f"ControlNet {number}"] = unit.infotext()
        try:
            controls = [self._applied(unit, job) for unit in job.controlnet]
        except (WebuiError, HttpError) as error:
            print(f"*** Error running process: controlnet.py: {error}", file=sys.stderr)
            return []
        job.control = tuple(control.decided for control in controls)
        return controls

    def maps(self, controls: list[Control], job: Job) -> list[Image.Image]:
        """Return the detect maps that the answer ends with; with hires fix two of each."""
        if self.options.data.get(NO_MAPS, False):
            return []
        sizes = [(job.width or 0, job.height or 0)]
        if job.enable_hr:
            sizes.insert(0, job.target)
        return [
            pictures.resize(_RESIZE[control.unit.resize_mode], image, *size)
            if control.is_drawn
            else image
            for control in controls
            if control.unit.save_detected_map
            for image in control.maps
            for size in (sizes if control.is_drawn else sizes[:1])
        ]

    def _applied(self, unit: Unit, job: Job) -> Control:
        module = controlnet_units.modules()[unit.module]
        content = "" if module["model_free"] else self._loaded(unit.model)
        inputs = self._inputs(unit, job)
        if not inputs:
            raise WebuiError("ValueError", "controlnet is enabled but no input image is given")
        name = module["name"]
        drawn = [self.detected(name, image, mask) for image, mask in inputs]
        settings = (unit.weight, unit.guidance_start, unit.guidance_end, unit.control_mode)
        mode = _RESIZE[unit.resize_mode]
        seen = [part for image in drawn for part in (image.size, image.tobytes())]
        decided = draw.digest(name, content, settings, (*seen, mode))
        is_drawn = not name.startswith(_NO_PICTURE)
        maps = drawn if is_drawn else [image for image, _ in inputs]
        return Control(unit, tuple(maps), is_drawn, decided)

    def _loaded(self, name: str) -> str:
        """Return the digest of the model that a name means, which may be any part of its name."""
        path = self.models.get(name) or self._closest(name.lower())
        if path is None:
            raise WebuiError("RuntimeError", f"model not found: {name}")
        if path.suffix == ".safetensors":
            weights.read_header(path)
        return weights.fingerprint(path)

    def _closest(self, name: str) -> Path | None:
        by_name = {path.stem.lower(): path for path in self.models.values()}
        if not name or name in by_name:
            return by_name.get(name)
        containing = sorted((stem for stem in by_name if name in stem), key=len)
        return by_name[containing[0]] if containing else None

    def _inputs(self, unit: Unit, job: Job) -> list[tuple[Image.Image, Image.Image | None]]:
        """Return the pictures that a unit looks at, each with its mask."""
        image: Any = unit.image
        if image is None:
            if not job.init_images:
                return []
            return [(job.init_images[0].convert("RGB"), job.mask)]
        if isinstance(image, list) and image and isinstance(image[0], dict):
            given = [(entry.get("image"), entry.get("mask")) for entry in image]
        elif isinstance(image, list):
            if len(image) != 2:
                raise WebuiError("AssertionError")
            given = [(image[0], image[1])]
        elif isinstance(image, dict):
            given = [(image.get("image"), image.get("mask"))]
        else:
            given = [(image, unit.mask)]
        if len(given) > 1 and not unit.module.startswith(_SEVERAL_INPUTS):
            raise WebuiError("AssertionError")
        return [self._masked(*both) for both in given]

    def _masked(self, image: object, mask: object) -> tuple[Image.Image, Image.Image | None]:
        seen, covered = self.picture(image), self.picture(mask) if mask is not None else None
        if covered is not None and covered.size != seen.size:
            raise WebuiError("ValueError", f"image shape {seen.size} not aligned with mask shape")
        return seen, covered

    def picture(self, text: object) -> Image.Image:
        """Return a picture of three channels; a string that is a path here is opened as a file.

        Raises:
            HttpError: it is no picture.
            WebuiError: it is no text, or has an alpha channel.
        """
        if not isinstance(text, str):
            raise WebuiError("ValueError", f"Unrecognized image format {text}.")
        image = _opened(Path(text)) if _is_file(text) else pictures.decode(text, self.options)
        if len(image.getbands()) not in {1, 3}:
            raise WebuiError("AssertionError")
        return image.convert("RGB")

    def detected(self, module: str, image: Image.Image, mask: Image.Image | None) -> Image.Image:
        """Return what a preprocessor makes of a picture.

        Raises:
            WebuiError: URLError, when its weights are not there.
        """
        if module not in _WITHOUT_WEIGHTS and not (self._annotators and self._annotators.is_dir()):
            raise WebuiError("URLError", "<urlopen error [Errno -2] Name or service not known>")
        return _drawn(module, image, mask)


def installed(
    folders: tuple[Path, ...], annotators: Path | None, options: Options
) -> ControlNet | None:
    """Return the extension, None if there are no folders for its models."""
    return ControlNet(list(folders), annotators, options) if folders else None


def listed(scripts: list[str]) -> list[str]:
    """Return the scripts that a tab offers, with the extension's."""
    at = scripts.index("refiner")
    return [*scripts[:at], *SCRIPTS, *scripts[at:]]


def script_info() -> list[Fields]:
    """Return what /script-info tells of the extension's scripts, for both tabs."""
    data = catalogue.load("controlnet")
    arguments = ([data["unit"]] * DEFAULT_UNITS, data["video_script"])
    return [
        {"name": name, "is_alwayson": name == SCRIPTS[0], "is_img2img": tab, "args": args}
        for tab in (False, True)
        for name, args in zip(SCRIPTS, arguments, strict=True)
    ]


def _old_hash(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(_HASHED_FROM)
        return hashlib.sha256(file.read(_HASHED_BYTES)).hexdigest()[:8]


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # base64 is longer than a name may be
        return False


def _opened(path: Path) -> Image.Image:
    try:
        image = Image.open(path)
        image.load()
    except UnidentifiedImageError as error:
        raise WebuiError("UnidentifiedImageError", str(error)) from error
    return image


def _drawn(module: str, image: Image.Image, mask: Image.Image | None) -> Image.Image:
    if "inpaint" in module:
        covered = mask.convert("L").resize(image.size) if mask else Image.new("L", image.size)
        image = image.convert("RGBA")
        image.putalpha(ImageOps.invert(covered))
        return image
    if module != "none":
        edges = image.convert("L").filter(ImageFilter.FIND_EDGES)
        tint = int(draw.digest(module)[:2], 16)
        image = ImageOps.colorize(edges, "black", "white", mid=(tint, 255 - tint, tint // 2))
    if mask is not None:
        image = ImageChops.multiply(image, ImageOps.invert(mask.convert("RGB").resize(image.size)))
    return image
