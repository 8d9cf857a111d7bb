"""Which model files there are, and by which names they are called.

`scan` looks at the disk and `Inventory` is what it saw: immutable, so that a reader needs no lock.
"""

import os
import stat
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

from model_cache.models import CachedModel, Origin
from model_cache.volume import hubmodels, layout, manifests, walk
from model_cache.volume.shelf import Shelf
from model_cache.volume.walk import Candidate
from schemas.errors import ModelNotFoundError
from schemas.manifest import Manifest
from schemas.model_ref import Kind, stem_of

_SECOND_NS = 1_000_000_000
# Measured for each file: on a local disk 50 us, nearly all of it Python's, which threads make three
# times as much; on a MooseFS mount 0.3 ms (stat 73 us; open, read and close 237 us), mostly waiting.
_SLOW_S = 0.000_2
_THREADS = 8
_BATCH = 64


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
    written: manifests.State | None = None
    """Which writing of the manifest that is; None if it is not from the volume."""
    home: Path = field(default=Path("/"))
    """The volume, or the folder of models in the image: what `place` is below."""
    baked: bool = False
    """Whether it is in the image."""
    hub: hubmodels.HubModel | None = None
    """What it is in the platform's Hugging Face cache, if it lies there."""

    @property
    def relative(self) -> str:
        """`sub/stem`, below its root; `org/repo/stem` in the Hugging Face cache."""
        if self.hub is not None:
            return self.hub.relative
        return stem_of(str(self.path).removeprefix(f"{self.folder}/"))

    @property
    def place(self) -> str:
        """`models/Lora/sub/stem`, below the volume or the image's folder of models."""
        return stem_of(str(self.path).removeprefix(str(self.home)).lstrip("/"))

    @property
    def claim(self) -> int | None:
        """Baked files never move and come first, then what we published; see `naming.Placed`."""
        if self.baked:
            return 0
        return 1 if self.published else None

    @property
    def sources(self) -> Mapping[str, float]:
        """The source keys that were seen to give this file, and when each was (Unix time)."""
        means = {} if self.manifest is None else self.manifest.means
        return means if self.hub is None else {self.hub.key: 0.0, **means}

    @property
    def origin(self) -> Origin:
        """How it came here."""
        if self.baked:
            return Origin.BAKED
        if self.hub is not None:
            return Origin.HUB
        fetched = self.published and self.manifest is not None and self.manifest.source
        return Origin.PUBLISHED if fetched else Origin.BROUGHT

    def is_same_file(self, status: os.stat_result) -> bool:
        """Tell whether size and mtime are still those that were found."""
        return (self.status.st_size, self.status.st_mtime_ns) == (
            status.st_size,
            status.st_mtime_ns,
        )

    def called(self, name: str) -> CachedModel:
        """Return the file as a model of that name."""
        manifest = self.manifest
        return CachedModel(
            kind=self.kind,
            name=name,
            path=self.path,
            sha256=manifest.sha256 if manifest else None,
            size_bytes=self.status.st_size,
            mtime_ns=self.status.st_mtime_ns,
            base=manifest.base if manifest else "unknown",
            base_by=manifest.base_by if manifest else "",
            alias=manifest.alias if manifest else "",
            source=(manifest.source if manifest else "") or next(iter(self.sources), ""),
            autov3=manifest.autov3 if manifest else "",
            origin=self.origin,
        )


Files = Mapping[Path, Found]


def scan(
    volume: Path,
    known: Files,
    *,
    baked: Path | None = None,
    allow_pickle: Collection[Kind] = (),
) -> dict[Path, Found]:
    """Look into every folder for models, following links, and return what is there.

    What is in `known` keeps its manifest without reading it again, unless the file changed or the
    manifest was written anew. Pickles are seen of the kinds in `allow_pickle` alone.
    """
    candidates = list(walk.candidates(volume, baked, allow_pickle))
    names = {kind: manifests.names(volume, kind) for kind in Kind}
    look_at = partial(_found_all, volume, known, names)
    files = {found.path: found for found in _in_batches(look_at, candidates)}
    for model in hubmodels.models(volume):
        files[model.path] = _hub_file(volume, known.get(model.path), model)
    return files


def look(volume: Path, kind: Kind, path: Path, known: Files) -> Found | None:
    """Look again at one file, known or just published; None if it is not there."""
    status = _regular(path)
    if status is None:
        return None
    before = known.get(path)
    place = layout.manifest_path(volume, kind, path)
    written = manifests.state(place)
    manifest = manifests.read(place, status)
    if manifest is None:
        written = None
        if before is not None and before.is_same_file(status):
            manifest = before.manifest
    if before is not None:
        return replace(before, status=status, manifest=manifest, written=written)
    published = path.parent == layout.published_path(volume, kind, "any").parent
    return Found(kind, path, path.parent, published, status, manifest, written, volume)


def _in_batches(
    look_at: Callable[[Collection[Candidate]], list[Found]], candidates: Sequence[Candidate]
) -> Iterator[Found]:
    """Look at files: one after another on a local disk, several at once where that waits."""
    started = time.monotonic()
    yield from look_at(candidates[:_BATCH])
    rest = candidates[_BATCH:]
    if time.monotonic() - started < _BATCH * _SLOW_S:
        yield from look_at(rest)
        return
    batches = [rest[at : at + _BATCH] for at in range(0, len(rest), _BATCH)]
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="scan") as threads:
        for batch in threads.map(look_at, batches):
            yield from batch


def _found_all(
    volume: Path,
    known: Files,
    manifest_names: Mapping[Kind, Collection[str]],
    candidates: Collection[Candidate],
) -> list[Found]:
    """Look at some files; what is no regular file, or is gone already, is left out."""
    files = []
    folders = {kind: layout.manifests_folder(volume, kind) for kind in Kind}
    for candidate in candidates:
        root, kind, path = candidate.root, candidate.kind, candidate.path
        status = _regular(path)
        if status is None:
            continue
        place = None
        if not root.baked:
            name = layout.manifest_name(volume, path, published=candidate.published)
            place = folders[kind] / name if name in manifest_names[kind] else None
        before = known.get(path)
        read = partial(_baked_manifest, candidate, status) if root.baked else None
        manifest, written = _manifest_of(status, place, before, read)
        if before is not None and manifest is not None and manifest is before.manifest:
            files.append(before)
            continue
        files.append(
            Found(
                kind,
                path,
                root.path,
                candidate.published,
                status,
                manifest,
                written,
                root.home,
                root.baked,
            )
        )
    return files


def _hub_file(volume: Path, before: Found | None, model: hubmodels.HubModel) -> Found:
    place = layout.manifest_path(volume, model.kind, model.path)
    manifest, written = _manifest_of(model.status, place, before)
    if before is not None and manifest is not None and manifest is before.manifest:
        return before
    return Found(
        kind=model.kind,
        path=model.path,
        folder=model.path.parent,
        published=False,
        status=model.status,
        manifest=manifest,
        written=written,
        home=volume,
        hub=model,
    )


def _manifest_of(
    status: os.stat_result,
    place: Path | None,
    before: Found | None,
    read: Callable[[], Manifest | None] | None = None,
) -> tuple[Manifest | None, manifests.State | None]:
    """Return what is known of a file with this `status`, and which writing of a manifest says so.

    What was known `before` of the very same file stays true, whatever becomes of its manifest; but
    one that was written anew is read, as it may tell of other sources.
    """
    known = before.manifest if before is not None and before.is_same_file(status) else None
    written = None if place is None else manifests.state(place)
    if known is not None and before is not None and written in {None, before.written}:
        return known, before.written
    if place is None or written is None:
        return (None if read is None else read()), None
    manifest = manifests.read(place, status)
    return (known, None) if manifest is None else (manifest, written)


def _baked_manifest(candidate: Candidate, status: os.stat_result) -> Manifest | None:
    """Return the manifest that came into the image with a file.

    An image keeps whole seconds of a file's time. Source: moby/moby, pkg/archive/archive.go,
    FileInfoHeader (`Truncate(time.Second)`).
    """
    if candidate.path.parent != candidate.root.path:
        return None
    manifest = manifests.stored(layout.baked_manifest(candidate.root, candidate.path))
    if manifest is None:
        return None
    told = (manifest.size_bytes, manifest.mtime_ns // _SECOND_NS)
    return manifest if told == (status.st_size, status.st_mtime_ns // _SECOND_NS) else None


def _regular(path: Path) -> os.stat_result | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status if stat.S_ISREG(status.st_mode) else None


class Inventory:
    """The models that were found, under every name that they answer to."""

    def __init__(self, volume: Path, files: Files) -> None:
        """Give names to `files`."""
        self._volume = volume
        self.files = files
        self._shelves = {
            kind: Shelf.of([file for file in files.values() if file.kind is kind]) for kind in Kind
        }

    def with_file(self, found: Found) -> "Inventory":
        """Return an inventory with `found` in it, new or in place of the one at its path."""
        before = self.files.get(found.path)
        if before is not None and before.kind is not found.kind:
            return self.without(found.path).with_file(found)
        shelf = self._shelves[found.kind].with_file(found)
        return self._changed({**self.files, found.path: found}, found.kind, shelf)

    def without(self, path: Path) -> "Inventory":
        """Return an inventory without the file at `path`."""
        found = self.files.get(path)
        if found is None:
            return self
        files = dict(self.files)
        del files[path]
        return self._changed(files, found.kind, self._shelves[found.kind].without(path))

    def _changed(self, files: Files, kind: Kind, shelf: Shelf[Found]) -> "Inventory":
        other = Inventory(self._volume, {})
        other.files = files
        other._shelves = {**self._shelves, kind: shelf}
        return other

    def models(self, kind: Kind) -> tuple[CachedModel, ...]:
        """Return every model of a kind, sorted by name."""
        return self._shelves[kind].models

    def at(self, path: Path) -> CachedModel | None:
        """Return the model whose file is at `path`."""
        found = self.files.get(path)
        return self._shelves[found.kind].at(path) if found else None

    def named(self, kind: Kind, name: str) -> CachedModel | None:
        """Return the model with exactly this name."""
        return self._shelves[kind].named(name)

    def alike(self, kind: Kind, name: str) -> tuple[CachedModel, ...]:
        """Return the models whose name a disk or an eye could take for `name`, sorted by name."""
        return self._shelves[kind].alike(name)

    def find(self, kind: Kind, text: str) -> CachedModel | None:
        """Return the model that `text` means, in any of the spellings that A1111 takes as well.

        Its name, with or without suffix; `sub/name`; `sub_name`; its SHA-256, or the first 10 digits
        of that, or its AutoV3. Case matters, as it does to A1111.

        Raises:
            ModelNotFoundError: several files are spelled so, and none of them is called so.
        """
        shelf = self._shelves[kind]
        # As it is first: a file may be called `x.safetensors.safetensors`.
        for name in (text, stem_of(text)):
            if (model := shelf.named(name)) is not None:
                return model
        text = stem_of(text)
        spelled = shelf.spelled(text) or shelf.with_digest(text.lower())[:1]
        if len(spelled) > 1:
            names = ", ".join(model.name for model in spelled[:5])
            raise ModelNotFoundError(
                f"{len(spelled)} {kind} files are called {text!r}.", hint=f"Use one of: {names}."
            )
        return spelled[0] if spelled else None

    def with_digest(self, kind: Kind, digest: str) -> tuple[CachedModel, ...]:
        """Return the models known by this digest, a SHA-256 or a start of it, sorted by name."""
        return self._shelves[kind].with_digest(digest)

    def from_source(self, kind: Kind, source: str) -> tuple[CachedModel, ...]:
        """Return the models with the bytes that a source key means today, sorted by name."""
        return self._shelves[kind].from_source(source)

    def given_by(self, kind: Kind, source: str) -> tuple[CachedModel, ...]:
        """Return the models that a source key was ever seen to give, sorted by name."""
        return self._shelves[kind].given_by(source)

    def seen_at(self, kind: Kind, source: str) -> float:
        """Return the Unix time at which a source key was last seen to give a model; 0.0 if never."""
        return self._shelves[kind].seen_at(source)

    def folders(self, kind: Kind) -> tuple[str, ...]:
        """Return the folders that hold a model of a kind, our own in any case."""
        ours = self._volume / "models" / layout.FOLDERS[kind]
        others = {file.folder for file in self.files.values() if file.kind is kind} - {ours}
        return tuple(str(path).removeprefix(f"{self._volume}/") for path in (ours, *sorted(others)))

    @cached_property
    def total_bytes(self) -> int:
        """The bytes that models take on the volume; a file with two names counts once.

        Neither those in the image nor the platform's cache, over which nobody here has a say.
        """
        sizes = {
            (file.status.st_dev, file.status.st_ino): file.status.st_size
            for file in self.files.values()
            if not file.baked and file.hub is None
        }
        return sum(sizes.values())
