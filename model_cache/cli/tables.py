"""Text for people: sizes, times, names and tables. Pure; knows nothing of models."""

import unicodedata
from collections.abc import Sequence

_GAP = "  "
_CUT = "…"
# What is left of a name that has to be cut, at least.
_MIN_COLUMNS = 12
_UNITS = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
_AGES = (
    ("year", 365.25 * 86_400),
    ("month", 30.44 * 86_400),
    ("day", 86_400.0),
    ("hour", 3600.0),
    ("minute", 60.0),
)
_JUST_NOW_S = 60.0


def size(size_bytes: float) -> str:
    """Return a number of bytes in the decimal unit that fits, as in `6.94 GB`."""
    for unit, factor in _UNITS:
        # So that 999,999 bytes are 1.00 MB and not 1e+03 kB.
        if size_bytes >= factor * 0.9995:
            return f"{_three_digits(size_bytes / factor)} {unit}"
    return f"{size_bytes:.0f} B"


def age(then: float, now: float) -> str:
    """Return how long before `now` it was, in words; both are Unix times in seconds.

    What lies ahead, by the clock of another host, was just now.
    """
    past_s = now - then
    if past_s < _JUST_NOW_S:
        return "just now"
    name, length_s = next((name, length_s) for name, length_s in _AGES if past_s >= length_s)
    number = int(past_s / length_s)
    return f"{number} {name}{'s' if number > 1 else ''} ago"


def seconds(duration_s: float) -> str:
    """Return a duration, as in `0.4 s`, `12 s`, `3 min 5 s` or `2 h 10 min`."""
    if duration_s < 10:
        return f"{duration_s:.1f} s"
    whole = round(duration_s)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def count(number: int, noun: str) -> str:
    """Return `1 model`, `2 models`, `2 aliases`."""
    plural = "es" if noun.endswith("s") else "s"
    return f"{number} {noun}" if number == 1 else f"{number} {noun}{plural}"


def printable(text: str) -> str:
    """Return `text` as it may go to a terminal: a file's name may hold codes that control one."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def columns(text: str) -> int:
    """Return how many columns of a terminal the text takes.

    Source: Unicode Standard Annex 11, "East Asian Width"; combining marks take none.
    """
    return sum(_width(c) for c in text)


def cut(text: str, most: int) -> str:
    """Return `text` in at most so many columns, with what is too much taken out of its middle.

    Names of models differ at the end (versions) and at the start, hardly ever in the middle.
    """
    if columns(text) <= most:
        return text
    left = _within(text, (most - 1) // 2)
    right = _within(text[::-1], most - 1 - columns(left))[::-1]
    return f"{left}{_CUT}{right}"


def table(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    width: int | None = None,
    flexible: int = 0,
    right: frozenset[int] = frozenset(),
) -> list[str]:
    """Return the lines of a table, without the columns in which nothing stands.

    Args:
        heads: what stands above the columns.
        rows: as many cells each.
        width: columns of the terminal; None leaves everything as long as it is.
        flexible: the column that is cut where there is not enough room.
        right: columns that are aligned to the right.
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    shown = [at for at in range(len(heads)) if at == flexible or any(row[at] for row in rows)]
    widths = {at: max(columns(row[at]) for row in [heads, *rows]) for at in shown}
    if width is not None:
        others = sum(widths.values()) - widths[flexible] + len(_GAP) * (len(shown) - 1)
        widths[flexible] = min(widths[flexible], max(width - others, _MIN_COLUMNS))
    lines = []
    for row in [heads, *rows]:
        cells = [_padded(cut(row[at], widths[at]), widths[at], at in right) for at in shown]
        lines.append(_GAP.join(cells).rstrip())
    return lines


def pairs(entries: Sequence[tuple[str, str]]) -> list[str]:
    """Return lines of a name and what it stands for; those that stand for nothing are left out."""
    told = [(name, printable(value)) for name, value in entries if value]
    width = max((columns(name) for name, _ in told), default=0)
    return [f"{_padded(name, width, False)}{_GAP}{value}" for name, value in told]


def _three_digits(number: float) -> str:
    decimals = 2 if number < 9.995 else 1 if number < 99.95 else 0
    return f"{number:.{decimals}f}"


def _width(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in {"W", "F"} else 1


def _within(text: str, most: int) -> str:
    """Return as much of the start of `text` as fits."""
    taken = 0
    for at, character in enumerate(text):
        taken += _width(character)
        if taken > most:
            return text[:at]
    return text


def _padded(text: str, width: int, to_the_right: bool) -> str:  # noqa: FBT001 - private, two callers
    blank = " " * (width - columns(text))
    return f"{blank}{text}" if to_the_right else f"{text}{blank}"
