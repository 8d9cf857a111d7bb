"""Which models are in use, and which were used when and how often.

    <volume>/models/.worker/uses/
    ├── <worker>.json           {"version": 1, "beat": 17, "in_use": ["models/loras/x.safetensors"]}
    └── <worker>.history.json   {"version": 1, "used": {"models/loras/x.safetensors":
                                                        [1763700000.0, 12]}}

Each worker writes its own two files and nobody else's, so nothing is read, changed and written back,
and no update can be lost. Paths are below the volume. In a history stand the Unix time of the last
use, by the clock of that worker's host, and how many uses there were; it only decides who goes first
when room has to be made, so a minute of it may be lost with a worker that is killed.

What is in use must not be lost: it is on the disk before the file is looked at for the job. So the
first file is made when the worker starts, with room to spare: on a volume that is full by then it is
overwritten where it lies. Where a quota refuses even that, a symbolic link says it (note.py).

A worker lives as long as its first file changes, which is told by our own clock (stillness.py): one
that we have not watched for a minute counts as living, unless its file is two hours old (age.py). A
worker that uses nothing touches its files every ten minutes.
"""

import json
import logging
import os
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from model_cache.sharing import record
from model_cache.sharing.age import DEAD_S, Ages
from model_cache.sharing.record import Record
from model_cache.sharing.stillness import Stillness
from model_cache.volume import layout, publish
from model_cache.volume.disk import disk_errors
from schemas.errors import VolumeError, VolumeFullError

log = logging.getLogger(__name__)

BEAT_S = 10.0
"""How often a worker shows that it lives while it uses something; half of what others look at."""
ALIVE_S = 60.0
"""A worker that was seen silent for so long is dead."""
KEEP_S = 600.0
"""How long a model stays in use after a job named it: the WebUI may load it at any later moment."""
_HISTORY_EVERY_S = 60.0
_IDLE_BEAT_S = 600.0
_MAX_HISTORY = 10_000
# At one time, so that a start is not spent on what thousands of workers left.
_MOST_FOLDED = 1000
_FOLD_S = 5.0
_HISTORY = ".history.json"
_CURRENT = ".json"


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
        self._state = threading.Lock()
        """Held for microseconds, never while the disk is touched."""
        self._noted: dict[Path, float] = {}
        self._held: dict[Path, int] = {}
        self._history: dict[str, Use] = {}
        self._history_saved = True
        self._history_at = clock()
        self._others: dict[str, Use] = {}
        self._others_at = float("-inf")
        self._others_turn = threading.Lock()
        self._writing = threading.Lock()
        self._written: frozenset[Path] = frozenset()
        self._written_at = float("-inf")
        self._beat = 0
        self._refused = False

    def begin(self) -> None:
        """Take the room on the disk for what will be said; to be called when the worker starts."""
        self._show()

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
                    # None is left after `close`, which waits for nobody.
                    if (count := self._held.pop(path, 1) - 1) > 0:
                        self._held[path] = count
                    self._noted[path] = now

    def in_use(self) -> frozenset[Path]:
        """Return the files that this worker uses."""
        with self._state:
            return self._in_use()

    def beat(self) -> None:
        """Show that we live, now and then if nothing is in use; to be called every `BEAT_S`."""
        idle_s = self._clock() - self._written_at
        if self._written or self.in_use():
            self._show()
        elif self._beat and idle_s >= _IDLE_BEAT_S:
            self._show()
            with suppress(OSError):  # There is none yet, or nothing can be written.
                os.utime(self._folder / f"{self.worker}{_HISTORY}")
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

    def require_heard(self) -> None:
        """Show what is in use, or raise: where we cannot, others may not be able to either.

        Raises:
            VolumeError: the disk refused.
        """
        refusal = self._show()
        if refusal is not None:
            raise refusal

    def others_in_use(self) -> frozenset[Path]:
        """Return the files that other living workers use; delete the records of the long dead.

        To be called every ten seconds or so as well, so that the dead are known when it matters.

        Raises:
            VolumeError: their records cannot be read.
        """
        in_use: set[Path] = set()
        with disk_errors():
            paths = self._records(_CURRENT)
            self._alive.keep_only(paths)
            ages = Ages(self._volume)
            for path in paths:
                said = record.read_whole(path)
                is_old = ages.over(said.modified_ns / 1e9, DEAD_S)
                if is_old and self._is_buried(path, said):
                    continue
                if is_old:
                    said = record.read_whole(path)
                if self._alive.of(path, said) < ALIVE_S:
                    in_use.update(self._volume / name for name in record.in_use(said.text))
        return frozenset(in_use)

    def history(self) -> Mapping[Path, Use]:
        """Return how each file was used, by all workers that ever were, as far as is known.

        What others did is read once a minute, as often as they write it.
        """
        with self._others_turn:
            if self._clock() - self._others_at >= _HISTORY_EVERY_S:
                self._others, self._others_at = self._history_of_others(), self._clock()
            merged = dict(self._others)
        with self._state:
            _add(merged, self._history)
        return {self._volume / name: use for name, use in merged.items()}

    def _history_of_others(self) -> dict[str, Use]:
        used: dict[str, Use] = {}
        with suppress(OSError):  # It decides on an order only; our own part of it is at hand.
            for path in self._records(_HISTORY):
                _add(used, _used_before(record.read(path).text))
        return used

    def fold(self) -> None:
        """Take over some histories of workers that ended hours ago, and clear what else they left.

        Ours is written before theirs go: a worker that is killed between the two makes their counts
        double, and loses none. So may one that lives after all.
        """
        try:
            left = [
                path for suffix in (record.UNFINISHED, _HISTORY) for path in self._records(suffix)
            ]
            # Not the first ones: other workers are at it too, and those may all be young.
            some = random.sample(left, min(len(left), _MOST_FOLDED))
            ages, taken, start = Ages(self._volume), list[Path](), self._clock()
            for path in some:
                mine = self._taken(path, ages)
                taken += [] if mine is None else [mine]
                if self._clock() - start > _FOLD_S:
                    break
            for mine in taken:
                self._remember(_used_before(record.read(mine).text))
            if taken and self._save_history():
                for mine in taken:
                    mine.unlink(missing_ok=True)
            with self._others_turn:
                self._others_at = float("-inf")  # Some of it is ours now.
        except OSError as error:
            log.info("The records of use of ended workers stay: %s", error)

    def _taken(self, path: Path, ages: Ages) -> Path | None:
        """Return where the history at `path` is ours now; None if it stays, or is none."""
        with suppress(FileNotFoundError):  # Another worker folds as well.
            if ages.over(path.lstat().st_mtime, DEAD_S):
                if path.name.endswith(record.UNFINISHED):
                    path.unlink()
                    return None
                # Whoever renames it has it; under its new name it is read as a history all the same.
                mine = self._folder / f"{uuid.uuid4().hex}{_HISTORY}"
                path.rename(mine)
                os.utime(mine)  # Nobody else takes it from us.
                return mine
        return None

    def _remember(self, used: Mapping[str, Use]) -> None:
        with self._state:
            _add(self._history, used)
            self._history_saved = False

    def _is_buried(self, path: Path, believed: Record) -> bool:
        """Delete the record of a dead worker; False if it changed by now, so that one lives.

        It is moved aside before it is looked at again: what that worker writes from now on is
        another file, and what it wrote before is seen.
        """
        aside = path.with_suffix(f".{uuid.uuid4().hex}{record.UNFINISHED}")
        lives = False
        with suppress(OSError, publish.PartLostError):  # Gone, or it stays: dead all the same.
            path.rename(aside)
            lives = record.read(aside) != believed
            if lives:
                publish.place(aside, path)
            aside.unlink(missing_ok=True)
        return not lives

    def _in_use(self) -> frozenset[Path]:
        now = self._clock()
        self._noted = {path: at for path, at in self._noted.items() if now - at < KEEP_S}
        return frozenset(self._noted).union(self._held)

    def _show(self) -> VolumeError | None:
        """Write what is in use for others to see; return what the disk said against it."""
        with self._writing:
            with self._state:
                started, in_use = self._clock(), self._in_use()
                # What is about to be taken out must not pass for written if it is noted meanwhile.
                self._written &= in_use
            self._beat += 1
            names = sorted(str(path).removeprefix(self._prefix) for path in in_use)
            path = self._folder / f"{self.worker}{_CURRENT}"
            text = json.dumps({"version": 1, "beat": self._beat, "in_use": names})
            refusal = record.write(self._volume, path, text.ljust(record.room(text)))
            if isinstance(refusal, VolumeFullError) and (
                record.overwrite(path, text) or record.point(path, text)
            ):
                refusal = None
            self._complain(refusal)
            with self._state:
                self._written, self._written_at = in_use, started
        return refusal

    def _save_history(self) -> bool:
        with self._state:
            if self._history_saved:
                return True
            self._history_saved, self._history_at = True, self._clock()
            newest = sorted(self._history.items(), key=lambda item: item[1].last)[-_MAX_HISTORY:]
            self._history = dict(newest)
        used = {name: [use.last, use.count] for name, use in newest}
        path = self._folder / f"{self.worker}{_HISTORY}"
        refusal = record.write(self._volume, path, json.dumps({"version": 1, "used": used}))
        self._complain(refusal)
        if refusal is None:
            return True
        with self._state:
            self._history_saved = False
        return False

    def _complain(self, refusal: VolumeError | None) -> None:
        """Say once that the disk refuses, and go on."""
        if refusal is not None and not self._refused:
            log.warning("Other workers cannot see which models are in use here: %s", refusal)
        self._refused = refusal is not None

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


def _used_before(text: str) -> dict[str, Use]:
    """Return what a history says, without what is damaged in it."""
    used = record.field(text, "used")
    history = {}
    for name, use in used.items() if isinstance(used, dict) else ():
        with suppress(ValueError, TypeError, OverflowError):
            last, count = use
            history[name] = Use(float(last), int(count))
    return history


def _add(history: dict[str, Use], more: Mapping[str, Use]) -> None:
    for name, use in more.items():
        before = history.get(name)
        history[name] = before.plus(use) if before else use
