"""From measured times to a table for people and one line of JSON. Knows no benchmark."""

import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Aim:
    """A figure that an issue asked for: `value` shall not be above `limit`."""

    aim: str
    value: float
    limit: float

    @property
    def holds(self) -> bool:
        """Return whether it was reached."""
        return self.value <= self.limit

    def as_json(self) -> dict[str, Any]:
        """Return the aim with its outcome."""
        return {
            "aim": self.aim,
            "value": round(self.value, 2),
            "limit": self.limit,
            "holds": self.holds,
        }


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest of `values` that `percent` % of them do not exceed (nearest rank).

    Every figure is one that was measured: nothing is interpolated, and with less than 100 values
    the 99th percentile is the largest.
    """
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def milliseconds(seconds: Sequence[float]) -> dict[str, float]:
    """Return the median and the 99th percentile of times given in seconds."""
    return {
        "p50_ms": round(percentile(seconds, 50) * 1000, 2),
        "p99_ms": round(percentile(seconds, 99) * 1000, 2),
    }


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """Return rows of the same keys as a table, numbers to the right, with the keys on top."""
    heads = list(rows[0])
    cells = [heads, *([_cell(row[head]) for head in heads] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(heads))]
    numeric = [not isinstance(rows[0][head], str) for head in heads]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in cells
    )


def _cell(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def machine() -> dict[str, Any]:
    """Return what the figures depend on: cores that this process may use, processor, Python."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": names[0] if names else platform.machine(),
        "python": platform.python_version(),
    }


def as_line(
    bench: str, runs: int, rows: Sequence[Mapping[str, object]], aims: Sequence[Aim]
) -> str:
    """Return the last line of a benchmark's output."""
    return json.dumps(
        {
            "bench": bench,
            "machine": machine(),
            "runs": runs,
            "rows": rows,
            "aims": [aim.as_json() for aim in aims],
        }
    )
