"""Names that people give to references, in a file on the volume.

    <volume>/models/aliases.json

    {
      "anime": "civitai:version:456",
      "detail": {"url": "hf:org/repo/detail.safetensors", "hash": "…", "kind": "lora"},
      "base": "sd_xl_base_1.0"
    }

Each value is what a request may say in the same place: a string (a URL, a reference, or a name) or an
object with the fields of one. With `kind`, the alias is for models of that kind only; without, it is
taken for whatever the request asks. An alias is spelled exactly as in the file, and one that names
another alias does not lead on to it.

People write this file by hand while workers run, so whatever is wrong with it is logged once for each
state of it, and never fails a job: the rest of it counts, and while it is half written what it said
before.
"""

import json
import logging
import threading
import time
from pathlib import Path
from typing import Any

from model_cache.volume import layout
from schemas.errors import InvalidInputError, shown
from schemas.model_ref import Kind, ModelRef, parse_ref

log = logging.getLogger(__name__)

MAX_BYTES = 1 << 20
"""Of the file; a longer one is left alone."""
LOOK_EVERY_S = 1.0
"""How soon a change of the file is seen: a job looks up many names, and need not look each time."""


class Aliases:
    """The aliases of one volume. Safe to use from several threads."""

    def __init__(self, volume: Path, *, look_every_s: float = LOOK_EVERY_S) -> None:
        """Remember where the file would be; it is read when it is needed."""
        self._path = layout.aliases_path(volume)
        self._look_every_s = look_every_s
        self._looked_at = float("-inf")
        self._lock = threading.Lock()
        self._state: tuple[int, int] | None = None
        self._entries: dict[str, Any] = {}
        self._faulty: set[tuple[str, Kind]] = set()

    def lookup(self, kind: Kind, label: str) -> ModelRef | None:
        """Return what `label` stands for among models of a kind; None if it is no alias.

        Touches the disk once in `look_every_s` at most.
        """
        with self._lock:
            self._refresh()
            entry = self._entries.get(label)
            if entry is None or (isinstance(entry, dict) and entry.get("kind", kind) != kind):
                return None
            try:
                return parse_ref(entry, kind, label)
            except InvalidInputError as error:
                if (label, kind) not in self._faulty:
                    self._faulty.add((label, kind))
                    log.warning("The alias %s in %s: %s", shown(label), self._path.name, error)
                return None

    def labels(self) -> tuple[str, ...]:
        """Return every label of the file, sorted; `lookup` tells whether it means anything."""
        with self._lock:
            self._refresh()
            return tuple(sorted(self._entries))

    def _refresh(self) -> None:
        """Read the file if it is another than the one that was read."""
        now = time.monotonic()
        if now - self._looked_at < self._look_every_s:
            return
        self._looked_at = now
        try:
            status = self._path.stat()
        except OSError:
            self._take(None, {})
            return
        state = (status.st_mtime_ns, status.st_size)
        if state != self._state:
            self._take(state, self._read())
        # Whoever finds it half written finds another state of it later, and reads it again.

    def _take(self, state: tuple[int, int] | None, entries: dict[str, Any]) -> None:
        if state != self._state:
            self._state, self._entries, self._faulty = state, entries, set()

    def _read(self) -> dict[str, Any]:
        """Return what the file says; what it said before if that cannot be told."""
        if not self._path.is_file():
            log.warning("%s is no file", self._path)  # A pipe would be waited for.
            return self._entries
        try:
            with self._path.open("rb") as file:
                text = file.read(MAX_BYTES + 1)
            entries = json.loads(text) if len(text) <= MAX_BYTES else None
        except (OSError, ValueError, RecursionError) as error:
            log.warning("%s cannot be read: %s", self._path, error)
            return self._entries
        if not isinstance(entries, dict):
            log.warning("%s does not hold an object of less than 1 MiB", self._path)
            return self._entries
        return entries
