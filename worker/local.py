"""A result for a person at a terminal: pictures and JSON as files."""

import base64
import json
import re
from pathlib import Path
from typing import Any

SUFFIXES = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpg", b"RIFF": "webp"}


def save(result: dict[str, Any], folder: Path, name: str) -> list[Path]:
    """Write `result` to `folder`; return the files, pictures first, the JSON last.

    The JSON is the whole result as a caller would get it, base64 included.
    """
    name = re.sub(r"[^\w-]", "_", name)  # a job's id is the caller's, and no path
    folder.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    for index, image in enumerate(result.get("images") or ()):
        data = base64.b64decode(image)
        kind = next((kind for magic, kind in SUFFIXES.items() if data.startswith(magic)), "bin")
        file = folder / f"{name}-{index}.{kind}"
        file.write_bytes(data)
        files.append(file)
    file = folder / f"{name}.json"
    file.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    return [*files, file]
