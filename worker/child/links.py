"""The folder that A1111 is shown: one link per model file, under a name that a tag can carry.

    <links>/Stable-diffusion/deliberate_v6.safetensors -> /runpod-volume/models/checkpoints/…
    <links>/ESRGAN/4x.pth                              -> /runpod-volume/models/upscalers/…
    <links>/Lora/  VAE/  embeddings/  ControlNet/  hypernetworks/

A1111 scans this local folder instead of the network volume; a name means one file whatever roots and
sub-folders it came from; characters that its tag syntax cannot carry are replaced in the link's name;
and a pickle has a suffix that A1111 looks for. A1111 follows links. Source: A1111 1.10.1, modules/shared.py, walk_files (os.walk, followlinks).
"""

import re
import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from threading import Lock

from model_cache.models import CachedModel
from schemas.model_ref import SUFFIX, Kind, stem_of

FOLDERS = {
    Kind.CHECKPOINT: "Stable-diffusion",
    Kind.LORA: "Lora",
    Kind.VAE: "VAE",
    Kind.EMBEDDING: "embeddings",
    Kind.CONTROLNET: "ControlNet",
    Kind.UPSCALER: "ESRGAN",
    Kind.HYPERNETWORK: "hypernetworks",
}
# What a name in a tag cannot hold: the syntax's own characters, what starts a comment, and what
# `prompt matrix` and the list of LoRA hashes split at.
_UNCARRIABLE = re.compile(r"[:=<>#|,\x00-\x1f\x7f]")


def carriable(name: str) -> str:
    """Return `name` with what a tag cannot carry replaced, so that `<lora:…:1>` finds the file."""
    return _UNCARRIABLE.sub("_", name).strip() or "_"


class LinkFolder:
    """Keeps the links; the only writer of its folder. Safe to use from several threads."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock = Lock()
        self._links: dict[Kind, dict[Path, Path]] = {kind: {} for kind in Kind}
        """Model file -> its link, whose stem is its name for A1111."""
        self._states: dict[Path, tuple[int, int]] = {}
        self._changed: dict[Kind, float] = {}
        self._used: dict[Kind, dict[str, str | None]] = {kind: {} for kind in Kind}
        """Name -> digest of what A1111 was shown under it, None if nobody knows. A name has no other bytes
        ever: A1111 does not load again what it has loaded under a name."""
        for kind in Kind:
            folder = root / FOLDERS[kind]
            folder.mkdir(parents=True, exist_ok=True)
            for stale in folder.iterdir():  # of an earlier start: names may mean other files now
                if stale.is_symlink():
                    stale.unlink()

    def changed(self, kind: Kind) -> float:
        """Return when the links of a kind changed last, by the monotonic clock."""
        with self._lock:
            return self._changed.get(kind, float("-inf"))

    def show(self, model: CachedModel) -> tuple[str, bool]:
        """Link `model`; return its name for A1111, without suffix, and whether the link is new.

        A file that was replaced at its path gets another name: A1111 neither loads a checkpoint
        again that keeps its name nor applies a LoRA again that was in the last job.
        """
        state = (model.size_bytes, model.mtime_ns)
        with self._lock:
            links = self._links[model.kind]
            known = links.get(model.path)
            if known is not None and self._states[model.path] == state:
                return stem_of(known.name), False
            if known is not None:
                links.pop(model.path).unlink(missing_ok=True)
                if model.kind is Kind.EMBEDDING:
                    # Named by words of a prompt, and read again whenever the folder changes.
                    del self._used[model.kind][stem_of(known.name)]
            name = self._free_name(model)
            link = self.root / FOLDERS[model.kind] / f"{name}{model.suffix}"
            self._link(model.path, link)
            links[model.path] = link
            self._states[model.path] = state
            self._changed[model.kind] = time.monotonic()
            return name, True

    def show_only(self, kind: Kind, models: Iterable[CachedModel]) -> bool:
        """Make the links of `kind` be those of `models`; return whether anything changed."""
        wanted = {model.path: model for model in models}
        with self._lock:
            gone = [path for path in self._links[kind] if path not in wanted]
            for path in gone:
                self._links[kind].pop(path).unlink(missing_ok=True)
                self._changed[kind] = time.monotonic()
        added = [self.show(model)[1] for model in wanted.values()]
        return bool(gone) or any(added)

    def forget_gone(self, kind: Kind) -> None:
        """Remove the links of a kind whose files are gone."""
        with self._lock:
            links = self._links[kind]
            for path in [path for path in links if not path.is_file()]:
                links.pop(path).unlink(missing_ok=True)
                self._changed[kind] = time.monotonic()

    def forget(self, model: CachedModel) -> None:
        """Remove the link of a model whose file is gone."""
        with self._lock:
            link = self._links[model.kind].pop(model.path, None)
            if link is not None:
                link.unlink(missing_ok=True)
                self._changed[model.kind] = time.monotonic()

    def path_of(self, kind: Kind, name: str) -> Path | None:
        """Return the model file behind a link's name, None if there is no such link."""
        with self._lock:
            links = self._links[kind].items()
            return next((path for path, link in links if stem_of(link.name) == name), None)

    def _free_name(self, model: CachedModel) -> str:
        used = self._used[model.kind]
        # A1111 would take `x.safetensors.safetensors` for `x.safetensors`.
        name = plain = carriable(model.name.replace("/", "_").replace(SUFFIX, "_safetensors"))
        if model.kind is Kind.CHECKPOINT and plain.endswith(".vae"):
            # A1111 takes `x.vae.safetensors` for no checkpoint. Source: modules/sd_models.py,
            # list_models (ext_blacklist).
            name = plain = plain.removesuffix(".vae") + "_vae"
        number = 2
        while name in used and not self._may_return(model, name):
            name = f"{plain}-{number}"
            number += 1
        used[name] = model.sha256
        return name

    def _may_return(self, model: CachedModel, name: str) -> bool:
        """Return whether `model` had `name` before, as one that was evicted and fetched again."""
        links = self._links[model.kind].values()
        is_the_same = model.sha256 is not None and self._used[model.kind][name] == model.sha256
        return is_the_same and all(stem_of(link.name) != name for link in links)

    @staticmethod
    def _link(target: Path, link: Path) -> None:
        # By rename, so that A1111 never lists a moment without it.
        fresh = link.with_name(f".{uuid.uuid4().hex}")
        fresh.symlink_to(target)
        fresh.replace(link)
