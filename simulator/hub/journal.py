"""What the hub was asked and what it sent, for tests to read."""

import dataclasses
import time
from dataclasses import dataclass, field


@dataclass
class Entry:
    """One request and how its answer went. `bytes_sent` counts the body and grows while it is sent."""

    host: str
    method: str
    path: str
    query: str
    range: str | None
    if_range: str | None
    user_agent: str | None
    authorization: bool
    t: float = field(default_factory=time.time)
    status: int | None = None
    file: str | None = None
    size: int | None = None
    bytes_sent: int = 0
    complete: bool = False


@dataclass
class Journal:
    """All requests since the start or the last reset, oldest first."""

    entries: list[Entry] = field(default_factory=list)
    under_way: int = 0
    """Answers that have begun and not ended."""

    def open(self, entry: Entry) -> Entry:
        """Add `entry`, to be filled in as the answer goes along."""
        self.entries.append(entry)
        return entry

    def as_json(self) -> dict[str, object]:
        """Return the requests, and for each file how often its bytes went out.

        `gets` are the GET requests that got to the file, `whole` those answered by all of it in one
        200, `copies` the bytes sent divided by the size of the file: 1.0 when it was fetched exactly
        once, in however many ranges.
        """
        files: dict[str, dict[str, float]] = {}
        for entry in self.entries:
            if entry.file is None or entry.size is None or entry.method != "GET":
                continue
            seen = files.setdefault(
                entry.file, {"size": entry.size, "gets": 0, "whole": 0, "bytes": 0, "copies": 0.0}
            )
            seen["gets"] += 1
            seen["whole"] += entry.complete and entry.status == 200
            seen["bytes"] += entry.bytes_sent
            seen["copies"] = round(seen["bytes"] / max(entry.size, 1), 6)
        return {
            "requests": [dataclasses.asdict(entry) for entry in self.entries],
            "files": files,
        }
