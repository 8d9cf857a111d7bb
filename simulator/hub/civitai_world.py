"""Which files Civitai-like ids mean, and what its API says of them. Sends nothing.

`ROOT/civitai/<version id>/` holds the files of one model version, and may hold `simulator.json`:

    {"requires_token": true,        401 without a token
     "answer": 403 | 404 | 410,     the download is refused: early access, gone, archived
     "modelId": 99, "baseModel": "SD 1.5", "model": {"name": …, "type": "LORA"}, …
                                    any field of the API's answer
     "files": {"<name>": {"type": "VAE", "metadata": {"size": "pruned"}, …}}}
                                    any field of one file

A version whose `status` is not `Published` is hidden, and one whose model's `mode` is `Archived` or
`TakenDown` lists no files.

Source: civitai/civitai, src/pages/api/download/models/[modelVersionId].ts and
src/pages/api/v1/model-versions/[id].ts, as of 2026-08; answers as users quote them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MARKS = "simulator.json"
_OWN_MARKS = ("requires_token", "answer", "files")
_SELECTORS = ("type", "format", "size", "fp")

# What the download answers instead of a file: status -> body.
REFUSALS: dict[int, dict[str, str]] = {
    401: {
        "error": "Unauthorized",
        "message": "The creator of this asset requires you to be logged in to download it",
    },
    403: {
        "error": "Early Access",
        "deadline": "2099-01-01T00:00:00.000Z",
        "message": "This asset is in Early Access and you need to use Buzz to access it.",
    },
    404: {"error": "File not found"},
    410: {"error": "Archived", "message": "This model has been archived and is not available."},
}


@dataclass(frozen=True)
class Version:
    """One model version: its files in order of name (the first is the primary) and its marks."""

    id: int
    files: tuple[Path, ...]
    marks: dict[str, Any]

    @property
    def model_id(self) -> int:
        """The id of the model that this is a version of; the version's own where none is marked."""
        return int(self.marks.get("modelId", self.id))

    def file_id(self, path: Path) -> int:
        """Return the id by which `?fileId=` names `path`."""
        return self.id * 100 + self.files.index(path)

    def traits(self, path: Path) -> dict[str, str]:
        """Return what the download's query can ask for: type, format, size, fp."""
        marked: dict[str, Any] = self.marks.get("files", {}).get(path.name, {})
        known = {
            "type": "Model",
            "format": "SafeTensor" if path.suffix == ".safetensors" else "PickleTensor",
            "size": "full",
            "fp": "fp16",
        }
        known.update(type=marked.get("type", "Model"), **marked.get("metadata", {}))
        return known

    @property
    def is_published(self) -> bool:
        """Whether the API tells of it."""
        return bool(self.marks.get("status", "Published") == "Published")

    def pick(self, query: Mapping[str, str]) -> Path | None:
        """Return the file that a download with this query means, or None when none fits."""
        for path in self.files:
            traits = self.traits(path)
            fits_id = query.get("fileId", str(self.file_id(path))) == str(self.file_id(path))
            if fits_id and all(
                query.get(name, traits[name]) == traits[name] for name in _SELECTORS
            ):
                return path
        return None

    def as_json(self, base_url: str, digests: Mapping[Path, str]) -> dict[str, Any]:
        """Return what `/api/v1/model-versions/{id}` answers. `digests` are sha256, lower case."""
        link = f"{base_url}/api/download/models/{self.id}"
        name = self.files[0].stem
        answer: dict[str, Any] = {
            "id": self.id,
            "modelId": self.model_id,
            "name": "v1.0",
            "baseModel": "SD 1.5",
            "air": f"urn:air:sd1:lora:civitai:{self.model_id}@{self.id}",
            "trainedWords": [],
            "status": "Published",
            "model": {"name": name, "type": "LORA", "nsfw": False, "poi": False},
            "files": [self._file(path, link, digests[path]) for path in self.files],
            "downloadUrl": link,
        }
        answer |= {k: v for k, v in self.marks.items() if k not in _OWN_MARKS}
        if answer["model"].get("mode") in {"Archived", "TakenDown"}:
            answer["files"] = []
            del answer["downloadUrl"]
        return answer

    def _file(self, path: Path, link: str, sha256: str) -> dict[str, Any]:
        traits = self.traits(path)
        file_id = self.file_id(path)
        marked: dict[str, Any] = self.marks.get("files", {}).get(path.name, {})
        return {
            "id": file_id,
            "name": path.name,
            "type": traits["type"],
            "sizeKB": path.stat().st_size / 1024,
            "primary": path == self.files[0],
            "metadata": {name: traits[name] for name in ("format", "size", "fp")},
            "hashes": {"SHA256": sha256.upper(), "AutoV2": sha256[:10].upper()},
            "pickleScanResult": "Success",
            "virusScanResult": "Success",
            "scannedAt": "2026-01-01T00:00:00.000Z",
            "downloadUrl": f"{link}?fileId={file_id}",
            **{k: v for k, v in marked.items() if k not in {"type", "metadata"}},
        }


def find(root: Path, version_id: str) -> Version | None:
    """Return the version with this id, or None when `root` has no files for it."""
    folder = root / "civitai" / version_id
    if not version_id.isdecimal() or not folder.is_dir():
        return None
    files = tuple(sorted(path for path in folder.iterdir() if path.name != MARKS))
    marks = folder / MARKS
    if not files and not marks.exists():
        return None
    return Version(int(version_id), files, json.loads(marks.read_text()) if marks.exists() else {})


def versions(root: Path) -> list[Version]:
    """Return every version under `root`, by id."""
    found = (find(root, path.name) for path in sorted((root / "civitai").glob("*")))
    return sorted((v for v in found if v is not None and v.files), key=lambda version: version.id)
