"""Small, valid safetensors files whose headers look like those of real models.

A file is `u64 length of the header | JSON header, padded with spaces | tensor data`. The keys are those
that real files have, and the dimension that tells one base model from another (768, 1024, 2048, …) is
the real one. Dimensions that tell nothing are cut down to a few rows, so that a "checkpoint" weighs
some 100 KB. Every byte follows from `seed`: the same call writes the same file anywhere.

Knows nothing of where a server or a worker looks for such files, but for `seed_world`.

Source: format: README of huggingface/safetensors, "Format". Keys: those that A1111 1.10.1 looks for in
modules/sd_models_config.py, extensions-builtin/Lora/networks.py and
modules/textual_inversion/textual_inversion.py, and those that kohya-ss/sd-scripts writes.
"""

import argparse
import hashlib
import json
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

Tensors: TypeAlias = dict[str, tuple[int, ...]]

CHUNK = 1 << 20
UNET = "model.diffusion_model."
FILLER = "simulated_filler"

# A value below 2 whatever the other bits: without the top bit of its exponent, an F16 is never NaN
# nor infinite, and a reader that looks for NaN in the weights finds none by chance.
_FINITE = bytes(byte & 0b1011_1111 for byte in range(256))
_NAN = struct.pack("<H", 0x7E00)

_SD_AUTOENCODER: Tensors = {
    "first_stage_model.encoder.conv_in.weight": (128, 3, 3, 3),
    "first_stage_model.decoder.conv_in.weight": (512, 4, 3, 3),
    "first_stage_model.post_quant_conv.weight": (4, 4, 1, 1),
}
_SD1_TEXT: Tensors = {
    "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": (8, 768),
    "cond_stage_model.transformer.text_model.final_layer_norm.weight": (768,),
}
_SD_UNET: Tensors = {
    UNET + "input_blocks.0.0.weight": (320, 4, 3, 3),
    UNET + "input_blocks.0.0.bias": (320,),
    UNET + "time_embed.0.weight": (8, 320),
}
_SD1_ATTENTION: Tensors = {
    UNET + "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (8, 768),
    UNET + "input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight": (8, 768),
    UNET + "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": (8, 768),
}
CHECKPOINTS: dict[str, Tensors] = {
    "sd1": _SD_UNET | _SD1_ATTENTION | _SD1_TEXT | _SD_AUTOENCODER,
    "sd1-inpaint": (
        _SD_UNET
        | {UNET + "input_blocks.0.0.weight": (320, 9, 3, 3)}
        | _SD1_ATTENTION
        | _SD1_TEXT
        | _SD_AUTOENCODER
    ),
    "sd2": _SD_UNET
    | {
        UNET + "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (8, 1024),
        UNET + "input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight": (8, 1024),
        "cond_stage_model.model.ln_final.weight": (1024,),
        "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight": (8, 1024),
    }
    | _SD_AUTOENCODER,
    "sdxl": _SD_UNET
    | {
        UNET + "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": (8, 2048),
        UNET + "label_emb.0.0.weight": (8, 2816),
        "conditioner.embedders.0.transformer.text_model.final_layer_norm.weight": (768,),
        "conditioner.embedders.1.model.ln_final.weight": (1280,),
    }
    | _SD_AUTOENCODER,
    "sdxl-refiner": _SD_UNET
    | {
        UNET + "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": (8, 1280),
        UNET + "label_emb.0.0.weight": (8, 2560),
        "conditioner.embedders.0.model.ln_final.weight": (1280,),
    }
    | _SD_AUTOENCODER,
    "flux": {
        "double_blocks.0.img_attn.qkv.weight": (8, 3072),
        "double_blocks.0.img_attn.norm.query_norm.scale": (128,),
        "single_blocks.0.linear1.weight": (8, 3072),
        "txt_in.weight": (8, 4096),
    },
}

# Layers that a LoRA changes: key of the layer -> (outputs, inputs). The inputs of `attn2_to_k` are the
# width of the text encoder's context, by which a base model is known.
_LORA_LAYERS: dict[str, dict[str, tuple[int, int]]] = {
    "sd1": {
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj": (768, 768),
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q": (320, 320),
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k": (320, 768),
    },
    "sd2": {
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj": (1024, 1024),
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k": (320, 1024),
    },
    "sdxl": {
        "lora_te1_text_model_encoder_layers_0_self_attn_q_proj": (768, 768),
        "lora_te2_text_model_encoder_layers_0_self_attn_q_proj": (1280, 1280),
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k": (640, 2048),
        "lora_unet_input_blocks_7_1_transformer_blocks_9_attn2_to_k": (1280, 2048),
    },
    "flux": {"lora_unet_double_blocks_0_img_attn_qkv": (9216, 3072)},
}
_KOHYA_BASES = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0", "flux": "flux1"}
_RANK = 4

EMBEDDINGS: dict[str, Tensors] = {
    "sd1": {"emb_params": (2, 768)},
    "sd2": {"emb_params": (2, 1024)},
    "sdxl": {"clip_g": (2, 1280), "clip_l": (2, 768)},
}
VAE: Tensors = {
    "encoder.conv_in.weight": (128, 3, 3, 3),
    "decoder.conv_in.weight": (512, 4, 3, 3),
    "quant_conv.weight": (8, 8, 1, 1),
    "post_quant_conv.weight": (4, 4, 1, 1),
}
CONTROLNETS: dict[str, Tensors] = {
    base: {
        "control_model.input_hint_block.0.weight": (16, 3, 3, 3),
        "control_model.zero_convs.0.0.weight": (8, 320, 1, 1),
        f"control_model.input_blocks.{block}.1.transformer_blocks.0.attn2.to_k.weight": (8, width),
    }
    for base, block, width in (("sd1", 1, 768), ("sd2", 1, 1024), ("sdxl", 4, 2048))
}
UPSCALER: Tensors = {
    "conv_first.weight": (64, 3, 3, 3),
    "body.0.rdb1.conv1.weight": (32, 64, 3, 3),
    "conv_last.weight": (3, 64, 3, 3),
}


def write_checkpoint(
    path: Path, *, seed: str, base: str = "sd1", size_bytes: int = 0, nan: bool = False
) -> str:
    """Write a checkpoint of `base` (a key of `CHECKPOINTS`) and return its sha256 (64 hex digits).

    `size_bytes` is the size of the whole file; 0 means as small as it gets. With `nan` every weight is
    NaN, as in a checkpoint that was merged or converted wrongly.
    """
    return _write(path, CHECKPOINTS[base], seed=seed, size_bytes=size_bytes, nan=nan)


def write_lora(
    path: Path,
    *,
    seed: str,
    base: str = "sd1",
    metadata: Mapping[str, str] | None = None,
    size_bytes: int = 0,
) -> str:
    """Write a LoRA of rank 4 as kohya's trainer does and return its sha256.

    `base` is sd1, sd2, sdxl or flux. `metadata` is what `__metadata__` holds (`kohya_metadata` makes
    the usual one); without it the file has none.
    """
    tensors: Tensors = {}
    for layer, (outputs, inputs) in _LORA_LAYERS[base].items():
        tensors[f"{layer}.alpha"] = ()
        tensors[f"{layer}.lora_down.weight"] = (_RANK, inputs)
        tensors[f"{layer}.lora_up.weight"] = (outputs, _RANK)
    return _write(path, tensors, seed=seed, metadata=metadata, size_bytes=size_bytes)


def write_loha(
    path: Path, *, seed: str, base: str = "sd1", metadata: Mapping[str, str] | None = None
) -> str:
    """Write a LyCORIS LoHa file, for the same bases as `write_lora`, and return its sha256."""
    tensors: Tensors = {}
    for layer, (outputs, inputs) in _LORA_LAYERS[base].items():
        tensors[f"{layer}.alpha"] = ()
        for half in ("w1", "w2"):
            tensors[f"{layer}.hada_{half}_a"] = (outputs, _RANK)
            tensors[f"{layer}.hada_{half}_b"] = (_RANK, inputs)
    return _write(path, tensors, seed=seed, metadata=metadata)


def write_vae(path: Path, *, seed: str, channels: int = 4) -> str:
    """Write a VAE and return its sha256; those of SD3 and FLUX have 16 channels."""
    tensors = VAE | {
        "decoder.conv_in.weight": (512, channels, 3, 3),
        "quant_conv.weight": (2 * channels, 2 * channels, 1, 1),
        "post_quant_conv.weight": (channels, channels, 1, 1),
    }
    return _write(path, tensors, seed=seed)


def write_embedding(path: Path, *, seed: str, base: str = "sd1") -> str:
    """Write a textual inversion of two vectors for sd1, sd2 or sdxl and return its sha256."""
    return _write(path, EMBEDDINGS[base], seed=seed)


def write_controlnet(path: Path, *, seed: str, base: str = "sd1") -> str:
    """Write a ControlNet for sd1, sd2 or sdxl and return its sha256."""
    return _write(path, CONTROLNETS[base], seed=seed)


def write_upscaler(path: Path, *, seed: str) -> str:
    """Write an ESRGAN upscaler and return its sha256."""
    return _write(path, UPSCALER, seed=seed)


def kohya_metadata(base: str, output_name: str) -> dict[str, str]:
    """Return the part of a kohya LoRA's metadata that A1111 reads.

    `output_name` becomes the LoRA's alias; the base model decides under which version it is listed.
    Source: A1111 1.10.1, extensions-builtin/Lora/network.py, NetworkOnDisk.
    """
    return {
        "ss_base_model_version": _KOHYA_BASES[base],
        "ss_output_name": output_name,
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(_RANK),
        "ss_network_alpha": str(_RANK),
        "ss_v2": str(base == "sd2"),
    }


def seed_world(folder: Path) -> list[Path]:
    """Lay out `folder` as a small models folder and return the files that were not there before.

    `checkpoints/simulated_v1.safetensors`, `loras/simulated_detail.safetensors`, empty `vae/` and
    `embeddings/`. What is there stays as it is.
    """
    for kind in ("checkpoints", "loras", "vae", "embeddings"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "checkpoints" / "simulated_v1.safetensors"
    lora = folder / "loras" / "simulated_detail.safetensors"
    written = []
    if not checkpoint.exists():
        write_checkpoint(checkpoint, seed=checkpoint.stem)
        written.append(checkpoint)
    if not lora.exists():
        write_lora(lora, seed=lora.stem, metadata=kohya_metadata("sd1", lora.stem))
        written.append(lora)
    return written


def main(argv: list[str]) -> int:
    """Seed a models folder from the command line: `python -m simulator models DIR`."""
    parser = argparse.ArgumentParser("python -m simulator models", description=seed_world.__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR")
    for path in seed_world(parser.parse_args(argv).folder):
        print(path)
    return 0


def _write(
    path: Path,
    tensors: Tensors,
    *,
    seed: str,
    metadata: Mapping[str, str] | None = None,
    size_bytes: int = 0,
    nan: bool = False,
) -> str:
    """Write the file under a private name and rename it, so that a reader sees all of it or nothing."""
    header, filler = _header(tensors, metadata, size_bytes)
    digest = hashlib.sha256()
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    with part.open("wb") as file:
        for piece in (header, *_weights(tensors, seed, nan=nan)):
            file.write(piece)
            digest.update(piece)
        for piece in _filler(filler, seed):
            file.write(piece)
            digest.update(piece)
    part.replace(path)
    return digest.hexdigest()


def _header(
    tensors: Tensors, metadata: Mapping[str, str] | None, size_bytes: int
) -> tuple[bytes, int]:
    """Return the first bytes of the file, up to the data, and the size of the filler tensor."""
    entries: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    position = 0
    for name, shape in tensors.items():
        end = position + _size(shape)
        entries[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [position, end]}
        position = end
    header = _padded(entries)
    if not size_bytes:
        return header, 0
    # The filler's length is written in the header, whose own length depends on how many digits that
    # takes: a length found with the widest number is made exact by the slack of the padding.
    filler = size_bytes
    for _ in range(8):
        entries[FILLER] = {
            "dtype": "U8",
            "shape": [filler],
            "data_offsets": [position, position + filler],
        }
        header = _padded(entries)
        wanted = size_bytes - len(header) - position
        if wanted == filler:
            return header, filler
        if wanted < 0:
            break
        filler = wanted
    raise ValueError(f"a file of {size_bytes} bytes cannot hold these tensors")


def _padded(entries: Mapping[str, object]) -> bytes:
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 64)
    return struct.pack("<Q", len(text)) + text


def _size(shape: tuple[int, ...]) -> int:
    """Return the bytes that a tensor of F16 takes; the empty shape is a single number."""
    size = 2
    for dimension in shape:
        size *= dimension
    return size


def _weights(tensors: Tensors, seed: str, *, nan: bool) -> Iterator[bytes]:
    for name, shape in tensors.items():
        size = _size(shape)
        if nan:
            yield _NAN * (size // 2)
            continue
        data = bytearray(hashlib.shake_256(f"{seed}/{name}".encode()).digest(size))
        data[1::2] = data[1::2].translate(_FINITE)
        yield bytes(data)


def _filler(size: int, seed: str) -> Iterator[bytes]:
    """Yield `size` bytes of which no two chunks are alike, so that a swapped range is noticed."""
    for start in range(0, size, CHUNK):
        length = min(CHUNK, size - start)
        yield hashlib.shake_256(f"{seed}/{FILLER}/{start}".encode()).digest(length)
