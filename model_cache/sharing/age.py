"""For how long nobody has touched something on the volume, by the volume's own clock.

Hosts that share a volume do not share a clock, and who gives a file its time depends on the volume:
the server does, or the host that writes. So a time is compared with the one that a file gets which
is written here at this moment. Where hosts give the times they may be an hour apart; what is judged
to be dead has therefore been silent for `DEAD_S`, twice that.
"""

import time
from pathlib import Path

from model_cache.volume import publish
from schemas.errors import VolumeError

DEAD_S = 2 * 3600.0
"""Whoever lives touches what is his far more often than this."""
_SKEW_S = 3600.0


class Ages:
    """Ages on one volume at one moment; make another for the next look. For one thread."""

    def __init__(self, volume: Path) -> None:
        """Touch nothing yet."""
        self._volume = volume
        self._now: float | None = None

    def over(self, touched: float, limit_s: float) -> bool:
        """Tell whether what has the time `touched` is older than `limit_s`.

        Args:
            touched: its mtime or ctime, Unix time in seconds.
            limit_s: in seconds. The volume is asked for its time once, and only if something may be
                as old as that by the clock of this host.
        """
        if time.time() - touched < limit_s - _SKEW_S:
            return False
        if self._now is None:
            self._now = _time_on(self._volume)
        return self._now - touched > limit_s


def _time_on(volume: Path) -> float:
    """Return what time it is for the volume."""
    try:
        with publish.private_file(volume) as file:
            file.file.write(b"\n")
            file.seal()
            return file.path.stat().st_mtime
    except (VolumeError, OSError):
        # Full or read-only. Our own clock may be an hour off, which `DEAD_S` bears.
        return time.time()
