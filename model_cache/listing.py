"""The list of models that a process keeps, and how it stays true.

Looked up again as a whole when somebody asks for it to be fresh, and one file at a time after a
change of our own or when a file is not what it was. Whoever looks something up waits for neither.
"""

import logging
import threading
import time
from collections.abc import Collection
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

    def __init__(
        self, volume: Path, *, baked: Path | None = None, allow_pickle: Collection[Kind] = ()
    ) -> None:
        """Look at the volume, and at the models in the image, for the first time."""
        self._volume = volume
        self._baked = baked
        self._allow_pickle = frozenset(allow_pickle)
        self._changing = threading.Lock()
        """Held while one file is looked at and changed, so that the later look wins."""
        self._scanning = threading.Lock()
        self._scans = 0
        self._changed_meanwhile: dict[Path, Found | None] = {}
        self._scanned_at = time.monotonic()
        self._inventory = Inventory(volume, self._scan({}))

    @property
    def current(self) -> Inventory:
        """What was seen last; takes no lock."""
        return self._inventory

    def fresh(self, max_age_s: float) -> Inventory:
        """Return what is there, looked up again if the last look is longer ago than `max_age_s`."""
        if time.monotonic() - self._scanned_at > max_age_s:
            self.refresh()
        return self._inventory

    def refresh(self) -> None:
        """Look at everything again; of threads that ask at once, one looks and the others wait."""
        scans = self._scans
        with self._scanning:
            if self._scans != scans:
                return
            with self._changing:
                self._changed_meanwhile = {}
                known = self._inventory.files
            files = self._scan(known)
            seen = None if files == known else Inventory(self._volume, files)
            with self._changing:
                if seen is not None:
                    self._inventory = self._with_changes(seen)
                # After the scan: on a slow volume the next one must not begin at once.
                self._scanned_at = time.monotonic()
                self._scans += 1

    def look_again(self, kind: Kind, path: Path) -> CachedModel | None:
        """Look at one file, listed or new, and return what it is now; None if it is gone."""
        with self._changing:
            found = inventory.look(self._volume, kind, path, self._inventory.files)
            self._change(path, found)
            return self._inventory.at(path)

    def record(self, found: Found, manifest: Manifest) -> None:
        """Write the manifest of a listed file, and believe it.

        Where the disk refuses, this process alone knows: the file is there and was verified, so a
        job need not fail because other workers will have to verify it again. So it is with a file in
        the image: another image has other bytes under that path, of the same size and often of the
        same time, and a manifest on the volume would be believed there too.
        """
        if not found.baked:
            place = layout.manifest_path(self._volume, found.kind, found.path)
            try:
                manifests.write(self._volume, place, manifest)
            except VolumeError as error:
                log.warning("The manifest of %s was not written: %s", found.path.name, error)
        with self._changing:
            self._change(found.path, replace(found, manifest=manifest))

    def forget(self, path: Path) -> None:
        """Take a file that is gone off the list."""
        with self._changing:
            self._change(path, None)

    def _change(self, path: Path, found: Found | None) -> None:
        self._changed_meanwhile[path] = found
        self._inventory = _changed(self._inventory, path, found)

    def _with_changes(self, seen: Inventory) -> Inventory:
        """Return what a scan saw, with what was recorded or looked at since it began."""
        for path, found in self._changed_meanwhile.items():
            seen = _changed(seen, path, found)
        return seen

    def _scan(self, known: inventory.Files) -> dict[Path, Found]:
        return inventory.scan(
            self._volume, known, baked=self._baked, allow_pickle=self._allow_pickle
        )


def _changed(seen: Inventory, path: Path, found: Found | None) -> Inventory:
    return seen.without(path) if found is None else seen.with_file(found)
