"""The line below a picture: writing it, reading it back, and what a request takes from it.

    <prompt>
    Negative prompt: <…>
    Steps: 20, Sampler: Euler a, …, Lora hashes: "a: 0123456789ab, b: …", Version: v1.10.1

Source: A1111 1.10.1, modules/infotext_utils.py, modules/processing.py, create_infotext, and
modules/api/api.py, apply_infotext.
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from simulator.webui import catalogue
from simulator.webui.failure import WebuiError
from simulator.webui.options import Options
from simulator.webui.prompts import Style, extract_styles

_PARAMETER = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
_SIZE = re.compile(r"^(\d+)x(\d+)$")
_EMPHASIS = re.compile(r"(?<!\\)[(\[]")
_NEGATIVE = "Negative prompt:"
# A last line with fewer is taken for prompt.
_FEWEST_PARAMETERS = 3

# What an infotext means that does not say it.
_DEFAULTS: dict[str, object] = {
    "Clip skip": "1",
    "Hires resize-1": 0,
    "Hires resize-2": 0,
    "Hires sampler": "Use same sampler",
    "Hires schedule type": "Use same scheduler",
    "Hires checkpoint": "Use same checkpoint",
    "Hires prompt": "",
    "Hires negative prompt": "",
    "Mask mode": "Inpaint masked",
    "Masked content": "original",
    "Inpaint area": "Whole picture",
    "Masked area padding": 32,
    "RNG": "GPU",
    "Schedule type": "Automatic",
    "Schedule max sigma": 0,
    "Schedule min sigma": 0,
    "Schedule rho": 0,
    "VAE Encoder": "Full",
    "VAE Decoder": "Full",
    "FP8 weight": "Disable",
    "Refiner switch by sampling steps": False,
}

# Labels whose value becomes an override of an option when a request brings an infotext.
# Source: A1111 1.10.1, modules/shared_options.py, `infotext=` of each option.
_OVERRIDES = {
    "Model hash": "sd_model_checkpoint",
    "Emphasis": "emphasis",
    "Clip skip": "CLIP_stop_at_last_layers",
    "RNG": "randn_source",
    "Tiling": "tiling",
    "VAE": "sd_vae",
    "VAE Encoder": "sd_vae_encode_method",
    "VAE Decoder": "sd_vae_decode_method",
    "Conditional mask weight": "inpainting_mask_weight",
    "Noise multiplier": "initial_noise_multiplier",
    "Extra noise": "img2img_extra_noise",
    "NGMS": "s_min_uncond",
    "Token merging ratio": "token_merging_ratio",
    "Token merging ratio hr": "token_merging_ratio_hr",
    "FP8 weight": "fp8_storage",
    "Cache FP16 weight for LoRA": "cache_fp16_weight",
    "Refiner switch by sampling steps": "refiner_switch_by_sample_steps",
    "Eta DDIM": "eta_ddim",
    "Eta": "eta_ancestral",
    "Sigma churn": "s_churn",
    "Sigma tmin": "s_tmin",
    "Sigma tmax": "s_tmax",
    "Sigma noise": "s_noise",
    "Schedule min sigma": "sigma_min",
    "Schedule max sigma": "sigma_max",
    "Schedule rho": "rho",
    "ENSD": "eta_noise_seed_delta",
    "Discard penultimate sigma": "always_discard_next_to_last_sigma",
    "SGM noise multiplier": "sgm_noise_multiplier",
    "UniPC variant": "uni_pc_variant",
    "UniPC skip type": "uni_pc_skip_type",
    "UniPC order": "uni_pc_order",
    "UniPC lower order final": "uni_pc_lower_order_final",
}

# Fields that an infotext fills: those of the tabs' scripts for both requests, those of the tab itself
# for txt2img alone, where the tab names its API fields.
_SCRIPT_FIELDS = {
    "Steps": "steps",
    "Seed": "seed",
    "Variation seed": "subseed",
    "Variation seed strength": "subseed_strength",
    "Seed resize from-1": "seed_resize_from_h",
    "Seed resize from-2": "seed_resize_from_w",
    "Refiner": "refiner_checkpoint",
    "Refiner switch at": "refiner_switch_at",
}
_TXT2IMG_FIELDS = {
    "Prompt": "prompt",
    "Negative prompt": "negative_prompt",
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
    "Hires prompt": "hr_prompt",
    "Hires negative prompt": "hr_negative_prompt",
}


def quote(value: object) -> str:
    """Return a value as the line carries it: quoted when it has a comma, a colon or a line break."""
    text = str(value)
    if not any(mark in text for mark in ",\n:"):
        return text
    return json.dumps(text, ensure_ascii=False)


def line(parameters: Mapping[str, object]) -> str:
    """Return "name: value, …" of the parameters that are not None."""
    return ", ".join(
        name if name == value else f"{name}: {quote(value)}"
        for name, value in parameters.items()
        if value is not None
    )


def compose(prompt: str, negative_prompt: str, parameters: Mapping[str, object]) -> str:
    """Return a whole infotext."""
    negative = f"\nNegative prompt: {negative_prompt}" if negative_prompt else ""
    return f"{prompt}{negative}\n{line(parameters)}".strip()


def parse(text: str, styles: Iterable[Style], style_mode: str) -> dict[str, Any]:
    """Return the parameters in an infotext, with `Prompt`, `Negative prompt` and the defaults.

    `style_mode` is the option `infotext_styles`.
    """
    *lines, last = text.strip().split("\n")
    if len(_PARAMETER.findall(last)) < _FEWEST_PARAMETERS:
        lines.append(last)
        last = ""
    prompt, negative = _prompts(lines)
    found = _parameters(last)
    if style_mode != "Ignore":
        names, prompt, negative = extract_styles(prompt, negative, styles)
        if names or style_mode == "Apply":
            found["Styles array"] = names
    found["Prompt"] = prompt
    found["Negative prompt"] = negative
    found |= {name: default for name, default in _DEFAULTS.items() if name not in found}
    if "Emphasis" not in found and _EMPHASIS.search(prompt + negative):
        found["Emphasis"] = "Original"
    return found


def _parameters(line: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in _PARAMETER.findall(line):
        size = _SIZE.match(_unquoted(value))
        if size:
            found[f"{name}-1"], found[f"{name}-2"] = size.groups()
        elif value:
            found[name] = _unquoted(value)
    return found


def _prompts(lines: list[str]) -> tuple[str, str]:
    prompt: list[str] = []
    negative: list[str] = []
    into = prompt
    for written in lines:
        text = written.strip()
        if text.startswith(_NEGATIVE):
            into = negative
            text = text.removeprefix(_NEGATIVE).strip()
        into.append(text)
    return "\n".join(prompt).lstrip("\n"), "\n".join(negative).lstrip("\n")


def _unquoted(text: str) -> str:
    if len(text) < 2 or text[0] != '"' or text[-1] != '"':
        return text
    try:
        return str(json.loads(text))
    except ValueError:
        return text


def fill(
    fields: dict[str, Any], given: set[str], parameters: Mapping[str, Any], *, is_txt2img: bool
) -> None:
    """Put into `fields` what an infotext says of those that the request did not send (`given`).

    Raises:
        WebuiError: ValueError, for a number that is none.
    """
    values = {name: parameters.get(label) for label, name in _SCRIPT_FIELDS.items()}
    values |= dict(
        zip(("sampler_name", "scheduler"), _samplers(parameters, "Sampler"), strict=True)
    )
    if is_txt2img:
        values |= {name: parameters.get(label) for label, name in _TXT2IMG_FIELDS.items()}
        values["styles"] = parameters.get("Styles array")
        values["enable_hr"] = "Denoising strength" in parameters
        values |= _hires(parameters)
    for name, value in values.items():
        if name not in given and value is not None:
            fields[name] = _as_type_of(name, value)


def _samplers(parameters: Mapping[str, Any], label: str) -> tuple[str, str]:
    return catalogue.sampler_and_scheduler(parameters.get(label), parameters.get("Schedule type"))


def _hires(parameters: Mapping[str, Any]) -> dict[str, str]:
    """Return the sampler and scheduler of the second pass, `Use same …` where they do not differ."""
    sampler = parameters.get("Hires sampler")
    scheduler = parameters.get("Hires schedule type")
    found = catalogue.sampler_and_scheduler(
        parameters.get("Sampler") if sampler == "Use same sampler" else sampler,
        parameters.get("Schedule type") if scheduler == "Use same scheduler" else scheduler,
    )
    return {
        "hr_sampler_name": (
            "Use same sampler" if found[0] == parameters.get("Sampler") else found[0]
        ),
        "hr_scheduler": (
            "Use same scheduler" if found[1] == parameters.get("Schedule type") else found[1]
        ),
    }


def _as_type_of(name: str, value: Any) -> Any:
    schemas = catalogue.openapi()["components"]["schemas"]
    declared = schemas["StableDiffusionProcessingTxt2Img"]["properties"].get(name, {}).get("type")
    convert = {"integer": int, "number": float, "string": str, "boolean": bool}.get(declared)
    if convert is None or type(value) is convert:
        return value
    try:
        return convert(value)
    except ValueError as error:
        raise WebuiError("ValueError", str(error)) from error


def overrides(parameters: Mapping[str, Any], options: Options) -> dict[str, Any]:
    """Return the options that an infotext asks for and that are set otherwise now."""
    found = {}
    for label, key in _OVERRIDES.items():
        if label not in parameters:
            continue
        if key == "sd_model_checkpoint" and options["disable_weights_auto_swap"]:
            continue
        value = options.cast(key, parameters[label])
        if value != options[key]:
            found[key] = value
    return found
