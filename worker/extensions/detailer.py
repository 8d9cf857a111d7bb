"""What a request may tell ADetailer, which paints faces and hands anew after each picture. Pure.

    {"alwayson_scripts": {"ADetailer": {"args": [true, false, {"ad_model": "face_yolov8n.pt"}]}}}

It looks up models and makes pictures by itself, behind every check of the request. An argument or a model
that it does not know turns all of them off: the picture is answered as it was, with status 200.

Source: Bing-su/adetailer 36189cb, adetailer/args.py, adetailer/ui.py and scripts/!adetailer.py; unverified
against a live server.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from schemas.errors import InvalidInputError, shown
from schemas.settings import JobSettings
from worker.child.parser import require_readable
from worker.extensions.arguments import Arguments, require_count, unfit

SCRIPT = "adetailer"
MODELS_ROUTE = "/adetailer/v1/ad_model"
NO_MODEL = "None"
_PROMPTS = ("ad_prompt", "ad_negative_prompt")
_NAMES = (
    *("ad_model", "ad_model_classes", "ad_checkpoint", "ad_vae", "ad_sampler", "ad_scheduler"),
    *("ad_controlnet_model", "ad_controlnet_module"),
)
_CHOICES: Mapping[str, tuple[str, ...]] = {
    "ad_mask_filter_method": ("Area", "Confidence"),
    "ad_mask_merge_invert": ("None", "Merge", "Merge and Invert"),
}
_SWITCHES = (
    *("ad_tab_enable", "ad_inpaint_only_masked", "ad_use_inpaint_width_height", "ad_use_steps"),
    *("ad_use_cfg_scale", "ad_use_checkpoint", "ad_use_vae", "ad_use_sampler", "ad_restore_face"),
    *("ad_use_noise_multiplier", "ad_use_clip_skip"),
)
_MAX_NUMBER = 4096  # of pixels: masks are widened by as much memory
_RANGES: Mapping[str, tuple[float, float]] = {
    "ad_confidence": (0, 1),
    "ad_mask_k": (0, _MAX_NUMBER),
    "ad_mask_min_ratio": (0, 1),
    "ad_mask_max_ratio": (0, 1),
    "ad_dilate_erode": (-_MAX_NUMBER, _MAX_NUMBER),
    "ad_x_offset": (-_MAX_NUMBER, _MAX_NUMBER),
    "ad_y_offset": (-_MAX_NUMBER, _MAX_NUMBER),
    "ad_mask_blur": (0, _MAX_NUMBER),
    "ad_denoising_strength": (0, 1),
    "ad_inpaint_only_masked_padding": (0, _MAX_NUMBER),
    "ad_inpaint_width": (1, _MAX_NUMBER),
    "ad_inpaint_height": (1, _MAX_NUMBER),
    "ad_steps": (1, _MAX_NUMBER),
    "ad_cfg_scale": (0, _MAX_NUMBER),
    "ad_noise_multiplier": (0.5, 1.5),
    "ad_clip_skip": (1, 12),
    "ad_controlnet_weight": (0, 1),
    "ad_controlnet_guidance_start": (0, 1),
    "ad_controlnet_guidance_end": (0, 1),
}
_KNOWN = frozenset({*_PROMPTS, *_NAMES, *_CHOICES, *_SWITCHES, *_RANGES})
# As earlier versions called them, and with them the older workers' pages and `webuiapi`.
_ALIASES = {"ad_mask_k_largest": "ad_mask_k", "ad_tap_enable": "ad_tab_enable"}
_OF_THE_PAGE = "is_api"
_LOADS = ("ad_use_checkpoint", "ad_use_vae")
_SIDES = ("ad_inpaint_width", "ad_inpaint_height")


def plain(arguments: Sequence[Any]) -> list[Any]:
    """Return the arguments by the names of the version above, and without null, which it refuses."""
    return [_unit(entry) if isinstance(entry, dict) else entry for entry in arguments]


def _unit(given: Mapping[str, Any]) -> dict[str, Any]:
    return {
        _ALIASES.get(name, name): value
        for name, value in given.items()
        if value is not None and name != _OF_THE_PAGE
    }


def models(arguments: Sequence[Any]) -> dict[int, str]:
    """Return the model of each unit that is on, by its place; they are `require_permitted`.

    Source: as above, is_ad_enabled of the script, need_skip of the arguments.
    """
    if arguments[0] is False:
        return {}
    return {
        index: unit["ad_model"]
        for index, unit in enumerate(arguments)
        if isinstance(unit, dict)
        and unit.get("ad_tab_enable", True)
        and unit.get("ad_model", NO_MODEL) != NO_MODEL
    }


def require_permitted(
    arguments: Sequence[object], told: Arguments, field: str, limits: JobSettings
) -> None:
    """Refuse what reaches files, loads models or makes larger pictures than a request may.

    Args:
        arguments: as `plain` returned them.
        told: what A1111 tells of each: two switches, and objects with every name and its default.
        field: the path of the list in the request.
        limits: what one request may ask for.

    Raises:
        InvalidInputError: an argument that is not taken.
    """
    require_count(arguments, len(told), field)
    units = [entry["value"] for entry in told if isinstance(entry.get("value"), dict)]
    known = frozenset(name for unit in units for name in unit) or _KNOWN
    for index, unit in enumerate(arguments):
        at = f"{field}[{index}]"
        if isinstance(unit, dict):
            for key, value in unit.items():
                if key not in known:
                    raise _unknown(key, f"{at}.{key[:80]}")
                _require_fit(key, value, f"{at}.{key}", limits)
            _require_modest(unit, at, limits)
        elif not isinstance(unit, bool):
            raise InvalidInputError(f"`{at}` must be true, false or an object.", field=at)


def _unknown(key: str, field: str) -> InvalidInputError:
    return InvalidInputError(
        f"ADetailer has no argument {shown(key)}.",
        hint="GET /adetailer/v1/schema tells those of the version that runs here.",
        field=field,
    )


def _require_fit(key: str, value: object, field: str, limits: JobSettings) -> None:
    if key in _PROMPTS:
        _require_prompt(value, field, limits)
    elif key in _NAMES:
        if not isinstance(value, str) or "/" in value or "\\" in value:
            raise InvalidInputError(f"`{field}` is no name: {shown(value)}.", field=field)
    elif key in _CHOICES:
        if value not in _CHOICES[key]:
            raise unfit(value, f"one of {', '.join(_CHOICES[key])}", field)
    elif key in _SWITCHES:
        if not isinstance(value, bool):
            raise unfit(value, "true or false", field)
    else:
        _require_number(key, value, field)


def _require_number(key: str, value: object, field: str) -> None:
    # A name that another version has: a switch, or a number that is harmless.
    if key not in _RANGES and isinstance(value, bool):
        return
    least, most = _RANGES.get(key, (-_MAX_NUMBER, _MAX_NUMBER))
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not least <= value <= most:  # type: ignore[operator] # a number by now
        raise unfit(value, f"a number from {least:g} to {most:g}", field)


def _require_prompt(value: object, field: str, limits: JobSettings) -> None:
    if not isinstance(value, str):
        raise unfit(value, "a text", field)
    if len(value) > limits.max_prompt_chars:
        raise InvalidInputError(
            f"`{field}` has {len(value)} characters; the limit is {limits.max_prompt_chars}.",
            field=field,
        )
    require_readable(value, field)


def _require_modest(unit: Mapping[str, Any], field: str, limits: JobSettings) -> None:
    """Look at what is asked for; that numbers are numbers was looked at before."""
    for key in _LOADS:
        if unit.get(key):
            raise InvalidInputError(
                "ADetailer is given no model of its own.",
                hint="It paints with the checkpoint and the VAE of the request.",
                field=f"{field}.{key}",
            )
    if unit.get("ad_steps", 0) > limits.max_steps:
        at = f"{field}.ad_steps"
        raise InvalidInputError(f"`{at}` is more than {limits.max_steps}.", field=at)
    width, height = (unit.get(side, 512) for side in _SIDES)
    if width * height > limits.max_pixels:
        at = f"{field}.{_SIDES[0]}"
        raise InvalidInputError(
            f"{width:g} x {height:g} pixels are more than {limits.max_pixels}.", field=at
        )
