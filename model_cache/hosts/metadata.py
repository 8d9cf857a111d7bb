"""Questions about a file, asked before it is fetched: few bytes, a few tries.

Knows how long to insist, not what any host's answer means.
"""

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import requests
import urllib3

from model_cache.engine import answers
from model_cache.engine.answers import TryAgainError
from model_cache.engine.web import MAX_REDIRECTS, Web
from model_cache.hosts.urls import place
from schemas.errors import SourceQuotaError, SourceUnavailableError, WorkerError
from schemas.settings import CacheSettings

MAX_BODY_BYTES = 16 << 20
"""Of an answer: a Civitai model with a hundred versions and all their pictures has a few MiB."""

# A host that asks for more patience is left alone until the next job.
_LONGEST_WAIT_S = 60.0
_TICK_S = 0.1
T = TypeVar("T")


@dataclass(frozen=True)
class Asker:
    """On whose behalf hosts are asked."""

    settings: CacheSettings
    tokens: Mapping[str, str] = field(repr=False)
    """Of the request, by company; they win over the settings'."""
    web: Web
    cancelled: threading.Event
    """Ends a wait between two tries at once; `web.require` must raise once it is set."""
    waits_s: tuple[float, ...] = (0.5, 2.0)
    """Shortest waits between the tries, which are one more."""


@dataclass(frozen=True)
class Reply:
    """What a host says of a file."""

    url: str = field(repr=False)
    """That answered, after redirects."""
    status: int
    headers: Mapping[str, str]
    fields: Mapping[str, Any]
    """The JSON object of a good answer to GET, as hostile as any; empty otherwise."""


def ask(
    asker: Asker,
    url: str,
    authorization: str = "",
    *,
    method: str = "GET",
    redirects: int = MAX_REDIRECTS,
) -> Reply:
    """Ask until there is an answer that will last; a GET is asked for a JSON object.

    Broken connections, 408, 429 and 5xx are tried again, `Retry-After` being honoured up to a minute. Every other status is returned.

    Raises:
        SourceUnavailableError: the host cannot be reached, answers 5xx, or talks no JSON.
        SourceQuotaError: 429 to the end.
        InvalidInputError: the URL may not be asked.
        JobCancelledError, DownloadBudgetExceededError: as the session's `require` raises them.
    """
    once = partial(_asked, asker, url, authorization, method, redirects)
    return insist(once, asker.web, asker.cancelled, asker.waits_s)


def insist(
    once: Callable[[], T], web: Web, cancelled: threading.Event, waits_s: tuple[float, ...]
) -> T:
    """Return what `once` returns, called again, after a wait, when it raises `TryAgainError`.

    Args:
        once: one try.
        web: whose `require` ends the waits; it must raise once `cancelled` is set.
        cancelled: ends a wait at once.
        waits_s: shortest waits between the tries, which are one more.

    Raises:
        WorkerError: the error of the last `TryAgainError`; what else `once` or `require` raises.
    """
    for wait_s in (*waits_s, None):
        try:
            return once()
        except TryAgainError as failure:
            asked_s = failure.after_s or 0.0
            if wait_s is None or asked_s > _LONGEST_WAIT_S:
                raise failure.error from None
            _pause(web, cancelled, max(asked_s, wait_s))
    raise AssertionError("the last try returns or raises")


def _pause(web: Web, cancelled: threading.Event, pause_s: float) -> None:
    """Wait, or raise what the web's `require` raises in the meantime."""
    until = time.monotonic() + pause_s
    while (left_s := until - time.monotonic()) > 0:
        cancelled.wait(min(left_s, _TICK_S))
        web.require()


def _asked(asker: Asker, url: str, authorization: str, method: str, redirects: int) -> Reply:
    answer = asker.web.ask(
        url,
        {"Accept": "application/json"},
        authorization=authorization,
        method=method,
        redirects=redirects,
    )
    with answer.response as response:
        require_lasting(response, url)
        read = method == "GET" and response.status_code == 200
        fields = _fields(response, url) if read else {}
        return Reply(answer.url, response.status_code, response.headers, fields)


def require_lasting(response: requests.Response, url: str) -> None:
    """Raise `TryAgainError` for 408, 429 and 5xx, which another try may not get."""
    status = response.status_code
    what = f"{place(url)} answered {status}."
    error: WorkerError
    if status == 429:
        error = SourceQuotaError(what, hint="Too many requests; try again later.", status=status)
    elif status >= 500 or status == 408:
        error = SourceUnavailableError(what, hint="Try again later.", status=status)
    else:
        return
    raise TryAgainError(error, answers.retry_after_s(response))


def _fields(response: requests.Response, url: str) -> dict[str, Any]:
    """Return the JSON object of an answer."""
    try:
        # Unpacked if need be: a text may be, unlike a file, and its size is bounded all the same.
        body = response.raw.read(MAX_BODY_BYTES, decode_content=True)
        fields = json.loads(body)
    except (urllib3.exceptions.HTTPError, OSError, ValueError, RecursionError):
        fields = None
    if isinstance(fields, dict):
        return fields
    error = SourceUnavailableError(
        f"{place(url)} did not answer with what its API promises.", hint="Try again later."
    )
    raise TryAgainError(error)
