"""What A1111 prints, made fit for a log: whole lines, of bars the last state, and not too many.

Knows nothing of processes: bytes go in, lines come out.
"""

import re
import time
from collections.abc import Callable

MAX_LINE_BYTES = 2000
LINES_PER_S = 20.0
BURST_LINES = 400.0
MAX_TRACEBACK_LINES = 300
"""More than Python prints of a recursion that never ends; longer ones are no tracebacks."""

_CODES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
# A bar that is not full; A1111 draws two at once, so that each step of one begins a line.
# Source: tqdm 4.67, std.py, format_meter; A1111 1.10.1, modules/shared_total_tqdm.py, position=1.
_HALF_BAR = re.compile(r"(^|\s|:)\d{1,2}%\|[^|]*\|")
_BEGIN = "Traceback (most recent call last):"
_CHAIN = ("During handling of the above exception", "The above exception was the direct cause")


class Lines:
    """Cuts what a process prints into lines; what a carriage return takes back is not passed on."""

    def __init__(self) -> None:
        self._line = bytearray()
        self._left_out = 0
        self._is_returned = False

    def feed(self, data: bytes) -> list[str]:
        """Take the next bytes; return the lines that they end, without empty ones and half bars."""
        *ended, rest = data.split(b"\n")
        lines: list[str] = []
        for part in ended:
            self._add(part)
            lines.append(self._taken())
        self._add(rest)
        return [line for line in lines if _is_worth_it(line)]

    def end(self) -> list[str]:
        """Return what the last line break left, in a list that may be empty."""
        line = self._taken()
        return [line] if _is_worth_it(line) else []

    def _add(self, part: bytes) -> None:
        for index, piece in enumerate(part.split(b"\r")):
            self._is_returned |= index > 0
            if piece and self._is_returned:
                self._begin()
            room = MAX_LINE_BYTES - len(self._line)
            self._line += piece[:room]
            self._left_out += max(0, len(piece) - room)

    def _taken(self) -> str:
        line = _CODES.sub("", self._line.decode(errors="replace")).rstrip()
        if self._left_out:
            line += f"… {self._left_out} bytes more"
        self._begin()
        return line

    def _begin(self) -> None:
        self._line.clear()
        self._left_out, self._is_returned = 0, False


def _is_worth_it(line: str) -> bool:
    return bool(line.strip()) and not _HALF_BAR.search(line)


class Limit:
    """Lets so many lines a second pass, for a moment more; a traceback as a whole or not at all.

    Args:
        now: a clock that never goes back, in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._credit = BURST_LINES
        self._filled = now()
        self._is_shut = False
        self._left_out = 0
        self._traceback = _Traceback()

    def passes(self, line: str) -> bool:
        """Return whether `line` may be logged; to be called once for each."""
        now = self._now()
        self._credit = min(BURST_LINES, self._credit + (now - self._filled) * LINES_PER_S)
        self._filled = now
        if not self._traceback.goes_on(line):
            # Once shut, for a second's worth: else every other line would tell what was left out.
            self._is_shut = self._credit < (LINES_PER_S if self._is_shut else 1)
        if self._is_shut:
            self._left_out += 1
            return False
        self._credit -= 1
        return True

    def left_out(self) -> int:
        """Return how many lines did not pass since this was asked last."""
        count, self._left_out = self._left_out, 0
        return count


class _Traceback:
    """Knows which lines belong to one traceback, by their indentation, and to what it came from."""

    def __init__(self) -> None:
        self._indent: int | None = None
        self._lines = 0
        self._is_chained = False

    def goes_on(self, line: str) -> bool:
        """Return whether `line` belongs to the same traceback as the line before."""
        words = line.lstrip()
        indent = len(line) - len(words)
        if words.startswith(_BEGIN):
            is_same, self._is_chained = self._is_chained, False
            self._indent = indent
            self._lines = self._lines + 1 if is_same else 0
            return is_same
        if words.startswith(_CHAIN):
            self._is_chained = True
            return True
        if self._indent is None or self._lines >= MAX_TRACEBACK_LINES:
            self._indent = None
            return False
        self._lines += 1
        if indent <= self._indent:
            self._indent = None  # The exception itself, which is the last line.
        return True
