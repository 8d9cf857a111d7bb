"""What a model is for and which base it was made for, told from its header. Pure.

Names of tensors tell the kind; widths of the text encoder's context tell the base: 768 is SD 1.x,
1024 SD 2.x, 2048 SDXL, 1280 SDXL's refiner. What people built on SDXL (Pony, Illustrious, NoobAI) has
SDXL's shapes, and is `sdxl` here.

Source: A1111 1.10.1 modules/sd_models_config.py, modules/textual_inversion/textual_inversion.py,
extensions-builtin/Lora/network.py and network_*.py; InvokeAI backend/model_manager/configs.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import product

from model_cache.weights.header import Header
from schemas.model_ref import Kind

_UNET = "model.diffusion_model."
_INPUT = f"{_UNET}input_blocks.0.0.weight"
_MAX_ALIAS_CHARS = 150
SHAPES, METADATA = "shapes", "metadata"
"""What can tell the base: names and shapes of tensors, or what the maker wrote into the header."""

_WIDTHS = {768: "sd1", 1024: "sd2", 2048: "sdxl"}
_CHECKPOINT_WIDTHS = _WIDTHS | {1280: "sdxl-refiner"}
# Channels of the first layer: a plain UNet takes the 4 of the latent picture.
# Source: A1111 1.10.1, modules/sd_models_config.py, guess_model_config_from_state_dict.
_INPUT_VARIANTS = {9: "-inpaint", 8: "-pix2pix", 5: "-depth"}

_LORA_PARTS = re.compile(
    r"(^lora_(unet|te\d?)_)|([._]lora[._]?(down|up|A|B|mid)\b)|(\.(hada|lokr|oft|boft|glora)_)"
    r"|(\.dora_scale$)|(^bundle_emb\.)"
)
_CONTROLNET_PARTS = re.compile(
    r"^(control_model\.|controlnet_cond_embedding\.|input_hint_block\.|lora_controlnet$|lllite_"
    r"|image_proj\.|ip_adapter\.|adapter\.body\.|body\.\d+\.resnets\.)"
)
_UPSCALER_PARTS = re.compile(
    r"^(params_ema\.|params\.|conv_first\.|model\.0\.weight$|model\.1\.sub\.)"
)
_CROSS_KEY = re.compile(r"attn2[._]to_[kv][._]")
_FLUX_BLOCK = re.compile(r"double_blocks|single_transformer_blocks")
_SD3_BLOCK = re.compile(r"joint_blocks")
# Only SDXL's UNet has more than two transformer blocks in a row.
_DEEP_BLOCK = re.compile(r"transformer_blocks[._][2-9][._]")


@dataclass(frozen=True)
class Nature:
    """What a model is, as far as its header tells."""

    kind: Kind | None
    """None: nothing that we recognise."""
    base: str
    alias: str
    """LoRA: the name that its trainer gave it, which A1111 takes in a tag as well."""
    pickle: bool = False
    """Whether it is a PyTorch pickle, of which nothing else is known."""
    base_by: str = ""
    """What told the base: `shapes` or `metadata`; empty where nothing did."""


def nature(header: Header) -> Nature:
    """Tell what the model with this header is."""
    for kind, base_of in _BASES:
        if base := base_of(header):
            if kind is Kind.LORA:
                return _lora(header, base)
            return Nature(kind, base, "", base_by="" if base == "unknown" else SHAPES)
    return Nature(None, "unknown", "")


def _lora(header: Header, base: str) -> Nature:
    """Return a LoRA's nature: `base` by its layers, as A1111 loads by them; else as its maker says."""
    by = SHAPES
    if base == "unknown":
        base, by = _told_base(header), METADATA
    return Nature(Kind.LORA, base, _alias(header), base_by="" if base == "unknown" else by)


def _any(pattern: re.Pattern[str], names: Iterable[str]) -> bool:
    return any(pattern.search(name) for name in names)


def _starts(header: Header, *prefixes: str) -> bool:
    return any(name.startswith(prefixes) for name in header.shapes)


def _width(header: Header, name: str, axis: int) -> int:
    """Return one dimension of a tensor; 0 if there is no such tensor or dimension."""
    shape = header.shapes.get(name, ())
    return shape[axis] if len(shape) > axis else 0


def _checkpoint_base(header: Header) -> str:
    if _starts(header, f"{_UNET}joint_blocks.", "joint_blocks."):
        return "sd3"
    if _starts(header, f"{_UNET}double_blocks.", "double_blocks."):
        return "flux"
    return _unet_base(header) if _starts(header, _UNET) else ""


def _unet_base(header: Header) -> str:
    variant = _INPUT_VARIANTS.get(_width(header, _INPUT, 1), "")
    if _starts(header, "conditioner.embedders.1."):
        return f"sdxl{variant}"
    if _starts(header, "conditioner.embedders.0.model."):
        return "sdxl-refiner"
    for block in (1, 2, 4):
        key = f"{_UNET}input_blocks.{block}.1.transformer_blocks.0.attn2.to_k.weight"
        base = _CHECKPOINT_WIDTHS.get(_width(header, key, 1))
        if base:
            return base if base == "sdxl-refiner" else base + variant
    return "unknown"


def _vae_base(header: Header) -> str:
    pair = {"encoder.conv_in.weight", "decoder.conv_in.weight"}
    is_vae = pair <= header.shapes.keys() or _starts(header, "first_stage_model.")
    return "unknown" if is_vae else ""


def _upscaler_base(header: Header) -> str:
    return "unknown" if _any(_UPSCALER_PARTS, header.shapes) else ""


def _controlnet_base(header: Header) -> str:
    if not _any(_CONTROLNET_PARTS, header.shapes):
        return ""
    for name, shape in header.shapes.items():
        if _CROSS_KEY.search(name) and len(shape) == 2 and shape[1] in _WIDTHS:
            return _WIDTHS[shape[1]]
    return "unknown"


def _embedding_base(header: Header) -> str:
    # A1111 takes `emb_params`, SDXL's pair, and any file of a single tensor.
    shapes = header.shapes
    if {"clip_g", "clip_l"} <= shapes.keys():
        return "sdxl"
    if "emb_params" not in shapes and len(shapes) != 1:
        return ""
    shape = shapes.get("emb_params", next(iter(shapes.values())))
    known = {768: "sd1", 1024: "sd2", 1280: "sdxl"}.get(shape[-1] if shape else 0, "")
    return known or ("unknown" if "emb_params" in shapes else "")


def _lora_base(header: Header) -> str:
    """Return the base by the names and shapes of layers."""
    names = header.shapes.keys()
    if not _any(_LORA_PARTS, names):
        return ""
    for base, part in (("flux", _FLUX_BLOCK), ("sd3", _SD3_BLOCK)):
        if _any(part, names):
            return base
    if width := _context_width(header):
        return _WIDTHS[width]
    if _starts(header, "lora_te2_") or _any(_DEEP_BLOCK, names):
        return "sdxl"
    return "unknown"


def _context_width(header: Header) -> int:
    """Return the width of the text context that a LoRA was made for; 0 if no layer tells."""
    for name, shape in header.shapes.items():
        if not _CROSS_KEY.search(name) or len(shape) < 2:
            continue
        width = 0
        if re.search(r"lora[._]?(down|A)\b|hada_w1_b$|\.diff$", name):
            width = shape[1]
        elif re.search(r"lokr_w1(_b)?$", name):
            width = shape[1] * _lokr_second(header, name.partition("lokr_")[0])
        if width in _WIDTHS:
            return width
    return 0


def _lokr_second(header: Header, layer: str) -> int:
    """Return the inputs of the second factor of a Kronecker product."""
    return _width(header, f"{layer}lokr_w2", 1) or _width(header, f"{layer}lokr_w2_b", 1)


_TOLD = (
    ("sdxl", ("sdxl", "stable-diffusion-xl")),
    ("sd2", ("sd_v2", "stable-diffusion-v2")),
    ("sd1", ("sd_v1", "stable-diffusion-v1")),
    ("flux", ("flux",)),
    ("sd3", ("sd3", "stable-diffusion-v3")),
)
"""Base -> words of `ss_base_model_version` (kohya) and `modelspec.architecture` (Stability)."""


def _told_base(header: Header) -> str:
    told = [
        header.metadata.get(key, "").lower()
        for key in ("ss_base_model_version", "modelspec.architecture")
    ]
    for base, words in _TOLD:
        if any(word in text for word, text in product(words, told)):
            return base
    return "sd2" if header.metadata.get("ss_v2") == "True" else "unknown"


def _alias(header: Header) -> str:
    """Return the alias of a LoRA; nothing if it is no text that a tag or JSON could carry.

    Source: A1111 1.10.1, extensions-builtin/Lora/network.py, NetworkOnDisk.
    """
    alias = header.metadata.get("ss_output_name", "")
    return alias if alias.isprintable() and len(alias) <= _MAX_ALIAS_CHARS else ""


# The order matters: control LoRAs hold LoRA keys, and checkpoints hold a VAE.
_BASES: tuple[tuple[Kind, Callable[[Header], str]], ...] = (
    (Kind.CONTROLNET, _controlnet_base),
    (Kind.LORA, _lora_base),
    (Kind.CHECKPOINT, _checkpoint_base),
    (Kind.VAE, _vae_base),
    (Kind.EMBEDDING, _embedding_base),
    (Kind.UPSCALER, _upscaler_base),
)
"""Kind -> its base, "unknown" if that cannot be told, or nothing if the file is not of the kind."""
