"""What the headers of brought files told, so that one worker reads them and not each.

    <volume>/models/.worker/headers.json

    {"version": 1,
     "files": {"models/Lora/ink.safetensors": [151112, 1763700000000000000, "lora", "sd1", "shapes", "ink"], …}}

with the size in bytes, the mtime in ns, the kind, the base, what told it, and the alias. A line counts
while its file has that size and that time. Files with a manifest need none, files in the image are
not on the volume, and what a pickle is depends on settings. Written as a whole by rename: of two
writers the last one wins, and what is lost is read again.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from model_cache.volume import layout, publish
from model_cache.volume.disk import disk_errors
from model_cache.weights.architecture import Nature
from schemas.errors import VolumeError
from schemas.model_ref import Kind

log = logging.getLogger(__name__)

MAX_BYTES = 64 << 20
"""Of the file; a longer one is not read."""
_VERSION = 1
State: TypeAlias = tuple[Path, int, int]
"""Path, size in bytes, and mtime in ns of a file."""


def load(volume: Path) -> dict[State, Nature]:
    """Return what was noted; nothing where the file is absent, damaged or of another version."""
    try:
        with layout.headers_path(volume).open("rb") as file:
            content = json.loads(file.read(MAX_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(content, dict) or content.get("version") != _VERSION:
        return {}
    files = content.get("files")
    return dict(_entries(volume, files if isinstance(files, dict) else {}))


def save(volume: Path, natures: Mapping[State, Nature]) -> None:
    """Write what is known of files below `volume`, if it is more than is written.

    Where the disk refuses, that is logged: whoever needs a header can read it.
    """
    natures = {
        state: nature
        for state, nature in natures.items()
        if not nature.pickle and state[0].is_relative_to(volume)
    }
    if natures.items() <= load(volume).items():
        return
    files = {
        str(path.relative_to(volume)): [
            size, mtime, nature.kind, nature.base, nature.base_by, nature.alias
        ]
        for (path, size, mtime), nature in sorted(natures.items(), key=lambda item: item[0])
    }  # fmt: skip
    place = layout.headers_path(volume)
    try:
        with publish.private_file(volume) as part, disk_errors():
            part.file.write(json.dumps({"version": _VERSION, "files": files}).encode())
            part.seal()
            part.path.replace(place)
    except VolumeError as error:
        log.info("%s was not written: %s", place.name, error)


def _entries(volume: Path, files: Mapping[str, Any]) -> Iterator[tuple[State, Nature]]:
    for name, noted in files.items():
        match noted:
            case [int(size), int(mtime), str() | None as kind, str(base), str(by), str(alias)]:
                if kind is None or kind in set(Kind):
                    known = None if kind is None else Kind(kind)
                    nature = Nature(known, base, alias, base_by=by)
                    yield (volume / name, size, mtime), nature
            case _:
                continue
