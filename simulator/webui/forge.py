"""What Forge has that A1111 has not: flags, options, one route. The rest is answered as A1111 answers it.

Forge keeps VAEs and text encoders together, as modules: /sd-modules lists them in place of /sd-vae, and
the option `forge_additional_modules` names the files to use, by path. It has no routes for training.

Source: lllyasviel/stable-diffusion-webui-forge (2024 to 2025), modules/api/api.py, modules/cmd_args.py,
backend/args.py, modules_forge/main_entry.py, modules_forge/shared_options.py. Unverified against a live
server; which of A1111's flags Forge has dropped is not known here, so all are taken.
"""

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MODULES = "forge_additional_modules"
OPTIONS: dict[str, dict[str, Any]] = {
    MODULES: {"type": "array", "default": []},
    "forge_preset": {"type": "string", "default": "sd"},
    "forge_unet_storage_dtype": {"type": "string", "default": "Automatic"},
    "forge_inference_memory": {"type": "integer", "default": 1024},
    "forge_async_loading": {"type": "string", "default": "Queue"},
    "forge_pin_shared_memory": {"type": "string", "default": "CPU"},
}
_SWITCHES = (
    *("all-in-fp32", "all-in-fp16", "unet-in-bf16", "unet-in-fp16", "unet-in-fp8-e4m3fn"),
    *("unet-in-fp8-e5m2", "vae-in-fp16", "vae-in-fp32", "vae-in-bf16", "vae-in-cpu"),
    *("clip-in-fp8-e4m3fn", "clip-in-fp8-e5m2", "clip-in-fp16", "clip-in-fp32"),
    *("attention-split", "attention-quad", "attention-pytorch", "force-upcast-attention"),
    *("disable-attention-upcast", "disable-xformers", "disable-ipex-hijack", "always-gpu"),
    *("always-high-vram", "always-normal-vram", "always-low-vram", "always-no-vram", "always-cpu"),
    *("always-offload-from-vram", "pytorch-deterministic", "cuda-malloc", "cuda-stream"),
    "pin-shared-memory",
)
_VALUES = (
    *("gpu-device-id", "directml", "text-encoder-dir", "forge-ref-a1111-home", "controlnet-dir"),
    "controlnet-preprocessor-models-dir",
)
_EXTENSIONS = (".ckpt", ".pt", ".bin", ".safetensors", ".gguf")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Let `parser` take Forge's flags."""
    for name in _SWITCHES:
        parser.add_argument(f"--{name}", action="store_true", help=argparse.SUPPRESS)
    for name in _VALUES:
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)


def paths(webui: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of the API's schema that tells the routes, from that of A1111."""
    gone = ("/sdapi/v1/sd-vae", "/sdapi/v1/train/embedding", "/sdapi/v1/train/hypernetwork")
    kept = {path: entry for path, entry in webui.items() if path not in gone}
    return kept | {"/sdapi/v1/sd-modules": webui["/sdapi/v1/sd-vae"]}


def modules(folders: list[Path]) -> dict[str, Path]:
    """Return the VAEs and text encoders in `folders` by file name; of two alike the later one."""
    return {
        name: Path(root, name)
        for folder in folders
        for root, _, names in os.walk(folder)
        for name in sorted(names)
        if name.endswith(_EXTENSIONS)
    }
