"""What a program that is started again and again is told at each start.

    python -m simulator webui --starts FILE …

    FILE         {"boot_s": 2, "step_ms": 10, "faults": [], "starts": [{"boot_s": 0}, {"faults": […]}]}
    FILE.pids    a line for each start: its process id

The first start takes the first of `starts` beside what is told to all, and so on; one for which there is
none takes what is told to all. Each is what POST /simulator/faults takes. FILE may be changed between two
starts, and need not be there.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def begin(file: Path | None) -> list[dict[str, Any]]:
    """Write this process down as the next start; return what it is told.

    Starts of one file must not coincide, as those of a worker's A1111 do not.
    """
    if file is None:
        return []
    before = len(begun(file))
    with _pids_of(file).open("a") as pids:
        print(os.getpid(), file=pids)
    try:
        told = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        return []
    each = told.pop("starts", [])
    return [told, *each[before : before + 1]]


def tell(file: Path, told: Mapping[str, Any]) -> None:
    """Write `file`, at once, so that a start never reads half of it."""
    new = file.with_name(f"{file.name}.new")
    new.write_text(json.dumps(dict(told)), "utf-8")
    new.replace(file)


def begun(file: Path) -> list[int]:
    """Return the process ids of all starts, in their order."""
    try:
        return [int(line) for line in _pids_of(file).read_text().splitlines()]
    except FileNotFoundError:
        return []


def _pids_of(file: Path) -> Path:
    """Return where the starts of `file` are written down."""
    return file.with_name(f"{file.name}.pids")
