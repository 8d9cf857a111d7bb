"""The record beside each model file: what another worker may believe about it.

`.worker/manifests/<kind>/<file>.json` on the volume, one JSON object, written when the file is
verified and just before it gets its name. It proves a complete file only together with that file:
both have the size and the time that it tells.

    {"version": 1, "sha256": "…64 hex…", "size_bytes": 2132625612, "mtime_ns": 17…,
     "source": "https://host/path", "base": "sd1", "base_by": "shapes", "alias": "", "autov3": "…12 hex…",
     "means": {"https://host/path": 1763700000.0}, "created": 1763700000.0}
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Manifest(BaseModel):
    """What is known of one published file. Holds no token and no signed URL."""

    model_config = ConfigDict(frozen=True, extra="ignore")  # a newer worker may add fields

    version: Literal[1] = 1
    sha256: str
    size_bytes: int
    mtime_ns: int
    source: str
    """Where it was fetched from, without query secrets, whatever is there by now; empty for a file
    that people put there."""
    base: str = "unknown"
    """Architecture read from the header: sd1, sd2, sdxl, sd3, flux, unknown, …"""
    base_by: str = ""
    """What in the header told it: `shapes` or `metadata`; empty if nothing did, or nobody noted it."""
    alias: str = ""
    """LoRA: `ss_output_name` of the header, which A1111 takes in a tag as well."""
    autov3: str = ""
    """LoRA as safetensors: first 12 hex digits of the SHA-256 of what follows the header, which
    Civitai calls AutoV3 and A1111 lists in `Lora hashes`; else empty."""
    means: dict[str, float] = Field(default_factory=dict)
    """Sources, without query secrets, that give these bytes, and the Unix time in seconds at which
    each was last seen to do so. Of files that one source gave, that with the latest time is meant."""
    created: float
    """Unix time in seconds at which it was published."""
