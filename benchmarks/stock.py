"""A volume full of small models, as if each had been fetched: files, and manifests that say so."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from random import Random

from model_cache import sources
from model_cache.volume import layout, manifests
from schemas.model_ref import Kind, ModelRef
from schemas.settings import CacheSettings
from simulator import models

HOST = "https://models.example.com"
"""Nobody answers there: whoever asks for a model that is here must not ask."""
# What a fleet has: mostly LoRAs.
_ONE_CHECKPOINT_IN = 10
_THREADS = 8


@dataclass(frozen=True)
class Stock:
    """What is on a volume."""

    volume: Path
    names: tuple[tuple[Kind, str], ...]

    @property
    def settings(self) -> CacheSettings:
        """Return how to open it; no model is in the image."""
        return CacheSettings(volume=self.volume, baked=self.volume / "none")

    def refs(self, loras: int, order: Random, *, by_url: bool = True) -> tuple[ModelRef, ...]:
        """Return references of a job, in any order: to one checkpoint and so many LoRAs."""
        chosen = [
            *order.sample(self._of(Kind.CHECKPOINT), 1),
            *order.sample(self._of(Kind.LORA), loras),
        ]
        return tuple(
            ModelRef(kind=kind, name=name, url=url_of(kind, name) if by_url else None)
            for kind, name in chosen
        )

    def _of(self, wanted: Kind) -> list[tuple[Kind, str]]:
        return [(kind, name) for kind, name in self.names if kind is wanted]


def url_of(kind: Kind, name: str) -> str:
    """Return where the model is said to come from."""
    return f"{HOST}/{kind}/{name}.safetensors"


def stocked(volume: Path, count: int) -> Stock:
    """Put `count` models on the empty `volume`; small ones, some 30 KB to 100 KB each.

    Raises:
        VolumeError: the disk refused.
    """
    volume.mkdir(parents=True)
    stock = Stock(volume, tuple(_names(count)))
    # Each manifest is brought to the disk by itself, and a disk does that for several at once.
    with ThreadPoolExecutor(_THREADS) as threads:
        for _ in threads.map(lambda named: _put(stock.settings, *named), stock.names):
            continue
    return stock


def _names(count: int) -> Iterator[tuple[Kind, str]]:
    for number in range(count):
        kind = Kind.LORA if number % _ONE_CHECKPOINT_IN else Kind.CHECKPOINT
        yield kind, f"bench_{kind}_{number:05}"


def _put(settings: CacheSettings, kind: Kind, name: str) -> None:
    path = layout.published_path(settings.volume, kind, name)
    write = models.write_lora if kind is Kind.LORA else models.write_checkpoint
    sha256 = write(path, seed=name)
    source = sources.read(url_of(kind, name), settings).key
    manifest = manifests.new(sha256, path.stat(), source, base="sd1", alias="")
    manifests.write(settings.volume, layout.manifest_path(settings.volume, kind, path), manifest)
