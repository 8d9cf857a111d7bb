"""What goes wrong at a call of the operating system: the process is killed, refused, or overtaken.

Knows nothing of models. The functions of `os` are replaced in the process that asks for it, so a
kill falls exactly before or after the call that is named, as a power cut would.
"""

import errno
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

# Whatever changes the volume, but for opening a file to write: that is a call of `io`, and is told
# by the next one.
WRITES = (
    *("ftruncate", "pwrite", "fdatasync", "fsync"),
    *("link", "rename", "replace", "unlink", "mkdir"),
)
_TWO_PATHS = {"link", "rename", "replace"}


@dataclass(frozen=True)
class Fault:
    """One call that goes wrong."""

    call: str
    """A function of `os`; empty for each of `WRITES`."""
    ending: str = ""
    """Of the path that the call is about, the new one where it names two."""
    folder: str = ""
    """Whose files it is about, as `/tmp/`; empty for all."""
    after: bool = False
    """It is done, and only then goes wrong."""
    skip: int = 0
    """So many such calls go well before."""
    error: str = ""
    """`EDQUOT`: what the call is refused with, as are all that follow. Empty: SIGKILL."""

    def means(self, path: str) -> bool:
        """Tell whether it is about the file at `path`."""
        return self.folder in path and path.endswith(self.ending)


def install(
    fault: Fault,
    volume: Path,
    put: Callable[[Any, str, Any], None] = setattr,
    instead: Callable[[], None] | None = None,
) -> Callable[[], int]:
    """Make the calls below `volume` that `fault` means go wrong; return how many there were.

    Args:
        fault: which calls, and how.
        volume: others are let alone.
        put: replaces a function of `os`: `setattr`, or that of a `monkeypatch`.
        instead: what happens at the first such call, in place of a kill or an error; the call
            itself is done.
    """
    lock, seen = threading.Lock(), [0]

    def strikes(name: str, args: tuple[Any, ...]) -> bool:
        path = _path(name, args)
        if not (path.startswith(f"{volume}/") and fault.means(path)):
            return False
        with lock:
            seen[0] += 1
            return seen[0] == fault.skip + 1 if instead else seen[0] > fault.skip

    end = instead or partial(_end, fault)

    def broken(name: str) -> Callable[..., Any]:
        original = getattr(os, name)

        def call(*args: Any, **more: Any) -> Any:
            struck = strikes(name, args)
            if struck and not fault.after:
                end()
            result = original(*args, **more)
            if struck and fault.after:
                end()
            return result

        return call

    for name in (fault.call,) if fault.call else WRITES:
        put(os, name, broken(name))
    return lambda: seen[0]


def _end(fault: Fault) -> None:
    if not fault.error:
        os.kill(os.getpid(), signal.SIGKILL)
    number = getattr(errno, fault.error)
    raise OSError(number, os.strerror(number))


def _path(name: str, args: tuple[Any, ...]) -> str:
    """Return the path that a call is about; empty where it is about something else than a file."""
    target = args[1] if name in _TWO_PATHS else args[0]
    if not isinstance(target, int):
        return str(target)
    try:
        return str(Path(f"/proc/self/fd/{target}").readlink()).removesuffix(" (deleted)")
    except OSError:
        return ""
