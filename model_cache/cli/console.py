"""Where a command says what it does: lines and a progress bar for people, JSON for programs.

Knows nothing of models. Everything may be called from several threads.
"""

import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Never, TextIO

from tqdm import tqdm

from model_cache.cli import tables
from model_cache.models import Progress

# Frames a second: more of them cost a slow terminal, as one over ssh, more than they tell.
_EVERY_S = 0.2
_COLUMNS, _ROWS = 80, 24


class Console:
    """The standard streams of one command."""

    def __init__(self, *, as_json: bool) -> None:
        """Speak to the streams that the process has now; with `as_json` to programs."""
        self._as_json = as_json
        self._out = sys.stdout
        self._err = sys.stderr

    @property
    def width(self) -> int | None:
        """Columns of the terminal; None where what is said goes to a file or another program."""
        return _columns(self._out)

    def say(self, *lines: str) -> None:
        """Tell people a result; programs get theirs from `answer`."""
        if not self._as_json:
            for line in lines:
                _write(line, self._out)

    def remark(self, *lines: str) -> None:
        """Tell whoever watches, beside the result."""
        for line in lines:
            _write(line, self._err)

    def answer(self, value: object) -> None:
        """Give programs the result: one JSON document for each command."""
        if self._as_json:
            _write(json.dumps(value, indent=1), self._out)

    @contextmanager
    def bar(self, label: str, *, total_bytes: int | None = None) -> Iterator["Bar"]:
        """Show a progress bar for the lines inside; where stderr is no terminal there is none.

        With `total_bytes` the whole is known from the start, else it is what the parts sum up to.
        """
        is_sized = _columns(self._err) is not None
        shown: tqdm[Never] = tqdm(
            desc=label,
            total=total_bytes,
            unit="B",
            unit_scale=True,
            disable=None,
            leave=False,
            mininterval=_EVERY_S,
            # On a terminal that does not know its size tqdm would draw nothing.
            ncols=None if is_sized else _COLUMNS,
            nrows=None if is_sized else _ROWS,
            dynamic_ncols=is_sized,
            file=self._err,
        )
        with shown, self._remarks_in_log():
            yield Bar(shown, is_fixed=total_bytes is not None)

    @contextmanager
    def _remarks_in_log(self) -> Iterator[None]:
        """Write what is logged between two frames of the bar, and not into one."""
        handler, root = _Remarks(self), logging.getLogger()
        root.addHandler(handler)
        try:
            yield
        finally:
            root.removeHandler(handler)


class Bar:
    """One bar that shows the sum of what goes on at the same time."""

    def __init__(self, shown: "tqdm[Never]", *, is_fixed: bool) -> None:
        """Draw on `shown`; if `is_fixed`, its total is known and not summed up."""
        self._shown = shown
        self._is_fixed = is_fixed
        self._lock = threading.Lock()
        self._parts: dict[int, Progress] = {}

    def part(self) -> Callable[[Progress], None]:
        """Return what to call with the progress of one more thing."""
        with self._lock:
            number = len(self._parts)
            self._parts[number] = Progress(0, 0)

        def report(progress: Progress) -> None:
            with self._lock:
                self._parts[number] = progress
                self._draw()

        return report

    def _draw(self) -> None:
        parts = self._parts.values()
        if not self._is_fixed:
            totals = [part.total_bytes for part in parts if part.total_bytes is not None]
            self._shown.total = sum(totals) if len(totals) == len(parts) else None
        # Less than before where a transfer had to start again.
        self._shown.update(sum(part.done_bytes for part in parts) - self._shown.n)


class _Remarks(logging.Handler):
    def __init__(self, console: Console) -> None:
        super().__init__(logging.WARNING)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.remark(record.getMessage())


def _columns(stream: TextIO) -> int | None:
    """Return how wide the terminal is; None if there is none, or it does not know."""
    return os.get_terminal_size(stream.fileno()).columns or None if stream.isatty() else None


def _write(text: str, stream: TextIO) -> None:
    # Clears the bar, writes, and draws it again, if there is one on the same terminal.
    tqdm.write(tables.printable(text), file=stream)
    stream.flush()
