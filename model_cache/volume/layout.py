"""Where model files lie on the volume, and which names they get. Pure: touches no disk.

    <volume>/models/
    ├── checkpoints/ loras/ embeddings/ vae/ controlnet/ upscalers/ hypernetworks/
    │       <name>.safetensors           whole, verified files, or what people put there
    ├── cache_registry.json              a view for people and tools (registry.py)
    ├── aliases.json                     what people call which model, kept by them
    └── .worker/
        ├── manifests/<kind>/<file>.json what is known of a file (manifests.py)
        ├── headers.json                 what the headers of other files told (headers.py)
        ├── leases/                      who is fetching what at this moment
        ├── pins/                        models that are never evicted
        ├── tmp/<random>.part            private to one fetch; deleted after 24 h if left behind
        └── uses/<worker>.json           which models a worker uses and used

Folders of other programs on the same volume (A1111, Forge, ComfyUI) are read where they are, with
their sub-folders, and never written to.
"""

import hashlib
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from schemas.model_ref import MAX_NAME_BYTES, SUFFIX, SUFFIXES, Kind

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

# Source: A1111 1.10.1 modules/sd_models.py, modules/sd_vae.py, modules/esrgan_model.py,
# modules/textual_inversion/textual_inversion.py, modules/hypernetworks/hypernetwork.py,
# extensions-builtin/Lora/networks.py; sd-webui-controlnet scripts/global_state.py, CN_MODEL_EXTS.
_LOADED_PICKLES: dict[Kind, tuple[str, ...]] = {
    Kind.CHECKPOINT: (".ckpt",),
    Kind.LORA: (".pt", ".ckpt"),
    Kind.EMBEDDING: (".pt", ".bin"),
    Kind.VAE: (".pt", ".ckpt"),
    Kind.CONTROLNET: (".pth", ".pt", ".ckpt", ".bin"),
    Kind.UPSCALER: (".pth", ".pt"),
    Kind.HYPERNETWORK: (".pt",),
}

# Source: A1111 1.10.1 modules/paths_internal.py, modules/shared_cmd_options.py,
# extensions-builtin/Lora/preload.py and the upscalers' modules; sd-webui-controlnet
# scripts/global_state.py; Forge modules_forge/shared.py; ComfyUI folder_paths.py. ComfyUI's `unet`,
# `diffusion_models`, `text_encoders` and `clip` hold parts of models, which A1111 cannot load.
_OTHER_FOLDERS: dict[Kind, tuple[str, ...]] = {
    Kind.CHECKPOINT: ("Stable-diffusion", "checkpoints"),
    Kind.LORA: ("Lora", "LyCORIS", "loras"),
    Kind.EMBEDDING: ("embeddings",),
    Kind.VAE: ("VAE", "vae"),
    Kind.CONTROLNET: (
        "ControlNet",
        "controlnet",
        "t2i_adapter",
        "extensions/sd-webui-controlnet/models",
    ),
    Kind.UPSCALER: ("ESRGAN", "RealESRGAN", "SwinIR", "DAT", "upscale_models"),
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
    home: Path
    """What it is a part of: the volume, or the folder of models in the image."""
    ours: bool
    """Whether it is the folder that we publish into."""
    baked: bool = False
    """Whether it is in the image, and so never changes."""


def roots(volume: Path, baked: Path | None = None) -> Iterator[Root]:
    """Yield every folder to look into, for each kind our own first; they need not exist.

    `baked` is the folder of models in the image, laid out as the volume is, or as its `models` is.
    """
    for kind, folder in FOLDERS.items():
        ours = volume / "models" / folder
        yield Root(kind, ours, volume, ours=True)
        for home in _OTHER_HOMES:
            for other in _OTHER_FOLDERS[kind]:
                path = volume / home / other
                if path != ours:
                    yield Root(kind, path, volume, ours=False)
    if baked is not None:
        yield from _baked_roots(baked)


def _baked_roots(baked: Path) -> Iterator[Root]:
    for kind, folder in FOLDERS.items():
        for home in _OTHER_HOMES:
            for name in dict.fromkeys((folder, *_OTHER_FOLDERS[kind])):
                yield Root(kind, baked / home / name, baked, ours=False, baked=True)


def published_path(volume: Path, kind: Kind, name: str, suffix: str = SUFFIX) -> Path:
    """Return where the model called `name`, one plain path component, is published."""
    return volume / "models" / FOLDERS[kind] / f"{name}{suffix}"


def suffix_for(kind: Kind, file_name: str, *, pickle: bool) -> str:
    """Return the suffix by which A1111 loads a file of that kind.

    That of `file_name`, which may be what a host calls it, where A1111 looks for it; else the usual
    one. PyTorch reads a pickle whatever its suffix is.
    """
    if not pickle:
        return SUFFIX
    loaded = _LOADED_PICKLES[kind]
    return next((suffix for suffix in loaded if file_name.lower().endswith(suffix)), loaded[0])


def manifest_path(volume: Path, kind: Kind, path: Path) -> Path:
    """Return where the manifest of the file at `path` lies.

    `<file>.json` for a published file. A file in a sub-folder or in another program's folder may
    share that name, so its manifest is called by a digest of its path below the volume; so is the
    one of a file whose name leaves no room for `.json`. A path elsewhere is taken as it is.
    """
    published = path.parent == volume / "models" / FOLDERS[kind]
    return manifests_folder(volume, kind) / manifest_name(volume, path, published=published)


def manifests_folder(volume: Path, kind: Kind) -> Path:
    """Return the folder of the manifests of a kind."""
    return volume / "models" / _PRIVATE / "manifests" / kind


def manifest_name(volume: Path, path: Path, *, published: bool) -> str:
    """Return what the manifest of the file at `path` is called, see `manifest_path`."""
    plain = f"{path.name}.json"
    if published and len(plain.encode(errors="surrogateescape")) <= _MAX_FILE_NAME_BYTES:
        return plain
    # As text: this is done for every file at every look, and pathlib takes ten times as long.
    place = str(path).removeprefix(f"{volume}/").encode(errors="surrogateescape")
    return f"{hashlib.sha256(place).hexdigest()[:32]}.json"


def baked_manifest(root: Root, path: Path) -> Path:
    """Return where a manifest lies that came into the image together with the file at `path`.

    As `python -m model_cache` writes it on a volume that is then copied into an image.
    """
    return root.path.parent / _PRIVATE / "manifests" / root.kind / f"{path.name}.json"


def tmp_folder(volume: Path) -> Path:
    """Return the folder of private temporary files, on the same file system as the models."""
    return volume / "models" / _PRIVATE / "tmp"


def leases_folder(volume: Path) -> Path:
    """Return the folder of leases: who is fetching what at this moment."""
    return volume / "models" / _PRIVATE / "leases"


def uses_folder(volume: Path) -> Path:
    """Return the folder of records of use, one file per worker."""
    return volume / "models" / _PRIVATE / "uses"


def pins_folder(volume: Path) -> Path:
    """Return the folder of pins: models that are never evicted."""
    return volume / "models" / _PRIVATE / "pins"


def headers_path(volume: Path) -> Path:
    """Return where it is noted what the headers of brought files told."""
    return volume / "models" / _PRIVATE / "headers.json"


def aliases_path(volume: Path) -> Path:
    """Return where people write down what they call which model."""
    return volume / "models" / "aliases.json"


def registry_path(volume: Path) -> Path:
    """Return where the view for people lies."""
    return volume / "models" / "cache_registry.json"


def beside(name: str, digest: str, digits: int = 8) -> str:
    """Return the name under which other bytes than those called `name` are published."""
    return f"{shortened(name, MAX_NAME_BYTES - digits - 1)}-{digest[:digits]}"


def safe_name(text: str) -> str:
    """Return a plain name made from one that a host or a URL gave, which is hostile.

    The last path component without its suffix, of letters, digits and ` ._-` only, not hidden, at
    most `MAX_NAME_BYTES` long; `model` when nothing is left. NFKC, so that what looks like a Latin
    letter with a different width or as a ligature is that letter.
    """
    last = unicodedata.normalize("NFKC", text).replace("\\", "/").rstrip("/").rpartition("/")[2]
    ending = next((suffix for suffix in SUFFIXES if last.lower().endswith(suffix)), "")
    last = last[: len(last) - len(ending)]
    return shortened(plain_text(last).strip(" ."), MAX_NAME_BYTES).strip(" .") or "model"


def folded(name: str) -> str:
    """Return what names have in common that a disk or an eye takes for the same one.

    Windows, macOS and SMB shares know no case, macOS no difference between composed and decomposed
    letters. Source: Unicode 15, section 3.13, D146 (compatibility caseless matching).
    """
    once = unicodedata.normalize("NFKC", unicodedata.normalize("NFD", name).casefold())
    return unicodedata.normalize("NFKC", once.casefold())


def plain_text(text: str) -> str:
    """Return `text` with all but letters, digits and ` ._-` as an underscore."""
    return "".join(c if c.isalnum() or c in _KEPT_PUNCTUATION else "_" for c in text)


def shortened(text: str, max_bytes: int) -> str:
    """Return as much of the start of `text` as fits into `max_bytes` of UTF-8."""
    return text.encode(errors="replace")[:max_bytes].decode(errors="ignore")
