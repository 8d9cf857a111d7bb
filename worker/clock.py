"""Where the time of one job went."""

import time
from collections.abc import Callable
from threading import Lock
from typing import Literal

from schemas.result import Timings

Slice = Literal["download_s", "webui_wait_s", "load_s", "generate_s", "encode_s", "deliver_s"]


class Clock:
    """Cuts the job's time into consecutive slices, counted in whole milliseconds so that they add up.

    Safe to use from several threads.

    Args:
        price_per_s: what a second costs, in any currency; None if nobody said.
        now: a clock that never goes back, in seconds.
    """

    def __init__(
        self, price_per_s: float | None = None, *, now: Callable[[], float] = time.monotonic
    ) -> None:
        """Start."""
        self._price_per_s = price_per_s
        self._now = now
        self._start = now()
        self._lock = Lock()
        self._last_ms = 0
        self._slices: dict[Slice, int] = {}

    def lap(self, name: Slice) -> None:
        """End the slice that began with the last one, and count it as `name`; again adds to it."""
        with self._lock:
            now_ms = self._passed_ms()
            self._slices[name] = self._slices.get(name, 0) + now_ms - self._last_ms
            self._last_ms = now_ms

    def timings(self, pictures: int = 0) -> Timings:
        """Return all slices; what came after the last one so far counts as delivery.

        Args:
            pictures: how many were made.
        """
        with self._lock:
            now_ms, slices = self._passed_ms(), {**self._slices}
            slices["deliver_s"] = slices.get("deliver_s", 0) + now_ms - self._last_ms
        timings = Timings(
            download_s=slices.get("download_s", 0) / 1000,
            webui_wait_s=slices.get("webui_wait_s", 0) / 1000,
            load_s=slices.get("load_s", 0) / 1000,
            generate_s=slices.get("generate_s", 0) / 1000,
            encode_s=slices.get("encode_s", 0) / 1000,
            deliver_s=slices["deliver_s"] / 1000,
            total_s=now_ms / 1000,
        )
        if pictures and timings["generate_s"]:
            timings["images_per_s"] = round(pictures / timings["generate_s"], 3)
        if self._price_per_s is not None:
            timings["cost"] = round(timings["total_s"] * self._price_per_s, 6)
        return timings

    def _passed_ms(self) -> int:
        return max(self._last_ms, round((self._now() - self._start) * 1000))
