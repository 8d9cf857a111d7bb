"""`cache_registry.json`: what is on the volume, for people and tools to read.

    <volume>/models/cache_registry.json

    {"version": 1, "written": 1763700000.0,
     "models": [{"kind": "lora", "name": "detail", "file": "models/loras/detail.safetensors",
                 "size_bytes": 151112, "sha256": "…64 hex… or null", "base": "sd1",
                 "source": "https://host/path, empty if people put it there"}, …]}

A view: rewritten as a whole after changes of our own, by rename, and never read by a job. What is in
it can be wrong for as long as another worker's change is young; the manifests are the truth.
"""

import json
import logging
import time
from pathlib import Path

from model_cache import layout, publish
from model_cache.disk import disk_errors
from model_cache.inventory import Inventory
from model_cache.models import CachedModel
from schemas.errors import VolumeError
from schemas.model_ref import Kind

log = logging.getLogger(__name__)


def write(volume: Path, inventory: Inventory) -> None:
    """Write the view; where the disk refuses, log that and go on, as no job depends on it."""
    rows = [_row(volume, model) for kind in Kind for model in inventory.models(kind)]
    text = json.dumps({"version": 1, "written": time.time(), "models": rows}, indent=1)
    try:
        with publish.private_file(volume) as part, disk_errors():
            part.file.write(text.encode())
            part.seal()
            part.path.replace(layout.registry_path(volume))
    except VolumeError as error:
        log.warning("cache_registry.json was not written: %s", error)


def _row(volume: Path, model: CachedModel) -> dict[str, object]:
    return {
        "kind": model.kind,
        "name": model.name,
        "file": str(model.path.relative_to(volume)),
        "size_bytes": model.size_bytes,
        "sha256": model.sha256,
        "base": model.base,
        "source": model.source,
    }
