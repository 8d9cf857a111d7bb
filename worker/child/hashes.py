"""A1111's database of hashes, told what the store knows already. Knows nothing of jobs.

A1111 hashes a checkpoint when it first loads it, a LoRA, a VAE and an embedding when it first uses
them, and so reads each file over the network a second time; unless its database has the hash:

    <data>/cache/hashes/cache.db          "checkpoint/night.safetensors"   {"mtime": 1.5, "sha256": …}
                                          "textual_inversion/easy"         (without its suffix)
                                          "hypernet/old"
                                          "vae"                            one key for all VAEs
    <data>/cache/hashes-addnet/cache.db   "lora/ink"                       of what follows the header

An entry holds until the file, which A1111 looks at through the link, is newer than `mtime`. The database is
SQLite in write-ahead mode and may be written while A1111 runs.

Source: A1111 1.10.1, modules/cache.py (make_cache), modules/hashes.py (sha256_from_cache),
modules/sd_models.py (CheckpointInfo), modules/sd_vae.py (get_loaded_vae_hash),
modules/textual_inversion/textual_inversion.py, modules/hypernetworks/hypernetwork.py,
extensions-builtin/Lora/network.py (NetworkOnDisk.read_hash); the package diskcache 5.6.3.
"""

import logging
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import diskcache

from model_cache.models import CachedModel
from schemas.model_ref import Kind

log = logging.getLogger(__name__)

# As A1111 opens it: who is first makes the table of these settings.
SIZE_LIMIT = 2**32
MIN_FILE_SIZE = 2**18
# A write takes milliseconds.
LOCK_S = 1.0


@dataclass(frozen=True)
class Entry:
    """One hash as A1111 looks it up."""

    database: str
    key: str
    sha256: str


def entry(model: CachedModel, name: str) -> Entry | None:
    """Return what A1111 looks up for `model`, which it knows as `name`; None if it is not known.

    `name` is a link's, without suffix: all links of a kind are in one folder.
    """
    if model.kind is Kind.LORA and not model.is_pickle:
        # 12 digits are all that A1111 shows of it, and all that the store keeps.
        return Entry("hashes-addnet", f"lora/{name}", model.autov3) if model.autov3 else None
    keys = {
        Kind.CHECKPOINT: f"checkpoint/{name}{model.suffix}",
        Kind.LORA: f"lora/{name}",
        Kind.VAE: "vae",
        Kind.EMBEDDING: f"textual_inversion/{name}",
        Kind.HYPERNETWORK: f"hypernet/{name}",
    }
    if model.kind not in keys or model.sha256 is None:
        return None
    return Entry("hashes", keys[model.kind], model.sha256)


class HashCache:
    """The database of one A1111. Safe to use from several threads, and while A1111 uses it.

    Nothing it does fails: without an entry A1111 hashes the file itself, which takes time only.

    Args:
        data_dir: A1111's data folder, `<links>/data`; while it is not there nothing is written, as
            somebody else started that A1111.
        lock_s: longest wait for A1111's own write, in seconds.
    """

    def __init__(self, data_dir: Path, *, lock_s: float = LOCK_S) -> None:
        self._data_dir = data_dir
        self._lock_s = lock_s
        self._lock = Lock()
        self._databases: dict[str, diskcache.Cache] = {}
        self._told: dict[tuple[str, str], tuple[str, float]] = {}

    def put(self, model: CachedModel, name: str) -> None:
        """Tell A1111 the hash of `model`, which it knows as `name`.

        Of a VAE before each job that uses it: A1111 keeps one hash for all VAEs, and else writes
        that of another into the infotext.
        """
        self.put_all([(model, name)])

    def put_all(self, models: Iterable[tuple[CachedModel, str]]) -> None:
        """Tell A1111 the hashes of many models, with their names, in one go."""
        fresh: dict[str, dict[str, tuple[str, float]]] = {}
        with self._lock:
            for model, name in models:
                found = entry(model, name)
                if found is not None:
                    value = (found.sha256, _mtime(model))
                    if self._told.get((found.database, found.key)) != value:
                        fresh.setdefault(found.database, {})[found.key] = value
            for database, values in fresh.items() if self._data_dir.is_dir() else ():
                self._write(database, values)

    def close(self) -> None:
        """Close the files."""
        with self._lock:
            for database in self._databases.values():
                database.close()
            self._databases.clear()

    def _write(self, name: str, values: dict[str, tuple[str, float]]) -> None:
        try:
            database = self._open(name)
            with database.transact():
                for key, (sha256, mtime) in values.items():
                    database[key] = {"mtime": mtime, "sha256": sha256}
        except (OSError, sqlite3.Error, diskcache.Timeout) as error:
            log.warning(f"A1111 will hash {len(values)} files itself: {name}: {error!r}")
            return
        for key, value in values.items():
            self._told[name, key] = value

    def _open(self, name: str) -> diskcache.Cache:
        if name not in self._databases:
            self._databases[name] = diskcache.Cache(
                str(self._data_dir / "cache" / name),
                timeout=self._lock_s,
                size_limit=SIZE_LIMIT,
                disk_min_file_size=MIN_FILE_SIZE,
            )
        return self._databases[name]


def _mtime(model: CachedModel) -> float:
    """Return what os.path.getmtime says of the file: A1111 compares the two numbers."""
    seconds, rest = divmod(model.mtime_ns, 10**9)
    return seconds + 1e-9 * rest
