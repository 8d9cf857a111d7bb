"""What a request may tell ADetailer, which paints faces and hands anew after each picture. Pure.

    {"alwayson_scripts": {"ADetailer": {"args": [true, false, {"ad_model": "face_yolov8n.pt"}]}}}

It looks up models and makes pictures by itself, behind every check of the request.
Source: Bing-su/adetailer 36189cb, adetailer/args.py and scripts/!adetailer.py; unverified against a live
server.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from schemas.errors import InvalidInputError, shown
from schemas.settings import JobSettings
from worker.prompt import require_readable

SCRIPT = "adetailer"
# Every other argument is a number or a switch, and a number in quotes is none here.
_PROMPTS = frozenset({"ad_prompt", "ad_negative_prompt"})
_NAMES = frozenset(
    {
        "ad_model",
        "ad_model_classes",
        "ad_mask_filter_method",
        "ad_mask_merge_invert",
        "ad_checkpoint",
        "ad_vae",
        "ad_sampler",
        "ad_scheduler",
        "ad_controlnet_model",
        "ad_controlnet_module",
    }
)
_LOADS = ("ad_use_checkpoint", "ad_use_vae")
_MAX_UNITS = 15  # the most that its own settings offer
_MAX_NUMBER = 4096  # of pixels: masks are widened by as much memory
_SIDES = ("ad_inpaint_width", "ad_inpaint_height")


def require_permitted(arguments: Sequence[object], field: str, limits: JobSettings) -> None:
    """Refuse what reaches files, loads models or makes larger pictures than a request may.

    Raises:
        InvalidInputError: an argument that is not taken.
    """
    if len(arguments) > _MAX_UNITS + 2:
        raise InvalidInputError(f"`{field}` has {len(arguments)} arguments.", field=field)
    for index, unit in enumerate(arguments):
        at = f"{field}[{index}]"
        if isinstance(unit, dict):
            for key, value in unit.items():
                _require_plain(key, value, f"{at}.{key[:80]}", limits)
            _require_modest(unit, at, limits)
        elif not isinstance(unit, bool):
            raise InvalidInputError(f"`{at}` must be true, false or an object.", field=at)


def _require_plain(key: str, value: object, field: str, limits: JobSettings) -> None:
    if isinstance(value, str) and key in _PROMPTS:
        if len(value) > limits.max_prompt_chars:
            raise InvalidInputError(
                f"`{field}` has {len(value)} characters; the limit is {limits.max_prompt_chars}.",
                field=field,
            )
        require_readable(value, field)
    elif isinstance(value, str) and key in _NAMES:
        if "/" in value or "\\" in value:
            raise InvalidInputError(f"`{field}` is no name: {shown(value)}.", field=field)
    elif isinstance(value, int | float):
        if abs(value) > _MAX_NUMBER:
            raise InvalidInputError(f"`{field}` is more than {_MAX_NUMBER}.", field=field)
    elif value is not None:
        raise InvalidInputError(f"`{field}` cannot be {shown(value)}.", field=field)


def _require_modest(unit: Mapping[str, Any], field: str, limits: JobSettings) -> None:
    """Look at what is asked for; that numbers are numbers was looked at before."""
    for key in _LOADS:
        if unit.get(key):
            raise InvalidInputError(
                "ADetailer is given no model of its own.",
                hint="It paints with the checkpoint and the VAE of the request.",
                field=f"{field}.{key}",
            )
    if (unit.get("ad_steps") or 0) > limits.max_steps:
        at = f"{field}.ad_steps"
        raise InvalidInputError(f"`{at}` is more than {limits.max_steps}.", field=at)
    width, height = (unit.get(side) or 512 for side in _SIDES)
    if width * height > limits.max_pixels:
        at = f"{field}.{_SIDES[0]}"
        raise InvalidInputError(
            f"{width:g} x {height:g} pixels are more than {limits.max_pixels}.", field=at
        )
