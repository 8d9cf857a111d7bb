"""Which versions of what are here, read from files; nothing is imported or started for it."""

import re
from importlib import metadata
from pathlib import Path

WORKER = "0.1.0"
"""Ours, as in pyproject.toml, which is not in the image."""


def sdk() -> str:
    """Return the version of the RunPod SDK, empty if it is not installed."""
    try:
        return metadata.version("runpod")
    except metadata.PackageNotFoundError:
        return ""


def webui(folder: Path) -> str:
    """Return what a WebUI's own folder says of its version and commit; empty if nothing.

    Source: A1111 1.10.1 and Forge, modules/launch_utils.py: without git, the first heading of
    CHANGELOG.md; Forge, modules_forge/forge_version.py.
    """
    heading = _found(folder / "CHANGELOG.md", r"^##\s*(\S+)")
    forge = _found(folder / "modules_forge" / "forge_version.py", r"version\s*=\s*['\"]([^'\"]+)")
    commit = _commit(folder / ".git")[:12]
    words = [forge or heading, f"({commit})" if commit else ""]
    return " ".join(word for word in words if word)


def _commit(git: Path) -> str:
    head = _found(git / "HEAD", r"(.+)")
    branch = head.removeprefix("ref: ")
    if branch == head:
        return head
    packed = rf"^([0-9a-f]{{40}}) {re.escape(branch)}$"
    return _found(git / branch, r"([0-9a-f]{40})") or _found(git / "packed-refs", packed)


def _found(file: Path, pattern: str) -> str:
    try:
        text = file.read_text(errors="replace")
    except OSError:
        return ""
    found = re.search(pattern, text, re.MULTILINE)
    return found[1].strip() if found else ""
