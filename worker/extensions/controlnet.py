"""ControlNet's units before a job: every name and picture in them is one that the extension takes.

One unit that fails turns all of them off, and A1111 answers 200 with the plain picture and lists the
units as if they had worked, so nothing is left to the extension to find out.
Source: recorded from sd-webui-controlnet v1.1.455: cn_model_unknown, cn_good_and_bad_model,
cn_image_garbage, cn_model_wrong_hash, cn_four_units.
"""

import base64
import difflib
import io
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image, ImageOps

from schemas.controlnet import NONE, SCRIPT, ControlNetUnit, UnitPicture, module_of
from schemas.errors import BackendFailedError, InvalidInputError, shown
from schemas.job import Generation, Img2Img
from schemas.model_ref import Kind
from worker.child.client import WebuiClient
from worker.child.links import LinkFolder
from worker.pictures import images

ROUTE = "/controlnet"
LIST_TIMEOUT_S = 60.0
NO_MODEL = "None"
# Takes maps away from every unit; an operator may have set it in config.json.
NO_MAPS = "control_net_no_detectmap"

# Source: sd-webui-controlnet v1.1.455, internal_controlnet/args.py, accepts_multiple_inputs.
_SEVERAL_INPUTS = ("ip-adapter", "instant_id_face_embedding")
_SENT_AS_IS = (
    *("weight", "resize_mode", "low_vram", "guidance_start", "guidance_end", "pixel_perfect"),
    *("control_mode", "inpaint_crop_input_image", "hr_option", "advanced_weighting"),
    *("pulid_mode", "union_control_type"),
)
_ORIENTATION = 0x0112  # of EXIF
_NEAR = 3
_SLIDERS = ("processor_res", "threshold_a", "threshold_b")

# What RandomSeed's page and older versions of the extension call modules.
_SPELLINGS = {
    "normalbae": "normal_bae",
    "depth_leres_boost": "depth_leres++",
    "fake_scribble": "scribble_hed",
    "seg": "segmentation",
}


@dataclass(frozen=True)
class Control:
    """One enabled unit, as A1111 is asked for it."""

    unit: ControlNetUnit
    name: str | None
    """The name of its model's link, None without a model."""
    body: dict[str, Any]

    @property
    def inputs(self) -> int:
        """How many pictures it looks at, each of which has a map of its own."""
        return max(1, len(self.unit.pictures))


@dataclass
class Controls:
    """The enabled units of a job."""

    controls: list[Control] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def changes(self, job: Generation) -> dict[str, Any]:
        """Return the fields of the request that change. Maps are always asked for: they are the proof."""
        if not self.controls:
            return {}
        script = {"args": [control.body for control in self.controls]}
        return {
            "alwayson_scripts": {**job.alwayson_scripts, SCRIPT: script},
            "send_images": True,
        }

    def name_models(self, extension: "Extension") -> None:
        """Write the models' names as this A1111 lists them, while no other job runs.

        For a moment the extension knows no model at all while it makes its list anew.
        Source: sd-webui-controlnet, scripts/global_state.py, update_cn_models.

        Raises:
            InvalidInputError: the file has another hash than the one that was named.
            WorkerError: the extension does not list it, or A1111 does not answer.
        """
        for control in self.controls:
            if control.name is not None:
                control.body["model"] = _listed(control.unit, control.name, extension)

    @property
    def options(self) -> dict[str, Any]:
        """The options that A1111 needs for it."""
        return {NO_MAPS: False} if self.controls else {}


class Extension:
    """The lists of one A1111's ControlNet. Safe to use from several threads."""

    def __init__(self, client: WebuiClient, links: LinkFolder) -> None:
        self._client = client
        self._links = links
        self._modules: dict[str, dict[str, Any]] | None = None
        self._models: dict[str, str] = {}
        self._models_told = float("-inf")

    def unit_count(self) -> int:
        """Return how many units it takes; it drops further ones in silence."""
        return int(self._client.get(f"{ROUTE}/settings")["control_net_unit_count"])

    def module(self, name: str, field: str) -> dict[str, Any]:
        """Return the preprocessor of this name: its `name`, `model_free` and `sliders`.

        Raises:
            InvalidInputError: there is none; near matches in the hint, and `field` in the details.
        """
        known = self._known_modules()
        plain = name.strip().lower().replace("-", "_").replace(" ", "_")
        for spelling in (name, name.strip().lower(), plain, _SPELLINGS.get(plain, plain)):
            if spelling in known:
                return known[spelling]
        near = [spelling for spelling in known if plain and plain in spelling][:_NEAR]
        near = near or difflib.get_close_matches(plain[:80], known, n=_NEAR, cutoff=0.5)
        offered = " or ".join(repr(match) for match in near) or ", ".join(list(known)[:40])
        raise InvalidInputError(
            f"ControlNet knows no module {shown(name)}.",
            hint=f"Did you mean {offered}?" if near else f"There are: {offered}.",
            field=field,
        )

    def _known_modules(self) -> dict[str, dict[str, Any]]:
        if self._modules is None:
            known: dict[str, dict[str, Any]] = {}
            named = self._client.get(f"{ROUTE}/module_list")
            labelled = self._client.get(f"{ROUTE}/module_list?alias_names=true")
            # Both lists are in one order; A1111 takes the names of either.
            pairs = zip(named["module_list"], labelled["module_list"], strict=True)
            for name, label in pairs:
                known[name] = known[label] = {"name": name, **named["module_detail"][name]}
            self._modules = known
        return self._modules

    def model(self, name: str) -> str:
        """Return "name [hash]" of the model whose link has this name, the one spelling without doubt.

        A part of a name means the model with the shortest name that contains it
        (recorded: cn_model_wrong_case).

        Raises:
            BackendFailedError: the extension does not see the folder of links.
        """
        if name not in self._models or self._models_told <= self._links.changed(Kind.CONTROLNET):
            told = time.monotonic()
            listed = self._client.get(f"{ROUTE}/model_list?update=true", timeout_s=LIST_TIMEOUT_S)
            self._models = {entry.rpartition(" [")[0]: entry for entry in listed["model_list"]}
            self._models_told = told
        if name not in self._models:
            raise BackendFailedError(
                f"ControlNet does not list the model `{name}`.",
                hint="A1111 must be started with --controlnet-dir and the worker's folder of links.",
            )
        return self._models[name]


def controls_of(
    job: Generation,
    extension: Extension,
    max_pixels: int,
    names: Mapping[str, str] | None = None,
) -> Controls:
    """Return the enabled units of `job`, all of them found to be what the extension can work with.

    Args:
        job: the request.
        extension: the lists of the running A1111.
        max_pixels: of one picture, width x height.
        names: what the links of the units' models are called, by the fields that name the models; a
            unit whose model is not among them is left out. None before they are fetched.

    Raises:
        InvalidInputError: a unit cannot work; `details["field"]` says which and why.
        WorkerError: A1111 does not answer.
    """
    units = enabled(job)
    if not units:
        return Controls()
    limit = extension.unit_count()
    if len(units) > limit:
        raise InvalidInputError(
            f"{len(units)} ControlNet units are enabled; this WebUI takes {limit}.",
            field=units[limit].at,
        )
    found = Controls()
    for unit in units:
        at = f"{unit.at}.model"
        if names is not None and unit.model is not None and at not in names:
            continue
        name = names.get(at) if names is not None else None
        body = _body(unit, name, extension, found.warnings)
        body |= _input(unit, body["module"], job, max_pixels)
        found.controls.append(Control(unit, name, body))
    if job.script_name:
        found.warnings.append(
            f"It cannot be checked that ControlNet worked: the script {shown(job.script_name)} draws"
            " as many images as it likes."
        )
    return found


def enabled(job: Generation) -> list[ControlNetUnit]:
    """Return the units of `job` that are to do something."""
    return [unit for unit in job.controlnet_args if unit.enabled]


def not_installed(at: str) -> InvalidInputError:
    """Return the error of a WebUI without the extension."""
    return InvalidInputError(
        "This WebUI has no ControlNet: the extension sd-webui-controlnet is not installed.",
        hint="Use an image that was built with CONTROLNET=on.",
        field=at,
    )


def _body(
    unit: ControlNetUnit, name: str | None, extension: Extension, warnings: list[str]
) -> dict[str, Any]:
    module = extension.module(_module(unit, name, warnings), f"{unit.at}.module")
    if unit.model is None and not module["model_free"]:
        raise InvalidInputError(
            f"The ControlNet unit `{unit.at}` needs a `model` for the module `{module['name']}`.",
            field=f"{unit.at}.model",
        )
    given = {key: getattr(unit, key) for key in _SENT_AS_IS if key in unit.model_fields_set}
    return {
        "enabled": True,
        "module": module["name"],
        "model": NO_MODEL,
        "save_detected_map": True,
        **given,
        **_sliders(unit, module, warnings),
    }


def _module(unit: ControlNetUnit, name: str | None, warnings: list[str]) -> str:
    if unit.module is not None:
        return unit.module
    if unit.model is None:
        raise InvalidInputError(
            f"The ControlNet unit `{unit.at}` names neither a `model` nor a `module`.",
            field=unit.at,
        )
    found = module_of(unit.model.label.rpartition("/")[2]) or module_of(name or "")
    if found is None:
        warnings.append(
            f"`{unit.at}.module` cannot be told from the model's name; the picture is used as it is."
        )
        return NONE
    warnings.append(f"`{unit.at}.module` was taken to be `{found}`, by the model's name.")
    return found


def _listed(unit: ControlNetUnit, name: str, extension: Extension) -> str:
    listed = extension.model(name)
    if unit.short_hash and not listed.endswith(f" [{unit.short_hash}]"):
        raise InvalidInputError(
            f"The ControlNet model here is `{listed}`, not one with [{unit.short_hash}].",
            hint="Leave the hash out, or name the other file.",
            field=f"{unit.at}.model",
        )
    return listed


def _sliders(
    unit: ControlNetUnit, module: Mapping[str, Any], warnings: list[str]
) -> dict[str, float]:
    """Return the sliders that the module has and the unit sets.

    A value out of its range becomes the default, as the extension does (recorded:
    cn_processor_res_bad): clients send one set of values for all modules.
    """
    found: dict[str, float] = {}
    for key, slider in zip(_SLIDERS, module["sliders"], strict=False):
        value = getattr(unit, key)
        if value == -1:
            continue
        if slider["min"] <= value <= slider["max"]:
            found[key] = value
        else:
            warnings.append(
                f"`{unit.at}.{key}` {value:g} is outside {slider['min']:g} to {slider['max']:g} of"
                f" `{module['name']}`; its default {slider['value']:g} was used."
            )
    return found


def _input(unit: ControlNetUnit, module: str, job: Generation, max_pixels: int) -> dict[str, Any]:
    if not unit.pictures and not isinstance(job, Img2Img):
        raise InvalidInputError(
            f"The ControlNet unit `{unit.at}` needs an `image`.", field=f"{unit.at}.image"
        )
    if len(unit.pictures) > 1 and not module.startswith(_SEVERAL_INPUTS):
        raise InvalidInputError(f"The module `{module}` takes one image.", field=f"{unit.at}.image")
    # With `pixel_perfect` the extension takes the picture's own size.
    res = max(job.width, job.height) if unit.pixel_perfect else unit.processor_res
    pictures = [_picture(picture, f"{unit.at}.image", max_pixels, res) for picture in unit.pictures]
    found: dict[str, Any] = {"image": pictures} if len(pictures) > 1 else dict(*pictures)
    if unit.effective_region_mask is not None:
        at = f"{unit.at}.effective_region_mask"
        found["effective_region_mask"], _ = three_channels(
            unit.effective_region_mask, at, max_pixels
        )
    return found


def _picture(picture: UnitPicture, at: str, max_pixels: int, res: int) -> dict[str, str]:
    image, size = three_channels(picture.image, at, max_pixels)
    require_scalable(size, res, at, max_pixels)
    if not picture.mask:
        return {"image": image}
    mask, mask_size = three_channels(picture.mask, f"{at}.mask", max_pixels)
    if mask_size != size:
        raise InvalidInputError(
            f"`{at}` has {size[0]} x {size[1]} pixels and its mask {mask_size[0]} x {mask_size[1]}.",
            hint="Send a mask of the same size.",
            field=f"{at}.mask",
        )
    return {"image": image, "mask": mask}


def require_scalable(size: tuple[int, int], res: int, at: str, max_pixels: int) -> None:
    """Refuse a picture so thin that a preprocessor would make gigabytes of it.

    Its shorter side is scaled to `res` pixels, 512 where that is not above 0.
    Source: sd-webui-controlnet, annotator/util.py, resize_image.

    Raises:
        InvalidInputError: it would have more than `max_pixels` pixels.
    """
    short = res if res > 0 else 512
    if short * short * max(size) / max(1, min(size)) > max_pixels:
        raise InvalidInputError(
            f"`{at}` is too narrow: scaled to {short} pixels it would have more than {max_pixels}.",
            field=at,
        )


def three_channels(text: str, at: str, max_pixels: int) -> tuple[str, tuple[int, int]]:
    """Return an image as base64 and its size (width, height), upright and RGB, whatever it was.

    The extension fails at an alpha channel, and takes the colours of a palette for their numbers.
    Source: sd-webui-controlnet v1.1.455, internal_controlnet/args.py, parse_image.

    Raises:
        InvalidInputError: it is no image, or one of more than `max_pixels`.
    """
    clean = images.image(text, at, max_pixels)
    with Image.open(io.BytesIO(base64.b64decode(clean)), formats=images.FORMATS) as picture:
        is_upright = picture.getexif().get(_ORIENTATION, 1) == 1
        if picture.mode == "RGB" and "transparency" not in picture.info and is_upright:
            return clean, picture.size
        plain = ImageOps.exif_transpose(picture).convert("RGB")
    written = io.BytesIO()
    plain.save(written, "PNG", compress_level=1)
    return base64.b64encode(written.getvalue()).decode(), plain.size
