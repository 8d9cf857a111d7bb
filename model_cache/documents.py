"""Small files that a request names by URL, kept in memory alone: input images.

Fetched by the rules that hold for models: public addresses, https, allowed hosts, checked redirects.
No token is sent. Knows nothing of what the bytes are.
"""

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial

import requests
import urllib3

from model_cache.engine import answers
from model_cache.engine.answers import TryAgainError
from model_cache.engine.limits import Limits
from model_cache.engine.web import Web
from model_cache.hosts.metadata import insist, require_lasting
from model_cache.hosts.urls import place, split
from schemas.errors import (
    DownloadBudgetExceededError,
    DownloadIncompleteError,
    InvalidInputError,
    JobCancelledError,
    WorkerError,
)

_THREADS = 4
_CHUNK_BYTES = 1 << 16
# A host that is started anew is back within a quarter of a minute, most often; a job that waits so long
# costs less than one that is sent again.
_WAITS_S = (0.5, 2.0, 4.0, 8.0)
_PATIENCE_S = 15.0


@dataclass(frozen=True)
class Budget:
    """What the documents of one job may cost."""

    max_bytes: int
    """All together; they are kept in memory."""
    max_s: float
    """All together."""
    waits_s: tuple[float, ...] = _WAITS_S
    """Shortest waits between the tries of one, which are one more."""
    patience_s: float = _PATIENCE_S
    """From its first try on; a host that gave nothing until then is not asked again."""


def fetch_all(
    urls: Mapping[str, str], limits: Limits, budget: Budget, cancelled: threading.Event
) -> dict[str, bytes]:
    """Return the bytes at each URL, four of them fetched at a time; the first failure ends all.

    Args:
        urls: what to fetch, by the field of the request that names it.
        limits: how hosts are treated.
        budget: what it may cost.
        cancelled: ends the work when it is set, within a fraction of a second.

    Raises:
        JobCancelledError: `cancelled` was set.
        InvalidInputError: a URL may not be asked, or leads to nothing, not even to a host of that
            name; all lead to more than `max_bytes`.
        SourceUnavailableError, SourceQuotaError: 5xx or unreachable; 429.
        DownloadIncompleteError: the connection broke.
        DownloadBudgetExceededError: it took longer than `max_s`.
            In all of these `details["field"]` is the field that names the URL.
    """
    stopped = threading.Event()
    web = limits.web(_requirement(stopped, budget, cancelled))
    room = _Room(budget.max_bytes)
    with web.watching(), ThreadPoolExecutor(_THREADS, thread_name_prefix="document") as threads:
        futures = {
            field: threads.submit(_insist, partial(_fetch, web, url, room), web, cancelled, budget)
            for field, url in urls.items()
        }
        wait(futures.values(), return_when=FIRST_EXCEPTION)
        stopped.set()  # Those that are not done are not wanted any more.
    if cancelled.is_set():
        raise JobCancelledError("The job was cancelled while its images were fetched.")
    _raise_first(futures)
    return {field: future.result() for field, future in futures.items()}


def _requirement(
    stopped: threading.Event, budget: Budget, cancelled: threading.Event
) -> Callable[[], None]:
    deadline = time.monotonic() + budget.max_s

    def require() -> None:
        if cancelled.is_set() or stopped.is_set():
            raise JobCancelledError("The images of the job are not wanted any more.")
        if time.monotonic() > deadline:
            raise DownloadBudgetExceededError(
                f"The images of the request were not there after {budget.max_s:g} s.",
                hint="Send them as base64, or raise A1111_JOB_MAX_INPUT_S.",
                limit_s=budget.max_s,
            )

    return require


def _raise_first(futures: Mapping[str, Future[bytes]]) -> None:
    """Raise what made the first of them fail, not what only ended with it."""
    for field, future in futures.items():
        error = future.exception()
        if isinstance(error, JobCancelledError) or error is None:
            continue
        if not isinstance(error, WorkerError):
            raise error
        details = {**error.details, "field": field}
        raise type(error)(f"`{field}`: {error}", hint=error.hint, **details) from None


def _insist(
    fetch: Callable[[], bytes], web: Web, cancelled: threading.Event, budget: Budget
) -> bytes:
    """Return what `fetch` returns, which is tried again while that may help, and soon."""
    until = time.monotonic() + budget.patience_s

    def once() -> bytes:
        try:
            return fetch()
        except TryAgainError as failure:
            if failure.is_settled:
                raise InvalidInputError(str(failure.error), hint=failure.error.hint) from None
            if _is_late(failure, until):
                raise failure.error from None
            raise

    return insist(once, web, cancelled, budget.waits_s)


def _is_late(failure: TryAgainError, until: float) -> bool:
    """Tell whether a host that has sent nothing yet has had its time, or asks for more than it has."""
    has_sent = isinstance(failure.error, DownloadIncompleteError)
    return not has_sent and time.monotonic() + (failure.after_s or 0.0) > until


def _fetch(web: Web, url: str, room: "_Room") -> bytes:
    parts = split(url)
    if parts.username or parts.password:
        raise InvalidInputError("The URL of an image must not carry a user name or password.")
    with web.ask(url).response as response:
        require_lasting(response, url)
        if response.status_code != 200:
            raise InvalidInputError(
                f"{place(url)} answered {response.status_code}.",
                hint="The URL must lead to the image itself, without a login.",
                status=response.status_code,
            )
        return _body(web, response, url, room)


def _body(web: Web, response: requests.Response, url: str, room: "_Room") -> bytes:
    span = answers.span(response)
    room.require(span.total or 0 if span is not None else 0, url)
    body = bytearray()
    try:
        while chunk := response.raw.read(_CHUNK_BYTES):
            room.take(len(chunk), url)
            body += chunk
    except (urllib3.exceptions.HTTPError, OSError):
        room.give_back(len(body))
        web.require()
        failure = DownloadIncompleteError(
            f"{place(url)} broke off after {len(body)} bytes.", hint="Try again later."
        )
        raise TryAgainError(failure) from None
    web.require()  # A connection that was cut looks like an end where no length was declared.
    return bytes(body)


class _Room:
    """The bytes that are left for the documents of one job."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._left = max_bytes
        self._lock = threading.Lock()

    def require(self, size_bytes: int, url: str) -> None:
        if size_bytes > self._left:
            raise InvalidInputError(
                f"With {place(url)}, the images of the request have more than"
                f" {self._max_bytes} bytes.",
                hint="A1111_JOB_MAX_INPUT_MB is the limit.",
                limit_bytes=self._max_bytes,
            )

    def take(self, size_bytes: int, url: str) -> None:
        with self._lock:
            self.require(size_bytes, url)
            self._left -= size_bytes

    def give_back(self, size_bytes: int) -> None:
        with self._lock:
            self._left += size_bytes
