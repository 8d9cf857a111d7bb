"""Where start.sh says that things are, and which of them A1111 is given. Knows nothing of flags."""

from dataclasses import dataclass
from pathlib import Path

DATA = "data"
"""A link beside the folders of links, to A1111's data folder: `models` and `cache` are below it."""


@dataclass(frozen=True)
class Places:
    """The folders and programs that the variables of start.sh name."""

    webui_dir: Path
    """Of A1111's launch.py."""
    webui_python: Path
    """Its interpreter; a bare name is looked up in PATH."""
    data_dir: Path
    """What A1111 is to be given as --data-dir, if it is on the container's disk."""
    cache_dir: Path
    """On the container's disk."""
    helpers_dir: Path
    """Helper weights in the image, laid out as A1111's `models`; may be absent."""
    hf_home: Path
    """A Hugging Face cache in the image; may be absent."""

    def local_data_dir(self, volume: Path) -> Path:
        """Return A1111's data folder: `data_dir`, or one on the container's disk instead.

        A1111 keeps `config.json` and its database of hashes there. On the volume every worker would
        write the same files, and each access would take a network's time.
        """
        if self.is_on(volume, self.data_dir):
            return self.cache_dir / "webui"
        return self.data_dir

    def extensions(self, data_dir: Path) -> Path:
        """Return where A1111's extensions are: in its data folder, if it has any, else beside it."""
        own = data_dir / "extensions"
        return own if own.is_dir() else self.webui_dir / "extensions"

    @staticmethod
    def is_on(volume: Path, path: Path) -> bool:
        """Return whether `path` is on the volume, whatever links lead there."""
        return volume.is_dir() and path.resolve().is_relative_to(volume.resolve())
