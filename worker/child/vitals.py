"""What a worker wrote of itself: <links>/health.json, replaced as a whole every few seconds.

    {"written": 1763700000.0, "status": "ready", "webui": {…}, "jobs": [{"id": "…", …}], …}

A file that grows old means a worker that hangs; none, that there is no worker. Imports little, as the
container's HEALTHCHECK reads it twice a minute.
"""

import json
import time
import uuid
from pathlib import Path
from typing import Any

FILE = "health.json"
OLD_S = 30.0
"""A file that was not written for so long tells nothing any more."""
WELL = frozenset({"ready", "starting"})
"""States of A1111 in which a worker is of use; see worker/child/webui.py."""


def written(links: Path) -> dict[str, Any] | None:
    """Return what the worker of this container wrote last; None if there is none, or it hangs."""
    try:
        said = json.loads(file_in(links).read_text())
        return said if "webui" in said and time.time() - said["written"] < OLD_S else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_well(said: dict[str, Any] | None) -> bool:
    """Tell whether a worker that wrote this is of use: A1111 answers, or is starting."""
    return said is not None and said.get("status") in WELL


def lines(said: dict[str, Any]) -> list[str]:
    """Return what a worker wrote for a person to read."""
    webui = said["webui"]
    size = f", {webui['rss_bytes'] / 1e9:.1f} GB" if webui["rss_bytes"] else ""
    jobs = [f"{job['id']} ({job['stage']}, {job['percent']} %)" for job in said["jobs"]]
    settings = [f"{name}={value}" for name, value in said["settings"].items()]
    return [
        f"status   {said['status']}, up for {said['up_s']:.0f} s",
        f"webui    {webui['kind']}, process {webui['pid']}, up for {webui['up_s']:.0f} s{size}",
        *(f"restart  {reason}" for reason in webui["restarts"]),
        f"jobs     {', '.join(jobs) or 'none'}, {said['jobs_done']} done",
        *(f"setting  {setting}" for setting in settings),
    ]


def file_in(links: Path) -> Path:
    return links / FILE


def write(file: Path, said: dict[str, Any]) -> None:
    fresh = file.with_name(f".{uuid.uuid4().hex}")
    try:
        fresh.write_text(json.dumps(said) + "\n")
        fresh.replace(file)
    finally:
        fresh.unlink(missing_ok=True)
