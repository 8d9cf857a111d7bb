"""Bytes from a URL into an open file: one stream, hashed as it goes, resumed where that is safe.

Knows nothing of model formats or of where the file will be published. A connection that breaks is
tried again, by Range when the host gave a strong ETag and from the start otherwise. Memory: one
chunk of 1 MiB.
"""

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import BinaryIO
from urllib.parse import urljoin, urlsplit

import requests
import urllib3

from model_cache import answers
from model_cache.answers import TryAgainError
from model_cache.disk import disk_errors
from model_cache.download import Download
from model_cache.guard import BlockedAddressError, WebSession
from model_cache.models import REPORT_EVERY_S, Progress
from model_cache.urls import origin, place
from schemas.errors import (
    DownloadBudgetExceededError,
    DownloadIncompleteError,
    InvalidInputError,
    JobCancelledError,
    SourceUnavailableError,
)
from schemas.settings import CacheSettings

CHUNK_BYTES = 1 << 20
FIRST_BYTES = 512
MAX_REDIRECTS = 5
# A host that asks for more patience than this gets none: the error comes at once.
MAX_RETRY_AFTER_S = 60
CONNECT_TIMEOUT_S = 10
# Plain on purpose: a browser's name makes Civitai redirect its errors to a page.
# Source: civitai/civitai, src/server/utils/request-helpers, isRequestFromBrowser.
_HEADERS = {"User-Agent": "a1111-worker/0.1", "Accept": "*/*", "Accept-Encoding": "identity"}
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_WATCH_EVERY_S = 0.1


@dataclass(frozen=True)
class Limits:
    """How much one fetch may cost."""

    max_bytes: int
    max_s: float
    stall_s: float
    """Longest silence of a connection."""
    allow_private_hosts: bool = False
    """Also: plain http."""
    tries: int = 3
    """Failures in a row, each with less than one new chunk to show for it, that end the fetch."""
    pause_s: float = 0.5
    """Before the second try; doubles each time."""

    @classmethod
    def of(cls, settings: CacheSettings) -> "Limits":
        """Take the limits from the settings."""
        return cls(
            max_bytes=int(settings.max_download_gb * 1e9),
            max_s=settings.max_download_s,
            stall_s=settings.stall_s,
            allow_private_hosts=settings.allow_private_hosts,
        )


@dataclass(frozen=True)
class Fetched:
    """What came."""

    sha256: str
    size_bytes: int
    received_bytes: int
    """What came over the network, repeated parts included."""
    file_name: str
    """What the host calls it: hostile text."""


@dataclass(frozen=True)
class Watch:
    """What a fetch reports to, and what it looks at before a byte is kept."""

    cancelled: threading.Event
    progress: Callable[[Progress], None] | None = None
    """Called at most four times a second, and at the end."""
    look: Callable[[bytes], None] | None = None
    """Called once with the first bytes; raises if they are not worth the rest."""


def fetch(download: Download, into: BinaryIO, limits: Limits, watch: Watch) -> Fetched:
    """Write the bytes of `download` to `into`, which must be empty and seekable.

    Raises:
        JobCancelledError: `watch.cancelled` was set; noticed within a fraction of a second, also
            while the host is silent.
        DownloadBudgetExceededError: more bytes than `max_bytes`, or longer than `max_s`.
        DownloadIncompleteError: the connection broke, or was silent, too often.
        SourceUnavailableError, SourceQuotaError: 5xx or unreachable; 429.
        ModelAccessDeniedError, ModelNotFoundError, ModelUnsafeError: see `answers.require_file`.
        InvalidInputError: the URL, or one that it redirects to, may not be asked.
        VolumeError: the disk refused.
    """
    run = _Fetch(download, limits, watch, _Partial(into), time.monotonic() + limits.max_s)
    with WebSession(allow_private=limits.allow_private_hosts) as session, run.guarding(session):
        failures = 0
        while True:
            best = run.partial.best
            try:
                return run.attempt(session)
            except TryAgainError as failure:
                run.require_time()
                moved_on = run.partial.best - best >= CHUNK_BYTES
                failures = 1 if moved_on else failures + 1
                pause_s = failure.after_s or limits.pause_s * 2 ** (failures - 1)
                if failures >= limits.tries or pause_s > MAX_RETRY_AFTER_S:
                    raise failure.error from None
                watch.cancelled.wait(min(pause_s, run.left_s))


@dataclass
class _Partial:
    """The part of the file that is there."""

    file: BinaryIO
    done: int = 0
    best: int = 0
    received: int = 0
    total: int | None = None
    etag: str = ""
    sha256: "hashlib._Hash" = field(default_factory=hashlib.sha256)

    def restart(self) -> None:
        with disk_errors():
            self.file.seek(0)
            self.file.truncate()
        self.done, self.total, self.etag, self.sha256 = 0, None, "", hashlib.sha256()

    def write(self, chunk: bytes) -> None:
        with disk_errors():
            self.file.write(chunk)
        self.sha256.update(chunk)
        self.done += len(chunk)
        self.received += len(chunk)
        self.best = max(self.best, self.done)


@dataclass
class _Fetch:
    """One fetch, over all of its attempts."""

    download: Download
    limits: Limits
    watch: Watch
    partial: _Partial
    deadline: float
    """On the monotonic clock."""
    reported_at: float = 0.0

    @property
    def left_s(self) -> float:
        return max(0.0, self.deadline - time.monotonic())

    def require_time(self) -> None:
        """Raise if the job was cancelled, or its time is over."""
        if self.watch.cancelled.is_set():
            raise JobCancelledError("The job was cancelled while a model was fetched.")
        if self.left_s <= 0:
            raise DownloadBudgetExceededError(
                f"{place(self.download.url)} took longer than {self.limits.max_s:g} s.",
                hint="Raise A1111_CACHE_MAX_DOWNLOAD_S, or put the file on the volume beforehand.",
            )

    @contextmanager
    def guarding(self, session: WebSession) -> Iterator[None]:
        """Cut the session's connections when the job is cancelled or the time is over.

        A thread that waits for a silent host looks at nothing; this one looks for it.
        """
        finished = threading.Event()

        def cut_when_over() -> None:
            while not finished.wait(_WATCH_EVERY_S):
                if self.watch.cancelled.is_set() or self.left_s <= 0:
                    session.cut()

        watcher = threading.Thread(target=cut_when_over, name="fetch-watch", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            finished.set()
            watcher.join()

    def attempt(self, session: WebSession) -> Fetched:
        """Fetch what is missing, or raise `TryAgainError` or the error to end with."""
        with closing(self._ask(session)) as response:
            if response.status_code == 416:
                self.partial.restart()
                raise self._broken("did not take up where it stopped")
            answers.require_file(response, self.download)
            self._take_up(response)
            for chunk in self._chunks(response):
                self.require_time()
                if self.partial.done == 0 and self.watch.look is not None:
                    self.watch.look(chunk)
                self.partial.write(chunk)
                self._require_size(self.partial.done)
                self._report()
        self.require_time()
        if self.partial.total not in {None, self.partial.done}:
            raise self._broken(f"stopped at {self.partial.done} of {self.partial.total} bytes")
        self._report(last=True)
        return Fetched(
            self.partial.sha256.hexdigest(),
            self.partial.done,
            self.partial.received,
            answers.file_name(response, self.download.url),
        )

    def _take_up(self, response: requests.Response) -> None:
        """Get ready for the bytes of this answer: at the end of what is there, or at the start."""
        partial = self.partial
        span = answers.span(response)
        etag = answers.strong_etag(response)
        if response.status_code == 206:
            fits = span is not None and (span.start, span.total) == (partial.done, partial.total)
            if not fits or etag not in {"", partial.etag}:
                partial.restart()
                raise self._broken("resumed at another place, or with another file")
            return
        partial.restart()
        partial.etag = etag
        partial.total = span.total if span is not None else None
        if partial.total is not None:
            self._require_size(partial.total)

    def _ask(self, session: WebSession) -> requests.Response:
        """Send the request and follow redirects, each of which is checked like the first URL."""
        headers = dict(_HEADERS)
        if self.partial.done and self.partial.etag and self.partial.total is not None:
            headers |= {"Range": f"bytes={self.partial.done}-", "If-Range": self.partial.etag}
        url, authorization = self.download.url, self.download.authorization
        for _ in range(MAX_REDIRECTS + 1):
            self.require_time()
            self._require_scheme(url)
            response = self._get(session, url, headers | _credentials(authorization))
            target = response.headers.get("Location")
            if response.status_code not in _REDIRECTS or not target:
                return response
            response.close()
            previous, url = url, _joined(url, target)
            if origin(url) != origin(previous):
                authorization = ""  # For good, even if a later hop leads back.
        raise SourceUnavailableError(
            f"{place(self.download.url)} redirects more than {MAX_REDIRECTS} times."
        )

    def _get(self, session: WebSession, url: str, headers: dict[str, str]) -> requests.Response:
        # The texts of these exceptions hold the whole URL, signature included: none is kept.
        try:
            return session.get(
                url,
                headers=headers,
                stream=True,
                allow_redirects=False,
                timeout=(min(CONNECT_TIMEOUT_S, self.limits.stall_s), self.limits.stall_s),
            )
        except BlockedAddressError:
            raise InvalidInputError(
                f"{place(url)} is not at a public address.",
                hint="Models are fetched from the internet only, unless "
                "A1111_CACHE_ALLOW_PRIVATE_HOSTS is set.",
                field="url",
            ) from None
        except (requests.ConnectionError, requests.Timeout, urllib3.exceptions.HTTPError) as error:
            self.require_time()
            failure = SourceUnavailableError(
                f"{place(url)} {_how(error)}.", hint="Try again later."
            )
            raise TryAgainError(failure) from None
        except (requests.RequestException, ValueError):
            raise InvalidInputError(f"{place(url)} cannot be asked.", field="url") from None

    def _chunks(self, response: requests.Response) -> Iterator[bytes]:
        """Yield what comes, as it comes; the first chunk is long enough to be looked at."""
        try:
            yield response.raw.read(FIRST_BYTES, decode_content=False)
            while chunk := response.raw.read1(CHUNK_BYTES, decode_content=False):
                yield chunk
        except (urllib3.exceptions.HTTPError, OSError):
            self.require_time()
            raise self._broken(f"broke off after {self.partial.done} bytes") from None

    def _broken(self, how: str) -> TryAgainError:
        return TryAgainError(
            DownloadIncompleteError(
                f"{place(self.download.url)} {how}.",
                hint="Try again later.",
                received_bytes=self.partial.done,
            )
        )

    def _require_size(self, size: int) -> None:
        if size > self.limits.max_bytes:
            raise DownloadBudgetExceededError(
                f"{place(self.download.url)} has {size} bytes or more.",
                hint=f"A1111_CACHE_MAX_DOWNLOAD_GB allows {self.limits.max_bytes / 1e9:g} GB.",
                size_bytes=size,
                limit_bytes=self.limits.max_bytes,
            )

    def _require_scheme(self, url: str) -> None:
        if urlsplit(url).scheme not in ({"https", "http"} if self._http_too else {"https"}):
            raise InvalidInputError(
                f"{place(url)} is not asked for by https, or redirects to what is not.", field="url"
            )

    @property
    def _http_too(self) -> bool:
        return self.limits.allow_private_hosts

    def _report(self, *, last: bool = False) -> None:
        now = time.monotonic()
        if self.watch.progress is not None and (last or now - self.reported_at > REPORT_EVERY_S):
            self.reported_at = now
            self.watch.progress(Progress(self.partial.done, self.partial.total))


def _credentials(authorization: str) -> dict[str, str]:
    return {"Authorization": authorization} if authorization else {}


def _how(error: Exception) -> str:
    """Say in our own words how a host could not be reached."""
    if isinstance(error, requests.exceptions.SSLError):
        return "does not prove its name with a certificate that we trust"
    if isinstance(error, requests.exceptions.ReadTimeout):
        return "took the request and did not answer"
    return "could not be reached"


def _joined(url: str, target: str) -> str:
    try:
        return urljoin(url, target)
    except ValueError:
        return target  # Broken; the check of the next hop says so.
