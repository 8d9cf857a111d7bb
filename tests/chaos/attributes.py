"""What a host sees late: sizes and times of files that others change, as they were a moment ago.

Clients of network file systems keep the attributes of a file for a while. Source: mount.moosefs(8),
`mfsattrcacheto`, 1 s; nfs(5), `acregmin`, 3 s. Which file a name means is asked anew here each time,
as MooseFS does by default (`mfsentrycacheto`, 0 s), and what this process changed itself it sees at
once. The functions of `os` are replaced in the process that asks for it.
"""

import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

_CHANGES = {"os.remove", "os.rename", "os.link", "os.utime", "os.truncate", "os.symlink"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class Attributes:
    """What a process has seen of the files below a folder."""

    def __init__(self, volume: Path, late_s: float) -> None:
        """Touch nothing yet."""
        self._below = f"{volume}/"
        self._late_s = late_s
        self._seen: dict[tuple[str, int], tuple[float, os.stat_result]] = {}
        self._own: set[str] = set()
        """Files that this process has opened to write."""
        self.late = 0
        """How often something old was seen in place of what is there."""

    def install(self, put: Callable[[Any, str, Any], None] = setattr) -> None:
        """See late from now on; for the rest of this process, as its hook cannot be taken away."""
        for name in ("stat", "lstat"):
            put(os, name, partial(self.stat, getattr(os, name)))
        # Whatever the process changes by name is announced to it. Source: docs.python.org,
        # "Audit events table".
        sys.addaudithook(self.hear)

    def stat(self, stat: Callable[..., os.stat_result], path: Any, **more: Any) -> os.stat_result:
        """Return what `stat` says of a path, or what it said a moment ago."""
        there = stat(path, **more)
        if not isinstance(path, str | Path) or not str(path).startswith(self._below):
            return there
        if str(path) in self._own:
            return there
        # Another file under the name has attributes of its own.
        key, now = (str(path), there.st_ino), time.monotonic()
        seen_at, seen = self._seen.get(key, (-self._late_s, there))
        if now - seen_at < self._late_s:
            self.late += seen != there
            return seen
        self._seen[key] = (now, there)
        return there

    def hear(self, event: str, args: tuple[Any, ...]) -> None:
        """Take note of what this process changes; see `sys.addaudithook`."""
        if event == "open" and isinstance(args[2], int) and args[2] & _WRITING:
            self._own.add(str(args[0]))
        elif event in _CHANGES:
            changed = {str(arg) for arg in args[:2]}
            for key in [key for key in list(self._seen) if key[0] in changed]:
                self._seen.pop(key, None)
