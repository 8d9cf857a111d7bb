"""Which model files are on the volume, and by which names they are called.

`scan` looks at the disk and `Inventory` is what it saw: immutable, so that a reader needs no lock.
"""

import logging
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from model_cache import layout, manifests, naming
from model_cache.models import CachedModel
from schemas.errors import ModelNotFoundError
from schemas.manifest import Manifest
from schemas.model_ref import SUFFIX, Kind

log = logging.getLogger(__name__)

# A1111 takes a VAE from the folder of checkpoints when it is called so, and lists no checkpoint.
# Source: A1111 1.10.1, modules/sd_models.py, list_models, and modules/sd_vae.py, refresh_vae_list.
_VAE_BESIDE_CHECKPOINT = f".vae{SUFFIX}"


@dataclass(frozen=True)
class Found:
    """A model file as the disk shows it."""

    kind: Kind
    path: Path
    folder: Path
    """The root that it was found below; `path` may be in a sub-folder of it."""
    published: bool
    """Whether it lies where we publish: in the folder of its kind, not in a sub-folder."""
    status: os.stat_result
    manifest: Manifest | None
    """Only one that is believed."""

    @property
    def relative(self) -> str:
        """`sub/stem`, below its root."""
        return self.path.relative_to(self.folder).as_posix().removesuffix(SUFFIX)

    def is_same_file(self, status: os.stat_result) -> bool:
        """Tell whether size and mtime are still those that were found."""
        return (self.status.st_size, self.status.st_mtime_ns) == (
            status.st_size,
            status.st_mtime_ns,
        )


Files = Mapping[Path, Found]


def scan(volume: Path, known: Files) -> dict[Path, Found]:
    """Look into every folder for models, following links, and return what is there.

    What is in `known` and has not changed keeps its manifest without reading it again.
    """
    files: dict[Path, Found] = {}
    visited: set[tuple[Kind, int, int]] = set()
    manifest_names = {kind: manifests.names(volume, kind) for kind in Kind}
    for root in layout.roots(volume):
        for path, status in _files(root.kind, root.path, visited):
            kind = _kind(root, path)
            before = known.get(path)
            manifest = before.manifest if before and before.is_same_file(status) else None
            place = layout.manifest_path(volume, kind, path)
            if manifest is None and place.name in manifest_names[kind]:
                manifest = manifests.read(place, status)
            published = root.ours and path.parent == root.path
            files[path] = Found(kind, path, root.path, published, status, manifest)
    return files


def look(volume: Path, kind: Kind, path: Path, known: Files) -> Found | None:
    """Look again at one file, known or just published; None if it is not there."""
    try:
        status = path.stat()
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    before = known.get(path)
    manifest = manifests.read(layout.manifest_path(volume, kind, path), status)
    if manifest is None and before and before.is_same_file(status):
        manifest = before.manifest
    folder = before.folder if before else path.parent
    published = path.parent == layout.published_path(volume, kind, "any").parent
    return Found(kind, path, folder, published, status, manifest)


class Inventory:
    """The models that were found, under every name that they answer to."""

    def __init__(self, volume: Path, files: Files) -> None:
        """Give names to `files`."""
        self._volume = volume
        self.files = files
        self._named: dict[Kind, dict[str, Found]] = {}
        self._spelled: dict[Kind, dict[str, list[Found]]] = {}
        self._digests: dict[tuple[Kind, str], list[Found]] = {}
        self._sources: dict[tuple[Kind, str], list[Found]] = {}
        self._models: dict[Path, CachedModel] = {}
        for kind in Kind:
            self._add(kind, [file for file in files.values() if file.kind is kind])

    def _add(self, kind: Kind, files: list[Found]) -> None:
        self._named[kind] = named = naming.unique_names(self._volume, files)
        spelled = self._spelled.setdefault(kind, {})
        for name, file in sorted(named.items()):
            self._models[file.path] = _model(name, file)
            for spelling in naming.spellings(file.relative):
                spelled.setdefault(spelling, []).append(file)
            if file.manifest is None:
                continue
            digest = file.manifest.sha256
            for key in (digest, digest[: naming.SHORT_HASH_DIGITS]):
                self._digests.setdefault((kind, key), []).append(file)
            for source in {file.manifest.source, *file.manifest.also_from} - {""}:
                self._sources.setdefault((kind, source), []).append(file)

    def models(self, kind: Kind) -> tuple[CachedModel, ...]:
        """Return every model of a kind, sorted by name."""
        return tuple(self._models[file.path] for _, file in sorted(self._named[kind].items()))

    def at(self, path: Path) -> CachedModel | None:
        """Return the model whose file is at `path`."""
        return self._models.get(path)

    def named(self, kind: Kind, name: str) -> CachedModel | None:
        """Return the model with exactly this name."""
        file = self._named[kind].get(name)
        return self._models[file.path] if file else None

    def find(self, kind: Kind, text: str) -> CachedModel | None:
        """Return the model that `text` means, in any of the spellings that A1111 takes as well.

        Its name, with or without suffix; `sub/name`; `sub_name`; the first 10 digits of its SHA-256,
        or all of them. Case matters, as it does to A1111.

        Raises:
            ModelNotFoundError: several files are spelled so, and none of them is called so.
        """
        # As it is first: a file may be called `x.safetensors.safetensors`.
        for name in (text, text.removesuffix(SUFFIX)):
            if (model := self.named(kind, name)) is not None:
                return model
        text = text.removesuffix(SUFFIX)
        spelled = self._spelled[kind].get(text) or self._digests.get((kind, text.lower()), [])[:1]
        if len(spelled) > 1:
            names = ", ".join(self._models[file.path].name for file in spelled[:5])
            raise ModelNotFoundError(
                f"{len(spelled)} {kind} files are called {text!r}.", hint=f"Use one of: {names}."
            )
        return self._models[spelled[0].path] if spelled else None

    def with_digest(self, kind: Kind, sha256: str) -> tuple[CachedModel, ...]:
        """Return the models known to have exactly these bytes, sorted by name."""
        return tuple(self._models[file.path] for file in self._digests.get((kind, sha256), []))

    def from_source(self, kind: Kind, source: str) -> tuple[CachedModel, ...]:
        """Return the models that were fetched from a source, sorted by name."""
        return tuple(self._models[file.path] for file in self._sources.get((kind, source), []))

    def folders(self, kind: Kind) -> tuple[str, ...]:
        """Return the folders that hold a model of a kind, our own in any case, below the volume."""
        ours = self._volume / "models" / layout.FOLDERS[kind]
        others = {file.folder for file in self._named[kind].values()} - {ours}
        return tuple(str(path.relative_to(self._volume)) for path in (ours, *sorted(others)))

    @cached_property
    def total_bytes(self) -> int:
        """The bytes that all models take; a file with two names counts once."""
        sizes = {
            (file.status.st_dev, file.status.st_ino): file.status.st_size
            for file in self.files.values()
        }
        return sum(sizes.values())


def _model(name: str, file: Found) -> CachedModel:
    manifest = file.manifest
    return CachedModel(
        kind=file.kind,
        name=name,
        path=file.path,
        sha256=manifest.sha256 if manifest else None,
        size_bytes=file.status.st_size,
        mtime_ns=file.status.st_mtime_ns,
        base=manifest.base if manifest else "unknown",
        alias=manifest.alias if manifest else "",
        source=manifest.source if manifest else "",
    )


def _kind(root: layout.Root, path: Path) -> Kind:
    beside = path.name.endswith(_VAE_BESIDE_CHECKPOINT)
    if root.kind is Kind.CHECKPOINT and beside and not root.ours:
        return Kind.VAE
    return root.kind


def _files(
    kind: Kind, folder: Path, visited: set[tuple[Kind, int, int]]
) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield the model files below `folder`, each folder once, however links are laid."""
    folders = [folder]
    while folders:
        current = folders.pop()
        try:
            status = current.stat()
            key = (kind, status.st_dev, status.st_ino)
            entries = [] if key in visited else sorted(os.scandir(current), key=lambda e: e.name)
        except (FileNotFoundError, NotADirectoryError):
            continue  # Most roots exist on no volume.
        except OSError as error:
            log.warning("The folder %s cannot be read: %s", current, error.strerror)
            continue
        visited.add(key)
        for entry in entries:
            # Hidden: unfinished uploads of many tools, and our own folder.
            if entry.name.startswith("."):
                continue
            with suppress(OSError):  # A broken link, or deleted by somebody since it was listed.
                if entry.is_dir():
                    folders.append(Path(entry))
                elif entry.name.endswith(SUFFIX) and stat.S_ISREG((status := entry.stat()).st_mode):
                    yield Path(entry), status
