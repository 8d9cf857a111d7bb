"""SHA-256 of model files, remembered with the file's time, across restarts, in A1111's own databases.

    <cache folder>/hashes/cache.db          "checkpoint/tiny.safetensors"  {"mtime": …, "sha256": …}
                                            "lora/x" (a pickle)  "textual_inversion/y"  "vae" (all of them)
    <cache folder>/hashes-addnet/cache.db   "lora/x"    of what follows the header of a safetensors file

An entry holds until the file on disk is newer than it: a file that was replaced by an older one keeps
the old hash. What others write there while the program runs counts at the next look. Where there is no
such folder, the JSON in which older versions kept all of it is taken over first.

Source: A1111 1.10.1, modules/hashes.py and modules/cache.py. (Since pull request 16830, after 1.10.1, an
entry holds only for the very same time.)
"""

import hashlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diskcache

from simulator.webui.weights import not_found

FILES = "hashes"
DATA = "hashes-addnet"
"""Of what follows a safetensors file's header."""
_CHUNK = 1 << 20
_MOST_BYTES = 2**32
_LARGE = 2**18


@dataclass(frozen=True)
class Places:
    """Where the databases are, and where older versions kept all of it."""

    cache: Path
    old: Path


class HashCache:
    """The hashes that are known, by database and title."""

    def __init__(
        self, places: Places, on_read: Callable[[int], None], *, disabled: bool = False
    ) -> None:
        """Open nothing yet.

        Args:
            places: the databases'.
            on_read: called with how many bytes were read for a hash.
            disabled: --no-hashing.
        """
        self._places = places
        self._on_read = on_read
        self._disabled = disabled
        self._lock = threading.Lock()
        self._databases: dict[str, diskcache.Cache] = {}
        self.read_files = 0
        self.read_bytes = 0

    def known(self, path: Path, title: str, database: str = FILES) -> str | None:
        """Return the hash if it is known, without reading the file.

        Raises:
            WebuiError: FileNotFoundError.
        """
        try:
            mtime = path.stat().st_mtime
        except FileNotFoundError as error:
            raise not_found(path) from error
        entry = self._open(database).get(title)
        if not entry or mtime > entry.get("mtime", 0):
            return None
        sha256: str | None = entry.get("sha256")
        return sha256

    def of(self, path: Path, title: str, database: str = FILES, *, skip: int = 0) -> str | None:
        """Return the hash, reading the file from `skip` on if need be; None if that is --no-hashing.

        Raises:
            WebuiError: FileNotFoundError.
        """
        known = self.known(path, title, database)
        if known is not None or self._disabled:
            return known
        digest = hashlib.sha256()
        with path.open("rb") as file:
            file.seek(skip)
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
            read = file.tell() - skip
        self.read_files += 1
        self.read_bytes += read
        self._on_read(read)
        entry = {"mtime": path.stat().st_mtime, "sha256": digest.hexdigest()}
        self._open(database)[title] = entry
        return digest.hexdigest()

    def _open(self, database: str) -> diskcache.Cache:
        with self._lock:
            if database not in self._databases:
                if not self._places.cache.exists():
                    self._take_over()
                self._databases[database] = self._made(database)
            return self._databases[database]

    def _made(self, database: str) -> diskcache.Cache:
        folder = str(self._places.cache / database)
        return diskcache.Cache(folder, size_limit=_MOST_BYTES, disk_min_file_size=_LARGE)

    def _take_over(self) -> None:
        """Write what older versions kept into databases; move a file that is no JSON out of the way."""
        try:
            kept: dict[str, dict[str, Any]] = json.loads(self._places.old.read_text("utf-8"))
        except FileNotFoundError:
            return
        except ValueError:
            aside = self._places.old.parent / "tmp"
            aside.mkdir(exist_ok=True)
            self._places.old.replace(aside / self._places.old.name)
            return
        for database, entries in kept.items():
            self._databases[database] = self._made(database)
            for title, entry in entries.items():
                self._databases[database][title] = entry
