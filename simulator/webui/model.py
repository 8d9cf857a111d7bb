"""The checkpoint and the VAE that are loaded, and what it takes to change them.

The weights of a new checkpoint go into the model that is there. While that happens, the model is
taken out of its "hijack" (which is what understands emphasis, embeddings and long prompts); when
reading the new file fails, it stays out, and until the next load pictures differ. So it is with a VAE;
and of one whose tensors have other shapes, those that fit have been taken over by the time it fails.

Source: A1111 1.10.1, modules/sd_models.py, reload_model_weights and load_model_weights;
modules/sd_vae.py, reload_vae_weights and load_vae.
"""

import sys
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from simulator.webui import weights
from simulator.webui.checkpoints import Checkpoint, Checkpoints
from simulator.webui.embeddings import Embeddings
from simulator.webui.failure import WebuiError
from simulator.webui.hashes import HashCache
from simulator.webui.networks import Networks
from simulator.webui.options import Options
from simulator.webui.vaes import Vaes


@dataclass
class Parts:
    """What a model is made from; owned by the program as a whole."""

    options: Options
    hashes: HashCache
    checkpoints: Checkpoints
    vaes: Vaes
    networks: Networks
    embeddings: Embeddings
    upscalers: Collection[str]


class Model:
    """The one model in memory, if any. Callers hold the queue's lock, but for the first load."""

    def __init__(self, parts: Parts, on_load: Callable[[int], None]) -> None:
        """Load nothing yet; `on_load` is called in the midst of every load, with the file's size."""
        self._parts = parts
        self._on_load = on_load
        self._first_load = threading.Lock()
        self.checkpoint: Checkpoint | None = None
        self.content = ""
        """Digest of the loaded bytes: a file that was replaced since does not count."""
        self.width = 0
        self.is_nan = False
        self.is_inpainting = False
        self.is_hijacked = True
        self.vae: Path | None = None
        self.vae_content = ""
        self._autoencoder: dict[str, tuple[int, ...]] = {}
        """The shapes that a VAE must have, by the names in its file."""
        self.loads = 0

    def get(self) -> Checkpoint | None:
        """Return the loaded checkpoint, loading the selected one first if none ever was.

        A load that fails leaves None, and its reason in the log alone.

        Source: A1111 1.10.1, modules/sd_models.py, SdModelData.get_sd_model.
        """
        with self._first_load:
            if self.checkpoint is None:
                try:
                    self._load(self._selected(), into_options=True)
                except WebuiError as failure:
                    print(f"Stable diffusion model failed to load: {failure}", file=sys.stderr)
            return self.checkpoint

    def _selected(self) -> Checkpoint:
        return self._parts.checkpoints.select(self._parts.options["sd_model_checkpoint"])

    def reload(self, wanted: Checkpoint | None = None, *, into_options: bool = True) -> None:
        """Load `wanted`, or what the options select, unless its file is the one that is loaded.

        A file of the same name with another content is the same file.

        Raises:
            WebuiError: the file is gone or damaged, or there is none at all.
        """
        with self._first_load:
            wanted = wanted or self._selected()
            if self.checkpoint is None or self.checkpoint.path != wanted.path:
                self._load(wanted, into_options=into_options)

    def _load(self, wanted: Checkpoint, *, into_options: bool) -> None:
        before = self.checkpoint
        self.is_hijacked = False
        header = self._read(wanted)
        try:
            self._apply(wanted, header, into_options=into_options)
        except WebuiError:
            self._restore(before, into_options=into_options)
            raise
        finally:
            self.is_hijacked = True
        self._parts.networks.reset()
        self._parts.embeddings.reload(self.width, force=True)

    def _read(self, wanted: Checkpoint) -> weights.Header | None:
        self._parts.checkpoints.learn_hash(wanted)
        header = None
        if wanted.path.suffix == ".safetensors":
            header = weights.read_header(wanted.path)
        self._on_load(wanted.path.stat().st_size)
        self.loads += 1
        return header

    def _apply(
        self, wanted: Checkpoint, header: weights.Header | None, *, into_options: bool
    ) -> None:
        """Take over the weights of a file that was read, and load the VAE that belongs to it."""
        if into_options:
            self._parts.options.data["sd_model_checkpoint"] = wanted.title
            self._parts.options.data["sd_checkpoint_hash"] = wanted.sha256
        self.checkpoint = wanted
        self.content = weights.fingerprint(wanted.path)
        self.width = weights.text_width(header) if header else 0
        self.is_nan = header is not None and weights.has_nan_weights(wanted.path, header)
        self.is_inpainting = header is not None and weights.takes_mask(header)
        self._autoencoder = weights.autoencoder(header) if header else {}
        self.vae, self.vae_content = None, ""
        self._use_vae(self._parts.vaes.of(wanted.path))

    def _restore(self, before: Checkpoint | None, *, into_options: bool) -> None:
        """Go back to the checkpoint before, whose VAE is chosen by the same options.

        A1111 does so where both are of one architecture. Where they are not, it is left without any
        checkpoint; that is not followed here.

        Raises:
            WebuiError: its VAE fails to load, too.
        """
        self.checkpoint = None
        if before is not None:
            self._apply(before, self._read(before), into_options=into_options)

    def reload_vae(self) -> None:
        """Use the VAE that the options select now; an unknown name is none.

        Raises:
            WebuiError: there is no checkpoint, or the VAE's file is gone or damaged.
        """
        checkpoint = self.get()
        if checkpoint is None:
            raise WebuiError(
                "AttributeError", "'NoneType' object has no attribute 'sd_checkpoint_info'"
            )
        self._use_vae(self._parts.vaes.of(checkpoint.path))

    def _use_vae(self, path: Path | None) -> None:
        if path == self.vae:
            return
        self.is_hijacked = False
        if path is not None:
            self._require_vae(path)
        self.vae_content = weights.fingerprint(path) if path else ""
        self.vae = path
        self.is_hijacked = True

    def _require_vae(self, path: Path) -> None:
        if not path.is_file():
            raise WebuiError("AssertionError", f"VAE specified in settings doesn't exist: {path}")
        if path.suffix != ".safetensors":
            return
        header, own = weights.read_header(path), self._autoencoder
        wrong = [
            (name, header.shape(name), own[name])
            for name in header.tensors
            if name in own and header.shape(name) != own[name]
        ]
        if wrong:
            self.vae_content = f"in part {weights.fingerprint(path)}"
            raise weights.mismatch("AutoencoderKL", wrong)

    def vae_hash(self) -> str | None:
        """Return ten digits of the VAE's hash.

        All VAEs share one entry of the cache, there as here: after a switch to an older file the
        hash of the one before is answered.

        Source: A1111 1.10.1, modules/sd_vae.py, get_loaded_vae_hash.
        """
        if self.vae is None:
            return None
        sha256 = self._parts.hashes.of(self.vae, "vae")
        return sha256[:10] if sha256 else None
