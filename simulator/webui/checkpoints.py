"""The checkpoints on disk: names, titles, hashes, and every spelling that selects one.

Source: A1111 1.10.1, modules/sd_models.py, CheckpointInfo, list_models and select_checkpoint.
"""

import hashlib
import os
import re
from pathlib import Path
from typing import Any

from simulator.webui import folders
from simulator.webui.failure import WebuiError
from simulator.webui.flags import Flags
from simulator.webui.hashes import HashCache

_EXTENSIONS = {".ckpt", ".safetensors"}
_VAE_SUFFIXES = (".vae.ckpt", ".vae.safetensors")
_CHECKSUM = re.compile(r"\s*\[[^]]+]\s*$")


class Checkpoint:
    """One file. Its hash, and with it its title, is known once it was loaded (or cached)."""

    def __init__(self, path: Path, name: str, sha256: str | None) -> None:
        self.path = path
        self.name = name
        """Path below the folder it was found in, with extension."""
        self.stem = os.path.splitext(path.name)[0]  # noqa: PTH122 - "a.b.safetensors" is "a.b"
        self.model_name = os.path.splitext(name.replace("/", "_").replace("\\", "_"))[0]  # noqa: PTH122
        self.sha256 = sha256
        self.old_hash = _old_hash(path)

    @property
    def shorthash(self) -> str | None:
        """The first ten digits of the hash, if it is known."""
        return self.sha256[:10] if self.sha256 else None

    @property
    def title(self) -> str:
        """What /sd-models lists and /options shows after a load."""
        return f"{self.name} [{self.shorthash}]" if self.shorthash else self.name

    @property
    def short_title(self) -> str:
        """What infotexts say of a refiner or of a second checkpoint."""
        return f"{self.stem} [{self.shorthash}]" if self.shorthash else self.stem

    def spellings(self) -> list[str]:
        """Return everything that selects it."""
        ids = [
            self.old_hash,
            self.model_name,
            self.title,
            self.name,
            self.stem,
            f"{self.name} [{self.old_hash}]",
        ]
        if self.sha256:
            ids += [self.sha256[:10], self.sha256, self.title, self.short_title]
        return ids

    def listed(self) -> dict[str, Any]:
        """Return its entry in /sd-models."""
        config = self.path.with_suffix(".yaml")
        return {
            "title": self.title,
            "model_name": self.model_name,
            "hash": self.shorthash,
            "sha256": self.sha256,
            "filename": str(self.path),
            "config": str(config) if config.exists() else None,
        }


class Checkpoints:
    """All that the last scan found. A file that came since is unknown until `refresh`."""

    def __init__(self, flags: Flags, hashes: HashCache) -> None:
        self._flags = flags
        self._hashes = hashes
        self._models = flags.models_dir.absolute() / "Stable-diffusion"
        self.by_title: dict[str, Checkpoint] = {}
        self._aliases: dict[object, Checkpoint] = {}
        self.refresh()

    def refresh(self) -> None:
        """Scan the folders again: --ckpt, then --ckpt-dir, then models/Stable-diffusion."""
        self.by_title = {}
        self._aliases = {}
        if self._flags.ckpt.exists():
            self._register(self._checkpoint(self._flags.ckpt))
        seen = set()
        for path in self._files():
            if path not in seen:
                seen.add(path)
                self._register(self._checkpoint(path))

    def _files(self) -> list[Path]:
        places = [self._models]
        if (given := self._flags.ckpt_dir) is not None and given.exists():
            pretrained = given / "experiments" / "pretrained_models"
            places.insert(0, pretrained if pretrained.exists() else given)
        return [
            path
            for place in places
            for path in folders.walk(place, _EXTENSIONS)
            if path.exists() and not path.name.endswith(_VAE_SUFFIXES)
        ]

    def _checkpoint(self, path: Path) -> Checkpoint:
        absolute = str(path.absolute())
        name = path.name
        for folder in (self._flags.ckpt_dir, self._models):
            if folder is not None and absolute.startswith(str(folder.absolute())):
                name = absolute.replace(str(folder.absolute()), "").lstrip("/")
                break
        return Checkpoint(path, name, self._hashes.known(path, f"checkpoint/{name}"))

    def _register(self, checkpoint: Checkpoint) -> None:
        self.by_title[checkpoint.title] = checkpoint
        for spelling in checkpoint.spellings():
            self._aliases[spelling] = checkpoint

    def learn_hash(self, checkpoint: Checkpoint) -> None:
        """Read the file's hash, if need be; title and spellings change with it.

        Raises:
            WebuiError: FileNotFoundError.
        """
        sha256 = self._hashes.of(checkpoint.path, f"checkpoint/{checkpoint.name}")
        if sha256 is None or sha256 == checkpoint.sha256:
            return
        before = checkpoint.title
        checkpoint.sha256 = sha256
        self.by_title = {
            (checkpoint.title if title == before else title): other
            for title, other in self.by_title.items()
        }
        self._register(checkpoint)

    def find(self, spelling: object) -> Checkpoint | None:
        """Return the checkpoint that this spelling means exactly, if there is one.

        Raises:
            WebuiError: TypeError, for a list or an object.
        """
        if isinstance(spelling, list | dict):
            raise WebuiError("TypeError", f"unhashable type: {type(spelling).__name__!r}")
        return self._aliases.get(spelling)

    def closest(self, text: str) -> Checkpoint | None:
        """Return the checkpoint that `text` means or the shortest title that contains it."""
        if not text:
            return None
        if (exact := self._aliases.get(text)) is not None:
            return exact
        for part in (text, _CHECKSUM.sub("", text)):
            found = [entry for title, entry in self.by_title.items() if part in title]
            if found:
                return min(found, key=lambda entry: len(entry.title))
        return None

    def select(self, option: object) -> Checkpoint:
        """Return what the option `sd_model_checkpoint` means; the first one if it means nothing.

        Raises:
            WebuiError: FileNotFoundError, when there is none at all.
        """
        found = self.find(option)
        if found is not None:
            return found
        if not self.by_title:
            raise WebuiError("FileNotFoundError", self._searched())
        return next(iter(self.by_title.values()))

    def _searched(self) -> str:
        text = "No checkpoints found. When searching for checkpoints, looked at:"
        text += f"\n - file {self._flags.ckpt.absolute()}\n - directory {self._models}"
        if self._flags.ckpt_dir is not None:
            text += f"\n - directory {self._flags.ckpt_dir.absolute()}"
        return (
            f"{text}Can't run without a checkpoint. Find and place a .ckpt or .safetensors file "
            "into any of those locations."
        )


def _old_hash(path: Path) -> str:
    """Return the hash of 64 KiB from 1 MiB on, which collides for all small files.

    Source: A1111 1.10.1, modules/sd_models.py, model_hash.
    """
    with path.open("rb") as file:
        file.seek(0x100000)
        return hashlib.sha256(file.read(0x10000)).hexdigest()[:8]
