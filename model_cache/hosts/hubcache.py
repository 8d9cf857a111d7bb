"""RunPod's cached models: Hugging Face repositories that the platform puts under the mount point.

    <volume>/huggingface-cache/hub/
    └── models--org--repo/
        ├── refs/main                   the commit that the branch meant
        ├── blobs/<digest>              bytes
        └── snapshots/<commit>/<path>   links to blobs

Files are used where they are, never written, never copied. The names of blobs are no proof of their
bytes, so nothing here says what a file's digest is.

Source: docs.runpod.io, serverless/endpoints/model-caching (place);
huggingface_hub 2.4, file_download.py, hf_hub_download (layout).
"""

import re
from collections.abc import Iterator
from pathlib import Path

from model_cache.hosts.huggingface import Reference, is_single_file
from model_cache.volume.disk import disk_errors
from schemas.model_ref import SUFFIXES

_COMMIT = re.compile(r"[0-9a-f]{40}")
_MAX_REF_BYTES = 100
_MAX_NAME_CHARS = 255


def hub_folder(volume: Path) -> Path:
    """Return where the cache lies; it need not be there."""
    return volume / "huggingface-cache" / "hub"


def find(volume: Path, reference: Reference) -> Path | None:
    """Return the file that is meant, as a path below a snapshot; None if it is not cached.

    A branch means the commit that it meant when the platform filled the cache. Without a path, the
    only single-file model of the repository is meant.

    Raises:
        VolumeError: the disk does not tell; the file may be there.
    """
    hub = hub_folder(volume)
    repo = _repo_folder(hub, reference.repo)
    commit = _commit(repo, reference.revision) if repo is not None else ""
    if repo is None or not commit:
        return None
    snapshot = repo / "snapshots" / commit
    if reference.path:
        path = snapshot / reference.path
        return path if _is_inside(path, hub) else None
    models = [path for path in _top_level(snapshot, hub) if is_single_file(path.name)]
    return models[0] if len(models) == 1 else None


def files(volume: Path) -> Iterator[tuple[Path, str]]:
    """Yield every file that may be a whole model, with the source key by which it is found.

    Only what lies at the top of a repository: the folders of a diffusers model hold parts.
    """
    hub = hub_folder(volume)
    for folder in _listed(hub):
        type_, *name = folder.name.split("--")
        if type_ != "models" or len(name) != 2:
            continue
        for snapshot in _listed(folder / "snapshots"):
            if _COMMIT.fullmatch(snapshot.name):
                for path in _top_level(snapshot, hub):
                    yield path, Reference("/".join(name), path.name, snapshot.name).key


def _repo_folder(hub: Path, repo: str) -> Path | None:
    """Return the folder of a repository, in whatever case it is spelled.

    The platform may fold the name's case, and the Hub knows no two that differ in nothing else.
    """
    parts = repo.split("/")
    type_ = parts.pop(0) if len(parts) == 3 else "models"
    wanted = "--".join((type_, *parts))
    if len(wanted) > _MAX_NAME_CHARS:
        return None  # No file system has it, and asking for it is an error.
    with disk_errors():
        if (hub / wanted).is_dir():
            return hub / wanted
    return next((f for f in _listed(hub) if f.name.casefold() == wanted.casefold()), None)


def _commit(repo: Path, revision: str) -> str:
    """Return the commit that a revision means here; empty if that is not known."""
    if _COMMIT.fullmatch(revision):
        return revision
    try:
        with (repo / "refs" / revision).open("rb") as file:
            commit = file.read(_MAX_REF_BYTES).decode(errors="replace").strip()
    except OSError:
        # The platform documents snapshots alone; if there is one, it is what was asked for.
        snapshots = _listed(repo / "snapshots") if revision == "main" else []
        commit = snapshots[0].name if len(snapshots) == 1 else ""
    return commit if _COMMIT.fullmatch(commit) else ""


def _top_level(snapshot: Path, hub: Path) -> list[Path]:
    return [
        path
        for path in _listed(snapshot)
        if is_single_file(path.name, SUFFIXES) and _is_inside(path, hub)
    ]


def _is_inside(path: Path, hub: Path) -> bool:
    """Say whether a path is a file, and one of the cache's own wherever its links lead."""
    try:
        target = path.resolve(strict=True)
        return target.is_file() and target.is_relative_to(hub.resolve())
    except (OSError, RuntimeError):
        return False  # A broken link, or a circle of links.


def _listed(folder: Path) -> list[Path]:
    """Return what is in a folder, in order of name; nothing if it cannot be read."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []
