"""How A1111 walks its model folders: following links, in natural order.

Source: A1111 1.10.1, modules/util.py, walk_files and natural_sort_key.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

_NUMBER = re.compile("([0-9]+)")


def natural_key(text: str) -> list[int | str]:
    """Return a key that sorts "lora2" before "lora10" and ignores case."""
    return [int(part) if part.isdigit() else part.lower() for part in _NUMBER.split(text)]


def walk(folder: Path, extensions: set[str]) -> Iterator[Path]:
    """Yield the files below `folder` with one of `extensions` (with the dot), folder by folder."""
    found = sorted(os.walk(folder, followlinks=True), key=lambda entry: natural_key(entry[0]))
    for root, _, names in found:
        for name in sorted(names, key=natural_key):
            if os.path.splitext(name)[1] in extensions:  # noqa: PTH122 - Path.suffix differs on "a."
                yield Path(root, name)
