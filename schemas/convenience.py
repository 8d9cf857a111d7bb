"""What callers of other systems write, as A1111's own fields. Pure.

    DiffusionAPI  "model", "hires": {…}, "scheduler_type", "image", "loras": ["name:0.8"], "fileType"
    RandomSeed    "int_images", "inpainting_mask_inverse", "sampler_name": "DPM ++ SDE"
    diffusers     "num_inference_steps", "guidance_scale"

What is not named here stays as it is; whatever changes is told in a warning. docs/migrating.md shows
each by an example.
Source: the pages by which users of these systems go; for DiffusionAPI its code, too
(mozartdiniz/DiffusionAPI, diffusionapi/main.py: the defaults of `hires`, and that it needs `enabled`).
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from schemas.errors import InvalidInputError, shown
from schemas.job import Float, Int, Job, Text, Txt2Img
from schemas.model_ref import Kind, as_fields

# Another name, and the field that it means.
SYNONYMS = {
    "model": "checkpoint",
    "sd_model_checkpoint": "checkpoint",
    "sd_vae": "vae",
    "num_inference_steps": "steps",
    "guidance_scale": "cfg_scale",
    "int_images": "init_images",
    "inpainting_mask_inverse": "inpainting_mask_invert",
}
# `scheduler_type` of DiffusionAPI, in A1111's words; what else it says may be A1111's own name.
_SCHEDULERS = {
    "default": "Automatic",
    "karras": "Karras",
    "exponential": "Exponential",
    "ddim": "DDIM",
    "pndm": "Automatic",
}
# Without a strength A1111 fails at hires fix (recorded: txt2img_hires_default), and without a point
# to switch at it draws with the refiner from the first step.
# Source: A1111 1.10.1, modules/sd_samplers_common.py, apply_refiner.
_HIRES_STRENGTH = 0.75
_SWITCH_AT = 0.8
_FILE_TYPES = ("jpg", "jpeg", "png", "webp", "avif")
_JPEG_QUALITY = 85  # DiffusionAPI's
# Source: A1111 1.10.1, modules/processing.py.
_NO_MODEL: Mapping[str, list[object]] = {
    "refiner_checkpoint": ["", "None", "none"],
    "hr_checkpoint_name": [""],
}
_SAMPLERS = ("sampler_name", "sampler_index", "hr_sampler_name")
_SCHEDULED = re.compile(r"(.+) (karras|exponential)", re.IGNORECASE)
_WEIGHT = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)", re.ASCII)


class Hires(BaseModel):
    """The second pass, as DiffusionAPI asks for it, with its defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    enabled: bool = False
    scale: Float = Field(2.0, gt=0, le=64)
    upscaler: Text = "Latent"
    steps: Int = Field(20, ge=0, lt=2**31)
    denoising_strength: Float = 0.4


class _Holder(BaseModel):
    """So that errors name the field with its parts."""

    hires: Hires


_HIRES_FIELDS = {
    "scale": "hr_scale",
    "upscaler": "hr_upscaler",
    "steps": "hr_second_pass_steps",
    "denoising_strength": "denoising_strength",
}


def names_image(value: Mapping[str, Any]) -> bool:
    """Return whether a request, as it was sent, brings a picture to begin with."""
    return any(value.get(name) is not None for name in ("init_images", "int_images", "image"))


def translated(value: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the fields that a request means, `null` taken as not given, and warnings.

    Raises:
        InvalidInputError: a field is given twice, in two ways; or one of another system's has a
            value that it cannot have.
        ValidationError: so has one within `hires`.
    """
    given = {name: entry for name, entry in value.items() if entry is not None}
    fields = {name: entry for name, entry in given.items() if name not in SYNONYMS}
    warnings = [
        _put(fields, SYNONYMS[name], entry, name)
        for name, entry in given.items()
        if name in SYNONYMS
    ]
    for name, translate in _TRANSLATIONS.items():
        if name in fields:
            warnings += translate(fields, fields.pop(name))
    _drop_no_models(fields)
    return fields, [*warnings, *_respelled(fields)]


def completed(job: Job) -> tuple[Job, list[str]]:
    """Return `job` with a value where A1111 needs one and has none, and warnings."""
    needed: dict[str, Any] = {}
    if isinstance(job, Txt2Img) and job.enable_hr and job.denoising_strength is None:
        needed["denoising_strength"] = _HIRES_STRENGTH
    if job.refiner_checkpoint is not None and job.refiner_switch_at is None:
        needed["refiner_switch_at"] = _SWITCH_AT
    warnings = [f"`{name}` was not given; {entry} was taken." for name, entry in needed.items()]
    return job.model_copy(update=needed), warnings


def _put(fields: dict[str, Any], name: str, entry: object, spelled: str) -> str:
    """Set a field that the caller spelled in another way; return the warning that says so."""
    if fields.setdefault(name, entry) != entry:
        raise InvalidInputError(
            f"`{spelled}` and `{name}` mean the same, and say different things.", field=spelled
        )
    return f"`{spelled}` was taken as `{name}`."


def _image(fields: dict[str, Any], entry: object) -> list[str]:
    if not isinstance(entry, str):
        raise InvalidInputError("`image` must be one image, as a string.", field="image")
    return [_put(fields, "init_images", [entry], "image")]


def _hires(fields: dict[str, Any], entry: object) -> list[str]:
    if entry == []:
        entry = {}  # as PHP writes an empty object
    if not isinstance(entry, dict):
        raise InvalidInputError("`hires` must be an object.", field="hires")
    given = {key: part for key, part in entry.items() if part is not None}
    hires = _Holder.model_validate({"hires": given}).hires
    if not hires.enabled:
        said = "enabled" in hires.model_fields_set
        return [] if said else ["`hires` has no `enabled`, and was left out."]
    if "init_images" in fields:
        return ["`hires` has no meaning beside an input image, and was left out."]
    _put(fields, "enable_hr", True, "hires.enabled")
    for part, field in _HIRES_FIELDS.items():
        if part in hires.model_fields_set:
            _put(fields, field, getattr(hires, part), f"hires.{part}")
        else:
            fields.setdefault(field, getattr(hires, part))
    return [f"`hires` was taken as {', '.join(f'`{name}`' for name in _HIRES_FIELDS.values())}."]


def _scheduler_type(fields: dict[str, Any], entry: object) -> list[str]:
    word = str(entry)
    warnings = [
        _put(fields, "scheduler", _SCHEDULERS.get(word.lower(), word), "scheduler_type"),
    ]
    if word.lower() == "pndm":
        warnings.append('A1111 has no schedule "pndm"; its sampler "PLMS" is that of PNDM.')
    # There the sampler's name decided nothing.
    sampler = _SCHEDULED.fullmatch(str(fields.get("sampler_name", "")))
    if sampler and fields["scheduler"] not in {"Automatic", sampler[2].capitalize()}:
        fields["sampler_name"] = sampler[1]
        warnings.append(f"`scheduler_type` was taken, not the {shown(sampler[2])} of the sampler.")
    return warnings


def _loras(fields: dict[str, Any], entry: object) -> list[str]:
    fields["loras"] = list(map(_lora, entry)) if isinstance(entry, list) else entry
    return []


def _lora(entry: object) -> object:
    """Return the name and the scale in `name:scale`; a reference or a plain name as it is."""
    if not isinstance(entry, str) or "url" in as_fields(entry, Kind.LORA):
        return entry
    name, _, weight = entry.rpartition(":")
    if not name or not _WEIGHT.fullmatch(weight):
        return entry
    return {"name": name, "scale": float(weight)}


def _file_type(fields: dict[str, Any], entry: object) -> list[str]:
    quality = fields.pop("jpeg_quality", None)
    word = str(entry).lower()
    if word not in _FILE_TYPES:
        raise InvalidInputError(
            f"`fileType` must be {' or '.join(_FILE_TYPES)}, not {shown(entry)}.", field="fileType"
        )
    if word == "png":
        _output(fields, "fileType", format="png")
        return []
    return [_output(fields, "fileType", format=word, quality=quality or _JPEG_QUALITY)]


def _jpeg_quality(fields: dict[str, Any], entry: object) -> list[str]:
    return [_output(fields, "jpeg_quality", format="jpeg", quality=entry)]


def _output(fields: dict[str, Any], spelled: str, **wanted: object) -> str:
    """Put `wanted` into the field `output`; return the warning that says so."""
    given = fields.get("output") or {}
    if not isinstance(given, dict):
        raise InvalidInputError("`output` must be an object.", field="output")
    given = dict(given)
    for name, entry in wanted.items():
        if given.setdefault(name, entry) != entry:
            raise InvalidInputError(
                f"`{spelled}` and `output.{name}` say different things.", field=spelled
            )
    fields["output"] = given
    said = ", ".join(f"`output.{name}` {shown(entry)}" for name, entry in wanted.items())
    return f"`{spelled}` was taken as {said}."


def _drop_no_models(fields: dict[str, Any]) -> None:
    """Drop the names that A1111 takes for no model: requests that list every field have them."""
    for name, nothing in _NO_MODEL.items():
        if fields.get(name) in nothing:
            del fields[name]


def _respelled(fields: dict[str, Any]) -> list[str]:
    """Write samplers as A1111 does where RandomSeed's page puts a space."""
    warnings = []
    for name in _SAMPLERS:
        asked = fields.get(name)
        if isinstance(asked, str) and asked.startswith("DPM ++"):
            fields[name] = asked.replace("DPM ++", "DPM++", 1)
            warnings.append(f"`{name}` {shown(asked)} was taken as {shown(fields[name])}.")
    return warnings


_TRANSLATIONS: Mapping[str, Callable[[dict[str, Any], Any], list[str]]] = {
    "image": _image,
    "hires": _hires,
    "scheduler_type": _scheduler_type,
    "loras": _loras,
    "fileType": _file_type,
    "jpeg_quality": _jpeg_quality,
}
