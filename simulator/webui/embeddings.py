"""Textual inversions: words of the prompt that stand for vectors in a file.

Read when a checkpoint is loaded and again by any job that finds the folder newer. One whose vectors
are not as wide as the checkpoint's text is listed as skipped, and its word is just a word.

Source: A1111 1.10.1, modules/textual_inversion/textual_inversion.py.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulator.webui import weights
from simulator.webui.failure import WebuiError
from simulator.webui.hashes import HashCache

_PREVIEWS = {".PNG", ".WEBP", ".JXL", ".AVIF"}


@dataclass(frozen=True)
class Embedding:
    """One file: how wide (`shape`) and how many its vectors are, and what its trainer noted."""

    name: str
    shape: int
    vectors: int
    step: int | None
    sd_checkpoint: str | None
    sd_checkpoint_name: str | None
    content: str
    """Digest of the file."""
    sha256: str
    """What is known to be its hash; empty with --no-hashing."""

    def listed(self) -> dict[str, Any]:
        """Return its entry in /embeddings."""
        return {
            "step": self.step,
            "sd_checkpoint": self.sd_checkpoint,
            "sd_checkpoint_name": self.sd_checkpoint_name,
            "shape": self.shape,
            "vectors": self.vectors,
        }


class Embeddings:
    """What the folder held when it was last read."""

    def __init__(self, folder: Path, hashes: HashCache) -> None:
        self._folder = folder
        self._hashes = hashes
        self._mtime: float | None = None
        self.loaded: dict[str, Embedding] = {}
        self.skipped: dict[str, Embedding] = {}

    def reload(self, width: int, *, force: bool) -> None:
        """Read the folder if it is newer than last time, or anyway with `force`.

        `width` is that of the checkpoint's text; 0 takes every embedding.
        """
        if not self._folder.is_dir():
            if force:
                self.loaded, self.skipped = {}, {}
            return
        mtime = self._folder.stat().st_mtime
        if not force and self._mtime is not None and mtime <= self._mtime:
            return
        self._mtime = mtime
        self.loaded, self.skipped = {}, {}
        for embedding in self._read():
            fits = width in {0, embedding.shape}
            (self.loaded if fits else self.skipped)[embedding.name] = embedding
        self.loaded = dict(sorted(self.loaded.items(), key=lambda item: item[0].lower()))

    def _read(self) -> Iterable[Embedding]:
        for root, _, names in os.walk(self._folder, followlinks=True):
            for name in names:
                path = Path(root, name)
                try:
                    embedding = _embedding(path, self._hashes)
                except WebuiError:
                    # A1111 says so in its log and goes on to the next file.
                    continue
                if embedding is not None:
                    yield embedding

    def used_in(self, prompt: str) -> list[Embedding]:
        """Return the embeddings whose words occur in `prompt`, in the order of the list."""
        return [
            embedding
            for embedding in self.loaded.values()
            if re.search(rf"(?<!\w){re.escape(embedding.name)}(?!\w)", prompt, re.IGNORECASE)
        ]


def _embedding(path: Path, hashes: HashCache) -> Embedding | None:
    """Return the embedding in a file; None for a preview, an empty or a foreign file.

    Raises:
        WebuiError: the file is damaged or has no vectors.
    """
    extension = path.suffix.upper()
    if not path.exists() or path.stat().st_size == 0 or extension in _PREVIEWS:
        return None
    if extension == ".SAFETENSORS":
        header = weights.read_header(path)
        data: dict[str, Any] = {name: header.shape(name) for name in header.tensors}
    elif extension in {".PT", ".BIN"}:
        data = weights.read_pickled(path)
    else:
        return None
    vectors, width = _vectors(data)
    name = path.name.removesuffix(path.suffix)
    return Embedding(
        name=name,
        shape=width,
        vectors=vectors,
        step=data.get("step"),
        sd_checkpoint=data.get("sd_checkpoint"),
        sd_checkpoint_name=data.get("sd_checkpoint_name"),
        content=weights.fingerprint(path),
        sha256=hashes.of(path, f"textual_inversion/{name}") or "",
    )


def _vectors(data: dict[str, Any]) -> tuple[int, int]:
    """Return how many vectors there are and how wide."""
    if "clip_g" in data and "clip_l" in data:
        return data["clip_g"][0], data["clip_g"][-1] + data["clip_l"][-1]
    terms = data.get("string_to_param", data)
    shapes = [shape for shape in terms.values() if isinstance(shape, tuple) and shape]
    if len(shapes) != 1:
        raise WebuiError("AssertionError", "embedding file has multiple terms in it")
    shape = shapes[0]
    return (shape[0], shape[-1]) if len(shape) > 1 else (1, shape[0])
