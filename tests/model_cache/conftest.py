import json
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from model_cache.cache import ModelCache
from model_cache.models import Ensured, Progress
from schemas.model_ref import Kind, ModelRef
from schemas.settings import CacheSettings
from simulator import hub, loopback
from simulator.hub.faults import Fault, Rule
from simulator.hub.journal import Entry
from simulator.hub.site import Site


@dataclass
class Hub:
    """A model host on real sockets, and a second host behind it for signed links."""

    url: str
    site: Site

    @property
    def root(self) -> Path:
        return self.site.root

    @property
    def requests(self) -> list[Entry]:
        return self.site.journal.entries

    def spoil(
        self, *, path: str = "*", times: int = 1, host: str | None = None, **how: Any
    ) -> None:
        """Make the next answers go wrong; `how` names fields of `Fault`."""
        self.site.faults.rules.append(Rule(Fault(**how), path=path, times=times, host=host))


@dataclass
class Shelf:
    """A volume and the cache on it."""

    volume: Path
    cache: ModelCache

    @property
    def models(self) -> Path:
        return self.volume / "models"

    def ensure(
        self,
        kind: Kind = Kind.LORA,
        *,
        cancelled: threading.Event | None = None,
        progress: Callable[[Progress], None] | None = None,
        **ref: str,
    ) -> Ensured:
        """Ensure the model that `name`, `url` and `hash` refer to."""
        return self.cache.ensure(
            ModelRef.model_validate({"kind": kind, **ref}),
            cancelled=cancelled or threading.Event(),
            progress=progress,
        )

    def files(self) -> list[str]:
        """Every file on the volume that a user can see, and every temporary one."""
        return sorted(
            str(path.relative_to(self.models))
            for path in self.models.rglob("*")
            if path.is_file() and "manifests" not in path.parts
        )


def wait_until(happened: Callable[[], bool]) -> None:
    """Wait for something that is sure to come, for as long as a busy machine may take."""
    end = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.01)


def settings_for(volume: Path, **more: Any) -> CacheSettings:
    """Return settings under which hosts on loopback may be asked."""
    return CacheSettings.model_validate(
        {"volume": volume, "allow_private_hosts": True, "stall_s": 5, **more}
    )


def safetensors(entries: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    """Return the bytes of a file with this header, sound or not."""
    raw = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


@pytest.fixture
def model_hub(tmp_path: Path) -> Iterator[Hub]:
    site = Site(tmp_path / "hub")
    site.root.mkdir()
    with loopback.in_background(lambda: hub.hosts(site)) as url:
        yield Hub(url, site)


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    path = tmp_path / "volume"
    path.mkdir()
    return path


def shelf_on(volume: Path, **settings: Any) -> Shelf:
    """Open a volume as a worker does that starts now."""
    return Shelf(volume, ModelCache(settings_for(volume, **settings)))


@pytest.fixture
def shelf(volume: Path) -> Shelf:
    """An empty volume."""
    return shelf_on(volume)
