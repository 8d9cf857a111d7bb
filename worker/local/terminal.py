"""What a person at a terminal sees of a local run: a table, links, and one line of progress."""

import io
import logging
import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from socket import gethostname
from threading import Event, Lock
from typing import Any, TextIO
from urllib.parse import quote

from worker.child.watch import Report

Run = Callable[[dict[str, Any], Event, Report], Any]

# Control characters, and those that turn the direction of what follows them: a terminal obeys them.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_TOO_OLD_VTE = 5000
# Which terminals know OSC 8, and how each is told. Source: Alhadis/OSC8-Adoption on GitHub.
_LINKING_PROGRAMS = frozenset({"iTerm.app", "WezTerm", "vscode", "ghostty", "Hyper", "terminology"})
_LINKING_TERMS = frozenset({"xterm-kitty", "xterm-ghostty", "alacritty", "foot", "foot-extra"})
_URL_CHARS = "%:/?#[]@!$&'()*+,;=-._~"  # RFC 3986, 2.2 and 2.3, and what is escaped already
_CLEAR = "\r\x1b[K"


def plain(text: str) -> str:
    """Return `text` with what a terminal would obey written out; line ends and tabs stay."""
    return _UNSAFE.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def unbreakable(stream: TextIO) -> None:
    """Let `stream` write out what its encoding has no bytes for, such as half a character."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")


def knows_links(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Return whether `stream` is a terminal that shows OSC 8 links; FORCE_HYPERLINK=0 or 1 decides."""
    forced = environ.get("FORCE_HYPERLINK")
    if forced is not None:
        return forced != "0"
    if not stream.isatty():
        return False
    version = environ.get("VTE_VERSION", "")
    return (
        "WT_SESSION" in environ
        or environ.get("TERM_PROGRAM") in _LINKING_PROGRAMS
        or environ.get("TERM") in _LINKING_TERMS
        or (version.isascii() and version.isdigit() and int(version) >= _TOO_OLD_VTE)
    )


def link(place: str, folder: Path, *, links: bool) -> str:
    """Return `place`, a URL or a path, as it is shown: with `links` as an OSC 8 link.

    A relative path is one below `folder`. A file's link names this machine, for a terminal may show
    another one's output. Source: egmontkob's specification of OSC 8.
    """
    is_url = place.startswith(("http://", "https://"))
    shown = place if is_url else str(folder / place)
    if not links:
        return plain(shown)
    url = place if is_url else f"file://{gethostname()}{quote(str((folder / place).absolute()))}"
    # A signed URL fills the screen; its query is part of the link.
    text = plain(place.partition("?")[0] if is_url else shown)
    return f"\x1b]8;;{quote(url, safe=_URL_CHARS)}\x1b\\{text}\x1b]8;;\x1b\\"


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return `rows` below `headings`, in columns as wide as they need; a column with nothing is left out.

    The last column is taken as it is: `link` has made it fit to be shown.
    """
    columns = []
    for heading, *cells in zip(headings[:-1], *(row[:-1] for row in rows), strict=True):
        if any(cells):
            lines = [plain(cell).replace("\n", " ") for cell in (heading, *cells)]
            width = max(map(_width, lines))
            columns.append([line + " " * (width - _width(line)) for line in lines])
    last = [headings[-1], *(row[-1] for row in rows)]
    return "".join("  ".join(line) + "\n" for line in zip(*columns, last, strict=True))


def _width(text: str) -> int:
    """Return how many columns `text` takes; East Asian letters and most emoji take two."""
    return sum(
        0 if unicodedata.combining(char) else 1 + (unicodedata.east_asian_width(char) in "WF")
        for char in text
    )


class ProgressLine:
    """The progress of one run as one line that is rewritten; nothing where `stream` is no terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._is_shown = stream.isatty()
        self._lock = Lock()

    def watching(self, run: Run) -> Run:
        """Return `run`, whose progress is shown besides."""

        def watched(job: dict[str, Any], cancelled: Event, report: Report) -> Any:
            def both(progress: dict[str, Any]) -> None:
                report(progress)
                self.show(progress)

            return run(job, cancelled, both)

        return watched

    def show(self, progress: Mapping[str, Any]) -> None:
        """Show `progress`, a `schemas.result.Progress`, in place of the last one; from any thread."""
        if self._is_shown:
            columns = os.get_terminal_size(self._stream.fileno()).columns or 80
            self._write(_CLEAR + _cut(words(progress), columns - 1))

    def clear(self) -> None:
        """Take the line away, before something else is written."""
        if self._is_shown:
            self._write(_CLEAR)

    def _write(self, text: str) -> None:
        with self._lock:
            self._stream.write(text)
            self._stream.flush()

    @contextmanager
    def above_log(self) -> Iterator[None]:
        """Clear the line before each line of the log, and at the end."""

        def clear(_record: logging.LogRecord) -> bool:
            self.clear()
            return True

        handlers = logging.getLogger().handlers
        for handler in handlers:
            handler.addFilter(clear)
        try:
            yield
        finally:
            for handler in handlers:
                handler.removeFilter(clear)
            self.clear()


def words(progress: Mapping[str, Any]) -> str:
    """Return a `schemas.result.Progress` as a line of text."""
    parts = [f"{progress.get('stage', ''):10}"]
    if percent := progress.get("percent"):
        parts.append(f"{percent:3} %")
    if progress.get("step") and progress.get("steps"):
        parts.append(f"step {progress['step']}/{progress['steps']}")
    if total := progress.get("total_bytes"):
        parts.append(f"{progress.get('done_bytes', 0) / 1e6:.0f} of {total / 1e6:.0f} MB")
    if eta_s := progress.get("eta_s"):
        parts.append(f"{eta_s:.0f} s left")
    if detail := progress.get("detail"):
        parts.append(str(detail))
    return plain("  ".join(parts)).replace("\n", " ")


def _cut(text: str, columns: int) -> str:
    while _width(text) > columns:
        text = text[:-1]
    return text
