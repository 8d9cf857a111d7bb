"""The models that an infotext names, by what they were called and what they hash to. Pure.

    …, Model hash: 67535cd6e4, Model: night, VAE hash: cdc4c5eb28, VAE: soft.safetensors,
    Refiner: second [0123456789], Hires checkpoint: other [0123456789],
    Lora hashes: "ink: 33d3e6c49382", TI hashes: "easyneg: 0123456789", …

A hash is the start of the file's SHA-256; that of a LoRA, of what follows its header.

Source: A1111 1.10.1, modules/processing.py, create_infotext; modules/sd_models.py, CheckpointInfo;
extensions-builtin/Lora/extra_networks_lora.py, activate; modules/sd_hijack.py,
extra_generation_params; recorded: txt2img_infotext, txt2img_refiner, override_vae, lora_tag.
"""

import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from schemas.errors import InvalidInputError, shown
from schemas.model_ref import Kind, Recalled, RecalledLora

_TITLE = re.compile(r"(?P<name>.*?) ?\[(?P<hash>[0-9a-fA-F]{8,64})\]")
_LORA_TAG = re.compile(r"<(?:lora|lyco):([^:>]+)")
_VERSION = re.compile(r"v?(\d{1,4})\.(\d{1,4})(?!\d)", re.ASCII)
_NO_FILES = frozenset({"None", "Automatic", "Use same checkpoint"})
# Of a file's SHA-256 or of a LoRA's weights; early versions wrote 8 digits of another hash.
_HASH = re.compile(r"[0-9a-f]{10}|[0-9a-f]{12}|[0-9a-f]{64}")
# What A1111 takes out of a name before it lists its hash.
_DROPPED = str.maketrans("", "", ":,")


def models(said: Mapping[str, str]) -> dict[str, Any]:
    """Return field -> model, for the checkpoint, the VAE, the refiner and the hires checkpoint.

    Raises:
        InvalidInputError: a name that no file can have, without a hash.
    """
    # It does not tell of what its hashes are.
    if said.get("Version", "").startswith("DiffusionAPI"):
        said = {**said, "Model hash": "", "VAE hash": ""}
    fields: dict[str, Any] = {"vae": "None"} if _had_no_vae(said) else {}
    for field, kind, name, digest in (
        ("checkpoint", Kind.CHECKPOINT, said.get("Model", ""), said.get("Model hash", "")),
        ("vae", Kind.VAE, said.get("VAE", ""), said.get("VAE hash", "")),
        ("refiner_checkpoint", Kind.CHECKPOINT, *_titled(said.get("Refiner", ""))),
        ("hr_checkpoint_name", Kind.CHECKPOINT, *_titled(said.get("Hires checkpoint", ""))),
    ):
        if name in _NO_FILES:
            fields[field] = name
        elif name or digest:
            fields[field] = _recalled(kind, name, digest)
    return fields


def _had_no_vae(said: Mapping[str, str]) -> bool:
    """Return whether the picture was made with the VAE within its checkpoint.

    Source: A1111's changes, 1.6.0: from then on an infotext names the VAE if there is another.
    """
    version = _VERSION.match(said.get("Version", ""))
    is_told = version is not None and (int(version[1]), int(version[2])) >= (1, 6)
    return is_told and "Model" in said and not said.get("VAE") and not said.get("VAE hash")


def loras(said: Mapping[str, str], prompts: str) -> list[RecalledLora]:
    """Return the LoRAs whose tags are in `prompts`, and whose hashes the infotext tells.

    Raises:
        InvalidInputError: a name that no file can have, with a hash that is none.
    """
    hashes = _hashes(said.get("Lora hashes", ""))
    names = dict.fromkeys(_LORA_TAG.findall(prompts))
    return [
        RecalledLora.model_validate(_named(Kind.LORA, name, hashes[name.translate(_DROPPED)]))
        for name in names
        if name.translate(_DROPPED) in hashes
    ]


def embeddings(said: Mapping[str, str], prompts: str) -> list[Recalled]:
    """Return the embeddings that `prompts` mention, and whose hashes the infotext tells."""
    low = prompts.lower()
    return [
        _recalled(Kind.EMBEDDING, name, digest)
        for name, digest in _hashes(said.get("TI hashes", "")).items()
        if name.lower() in low
    ]


def _hashes(listed: str) -> dict[str, str]:
    """Return name -> hash of `name: hash, name: hash`."""
    entries = (entry.rpartition(":") for entry in listed.split(","))
    return {name.strip(): digest.strip() for name, colon, digest in entries if colon}


def _titled(text: str) -> tuple[str, str]:
    """Return name and hash of `name [hash]`; the hash is empty where there is none."""
    match = _TITLE.fullmatch(text)
    return (match["name"], match["hash"]) if match else (text, "")


def _recalled(kind: Kind, name: str, digest: str) -> Recalled:
    return Recalled.model_validate(_named(kind, name, digest))


def _named(kind: Kind, name: str, digest: str) -> dict[str, str]:
    """Return the fields of a reference; a name that no file can have gives way to the hash.

    Raises:
        InvalidInputError: there is no such hash either.
    """
    plain = digest.lower()
    known = {"hash": plain} if _HASH.fullmatch(plain) else {}
    for fields in ({"name": name, **known}, {"name": plain, **known} if known else {}):
        try:
            Recalled.model_validate({"kind": kind, **fields})
        except ValidationError:
            continue
        return {"kind": kind, **fields}
    raise InvalidInputError(
        f"The infotext names the {kind} {shown(name)}, which no file can be called.",
        field="infotext",
    )
