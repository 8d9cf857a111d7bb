"""What a path means that somebody wrote for another worker: a kind of model, and its name. Pure.

    /runpod-volume/stable-diffusion-webui/models/Lora/styles/ink.safetensors    lora, ink
    models/checkpoints/                                                         checkpoint

Other workers wrote a file wherever the path said. We publish in the folder of its kind alone, so of a
path only that much counts; and what could leave the volume is refused, not made harmless.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from model_cache.volume import layout
from schemas.errors import InvalidInputError, shown
from schemas.model_ref import Kind, stem_of

# Where a network volume is mounted on a Pod and in serverless workers, and which name the older
# workers give to the other. Source: RunPod documentation, "Network volumes".
_MOUNTS = ("/workspace", "/runpod-volume")
_MODELS = "models"


@dataclass(frozen=True)
class Asked:
    """What a path below the volume means."""

    kind: Kind | None
    """Of the models in that folder; None above the folders of models."""
    folders: tuple[str, ...]
    """Below the folder of the kind; below the volume where there is none."""


def read(volume: Path, path: str, field: str) -> Asked:
    """Return what a path means, be it absolute or below the volume or its `models`.

    Upper and lower case do not matter in the folders that WebUIs have.

    Raises:
        InvalidInputError: it leads out of the volume, or into no folder of models or above one.
    """
    parts = _parts(volume, path, field)
    roots = _roots(volume)
    for tried in (parts, (_MODELS, *parts)):
        low = tuple(part.casefold() for part in tried)
        for length in range(len(low), 0, -1):
            kind = roots.get(low[:length])
            if kind is not None:
                return Asked(kind, tried[length:])
        if any(root[: len(low)] == low for root in roots):
            return Asked(None, tried)
    folders = ", ".join(f"models/{folder}" for folder in layout.FOLDERS.values())
    raise InvalidInputError(
        f"`{field}`: {shown(path)} is in no folder of models.",
        hint=f"Below {volume} those are {folders}, and those of A1111, Forge and ComfyUI.",
        field=field,
    )


def below(volume: Path, asked: Asked, path: str) -> Asked:
    """Return what `path`, a folder below `asked`, means.

    Raises:
        InvalidInputError: it leads out of it, or is in no folder of models.
    """
    parts = _plain(path, "path")
    if asked.kind is not None:
        return Asked(asked.kind, (*asked.folders, *parts))
    return read(volume, "/".join((*asked.folders, *parts)), "path")


def file(volume: Path, path: str, field: str) -> tuple[Kind, str | None]:
    """Return the kind and the name of the file that `path` means; no name for a folder of a kind.

    Raises:
        InvalidInputError: it means neither.
    """
    asked = read(volume, path, field)
    if asked.kind is None:
        raise InvalidInputError(
            f"`{field}`: {shown(path)} does not tell which kind of model it is.",
            hint=f"Name a file below models/{layout.FOLDERS[Kind.CHECKPOINT]} or another of them.",
            field=field,
        )
    if not asked.folders or path.endswith("/"):
        return asked.kind, None
    return asked.kind, stem_of(asked.folders[-1])


def names(volume: Path, path: str, found: Path) -> bool:
    """Tell whether `path`, of which `file` tells the kind, is where the file `found` lies.

    A folder names every file in it; the suffix of a name does not count.

    Raises:
        InvalidInputError: the path leads out of the volume.
    """
    if not found.is_relative_to(volume):
        return False
    *folders, name = found.relative_to(volume).parts
    parts = _parts(volume, path, "path")
    places = [parts, (_MODELS, *parts)]
    return any(
        place == tuple(folders) or (*place[:-1], stem_of(place[-1])) == (*folders, stem_of(name))
        for place in places
        if place
    )


def _parts(volume: Path, path: str, field: str) -> tuple[str, ...]:
    """Return the parts of a path below the volume."""
    if not path.startswith("/"):
        return _plain(path, field)
    for mount in dict.fromkeys((str(volume), *_MOUNTS)):
        if path == mount or path.startswith(f"{mount}/"):
            return _plain(path.removeprefix(mount), field)
    raise InvalidInputError(
        f"`{field}`: {shown(path)} is not on the volume.",
        hint=f"Models are kept below {volume / _MODELS}.",
        field=field,
    )


def _plain(path: str, field: str) -> tuple[str, ...]:
    parts = tuple(part for part in path.split("/") if part)
    if "\\" in path or not path.isprintable() or any(part.startswith(".") for part in parts):
        raise InvalidInputError(
            f"`{field}`: {shown(path)} has a backslash, a control character, or a part that starts "
            "with a dot.",
            field=field,
        )
    return parts


@lru_cache(maxsize=4)
def _roots(volume: Path) -> dict[tuple[str, ...], Kind]:
    """Return the folders of models, in parts below the volume and in lower case."""
    return {
        tuple(part.casefold() for part in root.path.relative_to(volume).parts): root.kind
        for root in layout.roots(volume)
    }
