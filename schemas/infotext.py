"""What an infotext, the line that A1111 writes below a picture, says as fields of a request. Pure.

    <prompt>
    Negative prompt: <…>
    Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 42, Size: 512x512, …

A1111 would read the `infotext` of a request by itself, behind every check of names and limits, so it
is taken apart here and only its fields are sent.
Source: A1111 1.10.1, modules/infotext_utils.py, parse_generation_parameters, and modules/api/api.py,
apply_infotext; recorded: txt2img_infotext.
"""

import json
import math
import re
from collections.abc import Mapping
from typing import Any

# A label is short, or a long text without one would be searched again from each of its letters.
_PARAMETER = re.compile(r'(\w[\w \-/]{1,80}):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
_SIZE = re.compile(r"(\d+)x(\d+)")
_NEGATIVE = "Negative prompt:"
_FEWEST_PARAMETERS = 3  # a last line with fewer is part of the prompt
_PROMPT, _NEGATIVE_PROMPT = "Prompt", "Negative prompt"

# Label -> field, for both requests.
_FIELDS = {
    "Steps": "steps",
    "Sampler": "sampler_name",
    "Schedule type": "scheduler",
    "Seed": "seed",
    "Variation seed": "subseed",
    "Variation seed strength": "subseed_strength",
    "Seed resize from-1": "seed_resize_from_w",
    "Seed resize from-2": "seed_resize_from_h",
    "Refiner": "refiner_checkpoint",
    "Refiner switch at": "refiner_switch_at",
    "VAE": "vae",
}
# … and for txt2img alone.
_TXT2IMG_FIELDS = {
    _PROMPT: "prompt",
    _NEGATIVE_PROMPT: "negative_prompt",
    "CFG scale": "cfg_scale",
    "Size-1": "width",
    "Size-2": "height",
    "Batch size": "batch_size",
    "Denoising strength": "denoising_strength",
    "Hires upscale": "hr_scale",
    "Hires upscaler": "hr_upscaler",
    "Hires steps": "hr_second_pass_steps",
    "Hires resize-1": "hr_resize_x",
    "Hires resize-2": "hr_resize_y",
    "Hires checkpoint": "hr_checkpoint_name",
    "Hires sampler": "hr_sampler_name",
    "Hires schedule type": "hr_scheduler",
    "Hires prompt": "hr_prompt",
    "Hires negative prompt": "hr_negative_prompt",
}
# Label -> option, with the type that the option has.
_OPTIONS: dict[str, tuple[str, type[int] | type[float] | type[str]]] = {
    "Clip skip": ("CLIP_stop_at_last_layers", int),
    "ENSD": ("eta_noise_seed_delta", int),
    "RNG": ("randn_source", str),
    "Emphasis": ("emphasis", str),
    "Eta": ("eta_ancestral", float),
    "Eta DDIM": ("eta_ddim", float),
    "NGMS": ("s_min_uncond", float),
    "Token merging ratio": ("token_merging_ratio", float),
    "Token merging ratio hr": ("token_merging_ratio_hr", float),
    "Noise multiplier": ("initial_noise_multiplier", float),
}
# What tells how a picture came about and asks for nothing. A1111 does not change the checkpoint for
# an infotext either. Source: A1111 1.10.1, option `disable_weights_auto_swap`, true by default.
_TELLING = frozenset(
    {"Model", "Model hash", "VAE hash", "Version", "Lora hashes", "TI hashes", "Size-1", "Size-2"}
)


def fields_of(text: str, *, txt2img: bool) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Return the request's fields, its options, and the labels in `text` that are left aside."""
    found = _parameters(text)
    known = _FIELDS | _TXT2IMG_FIELDS if txt2img else _FIELDS
    fields: dict[str, Any] = {
        field: found[label] for label, field in known.items() if label in found
    }
    hires = {"Hires upscale", "Hires resize-1"} & found.keys()
    if txt2img and hires and "Denoising strength" in found:
        fields["enable_hr"] = True
    options: dict[str, Any] = {}
    aside = []
    for label, value in found.items():
        if label in _OPTIONS:
            option, convert = _OPTIONS[label]
            options[option] = _converted(value, convert)
        elif label not in known and label not in _TELLING | _TXT2IMG_FIELDS.keys():
            aside.append(label)
    return fields, options, aside


def _converted(value: str, convert: type[int] | type[float] | type[str]) -> object:
    try:
        converted = convert(value)
    except ValueError:
        return value  # the check of option types says what is wrong with it
    if isinstance(converted, float) and not math.isfinite(converted):
        return value
    return converted


def _parameters(text: str) -> Mapping[str, str]:
    *lines, last = text.strip().split("\n")
    if len(_PARAMETER.findall(last)) < _FEWEST_PARAMETERS:
        lines, last = [*lines, last], ""
    prompts: dict[str, list[str]] = {_PROMPT: [], _NEGATIVE_PROMPT: []}
    into = prompts[_PROMPT]
    for line in lines:
        if line.strip().startswith(_NEGATIVE):
            into = prompts[_NEGATIVE_PROMPT]
        into.append(line.strip().removeprefix(_NEGATIVE).strip())
    found = {label: "\n".join(part).strip("\n") for label, part in prompts.items() if part}
    for label, raw in _PARAMETER.findall(last):
        value = _unquoted(raw)
        if size := _SIZE.fullmatch(value):
            found[f"{label}-1"], found[f"{label}-2"] = size[1], size[2]
        elif value:
            found[label] = value
    return found


def _unquoted(text: str) -> str:
    if len(text) < 2 or text[0] != '"' or text[-1] != '"':
        return text
    try:
        return str(json.loads(text))
    except ValueError:
        return text
