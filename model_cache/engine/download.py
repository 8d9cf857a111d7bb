"""What is to be fetched, and how much one job may spend on fetching. Touches no network."""

import threading
import time
from dataclasses import dataclass, field

from schemas.errors import DownloadBudgetExceededError, JobCancelledError
from schemas.settings import CacheSettings


@dataclass(frozen=True)
class Download:
    """A file to fetch, as a resolver found it."""

    url: str = field(repr=False)
    """May be signed: never to be shown."""
    source: str
    """The source key of exactly this file; may be kept and shown."""
    authorization: str = field(default="", repr=False)
    """For the origin of `url` alone; empty for none."""
    size_bytes: int | None = None
    """As the source declares it; None if it does not."""
    sha256: str | None = None
    """64 hex digits, as the source declares it; None if it does not."""
    file_name: str = ""
    """What the source calls it: hostile text; empty if only the answer will tell."""
    also_from: tuple[str, ...] = ()
    """Other source keys that mean this file today: a branch, a model's page."""


class Allowance:
    """What one job may still fetch, in bytes and seconds; shared by the fetches of that job."""

    def __init__(self, max_bytes: int, max_s: float) -> None:
        """Start the clock."""
        self.max_bytes = max_bytes
        self.max_s = max_s
        self._deadline = time.monotonic() + max_s
        self._lock = threading.Lock()
        self._taken = 0

    @classmethod
    def of(
        cls, settings: CacheSettings, max_gb: float | None = None, max_s: float | None = None
    ) -> "Allowance":
        """Take the limits of the settings, or a request's where they are lower."""
        return cls(
            int(min(settings.max_download_gb, max_gb or settings.max_download_gb) * 1e9),
            min(settings.max_download_s, max_s or settings.max_download_s),
        )

    @property
    def left_s(self) -> float:
        """Seconds until the time is over, 0.0 when it is."""
        return max(0.0, self._deadline - time.monotonic())

    def require_time(self, cancelled: threading.Event, what: str) -> None:
        """Raise if the job was cancelled, or its time is over; `what` names the file.

        Raises:
            JobCancelledError: `cancelled` is set.
            DownloadBudgetExceededError: the time is over.
        """
        if cancelled.is_set():
            raise JobCancelledError("The job was cancelled while a model was fetched.")
        if self.left_s <= 0:
            raise DownloadBudgetExceededError(
                f"{what} was not there after {self.max_s:g} s, all that this job may take to fetch.",
                hint="What came is kept for the next try. Raise A1111_CACHE_MAX_DOWNLOAD_S, or put "
                "the file on the volume beforehand.",
                limit_s=self.max_s,
            )

    def take(self, size_bytes: int, what: str) -> None:
        """Set bytes aside for a fetch; `give_back` what is not used after all.

        Raises:
            DownloadBudgetExceededError: the job may not fetch that much.
        """
        with self._lock:
            if self._taken + size_bytes > self.max_bytes:
                raise DownloadBudgetExceededError(
                    f"{what} would bring what this job fetches to {self._taken + size_bytes} bytes.",
                    hint=f"It may fetch {self.max_bytes / 1e9:g} GB (A1111_CACHE_MAX_DOWNLOAD_GB).",
                    size_bytes=self._taken + size_bytes,
                    limit_bytes=self.max_bytes,
                )
            self._taken += size_bytes

    def give_back(self, size_bytes: int) -> None:
        """Undo a `take`."""
        with self._lock:
            self._taken -= size_bytes
