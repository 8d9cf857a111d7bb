"""What must be true of a volume after any fault, once every worker on it has ended."""

import hashlib
import json
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from model_cache.cache import ModelCache
from model_cache.sharing import lease, leftovers
from model_cache.sharing.room import Room
from model_cache.sharing.uses import Uses
from model_cache.volume import layout, manifests
from model_cache.volume.listing import Listing
from schemas.model_ref import SUFFIX, Kind
from tests.model_cache.conftest import settings_for


@dataclass
class Clock:
    """Seconds that pass when a test says so."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def require_sound(volume: Path, root: Path) -> None:
    """Raise unless whatever can be seen is whole and right, and nothing else stays for ever.

    What is left of fetches that died is made old here, and gone afterwards.

    Args:
        volume: on which no worker lives any more.
        root: of the host: every file that there ever was to be fetched.
    """
    require_right_bytes(volume, root)
    _sweep(volume)
    left = [str(path.relative_to(volume)) for path in private(volume)]
    assert left == []
    store = ModelCache(settings_for(volume))
    assert store.write_registry()
    view = json.loads(layout.registry_path(volume).read_text())
    shown = {volume / model["file"] for model in view["models"]}
    assert shown == set(visible(volume))


def require_right_bytes(volume: Path, root: Path) -> None:
    """Raise unless every file that can be seen is one of the host's, and its manifest says which."""
    right = {_digest_of_a_source(str(path), *_state(path)) for path in root.rglob(f"*{SUFFIX}")}
    for path in visible(volume):
        assert path.suffix == SUFFIX, path
        found = digest(path)
        assert found in right, path
        kind = next(kind for kind in Kind if layout.FOLDERS[kind] == path.parent.name)
        manifest = manifests.read(layout.manifest_path(volume, kind, path), path.stat())
        assert manifest is None or manifest.sha256 == found, path


def visible(volume: Path) -> list[Path]:
    """Return every file on the volume but our own records."""
    records = {layout.registry_path(volume), layout.aliases_path(volume)}
    models = volume / "models"
    found = sorted(path for path in models.rglob("*") if path.is_file())
    return [path for path in found if ".worker" not in path.parts and path not in records]


def private(volume: Path) -> list[Path]:
    """Return every temporary file, lease and word of what is in use."""
    folders = [layout.tmp_folder(volume), layout.leases_folder(volume)]
    files = [path for folder in folders for path in folder.glob("*")]
    return sorted(files + [p for p in in_use(volume) if not p.name.endswith(".history.json")])


def in_use(volume: Path) -> list[Path]:
    """Return the records of use of all workers."""
    return list(layout.uses_folder(volume).glob("*"))


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sweep(volume: Path) -> None:
    """Do what living workers do in a day or two."""
    clock = Clock()
    uses = Uses(volume, clock=clock)
    room = Room(volume, None, Listing(volume), uses, clock=clock)
    for _ in range(25):
        # Each time: on MooseFS the mount of a worker that ended may bring its own time later.
        for path in (*private(volume), *in_use(volume)):
            os.utime(path, (0, 0), follow_symlinks=False)
        for found in leftovers.remains(volume, older_than_s=-1.0):
            leftovers.clear(found)  # What was moved there is as old as that, and that is now.
        lease.sweep(volume)
        room.sweep()
        uses.fold()
        clock.now += 30
    assert uses.others_in_use() == frozenset()
    uses.close()
    assert len(in_use(volume)) <= 1


def _state(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@lru_cache(maxsize=10_000)
def _digest_of_a_source(path: str, _size: int, _mtime_ns: int) -> str:
    return digest(Path(path))
