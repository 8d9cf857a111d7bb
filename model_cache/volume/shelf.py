"""The models of one kind, under every name and digest that they answer to. Pure; never changes.

A change makes another shelf. Where it touches one file alone, which is nearly always, the other is
a copy with that file changed, and thousands of models are not named anew.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from model_cache.models import CachedModel
from model_cache.volume import layout, naming
from model_cache.weights.digests import AUTOV3_DIGITS, SHORT_DIGITS


class Shelved(naming.Placed, Protocol):
    """A file that can be put on a shelf."""

    @property
    def sources(self) -> Mapping[str, float]:
        """The source keys that were seen to give this file, and when each was (Unix time)."""
        ...

    def called(self, name: str) -> CachedModel:
        """Return the file as a model of that name."""
        ...


File = TypeVar("File", bound=Shelved)
_by_name = attrgetter("name")


@dataclass
class _Tables(Generic[File]):
    """What a shelf knows; changed only until a shelf has it."""

    stems: dict[str, int]
    """Stem -> how many files have it."""
    files: dict[Path, File]
    models: dict[Path, CachedModel]
    named: dict[str, CachedModel]
    index: dict[str, tuple[CachedModel, ...]]
    """Whatever else a model is found by -> the models, sorted by name."""
    called_by_path: int = 0
    """How many files could not be called by their stem."""

    def copy(self) -> "_Tables[File]":
        """Return tables that can be changed."""
        return _Tables(
            self.stems.copy(),
            self.files.copy(),
            self.models.copy(),
            self.named.copy(),
            self.index.copy(),
            self.called_by_path,
        )

    def put(self, file: File, name: str) -> None:
        """Add a file that gets a name."""
        stem = naming.stem(file)
        model = file.called(name)
        self.stems[stem] = self.stems.get(stem, 0) + 1
        self.files[file.path] = file
        self.models[file.path] = model
        self.named[name] = model
        self.called_by_path += name != stem
        for key in _keys(file, model):
            held = self.index.get(key)
            self.index[key] = _sorted((*held, model)) if held else (model,)

    def take(self, path: Path) -> None:
        """Remove a file."""
        file, model = self.files.pop(path), self.models.pop(path)
        stem = naming.stem(file)
        self.stems[stem] -= 1
        if not self.stems[stem]:
            del self.stems[stem]
        del self.named[model.name]
        self.called_by_path -= model.name != stem
        for key in _keys(file, model):
            kept = tuple(held for held in self.index[key] if held.path != path)
            if kept:
                self.index[key] = kept
            else:
                del self.index[key]


class Shelf(Generic[File]):
    """The files of one kind and their names."""

    def __init__(self, tables: _Tables[File]) -> None:
        """Take over `tables`; `of` makes them."""
        self._tables = tables

    @classmethod
    def of(cls, files: Collection[File]) -> "Shelf[File]":
        """Give names to `files`."""
        tables: _Tables[File] = _Tables({}, {}, {}, {}, {})
        for name, file in sorted(naming.unique_names(files).items()):
            tables.put(file, name)
        return cls(tables)

    @cached_property
    def models(self) -> tuple[CachedModel, ...]:
        """All of them, sorted by name."""
        return _sorted(self._tables.models.values())

    def at(self, path: Path) -> CachedModel | None:
        """Return the model whose file is at `path`."""
        return self._tables.models.get(path)

    def named(self, name: str) -> CachedModel | None:
        """Return the model with exactly this name."""
        return self._tables.named.get(name)

    def spelled(self, text: str) -> tuple[CachedModel, ...]:
        """Return the models that answer to `text`, without suffix, sorted by name."""
        return self._tables.index.get(f"spelling {text}", ())

    def alike(self, name: str) -> tuple[CachedModel, ...]:
        """Return the models whose name, or published file, could be taken for `name`."""
        return self._tables.index.get(f"folded {layout.folded(name)}", ())

    def with_digest(self, digest: str) -> tuple[CachedModel, ...]:
        """Return the models known by a digest of 64, 12 or 10 digits, sorted by name."""
        return self._tables.index.get(f"digest {digest}", ())

    def from_source(self, source: str) -> tuple[CachedModel, ...]:
        """Return the models with the bytes that a source key means today, sorted by name.

        Of all that it ever gave, as far as anybody remembers, those that it was last seen to give:
        so nobody has to take the key away from the others for all workers to agree.
        """
        given = self.given_by(source)
        if len(given) <= 1:
            return given
        newest = max(given, key=lambda model: (self._seen_at(model, source), model.name))
        return tuple(model for model in given if model.sha256 == newest.sha256)

    def seen_at(self, source: str) -> float:
        """Return the Unix time at which a source key was last seen to give a file; 0.0 if never."""
        return max((self._seen_at(model, source) for model in self.given_by(source)), default=0.0)

    def given_by(self, source: str) -> tuple[CachedModel, ...]:
        """Return the models that a source key was ever seen to give, sorted by name."""
        return self._tables.index.get(f"source {source}", ())

    def _seen_at(self, model: CachedModel, source: str) -> float:
        return self._tables.files[model.path].sources[source]

    def with_file(self, file: File) -> "Shelf[File]":
        """Return a shelf with `file` on it, new or in place of the one at its path."""
        before, stem = self._tables.models.get(file.path), naming.stem(file)
        if before is None and (stem in self._tables.stems or stem in self._tables.named):
            return Shelf.of([*self._tables.files.values(), file])
        tables = self._tables.copy()
        if before is not None:
            tables.take(file.path)
        # The name of a file that is known follows from where it is, and that is the same.
        tables.put(file, stem if before is None else before.name)
        return Shelf(tables)

    def without(self, path: Path) -> "Shelf[File]":
        """Return a shelf without the file at `path`."""
        if path not in self._tables.files:
            return self
        # Somebody who is called by a path might now get a shorter name.
        if self._tables.called_by_path:
            return Shelf.of([other for at, other in self._tables.files.items() if at != path])
        tables = self._tables.copy()
        tables.take(path)
        return Shelf(tables)


def _sorted(models: Iterable[CachedModel]) -> tuple[CachedModel, ...]:
    return tuple(sorted(models, key=_by_name))


def _keys(file: Shelved, model: CachedModel) -> Iterator[str]:
    """Yield every key that a model is found by, each once."""
    for spelling in naming.spellings(file.relative):
        yield f"spelling {spelling}"
    # A file with a claim may be called otherwise, and be in the way where it lies all the same.
    texts = (model.name,) if file.claim is None else (model.name, naming.stem(file))
    yield from {f"folded {layout.folded(text)}" for text in texts}
    for source in file.sources:
        yield f"source {source}"
    if model.sha256 is not None:
        digest = model.sha256
        starts = {digest[:SHORT_DIGITS], digest[:AUTOV3_DIGITS], model.autov3} - {""}
        yield from (f"digest {known}" for known in {digest, *starts})
