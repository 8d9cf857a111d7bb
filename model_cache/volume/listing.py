"""The list of models that a process keeps, and how it stays true.

Looked up again as a whole when somebody asks for it to be fresh, and one file at a time after a
change of our own or when a file is not what it was. Whoever looks something up waits for neither.
"""

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from pathlib import Path

from model_cache.models import CachedModel
from model_cache.volume import inventory, layout, manifests
from model_cache.volume.inventory import Found, Inventory
from schemas.errors import VolumeError
from schemas.manifest import Manifest
from schemas.model_ref import SUFFIX, SUFFIXES, Kind

log = logging.getLogger(__name__)

_TICK_S = 0.001


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
        self._amending = threading.Lock()
        """Held while a manifest is read and written again."""
        self._scans = 0
        self._changed_meanwhile: dict[Path, Found | None] = {}
        self._scanned_at = time.monotonic()
        self._inventory = Inventory(volume, self._scan({}))

    @property
    def current(self) -> Inventory:
        """What was seen last; takes no lock."""
        return self._inventory

    @property
    def scans(self) -> int:
        """How often everything was looked at again."""
        return self._scans

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

    def now(self, kind: Kind, sources: Iterable[str]) -> float:
        """Return the Unix time of what is seen now: later than all that `sources` gave before.

        Clocks of hosts may be an hour apart; what is seen to come after must be called later all the
        same. Source: L. Lamport, "Time, Clocks, and the Ordering of Events in a Distributed System",
        1978.
        """
        before = [self._inventory.seen_at(kind, source) + _TICK_S for source in sources]
        return max(time.time(), *before)

    def glance(self, kind: Kind) -> None:
        """See what other workers published since: reads the names of manifests, and nothing else.

        Costs milliseconds where a look at everything takes a good part of a second. What it cannot
        see: what people put there, other meanings of a file that is known, and files whose name
        leaves no room for the `.json` of a manifest.
        """
        folder = layout.published_path(self._volume, kind, "any").parent
        suffixes = SUFFIXES if kind in self._allow_pickle else SUFFIX
        known = {path.name for path in self._inventory.files if path.parent == folder}
        for name in manifests.names(self._volume, kind):
            file_name = name.removesuffix(".json")
            if file_name not in known and file_name.endswith(suffixes):
                self.look_again(kind, folder / file_name)

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
        written = None
        if not found.baked:
            place = layout.manifest_path(self._volume, found.kind, found.path)
            try:
                written = manifests.write(self._volume, place, manifest)
            except VolumeError as error:
                log.warning("The manifest of %s was not written: %s", found.path.name, error)
        with self._changing:
            self._change(found.path, replace(found, manifest=manifest, written=written))

    def amend(self, found: Found, change: Callable[[Manifest], Manifest]) -> None:
        """Change the manifest of a listed file; nothing happens where it has none.

        What it says at this moment is changed, and not what it said when we read it: another worker
        may have written it since.
        """
        with self._amending:
            place = layout.manifest_path(self._volume, found.kind, found.path)
            stored = None if found.baked else manifests.read(place, found.status)
            before = stored or found.manifest
            if before is not None and (after := change(before)) != found.manifest:
                self.record(found, after)

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
