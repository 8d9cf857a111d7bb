"""Where model files lie on the volume, and which names they get. Pure: touches no disk.

    <volume>/models/
    ├── checkpoints/ loras/ embeddings/ vae/ controlnet/ upscalers/ hypernetworks/
    │       <name>.safetensors           whole, verified files, or what people put there
    ├── cache_registry.json              a view for people and tools (registry.py)
    └── .worker/
        ├── manifests/<kind>/<file>.json what is known of a file, written last (manifests.py)
        └── tmp/<random>.part            private to one fetch; deleted after 24 h if left behind

Folders of other programs on the same volume (A1111, Forge, ComfyUI) are read where they are, with
their sub-folders, and never written to.
"""

import hashlib
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from schemas.model_ref import MAX_NAME_BYTES, SUFFIX, Kind

FOLDERS: dict[Kind, str] = {
    Kind.CHECKPOINT: "checkpoints",
    Kind.LORA: "loras",
    Kind.EMBEDDING: "embeddings",
    Kind.VAE: "vae",
    Kind.CONTROLNET: "controlnet",
    Kind.UPSCALER: "upscalers",
    Kind.HYPERNETWORK: "hypernetworks",
}
"""The folder of each kind below `models/`, the only ones that we publish into."""

# Source: A1111 1.10.1 modules/paths_internal.py, modules/shared_cmd_options.py,
# extensions-builtin/Lora/preload.py; sd-webui-controlnet scripts/global_state.py;
# ComfyUI folder_paths.py.
_OTHER_FOLDERS: dict[Kind, tuple[str, ...]] = {
    Kind.CHECKPOINT: ("Stable-diffusion", "checkpoints"),
    Kind.LORA: ("Lora", "LyCORIS", "loras"),
    Kind.EMBEDDING: ("embeddings",),
    Kind.VAE: ("VAE", "vae"),
    Kind.CONTROLNET: ("ControlNet", "controlnet"),
    Kind.UPSCALER: ("ESRGAN", "RealESRGAN", "upscale_models"),
    Kind.HYPERNETWORK: ("hypernetworks",),
}

# A1111 and Forge keep models below `models/`, but embeddings beside it; both as they are cloned on
# a volume, and with the volume itself as their data folder.
_OTHER_HOMES = (
    "models",
    "",
    "stable-diffusion-webui/models",
    "stable-diffusion-webui",
    "stable-diffusion-webui-forge/models",
    "stable-diffusion-webui-forge",
    "ComfyUI/models",
    "runpod-slim/ComfyUI/models",
)

_PRIVATE = ".worker"
_MAX_FILE_NAME_BYTES = 255
_KEPT_PUNCTUATION = frozenset(" ._-")


@dataclass(frozen=True)
class Root:
    """A folder whose files are models of one kind."""

    kind: Kind
    path: Path
    ours: bool
    """Whether it is the folder that we publish into."""


def roots(volume: Path) -> Iterator[Root]:
    """Yield every folder to look into, for each kind our own first; they need not exist."""
    for kind, folder in FOLDERS.items():
        ours = volume / "models" / folder
        yield Root(kind, ours, ours=True)
        for home in _OTHER_HOMES:
            for other in _OTHER_FOLDERS[kind]:
                path = volume / home / other
                if path != ours:
                    yield Root(kind, path, ours=False)


def published_path(volume: Path, kind: Kind, name: str) -> Path:
    """Return where the model called `name`, one plain path component, is published."""
    return volume / "models" / FOLDERS[kind] / f"{name}{SUFFIX}"


def manifest_path(volume: Path, kind: Kind, path: Path) -> Path:
    """Return where the manifest of the file at `path`, somewhere on the volume, lies.

    `<file>.json` for a published file. A file in a sub-folder or in another program's folder may
    share that name, so its manifest is called by a digest of its path; so is the one of a file
    whose name leaves no room for `.json`.
    """
    folder = volume / "models" / _PRIVATE / "manifests" / kind
    plain = f"{path.name}.json"
    published = path.parent == volume / "models" / FOLDERS[kind]
    if published and len(plain.encode(errors="surrogateescape")) <= _MAX_FILE_NAME_BYTES:
        return folder / plain
    place = str(path.relative_to(volume)).encode(errors="surrogateescape")
    return folder / f"{hashlib.sha256(place).hexdigest()[:32]}.json"


def tmp_folder(volume: Path) -> Path:
    """Return the folder of private temporary files, on the same file system as the models."""
    return volume / "models" / _PRIVATE / "tmp"


def registry_path(volume: Path) -> Path:
    """Return where the view for people lies."""
    return volume / "models" / "cache_registry.json"


def beside(name: str, digest: str, digits: int = 8) -> str:
    """Return the name under which other bytes than those called `name` are published."""
    return f"{shortened(name, MAX_NAME_BYTES - digits - 1)}-{digest[:digits]}"


def safe_name(text: str) -> str:
    """Return a plain name made from one that a host or a URL gave, which is hostile.

    The last path component without its suffix, NFC, of letters, digits and ` ._-` only, not hidden,
    at most `MAX_NAME_BYTES` long; `model` when nothing is left.
    """
    last = unicodedata.normalize("NFC", text).replace("\\", "/").rstrip("/").rpartition("/")[2]
    if last.lower().endswith(SUFFIX):
        last = last[: -len(SUFFIX)]
    return shortened(plain_text(last).strip(" ."), MAX_NAME_BYTES).strip(" .") or "model"


def plain_text(text: str) -> str:
    """Return `text` with all but letters, digits and ` ._-` as an underscore."""
    return "".join(c if c.isalnum() or c in _KEPT_PUNCTUATION else "_" for c in text)


def shortened(text: str, max_bytes: int) -> str:
    """Return as much of the start of `text` as fits into `max_bytes` of UTF-8."""
    return text.encode(errors="replace")[:max_bytes].decode(errors="ignore")
