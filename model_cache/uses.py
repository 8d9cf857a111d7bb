"""Which models are in use, and which were used when and how often.

    <volume>/models/.worker/uses/
    ├── <worker>.json           {"version": 1, "beat": 17, "in_use": ["models/loras/x.safetensors"]}
    └── <worker>.history.json   {"version": 1, "used": {"models/loras/x.safetensors":
                                                        [1763700000.0, 12]}}

Each worker writes its own two files and nobody else's, so nothing is read, changed and written back,
and no update can be lost. Paths are below the volume. In a history stand the Unix time of the last
use, by the clock of that worker's host, and how many uses there were; it only decides who goes first
when room has to be made, so a minute of it may be lost with a worker that is killed.

What is in use must not be lost: it is on the disk before the file is looked at for the job. A worker
lives as long as its first file changes, which is told by our own clock (stillness.py): one that we
have not watched for a minute counts as living.
"""

import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from model_cache import layout
from model_cache.disk import disk_errors, require_volume
from model_cache.stillness import Stillness
from schemas.errors import VolumeError

log = logging.getLogger(__name__)

BEAT_S = 10.0
"""How often a worker shows that it lives while it uses something; half of what others look at."""
ALIVE_S = 60.0
"""A worker that was seen silent for so long is dead."""
KEEP_S = 600.0
"""How long a model stays in use after a job named it: the WebUI may load it at any later moment."""
_HISTORY_EVERY_S = 60.0
# Workers that ended so long ago leave their history to others. A host's clock may be an hour wrong.
_FORGOTTEN_S = 24 * 3600.0
_MAX_HISTORY = 10_000
_HISTORY = ".history.json"
_CURRENT = ".json"
_UNFINISHED = ".tmp"
_MAX_BYTES = 4_000_000


@dataclass(frozen=True)
class Use:
    """How a model was used."""

    last: float
    """Unix time in seconds."""
    count: int

    def plus(self, other: "Use") -> "Use":
        """Return both together."""
        return Use(max(self.last, other.last), self.count + other.count)


class Uses:
    """What this worker uses, and what the others do; safe to use from several threads."""

    def __init__(self, volume: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Touch nothing yet; `clock` gives seconds that never go back."""
        self._volume = volume
        self._prefix = f"{volume}/"
        self._folder = layout.uses_folder(volume)
        self._clock = clock
        self.worker = uuid.uuid4().hex
        """What the files of this worker are called: random, as containers share numbers."""
        self._alive = Stillness(ALIVE_S / 2, clock)
        self._ended = Stillness(ALIVE_S / 2, clock)
        self._state = threading.Lock()
        """Held for microseconds, never while the disk is touched."""
        self._noted: dict[Path, float] = {}
        self._held: dict[Path, int] = {}
        self._history: dict[str, Use] = {}
        self._history_saved = True
        self._history_at = clock()
        self._writing = threading.Lock()
        self._written: frozenset[Path] = frozenset()
        self._written_at = float("-inf")
        self._beat = 0
        self._refused = False

    def announce(self, paths: Iterable[Path]) -> None:
        """Show with one write that these files are about to be used; each will be noted yet."""
        now = self._clock()
        with self._state:
            new = [path for path in paths if path not in self._noted]
            self._noted.update(dict.fromkeys(new, now))
        if new:
            self._show()

    def note(self, path: Path) -> None:
        """Say that a job is about to use the file at `path`; to be called before it is looked at.

        Touches the disk only if others do not know that the file is in use, or when the last word
        to them is `BEAT_S` old. Never fails: a volume that cannot be written to loses no model.
        """
        now = self._clock()
        key = str(path).removeprefix(self._prefix)
        with self._state:
            self._noted[path] = now
            used = self._history.get(key)
            self._history[key] = Use(time.time(), used.count + 1 if used else 1)
            self._history_saved = False
            shown = path in self._written and now - self._written_at < BEAT_S
        if not shown:
            self._show()

    @contextmanager
    def hold(self, paths: Iterable[Path]) -> Iterator[None]:
        """Keep the files in use for the lines inside, however long they take."""
        held = tuple(paths)
        with self._state:
            for path in held:
                self._held[path] = self._held.get(path, 0) + 1
            shown = self._written.issuperset(held)
        if not shown:
            self._show()
        try:
            yield
        finally:
            now = self._clock()
            with self._state:
                for path in held:
                    self._held[path] -= 1
                    if not self._held[path]:
                        del self._held[path]
                    self._noted[path] = now

    def in_use(self) -> frozenset[Path]:
        """Return the files that this worker uses."""
        with self._state:
            return self._in_use()

    def beat(self) -> None:
        """Show that we live, if anything is in use; to be called every `BEAT_S`."""
        if self._written or self.in_use():
            self._show()
        if self._clock() - self._history_at >= _HISTORY_EVERY_S:
            self._save_history()

    def close(self) -> None:
        """Leave nothing in use, and the history to others."""
        self._save_history()
        with self._writing, suppress(OSError):  # On a read-only volume there is none.
            with self._state:
                self._noted.clear()
                self._held.clear()
                self._written = frozenset()
            (self._folder / f"{self.worker}{_CURRENT}").unlink(missing_ok=True)

    def others_in_use(self) -> frozenset[Path]:
        """Return the files that other living workers use.

        To be called every ten seconds or so as well, so that the dead are known when it matters.

        Raises:
            VolumeError: their records cannot be read.
        """
        in_use: set[Path] = set()
        with disk_errors():
            paths = self._records(_CURRENT)
            self._alive.keep_only(paths)
            for path in paths:
                record = text, _ = _read(path)
                if self._alive.of(path, record) < ALIVE_S:
                    in_use.update(self._volume / name for name in _used_now(text))
        return frozenset(in_use)

    def history(self) -> Mapping[Path, Use]:
        """Return how each file was used, by all workers that ever were, as far as is known."""
        merged: dict[str, Use] = {}
        with suppress(OSError):  # It decides on an order only; our own part of it is at hand.
            for path in self._records(_HISTORY):
                _add(merged, _used_before(_read(path)[0]))
        with self._state:
            _add(merged, self._history)
        return {self._volume / name: use for name, use in merged.items()}

    def fold(self) -> None:
        """Take over the histories of workers that ended more than a day ago, and clear their files.

        Ours is written before theirs goes: a worker that is killed between the two makes its counts
        double, and loses none.
        """
        try:
            paths = [
                path
                for suffix in (_CURRENT, _UNFINISHED, _HISTORY)
                for path in self._records(suffix)
            ]
            self._ended.keep_only(paths)
            for path in filter(self._is_forgotten, paths):
                if path.name.endswith(_HISTORY):
                    self._fold(path)
                else:
                    path.unlink(missing_ok=True)
        except OSError as error:
            log.info("The records of use of ended workers stay: %s", error)

    def _fold(self, path: Path) -> None:
        # Whoever renames it has it; under its new name it is read as a history all the same.
        mine = self._folder / f"{uuid.uuid4().hex}{_HISTORY}"
        try:
            path.rename(mine)
        except FileNotFoundError:
            return
        used = _used_before(_read(mine)[0])
        with self._state:
            _add(self._history, used)
            self._history_saved = False
        if self._save_history():
            mine.unlink(missing_ok=True)

    def _is_forgotten(self, path: Path) -> bool:
        try:
            status = path.stat()
        except FileNotFoundError:
            return False
        still_s = self._ended.of(path, (status.st_ino, status.st_mtime_ns))
        return still_s >= ALIVE_S and time.time() - status.st_mtime > _FORGOTTEN_S

    def _in_use(self) -> frozenset[Path]:
        now = self._clock()
        self._noted = {path: at for path, at in self._noted.items() if now - at < KEEP_S}
        return frozenset(self._noted).union(self._held)

    def _show(self) -> None:
        """Write what is in use for others to see."""
        with self._writing:
            with self._state:
                started, in_use = self._clock(), self._in_use()
                # What is about to be taken out must not pass for written if it is noted meanwhile.
                self._written &= in_use
            self._beat += 1
            names = sorted(str(path).removeprefix(self._prefix) for path in in_use)
            path = self._folder / f"{self.worker}{_CURRENT}"
            if not self._write(path, {"version": 1, "beat": self._beat, "in_use": names}):
                with suppress(OSError):
                    # On a full volume no file can be written, and that we live must be seen.
                    os.utime(path, (self._beat, self._beat))
            with self._state:
                self._written, self._written_at = in_use, started

    def _save_history(self) -> bool:
        with self._state:
            if self._history_saved:
                return True
            self._history_saved, self._history_at = True, self._clock()
            newest = sorted(self._history.items(), key=lambda item: item[1].last)[-_MAX_HISTORY:]
            self._history = dict(newest)
        used = {name: [use.last, use.count] for name, use in newest}
        path = self._folder / f"{self.worker}{_HISTORY}"
        if self._write(path, {"version": 1, "used": used}):
            return True
        with self._state:
            self._history_saved = False
        return False

    def _write(self, path: Path, record: Mapping[str, object]) -> bool:
        """Replace one of our files; where that fails, say so once and go on."""
        part = path.with_suffix(f".{uuid.uuid4().hex}{_UNFINISHED}")
        try:
            require_volume(self._volume)
            self._folder.mkdir(parents=True, exist_ok=True)
            try:
                part.write_text(json.dumps(record))
                part.replace(path)
            finally:
                part.unlink(missing_ok=True)
        except (OSError, VolumeError) as error:
            if not self._refused:
                log.warning("Other workers cannot see which models are in use here: %s", error)
            self._refused = True
            return False
        self._refused = False
        return True

    def _records(self, suffix: str) -> list[Path]:
        """Return the files of other workers with this suffix, `.json` or a longer one."""
        try:
            paths = list(self._folder.iterdir())
        except FileNotFoundError:
            return []
        return [
            path
            for path in paths
            if path.name.endswith(suffix)
            and not path.name.startswith(self.worker)
            and (suffix == _HISTORY or not path.name.endswith(_HISTORY))
        ]


def _read(path: Path) -> tuple[str, int]:
    """Return the text of a record and when it was changed; nothing where it just went."""
    try:
        with path.open("rb") as file:
            modified_ns = os.fstat(file.fileno()).st_mtime_ns
            return file.read(_MAX_BYTES).decode(errors="replace"), modified_ns
    except FileNotFoundError:
        return "", 0


def _used_now(text: str) -> list[str]:
    """Return the paths that a record names; one that is damaged names none."""
    names = _field(text, "in_use")
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def _used_before(text: str) -> dict[str, Use]:
    """Return what a history says, without what is damaged in it."""
    used = _field(text, "used")
    history = {}
    for name, use in used.items() if isinstance(used, dict) else ():
        with suppress(ValueError, TypeError, OverflowError):
            last, count = use
            history[name] = Use(float(last), int(count))
    return history


def _field(text: str, name: str) -> object:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return content.get(name) if isinstance(content, dict) else None


def _add(history: dict[str, Use], more: Mapping[str, Use]) -> None:
    for name, use in more.items():
        before = history.get(name)
        history[name] = before.plus(use) if before else use
