"""What a fetch may cost, and what it reports to. Plain values."""

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from model_cache.engine.answers import TryAgainError
from model_cache.engine.connections import Connections
from model_cache.engine.download import Allowance, Download
from model_cache.engine.web import Web
from model_cache.hosts.urls import Origin, origin, place
from model_cache.models import REPORT_EVERY_S, Progress
from schemas.settings import CacheSettings

# A host that asks for more patience than this gets none: the error comes at once.
MAX_RETRY_AFTER_S = 60


@dataclass(frozen=True)
class Limits:
    """How hosts are treated."""

    stall_s: float
    """Longest silence of a connection."""
    allow_private_hosts: bool = False
    """Also: plain http."""
    allowed_hosts: tuple[str, ...] = ()
    """The only ones that a first URL may name; any if empty."""
    trusted_origins: frozenset[Origin] = frozenset()
    """Of the endpoints that the operator named: they may be private, and asked by plain http."""
    tries: int = 5
    """Failures of one piece in a row, each with less than 1 MiB to show for it, that end the fetch;
    and how often it may start over."""
    pause_s: float = 0.5
    """Before the second try; doubles each time."""
    segment_bytes: int | None = None
    """What one request asks for; None: 8 MiB, or 16 MiB of a file of 1 GB and more."""

    def pause_s_after(self, failure: TryAgainError, tries: int) -> float:
        """Return how long to wait after `tries` failures in a row, or raise what failed too often.

        Raises:
            WorkerError: the error of `failure`.
        """
        # Who says that there is no such file, or no such host, is believed sooner.
        is_believed = failure.is_settled or failure.error.details.get("status") == 404
        most = min(self.tries, 3) if is_believed else self.tries
        # Keeps connections that broke together apart.
        jitter = random.uniform(1, 1.25)  # noqa: S311 - hides nothing
        pause_s = failure.after_s or self.pause_s * 2 ** (tries - 1) * jitter
        if tries >= most or pause_s > MAX_RETRY_AFTER_S:
            raise failure.error
        return pause_s

    save_every_s: float = 2.0
    """How often the journal is written, at most: so much is lost when the process is killed."""

    @classmethod
    def of(cls, settings: CacheSettings) -> "Limits":
        """Take the limits from the settings."""
        return cls(
            stall_s=settings.stall_s,
            allow_private_hosts=settings.allow_private_hosts,
            allowed_hosts=settings.allowed_hosts,
            trusted_origins=frozenset(map(origin, _own_endpoints(settings))),
        )

    def web(self, require: Callable[[], None]) -> Web:
        """Return what asks hosts within these limits; see `Web` for `require`."""
        return Web(
            stall_s=self.stall_s,
            allow_private_hosts=self.allow_private_hosts,
            require=require,
            allowed_hosts=self.allowed_hosts,
            trusted_origins=self.trusted_origins,
        )


@dataclass
class Watch:
    """The job that a fetch is for."""

    cancelled: threading.Event
    allowance: Allowance
    connections: Connections
    progress: Callable[[Progress], None] | None = None
    """Called at most four times a second, and at the end, by the thread that called `fetch`."""
    look: Callable[[bytes], int] | None = None
    """Called with the first bytes before any are kept: raises if they are not worth the rest, or
    returns how many first bytes could tell more. With those it is called as soon as they are there,
    and again, until it asks for no more than it was given. They are in memory: some MiB at most."""
    make_room: Callable[[int], None] | None = None
    """Called with the size before the file gets it; raises `VolumeFullError` if there is none. Where
    the host does not say the size, called with what came, again and again and in the end; and, after
    the disk was full, with what it may become."""
    want_autov3: bool = False
    _reported_at: float = field(default=0.0, init=False)

    def require_time(self, download: Download) -> None:
        """Raise if the job was cancelled, or its time is over; see `Allowance.require_time`."""
        self.allowance.require_time(self.cancelled, place(download.url))

    def report(self, done: int, total: int | None, *, last: bool = False) -> None:
        """Tell how far the fetch has come, if that was not told just now."""
        now = time.monotonic()
        if self.progress is not None and (last or now - self._reported_at > REPORT_EVERY_S):
            self._reported_at = now
            self.progress(Progress(done, total))


def _own_endpoints(settings: CacheSettings) -> list[str]:
    """Return the URLs that the operator put in the place of the companies' own."""
    names = ("civitai_endpoint", "hf_endpoint", "s3_endpoint")
    values = {name: getattr(settings, name) for name in names}
    defaults = {name: CacheSettings.model_fields[name].default for name in names}
    return [value for name, value in values.items() if value not in {None, defaults[name]}]
