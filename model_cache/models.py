"""What the rest of the program learns of a model file. Plain values; touches no disk."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from model_cache.volume import layout
from schemas.model_ref import SUFFIX, Kind

REPORT_EVERY_S = 0.25
"""How often progress is told at most, but for the end, which is always told."""


class Origin(StrEnum):
    """How a file came to where it is, and so what may be done with it."""

    PUBLISHED = "published"
    """We fetched it, and can fetch it again: the only files that may be evicted."""
    BROUGHT = "brought"
    """People put it on the volume, in our folders or in another program's."""
    BAKED = "baked"
    """In the image: read-only, takes no room on the volume."""
    HUB = "hub"
    """In the Hugging Face cache on the volume, which the platform keeps."""


@dataclass(frozen=True)
class CachedModel:
    """One model file that is on the disk."""

    kind: Kind
    name: str
    """Unique within its kind, without suffix: what links and tags are made from."""
    path: Path
    sha256: str | None
    """64 hex digits; None for a file that people put there and nobody has hashed."""
    size_bytes: int
    mtime_ns: int
    base: str = "unknown"
    """sd1, sd1-inpaint, sd2, sdxl, sdxl-refiner, sd3, flux, …, or unknown."""
    base_by: str = ""
    """What in its header told that: `shapes` or `metadata`; empty if nothing did or nobody noted it."""
    alias: str = ""
    """LoRA: the `ss_output_name` of its header, which A1111 takes in a tag as well."""
    source: str = ""
    """URL that it was fetched from, without secrets; empty for a file that people put there."""
    autov3: str = ""
    """12 hex digits, see `digests`; empty for a pickle, and where nobody computed it."""
    origin: Origin = Origin.BROUGHT

    @property
    def is_pickle(self) -> bool:
        """Whether loading it runs code; `verify.inspect` sees to it that suffix and bytes agree."""
        return self.path.suffix != SUFFIX

    @property
    def suffix(self) -> str:
        """The suffix by which A1111 loads it."""
        return layout.suffix_for(self.kind, self.path.name, pickle=self.is_pickle)


@dataclass(frozen=True)
class Progress:
    """How far a fetch, or the hashing of a file, has come."""

    done_bytes: int
    total_bytes: int | None
    """None when the host does not say how large the file is."""


@dataclass(frozen=True)
class Ensured:
    """The outcome of one `ModelCache.ensure`."""

    model: CachedModel
    cached: bool
    """Whether the file was there: nothing came over the network."""
    download_s: float
    bytes_fetched: int
    warnings: tuple[str, ...] = ()
    checked: str = ""
    """Which hash of the reference was compared with the file: a `HashForm`; empty without one."""


@dataclass(frozen=True)
class CacheInfo:
    """What is on the disk, in numbers."""

    checkpoints_cached: int
    loras_cached: int
    total_cache_size_mb: float
    """All kinds together, in 10^6 bytes; a file under two names counts once."""
