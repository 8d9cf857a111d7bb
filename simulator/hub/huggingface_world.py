"""Which files Hugging Face-like paths mean, and what the Hub says of them. Sends nothing.

`ROOT/huggingface/<org>/<repo>/` is a repository at `main`; `<repo>@<revision>/` beside it another
revision. A file `.gated` (or `.private`) in the repository restricts it: it holds the tokens that
get in, one a line. A file `.disabled` closes it to all, and one `.renamed` holds its new name: `org/repo`.

Source: huggingface_hub 2.4, file_download.py and utils/_http.py (headers and X-Error-Code that the
client reads); the Hub's answers to `resolve`, `api/models` and `tree`.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Kept as Git LFS or Xet objects, and so served by the other host. Source: the default .gitattributes
# that the Hub puts into a new model repository.
LARGE = frozenset({".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf", ".onnx"})


@dataclass(frozen=True)
class Refusal:
    """An answer without a file: its status, the X-Error-Code and the X-Error-Message."""

    status: int
    code: str
    message: str


@dataclass(frozen=True)
class Repo:
    """One repository at one revision."""

    name: str
    folder: Path
    commit: str

    @property
    def is_gated(self) -> bool:
        """Whether only listed tokens get in."""
        return (self.folder / ".gated").exists()

    def files(self) -> list[Path]:
        """Return the files, relative to the repository, in order."""
        return sorted(
            path.relative_to(self.folder)
            for path in self.folder.rglob("*")
            if path.is_file() and not path.name.startswith(".")
        )


@dataclass(frozen=True)
class Renamed:
    """A repository that has another name now."""

    name: str


def find(root: Path, name: str, revision: str, token: str | None) -> Repo | Refusal | Renamed:
    """Return the repository `org/repo` at `revision`, or how the Hub refuses it to `token`."""
    main = root / "huggingface" / name
    closed = _closed(main, name, token)
    if closed is not None:
        return closed
    commit = commit_of(main)
    if revision in {"main", commit}:
        return Repo(name, main, commit)
    other = main.with_name(f"{main.name}@{revision}")
    if not other.is_dir():
        return Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
    return Repo(name, other, commit_of(other))


def commit_of(folder: Path) -> str:
    """Return 40 hex digits that change whenever a file of the repository does."""
    digest = hashlib.sha1(usedforsecurity=False)
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        stat = path.stat()
        digest.update(f"{path.relative_to(folder)} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def blob_id(path: Path) -> str:
    """Return git's own digest of a small file, which is what its ETag holds."""
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def tree_entry(name: Path, path: Path, sha256: str | None) -> dict[str, Any]:
    """Return one entry of `/api/models/{repo}/tree/{revision}`; `sha256` is that of a large file."""
    size = path.stat().st_size
    if sha256 is None:
        return {"type": "file", "oid": blob_id(path), "size": size, "path": name.as_posix()}
    lfs = {"oid": sha256, "size": size, "pointerSize": 135}
    oid = hashlib.sha1(sha256.encode(), usedforsecurity=False).hexdigest()
    return {"type": "file", "oid": oid, "size": size, "lfs": lfs, "path": name.as_posix()}


def _closed(main: Path, name: str, token: str | None) -> Refusal | Renamed | None:
    """Return why a repository is not shown at all; None if it is."""
    if not main.is_dir() or _is_barred(main / ".private", token):
        # The Hub does not tell a stranger whether a repository exists.
        status = 401 if token is None else 404
        return Refusal(status, "RepoNotFound", "Repository not found")
    if (main / ".renamed").exists():
        return Renamed((main / ".renamed").read_text().strip())
    if (main / ".disabled").exists():
        return Refusal(403, "", "Access to this resource is disabled.")
    if _is_barred(main / ".gated", token):
        message = f"Access to model {name} is restricted."
        return Refusal(401 if token is None else 403, "GatedRepo", message)
    return None


def _is_barred(mark: Path, token: str | None) -> bool:
    return mark.exists() and token not in mark.read_text().split()
