"""What works on finished pictures: extras, interrogate, and reading an infotext back.

Source: A1111 1.10.1, modules/postprocessing.py, scripts/postprocessing_upscale.py,
postprocessing_gfpgan.py and postprocessing_codeformer.py, modules/upscaler.py.
"""

import html
import re
from collections.abc import Collection, Mapping
from typing import Any

from PIL import Image

from simulator.webui import infotext, pictures
from simulator.webui.failure import HttpError, WebuiError
from simulator.webui.networks import Networks
from simulator.webui.options import Options
from simulator.webui.prompts import Style

_LORA_TAG = re.compile("<lora:([^:]+):")
_NOTHING = "None"


def extras(
    image: Image.Image, fields: Mapping[str, Any], options: Options, upscalers: Collection[str]
) -> tuple[Image.Image, str]:
    """Return the processed picture and the page fragment that says what was done.

    Models that would have to be downloaded are not there: their upscalers only resize, and faces stay
    as they are, though both are said to have worked.

    Raises:
        WebuiError: AssertionError, for an unknown upscaler.
    """
    said: dict[str, object] = {}
    result = image.convert("RGB")
    first = _upscaler(fields["upscaler_1"], upscalers)
    second = _upscaler(fields["upscaler_2"], upscalers)
    if first is not None:
        source = result
        result = _upscaled(source, first, fields, said)
        said["Postprocess upscaler"] = first
        if second is not None and fields["extras_upscaler_2_visibility"] > 0:
            other = _upscaled(source, second, fields, said)
            result = Image.blend(result, other, fields["extras_upscaler_2_visibility"])
            said["Postprocess upscaler 2"] = second
    if fields["gfpgan_visibility"]:
        said["GFPGAN visibility"] = round(fields["gfpgan_visibility"], 3)
    if fields["codeformer_visibility"]:
        said["CodeFormer visibility"] = round(fields["codeformer_visibility"], 3)
        said["CodeFormer weight"] = round(fields["codeformer_weight"], 3)
    line = infotext.line(said)
    if options["enable_pnginfo"]:
        result.info = {**image.info, "postprocessing": line}
    return result, _paragraph(line)


def _upscaler(name: str, upscalers: Collection[str]) -> str | None:
    if name == _NOTHING:
        return None
    if name not in upscalers:
        raise WebuiError("AssertionError", f"could not find upscaler named {name}")
    return name


def _upscaled(
    image: Image.Image, upscaler: str, fields: Mapping[str, Any], said: dict[str, object]
) -> Image.Image:
    wanted = (fields["upscaling_resize_w"], fields["upscaling_resize_h"])
    if fields["resize_mode"] == 1:
        factor = max(wanted[0] / image.width, wanted[1] / image.height)
        said["Postprocess upscale to"] = f"{wanted[0]}x{wanted[1]}"
    else:
        factor = fields["upscaling_resize"]
        said["Postprocess upscale by"] = factor
    size = (int(image.width * factor // 8 * 8), int(image.height * factor // 8 * 8))
    if min(size) <= 0:
        raise WebuiError("ValueError", "height and width must be > 0")
    nearest = Image.Resampling.NEAREST
    resampling = nearest if upscaler == "Nearest" else Image.Resampling.LANCZOS
    result = image.resize(size, resampling)
    if fields["resize_mode"] == 1 and fields["upscaling_crop"]:
        cropped = Image.new("RGB", wanted)
        at = (wanted[0] // 2 - result.width // 2, wanted[1] // 2 - result.height // 2)
        cropped.paste(result, at)
        said["Postprocess crop to"] = f"{cropped.width}x{cropped.height}"
        return cropped
    return result


def _paragraph(text: str) -> str:
    return "<p>" + "<br>\n".join(html.escape(line) for line in text.split("\n")) + "</p>"


def interrogate(model: str) -> dict[str, str]:
    """Return the caption of a picture, which without the models that would find one is an error's.

    Raises:
        HttpError: 404 for an unknown model.
        WebuiError: deepdanbooru fails without its model.
    """
    if model == "clip":
        return {"caption": "<error>"}
    if model == "deepdanbooru":
        raise WebuiError("IndexError", "list index out of range")
    raise HttpError(404, "Model not found")


def png_info(
    image: Image.Image, styles: Mapping[str, Style], options: Options, networks: Networks
) -> dict[str, Any]:
    """Return the infotext in a picture, its other texts, and the parameters read from it."""
    text, items = pictures.read_info(image)
    parameters = infotext.parse(text, styles.values(), options["infotext_styles"])
    parameters["Prompt"] = _with_known_loras(parameters, networks)
    return {"info": text, "items": items, "parameters": parameters}


def _with_known_loras(parameters: Mapping[str, Any], networks: Networks) -> str:
    """Return the prompt with each LoRA called as the file with its hash is called here.

    Source: A1111 1.10.1, extensions-builtin/Lora/scripts/lora_script.py, infotext_pasted.
    """
    prompt = str(parameters["Prompt"])
    listed = str(parameters.get("Lora hashes") or "")
    pairs = (entry.strip().split(":", 1) for entry in listed.split(","))
    hashes = {pair[0].strip(): pair[1].strip() for pair in pairs if len(pair) == 2}

    def renamed(match: re.Match[str]) -> str:
        found = networks.by_shorthash(hashes.get(match[1], ""))
        return f"<lora:{found.alias}:" if found else match[0]

    return _LORA_TAG.sub(renamed, prompt)
