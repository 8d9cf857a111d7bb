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
from collections.abc import Mapping, Sequence
from typing import Any

from schemas import recall
from schemas.errors import shown
from schemas.model_ref import ModelRef, stem_of

# A label is short, or a long text without one would be searched again from each of its letters.
_PARAMETER = re.compile(r'(\w[\w \-/]{1,80}):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
_SIZE = re.compile(r"(\d+)x(\d+)")
_NEGATIVE = "Negative prompt:"
# DiffusionAPI lists its LoRAs without quotes, and without tags in the prompt.
_DIFFUSION_API = "Version: DiffusionAPI"
_LISTED_LORAS = re.compile(r"(?:^|, )LoRAs: ((?:[^,:]+:-?\d[\d.]*(?:, |$))+)")
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
    "Refiner switch at": "refiner_switch_at",
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
# What names models is read by schemas.recall; the rest asks for nothing.
_TELLING = frozenset(
    {
        "Model", "Model hash", "VAE", "VAE hash", "Refiner", "Hires checkpoint", "Lora hashes",
        "TI hashes", "Version", "Size-1", "Size-2",
    }
)  # fmt: skip
_SAME_MATTER = (
    ({"sampler_name", "sampler_index"}, ("sampler_name", "scheduler")),
    ({"hr_sampler_name"}, ("hr_sampler_name", "hr_scheduler")),
)
# The option that says the same as a field.
_SAME_MODEL = {"sd_model_checkpoint": "checkpoint", "sd_vae": "vae"}
_PROMPTS = ("prompt", "negative_prompt", "hr_prompt", "hr_negative_prompt")
_MAX_SHOWN = 10


def taken(fields: dict[str, Any], *, txt2img: bool) -> tuple[dict[str, Any], list[str]]:
    """Return `fields` with what their `infotext` says where they say nothing; and warnings.

    Raises:
        InvalidInputError: it names a model by no name and no hash that a file can have.
    """
    rest = {name: entry for name, entry in fields.items() if name != "infotext"}
    text, listed = _without_listed(str(fields["infotext"]))
    parameters = _parameters(text)
    said, options, aside = _fields_of(parameters, txt2img=txt2img)
    own = rest.get("override_settings", {})
    if isinstance(own, dict):
        rest["override_settings"] = {**options, **own}
        for option, field in _SAME_MODEL.items():
            if own.get(option) is not None:
                said.pop(field, None)
    # What the request says in another way, it says, too.
    for own_names, of_infotext in _SAME_MATTER:
        if own_names & rest.keys():
            for name in of_infotext:
                said.pop(name, None)
    merged = said | ({"loras": listed} if listed else {}) | rest
    _add_named(merged, parameters)
    names = ", ".join(shown(label) for label in aside[:_MAX_SHOWN])
    return merged, [f"What the infotext says of {names} was left aside."] if aside else []


def _without_listed(text: str) -> tuple[str, list[dict[str, str]]]:
    """Return an infotext without the LoRAs that DiffusionAPI lists, and those."""
    match = _LISTED_LORAS.search(text) if _DIFFUSION_API in text else None
    if match is None:
        return text, []
    entries = (entry.rpartition(":") for entry in match[1].rstrip(", ").split(", "))
    loras = [{"name": name.strip(), "scale": scale} for name, _, scale in entries]
    return f"{text[: match.start()]}, {text[match.end() :]}", loras


def _add_named(fields: dict[str, Any], parameters: Mapping[str, str]) -> None:
    """Add the LoRAs and embeddings that the prompts name, of those whose hashes are told."""
    is_hires = fields.get("enable_hr") is True
    texts = [
        str(fields.get(name, "")) for name in _PROMPTS if is_hires or not name.startswith("hr_")
    ]
    found: dict[str, Sequence[ModelRef]] = {
        "loras": recall.loras(parameters, "\n".join(texts)),
        "embeddings": recall.embeddings(parameters, "\n".join(texts)),
    }
    if fields.get("disable_extra_networks") is True:
        del found["loras"]
    for field, refs in found.items():
        given = fields.get(field, [])
        if refs and isinstance(given, list):
            names = {_name_of(entry) for entry in given}
            fields[field] = [*given, *(ref for ref in refs if ref.name not in names)]


def _name_of(entry: object) -> object:
    name = entry.get("name") if isinstance(entry, dict) else entry
    return stem_of(name) if isinstance(name, str) else None


def _fields_of(
    found: Mapping[str, str], *, txt2img: bool
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Return the request's fields, its options, and the labels that are left aside."""
    known = _FIELDS | _TXT2IMG_FIELDS if txt2img else _FIELDS
    fields: dict[str, Any] = {
        field: found[label] for label, field in known.items() if label in found
    } | recall.models(found)
    if not txt2img:
        fields.pop("hr_checkpoint_name", None)
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
