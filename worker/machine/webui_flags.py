"""The command line of A1111, and of Forge: the one home of their flags.

Both take the same flags but for attention and for sharing the GPU's memory. Pure: what the machine
has is told.

Source: A1111 1.10.1, modules/cmd_args.py, modules/sd_hijack.py; Forge (2024 to 2025),
modules/cmd_args.py, backend/args.py, modules_forge/initialization.py, and its Lora extension's
preload.py. Forge's are unverified against a live server.
"""

import itertools
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from schemas.model_ref import Kind
from schemas.settings import WebuiSettings
from worker.child.links import FOLDERS

GIB = 1024**3
# What a GPU must have for nothing to be moved out of the way. SDXL's weights take 6.9 GB in half
# precision and a 1024x1024 picture some more, those of SD 1.5 take 2 GB; the names of the flags say
# what they cost. Drivers show up to 0.3 GiB less than a card is sold with.
# Source: A1111's wiki, Optimizations, and Troubleshooting ("Low VRAM Video-cards": 4 GB and less).
_SDXL_BYTES = 10 * GIB
_MEDIUM_BYTES = 6 * GIB
_LOW_BYTES = 3.5 * GIB

_ATTENTION_FLAGS = (
    "--xformers",
    "--force-enable-xformers",
    "--opt-",
    "--disable-opt-split-attention",
    "--attention-",
    "--disable-xformers",
)
_SECRET_FLAG = re.compile(r"--[\w-]*(?:auth|token)[\w-]*")
_SECRET_VALUE = re.compile(rf"({_SECRET_FLAG.pattern}=).*")
_VRAM_FLAGS = ("--medvram", "--lowvram", "--always-")


@dataclass(frozen=True)
class Machine:
    """What of the machine the flags depend on."""

    vram_bytes: int | None
    """Of the GPU; None if there is none, or nobody asked."""
    xformers: bool
    """Whether A1111's interpreter has it."""
    controlnet: bool = False
    """Whether A1111 has the extension."""


def command(
    settings: WebuiSettings, python: Path, data_dir: Path, machine: Machine, environ_args: str
) -> list[str]:
    """Return what starts the WebUI, from its own folder.

    Args:
        settings: kind, port, links, and what was asked for.
        python: its interpreter.
        data_dir: where it is to keep its config, hashes and helper weights, and finds extensions.
        machine: what decides where the settings say `auto`.
        environ_args: COMMANDLINE_ARGS, which the WebUI appends by itself.
    """
    links = settings.links
    own = settings.flags.split()
    given = [*own, *environ_args.split()]
    return [
        *(str(python), "-u", "launch.py", "--skip-prepare-environment", "--nowebui", "--api"),
        *("--skip-load-model-at-start", "--no-download-sd-model", "--data-dir", str(data_dir)),
        *("--ckpt-dir", str(links / FOLDERS[Kind.CHECKPOINT])),
        *("--lora-dir", str(links / FOLDERS[Kind.LORA])),
        *("--vae-dir", str(links / FOLDERS[Kind.VAE])),
        *("--embeddings-dir", str(links / FOLDERS[Kind.EMBEDDING])),
        *("--hypernetwork-dir", str(links / FOLDERS[Kind.HYPERNETWORK])),
        *("--esrgan-models-path", str(links / FOLDERS[Kind.UPSCALER])),
        *_controlnet(settings, machine),
        # Its default is a folder in the home of whoever runs it.
        *("--clip-models-path", str(data_dir / "models" / "CLIP")),
        *_attention(settings, machine, given),
        *_vram(settings, machine, given),
        *own,
        # Last: with --nowebui A1111 would listen on every interface, and a later flag wins.
        *("--server-name", "127.0.0.1", "--port", str(settings.port)),
    ]


def shown(argv: list[str]) -> str:
    """Return a command line's flags for people; what follows a flag of secrets is left out."""
    words = [
        "…" if _SECRET_FLAG.fullmatch(before) else word
        for before, word in itertools.pairwise(["", *argv])
    ]
    return shlex.join(
        _SECRET_VALUE.sub(r"\1…", word) for word in words[words.index("launch.py") + 1 :]
    )


def _controlnet(settings: WebuiSettings, machine: Machine) -> list[str]:
    # A1111 ends with status 2 at a flag of an extension that it does not have; Forge has it built in.
    if settings.kind == "forge" or machine.controlnet:
        return ["--controlnet-dir", str(settings.links / FOLDERS[Kind.CONTROLNET])]
    return []


def _attention(settings: WebuiSettings, machine: Machine, given: list[str]) -> list[str]:
    chosen = settings.attention
    if chosen == "auto":
        if _names(given, _ATTENTION_FLAGS):
            return []
        chosen = "xformers" if machine.xformers else "sdp"
    flags = {
        # With both, A1111 takes xformers where it is made for the GPU and sdp elsewhere: it offers
        # xformers up to compute capability 9.0 only, and would choose split attention next.
        "a1111 xformers": ["--xformers", "--opt-sdp-attention"],
        "a1111 sdp": ["--opt-sdp-attention"],
        # Forge takes xformers by itself, and its flags exclude each other.
        "forge sdp": ["--disable-xformers", "--attention-pytorch"],
    }
    return flags.get(f"{settings.kind} {chosen}", [])


def _vram(settings: WebuiSettings, machine: Machine, given: list[str]) -> list[str]:
    chosen: str = settings.vram
    if chosen == "auto":
        # Forge decides by itself, model by model.
        if settings.kind == "forge" or machine.vram_bytes is None or _names(given, _VRAM_FLAGS):
            return []
        chosen = _by_size(machine.vram_bytes)
    flags = {
        "a1111 sdxl": ["--medvram-sdxl"],
        "a1111 medium": ["--medvram"],
        "a1111 low": ["--lowvram"],
        "forge high": ["--always-high-vram"],
        # What Forge itself advises in place of --medvram, which it no longer has.
        "forge medium": ["--always-offload-from-vram"],
        "forge low": ["--always-low-vram"],
    }
    return flags.get(f"{settings.kind} {chosen}", [])


def _by_size(vram_bytes: int) -> str:
    if vram_bytes < _LOW_BYTES:
        return "low"
    if vram_bytes < _MEDIUM_BYTES:
        return "medium"
    return "sdxl" if vram_bytes < _SDXL_BYTES else "high"


def _names(given: list[str], flags: tuple[str, ...]) -> bool:
    return any(word.startswith(flags) for word in given)
