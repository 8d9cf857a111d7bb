"""`cache_registry.json`: what is on the volume, for people and tools to read.

    <volume>/models/cache_registry.json

    {"version": 1, "written": 1763700000.0,
     "models": [
    {"kind": "lora", "name": "detail", "file": "models/loras/detail.safetensors",
     "source": "https://host/path", "sha256": "…64 hex…", "size_bytes": 151112, "base": "sd1",
     "added": 1763690000.0, "last_used": 1763699000.0, "uses": 3, "pinned": false},
    …
    ]}

| field | |
|---|---|
| `version` | 1; another number means that fields changed their meaning, not that some were added |
| `written` | Unix time in seconds of this writing |
| `kind`, `name` | what a reference says to mean this model |
| `file` | below the volume; a file with two names has two entries |
| `source` | where it was fetched from, without secrets; empty if people put it there |
| `sha256` | null if people put it there and nobody has asked for its hash |
| `size_bytes` | of the file |
| `base` | architecture, as in `sd1`; `unknown` if its header does not tell, or was not read |
| `added` | Unix time: published, or last changed if people put it there |
| `last_used` | Unix time, null if it was never used |
| `uses` | how often jobs asked for it; not exact where workers were killed |
| `pinned` | whether it stays when room is needed |

A view: rewritten as a whole by rename, one model a line, and never read by this program, so whatever
becomes of it loses nothing. It can lag behind another worker's change by a minute or two; the
manifests are the truth.
"""

import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import MappingProxyType

from model_cache.models import CachedModel
from model_cache.sharing.uses import Use
from model_cache.volume import layout, publish
from model_cache.volume.disk import disk_errors
from model_cache.volume.inventory import Found, Inventory
from schemas.errors import VolumeError
from schemas.model_ref import Kind

log = logging.getLogger(__name__)

EVERY_S = 30.0
"""How often one worker rewrites the view at most."""
_NO_HISTORY: Mapping[Path, Use] = MappingProxyType({})


class Registry:
    """Keeps the view up to date without writing it more often than is good for the volume."""

    def __init__(self, volume: Path, text: Callable[[], str], *, every_s: float = EVERY_S) -> None:
        """Write nothing yet; `text` returns the `rows` of what is there now."""
        self._volume = volume
        self._text = text
        self._every_s = every_s
        self._turn = threading.Lock()
        self._written_at = float("-inf")
        self._digest = b""

    def refresh(self) -> None:
        """Write the view if it says something new, and the last writing is `every_s` ago.

        To be called after changes and from time to time. Where the disk refuses, that is logged, as
        no job depends on it.

        Raises:
            VolumeError: what is there now cannot be told.
        """
        with self._turn:
            if time.monotonic() - self._written_at < self._every_s:
                return
            text = self._text()
            digest = hashlib.sha256(text.encode()).digest()
            if digest != self._digest and _write(self._volume, text):
                self._digest, self._written_at = digest, time.monotonic()


def write(
    volume: Path,
    inventory: Inventory,
    history: Mapping[Path, Use] = _NO_HISTORY,
    pinned: Collection[tuple[Kind, str]] = frozenset(),
) -> bool:
    """Write the view at once; where the disk refuses, log that and return False."""
    return _write(volume, rows(volume, inventory, history, pinned))


def rows(
    volume: Path,
    inventory: Inventory,
    history: Mapping[Path, Use],
    pinned: Collection[tuple[Kind, str]],
) -> str:
    """Return the models on the volume as JSON, one a line; those in the image are left out."""
    lines = []
    for kind in Kind:
        for model in inventory.models(kind):
            found = inventory.files[model.path]
            if not found.baked:
                row = _row(volume, model, found, history.get(model.path))
                row["pinned"] = (kind, model.name) in pinned
                lines.append(json.dumps(row))
    return ",\n".join(lines)


def _write(volume: Path, models: str) -> bool:
    text = f'{{"version": 1, "written": {time.time():.3f},\n "models": [\n{models}\n]}}\n'
    try:
        with publish.private_file(volume) as part, disk_errors():
            part.file.write(text.encode())
            part.seal()
            part.path.replace(layout.registry_path(volume))
    except VolumeError as error:
        log.warning("cache_registry.json was not written: %s", error)
        return False
    return True


def _row(volume: Path, model: CachedModel, found: Found, use: Use | None) -> dict[str, object]:
    manifest = found.manifest
    return {
        "kind": model.kind,
        "name": model.name,
        "file": str(model.path).removeprefix(f"{volume}/"),
        "source": model.source,
        "sha256": model.sha256,
        "size_bytes": model.size_bytes,
        "base": model.base,
        "added": manifest.created if manifest else model.mtime_ns / 1e9,
        "last_used": use.last if use else None,
        "uses": use.count if use else 0,
    }
