"""Where the time of one job went."""

import time

from schemas.result import Timings


class Clock:
    """Cuts the job's time into consecutive slices."""

    def __init__(self) -> None:
        """Start."""
        self._last = time.monotonic()
        self._slices: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """End the slice that began with the last one, and call it `name`."""
        now = time.monotonic()
        self._slices[name] = round(now - self._last, 3)
        self._last = now

    def timings(self) -> Timings:
        """Return all slices; what came after the last one is the delivery."""
        self.lap("deliver_s")
        return Timings(
            download_s=self._slices["download_s"],
            webui_wait_s=self._slices["webui_wait_s"],
            generate_s=self._slices["generate_s"],
            deliver_s=self._slices["deliver_s"],
            total_s=round(sum(self._slices.values()), 3),
        )
