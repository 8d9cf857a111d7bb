"""The list of models that a process keeps, and how it stays true.

Looked up again as a whole when somebody asks for it to be fresh, and one file at a time after a
change of our own or when a file is not what it was.
"""

import logging
import threading
import time
from dataclasses import replace
from pathlib import Path

from model_cache import inventory, layout, manifests
from model_cache.inventory import Found, Inventory
from model_cache.models import CachedModel
from schemas.errors import VolumeError
from schemas.manifest import Manifest
from schemas.model_ref import Kind

log = logging.getLogger(__name__)


class Listing:
    """What is on the volume, as far as this process knows; safe to use from several threads."""

    def __init__(self, volume: Path) -> None:
        """Look at the volume for the first time."""
        self._volume = volume
        self._lock = threading.Lock()
        self._scanned_at = time.monotonic()
        self._inventory = Inventory(volume, inventory.scan(volume, {}))

    @property
    def current(self) -> Inventory:
        """What was seen last."""
        return self._inventory

    def fresh(self, max_age_s: float) -> Inventory:
        """Return what is there, looked up again if the last look is longer ago than `max_age_s`."""
        with self._lock:
            if time.monotonic() - self._scanned_at > max_age_s:
                files = inventory.scan(self._volume, self._inventory.files)
                # After the scan: on a slow volume the next one must not begin at once.
                self._scanned_at = time.monotonic()
                self._inventory = Inventory(self._volume, files)
            return self._inventory

    def look_again(self, kind: Kind, path: Path) -> CachedModel | None:
        """Look at one file, listed or new, and return what it is now; None if it is gone."""
        with self._lock:
            files = dict(self._inventory.files)
            found = inventory.look(self._volume, kind, path, files)
            if found is None:
                files.pop(path, None)
            else:
                files[path] = found
            self._inventory = Inventory(self._volume, files)
            return self._inventory.at(path)

    def record(self, found: Found, manifest: Manifest) -> None:
        """Write the manifest of a listed file, and believe it.

        Where the disk refuses, this process alone knows: the file is there and was verified, so a
        job need not fail because other workers will have to verify it again.
        """
        place = layout.manifest_path(self._volume, found.kind, found.path)
        try:
            manifests.write(self._volume, place, manifest)
        except VolumeError as error:
            log.warning("The manifest of %s was not written: %s", found.path.name, error)
        with self._lock:
            files = dict(self._inventory.files)
            files[found.path] = replace(found, manifest=manifest)
            self._inventory = Inventory(self._volume, files)
