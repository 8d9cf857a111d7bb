"""Was the picture made by the models that were asked for? Pure.

A1111 falls back in silence, with status 200, when a checkpoint, VAE or LoRA is not there or does not
load; only `info` tells. Source: recorded from A1111 1.10.1: override_ckpt_unknown,
override_vae_unknown, lora_missing, lora_broken_file.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from schemas.errors import BackendFailedError, WrongModelUsedError
from worker.generation.prompt import LORA_TYPES, tags


def info_of(answer: Any) -> dict[str, Any]:
    """Return `info` of an answer as a mapping; A1111 sends it as JSON in a string.

    Raises:
        BackendFailedError: the answer does not have the shape of a generation.
    """
    try:
        info = json.loads(answer["info"])
        if isinstance(info, dict) and isinstance(answer["images"], list):
            return info
    except (KeyError, TypeError, ValueError):
        pass
    raise BackendFailedError("A1111 answered without `images` and `info`.")


def require_checkpoint(info: Mapping[str, Any], name: str, sha256: str | None) -> None:
    """Raise WrongModelUsedError unless checkpoint `name`, with that digest if known, was used."""
    used, digest = info.get("sd_model_name"), info.get("sd_model_hash")
    if used != name:
        raise _wrong("checkpoint", name, used)
    # A1111's short hash is the first ten digits of the file's SHA-256.
    if sha256 and digest and not sha256.startswith(str(digest)):
        raise _wrong("checkpoint", f"{name} [{sha256[:10]}]", f"{used} [{digest}]")


def require_vae(info: Mapping[str, Any], vae: str) -> None:
    """Raise WrongModelUsedError unless the VAE file `vae`, or none for "None", was used."""
    used = info.get("sd_vae_name")
    if (used or "None") != vae:
        raise _wrong("VAE", vae, used)


def require_refiner(info: Mapping[str, Any], name: str) -> None:
    """Raise WrongModelUsedError if A1111 reports another refiner than `name`."""
    used = info.get("extra_generation_params", {}).get("Refiner")
    if used is not None and str(used).rpartition(" [")[0] != name and used != name:
        raise _wrong("refiner", name, used)


def require_loras(info: Mapping[str, Any], names: Iterable[str]) -> None:
    """Raise WrongModelUsedError unless each LoRA was loaded: `names`, and those that a style brought.

    A1111 lists what it loaded as `Lora hashes`, "name: hash, name: hash", names without commas and
    colons. Source: A1111 1.10.1, extensions-builtin/Lora/extra_networks_lora.py.
    """
    listed = str(info.get("extra_generation_params", {}).get("Lora hashes", ""))
    used = {entry.rpartition(":")[0].strip() for entry in listed.split(",")}
    # `prompt` is what A1111 made of the request: styles and an infotext are in it.
    applied = [tag for tag in tags(str(info.get("prompt", ""))) if tag.type in LORA_TYPES]
    for name in dict.fromkeys([*names, *(tag.items[0].replace(",", "") for tag in applied)]):
        if name not in used:
            raise WrongModelUsedError(
                f"A1111 did not apply the LoRA `{name}`; the picture is withheld.",
                hint="Its file may be damaged, or a style names a LoRA that is not there.",
                kind="lora",
                asked=name,
            )


def _wrong(kind: str, asked: str, used: object) -> WrongModelUsedError:
    return WrongModelUsedError(
        f"A1111 used the {kind} `{used}` instead of `{asked}`; the picture is withheld.",
        kind=kind.lower(),
        asked=asked,
        used=used,
    )
