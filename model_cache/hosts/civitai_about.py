"""What Civitai tells people of a model: versions, files, hashes, base model, trigger words.

The answers are a stranger's: only fields of the right type are kept, and no text is longer than it
has to be.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from model_cache.hosts import civitai, civitai_files
from model_cache.hosts.metadata import Asker
from schemas.errors import ModelNotFoundError, SourceUnavailableError

_MOST_CHARS = 300
_MOST_VERSIONS = 50
_MOST_FILES = 50
_MOST_WORDS = 100
# Source: civitai/civitai, prisma/schema.full.prisma, enum ModelHashType.
_HASHES = ("SHA256", "AutoV1", "AutoV2", "AutoV3", "CRC32", "BLAKE3")


def by_reference(reference: civitai.Reference, asker: Asker) -> dict[str, Any]:
    """Return a model with the version that is meant, or with all of them, the newest first.

    Raises:
        WorkerError: see `civitai.described`.
    """
    fields = civitai.described(reference, asker)
    if reference.version is not None:
        return _of_version(fields, reference.version)
    _require_list(fields, "modelVersions")
    return _told(fields, reference.model, civitai.published_versions(fields))


def by_hash(digest: str, asker: Asker) -> dict[str, Any]:
    """Return a model with the version that has a file with this hash.

    Raises:
        ModelNotFoundError: Civitai knows none.
        WorkerError: see `civitai.with_hash`.
    """
    fields = civitai.with_hash(digest, asker)
    id_ = None if fields is None else fields.get("id")
    if fields is None or not isinstance(id_, int):
        raise ModelNotFoundError(
            f"Civitai knows no file with the hash {digest}.",
            hint="It knows SHA-256, AutoV2 and AutoV3 of what was uploaded there.",
            field="hash",
        )
    return _of_version(fields, id_)


def _require_list(fields: Mapping[str, Any], name: str) -> None:
    """Raise where an answer is none of Civitai's: else it would be a model without files."""
    if not isinstance(fields.get(name), list):
        raise SourceUnavailableError(f"Civitai's answer has no `{name}`.", hint="Try again later.")


def _of_version(fields: Mapping[str, Any], id_: int) -> dict[str, Any]:
    _require_list(fields, "files")
    model, model_id = fields.get("model"), fields.get("modelId")
    about = model if isinstance(model, dict) else {}
    number = model_id if isinstance(model_id, int) else None
    return _told(about, number, [{**fields, "id": id_}])


def _told(
    model: Mapping[str, Any], id_: int | None, versions: list[Mapping[str, Any]]
) -> dict[str, Any]:
    type_ = _text(model, "type")
    return {
        "model": {"id": id_, "name": _text(model, "name"), "type": type_},
        "versions": [_version(fields, type_) for fields in versions[:_MOST_VERSIONS]],
    }


def _version(fields: Mapping[str, Any], model_type: str) -> dict[str, Any]:
    words = fields.get("trainedWords")
    files = list(_files(fields, model_type))
    return {
        "id": fields["id"],
        "name": _text(fields, "name"),
        "base_model": _text(fields, "baseModel"),
        "trained_words": [
            word[:_MOST_CHARS]
            for word in (words if isinstance(words, list) else [])[:_MOST_WORDS]
            if isinstance(word, str)
        ],
        "air": _text(fields, "air"),
        "published": _text(fields, "publishedAt"),
        "early_access_ends": _text(fields, "earlyAccessEndsAt"),
        "url": f"civitai:version:{fields['id']}",
        "files": files,
    }


def _files(fields: Mapping[str, Any], model_type: str) -> Iterator[dict[str, Any]]:
    listed = fields.get("files")
    for entry in (listed if isinstance(listed, list) else [])[:_MOST_FILES]:
        if not (isinstance(entry, dict) and isinstance(entry.get("id"), int)):
            continue
        hashes, metadata = entry.get("hashes"), entry.get("metadata")
        type_ = _text(entry, "type")
        kind = civitai_files.kind_of(model_type, type_)
        yield {
            "id": entry["id"],
            "name": _text(entry, "name"),
            "type": type_,
            "kind": None if kind is None else str(kind),
            "primary": entry.get("primary") is True,
            "size_bytes": _size_bytes(entry.get("sizeKB")),
            "format": _text(metadata if isinstance(metadata, dict) else {}, "format"),
            "hashes": {
                name: value.lower()
                for name in _HASHES
                if (value := _text(hashes if isinstance(hashes, dict) else {}, name))
            },
            "pickle_scan": _text(entry, "pickleScanResult"),
            "virus_scan": _text(entry, "virusScanResult"),
            "url": f"civitai:version:{fields['id']}:file:{entry['id']}",
        }


def _size_bytes(size_kib: Any) -> int | None:
    """Return about how large a file is: the API tells it in KiB, and not always to the byte."""
    if not isinstance(size_kib, int | float) or not math.isfinite(size_kib):
        return None
    return round(size_kib * 1024)


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    return value[:_MOST_CHARS] if isinstance(value, str) else ""
