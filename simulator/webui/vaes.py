"""The VAEs on disk, and which of them a checkpoint gets.

Source: A1111 1.10.1, modules/sd_vae.py.
"""

import glob
import json
from pathlib import Path

from simulator.webui import forge
from simulator.webui.flags import Flags
from simulator.webui.folders import natural_key
from simulator.webui.options import Options

_AUTOMATIC = {"Automatic", "auto"}
_EXTENSIONS = ("ckpt", "pt", "safetensors")


class Vaes:
    """The VAEs that the last scan found, by file name with extension."""

    def __init__(self, flags: Flags, options: Options) -> None:
        self._flags = flags
        self._options = options
        self.by_name: dict[str, Path] = {}
        self.refresh()

    def refresh(self) -> None:
        """Scan the checkpoint folders for `*.vae.*` and the VAE folders for every model file."""
        models = self._flags.models_dir.absolute()
        patterns = [(models / "Stable-diffusion", "*.vae."), (models / "VAE", "*.")]
        if self._flags.ckpt_dir is not None:
            patterns.append((self._flags.ckpt_dir, "*.vae."))
        if self._flags.vae_dir is not None:
            patterns.append((self._flags.vae_dir, "*."))
        found: dict[str, Path] = {}
        for folder, start in patterns:
            for extension in _EXTENSIONS:
                # Unlike Path.rglob it follows links to folders and passes over hidden names.
                for name in glob.iglob(f"{folder}/**/{start}{extension}", recursive=True):  # noqa: PTH207
                    path = Path(name)
                    found[path.name] = path
        self.by_name = found
        # A1111 sorts and then updates the dictionary with the result, which leaves the order as it
        # was found. Source: recorded from A1111 1.10.1: get_sd_vae (tiny_vae before other_vae).
        self.by_name.update(sorted(found.items(), key=lambda item: natural_key(item[0])))

    def of(self, checkpoint: Path) -> Path | None:
        """Return the VAE that `checkpoint` is to be used with, or None for its own.

        An unknown name in the option means its own, in silence.
        """
        if self._flags.vae_path is not None:
            return self._flags.vae_path
        if self._flags.forge:
            modules = {Path(module) for module in self._options[forge.MODULES]}
            return next((path for path in self.by_name.values() if path in modules), None)
        return self._chosen(checkpoint)

    def _chosen(self, checkpoint: Path) -> Path | None:
        chosen = self._options["sd_vae"]
        automatic = chosen in _AUTOMATIC
        if self._options["sd_vae_overrides_per_model_preferences"] and not automatic:
            return self._named(chosen)
        beside = _user_metadata(checkpoint).get("vae")
        if isinstance(beside, str) and (beside == "None" or beside in self.by_name):
            return self._named(beside)
        if automatic:
            # An empty stem would match everything, as it does there.
            stem = checkpoint.name.rsplit(".", 1)[0]
            near = [path for path in self.by_name.values() if path.name.startswith(stem)]
            return near[0] if near else None
        return self._named(chosen)

    def _named(self, name: object) -> Path | None:
        return self.by_name.get(name) if isinstance(name, str) else None


def _user_metadata(checkpoint: Path) -> dict[str, object]:
    """Return the JSON beside a checkpoint, in which a user may have named its VAE."""
    file = checkpoint.with_suffix(".json")
    if not file.is_file():
        return {}
    content = json.loads(file.read_text("utf-8"))
    return content if isinstance(content, dict) else {}
