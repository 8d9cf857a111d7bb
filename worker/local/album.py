"""The runs whose pictures lie in one folder: what is known of each, read from the JSON beside them."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

FORMAT = "a1111-worker local run 1"
"""Under `format` in each run's JSON; other JSON files in the folder are none of ours."""


@dataclass(frozen=True)
class Picture:
    """One picture of a run; what is not known is None or empty."""

    place: str
    """The name of a file in the folder, the path of one elsewhere, or a URL."""
    what: str
    """One of `schemas.result.ImageKind`, or the field of the answer that held it."""
    width: int | None = None
    height: int | None = None
    bytes: int | None = None
    seed: int | None = None
    model: str = ""
    prompt: str = ""
    infotext: str = ""

    @property
    def is_url(self) -> bool:
        """Whether it is on another machine."""
        return self.place.startswith(("http://", "https://"))


@dataclass(frozen=True)
class Run:
    """What one local run left."""

    created: datetime
    pictures: tuple[Picture, ...]
    answer: Any
    """JSON values; where a picture was, there is its place."""
    file: str = ""
    """The name of its JSON, empty if it has none."""


def as_json(run: Run) -> bytes:
    """Return the JSON of `run`, as `runs` reads it."""
    record = {
        "format": FORMAT,
        "created": run.created.isoformat(timespec="seconds"),
        "pictures": [asdict(picture) for picture in run.pictures],
        "answer": run.answer,
    }
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    # Half a character becomes an escape, which is what JSON has for it.
    return text.encode(errors="backslashreplace")


def runs(folder: Path) -> list[Run]:
    """Return the runs whose JSON lies in `folder`, the newest first; a file that is none is passed over.

    Raises:
        OSError: the folder cannot be read.
    """
    # Whoever opens a pipe waits for who writes to it.
    files = (path for path in folder.iterdir() if path.suffix == ".json" and path.is_file())
    read = (_read(path) for path in files)
    found = [run for run in read if run is not None]
    return sorted(found, key=lambda run: (run.created, run.file), reverse=True)


def _read(path: Path) -> Run | None:
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        return None
    try:
        created = datetime.fromisoformat(as_str(record.get("created")))
    except ValueError:
        return None
    if created.tzinfo is None:
        created = created.replace(tzinfo=UTC)
    entries = (entry for entry in as_list(record.get("pictures")) if isinstance(entry, dict))
    pictures = [_picture(entry) for entry in entries]
    return Run(created, tuple(pictures), record.get("answer"), path.name)


def _picture(entry: Mapping[str, Any]) -> Picture:
    """Return a picture as read; people may have edited the file."""
    numbers = {"width", "height", "bytes", "seed"}
    read = {
        field.name: (as_int if field.name in numbers else as_str)(entry.get(field.name))
        for field in fields(Picture)
    }
    return Picture(**read)  # type: ignore[arg-type]  # each field has the type that its reader gives


def as_list(value: object) -> list[Any]:
    """Return a list, an empty one for anything else."""
    return value if isinstance(value, list) else []


def as_str(value: object) -> str:
    """Return a text, an empty one for anything else."""
    return value if isinstance(value, str) else ""


def as_int(value: object) -> int | None:
    """Return a whole number, None for anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None
