"""The bytes of a file as hosts give them: where they are asked for, and whether they fit together.

Knows nothing of disks, of threads, or of how a file is split among connections.
"""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import requests
import urllib3

from model_cache.engine import answers
from model_cache.engine.answers import Span, TryAgainError
from model_cache.engine.download import Download
from model_cache.engine.web import Web
from model_cache.hosts.urls import place
from schemas.errors import DownloadIncompleteError, WorkerError

CHUNK_BYTES = 1 << 20
"""Most that is read at a time, and so most that one connection holds in memory."""
FIRST_BYTES = 512
_LEAST_BYTES = 16 << 10
_QUICK_S = 0.02
_SLOW_S = 0.1

# What a host answers whose signed link has expired. Source: 403 AWS S3 "Request has expired"; 400
# S3 "ExpiredToken", Cloudflare R2; 401 Backblaze B2 "expired_auth_token"; 404 and 410 of caches.
_EXPIRED = frozenset({400, 401, 403, 404, 410})

# How many ignored ranges pass for those of one odd server among several behind a name.
_FORGIVEN = 2


class StartOverError(Exception):
    """What comes now does not go with what came before; carries the error to end with."""

    def __init__(self, error: WorkerError, *, whole: bool = False) -> None:
        """Remember the error; with `whole` the host cannot be trusted with ranges."""
        super().__init__(str(error))
        self.error = error
        self.whole = whole


@dataclass(frozen=True)
class Offer:
    """The first answer: what the host says of the file, and the first bytes of it, unread."""

    response: requests.Response
    span: Span
    etag: str
    """A strong one; empty if the host gave none."""
    name: str
    """What the host calls the file: hostile text."""

    @property
    def in_parts(self) -> bool:
        """Whether the host gives the part that is asked for."""
        return self.response.status_code == 206


@dataclass(frozen=True)
class _Place:
    """Where an answer came from."""

    url: str = field(repr=False)
    authorization: str = field(repr=False)


class Source:
    """Where one file comes from: the first URL, and the one that it led to."""

    def __init__(self, web: Web, download: Download) -> None:
        """Ask `web` for what `download` names."""
        self.download = download
        self._web = web
        self._walking = threading.Lock()
        self._reached: _Place | None = None
        self._forgiven = 0

    def cut(self) -> None:
        """Break every connection that is open; their readers get an error."""
        self._web.cut()

    def open(self, headers: dict[str, str]) -> requests.Response:
        """Send a request to where the last one ended, or to the first URL if that has expired.

        Raises:
            TryAgainError: the host could not be reached.
            WorkerError: see `Web.ask`.
        """
        reached = self._reached
        if reached is None:
            return self._walk(reached, headers)
        answer = self._web.ask_again(reached.url, reached.authorization, headers)
        if reached.url == self.download.url or answer.response.status_code not in _EXPIRED:
            return answer.response
        answer.response.close()
        return self._walk(reached, headers)

    def forgives(self) -> bool:
        """Tell whether a range that was ignored may be asked for again; seldom."""
        self._forgiven += 1
        return self._forgiven <= _FORGIVEN

    @property
    def is_redirected(self) -> bool:
        """Whether the last answer came from another URL than the first."""
        return self._reached is not None and self._reached.url != self.download.url

    def _walk(self, expired: "_Place | None", headers: dict[str, str]) -> requests.Response:
        """Ask the first URL, unless another thread has done so in the meantime."""
        with self._walking:
            reached = self._reached
            if reached is expired:
                url, authorization = self.download.url, self.download.authorization
                answer = self._web.ask(url, headers, authorization=authorization)
                self._reached = _Place(answer.url, answer.authorization)
                return answer.response
        assert reached is not None  # noqa: S101 - it was set by whoever changed it
        return self._web.ask_again(reached.url, reached.authorization, headers).response


def first(source: Source, size: int, *, whole: bool) -> Offer:
    """Ask for the first `size` bytes, or for all of it: `whole`, or where parts are of no use.

    Parts are of use if all must be of one file: by a strong ETag, or by a digest that the source
    declares and that is checked in the end.

    Raises:
        TryAgainError: it may work another time.
        WorkerError: see `answers.require_file` and `Web.ask`.
    """
    response = source.open({} if whole else {"Range": f"bytes=0-{size - 1}"})
    try:
        offer = _offer(source, response, whole=whole)
    except BaseException:
        response.close()
        raise
    if offer is None:
        response.close()
        return first(source, size, whole=True)
    return offer


def _offer(source: Source, response: requests.Response, *, whole: bool) -> Offer | None:
    """Return what the answer offers; None if all of it should be asked for in its place."""
    if response.status_code == 416 and not whole:
        return None  # An empty file has no first byte. Source: RFC 9110 section 15.5.17.
    answers.require_file(response, source.download, redirected=source.is_redirected)
    span, etag = answers.span(response), answers.strong_etag(response)
    if span is None or span.start > 0:
        if whole:
            raise TryAgainError(incomplete(source, "sent a part that nobody asked for"))
        return None
    complete = response.status_code == 200 or span.end == span.total
    if not whole and not (complete or etag or source.download.sha256):
        return None
    return Offer(response, span, etag, answers.file_name(response, source.download.url))


def rest(source: Source, offer: Offer, at: int, end: int) -> requests.Response:
    """Ask for the bytes from `at` up to `end`, of the very file that was offered.

    Fewer may come than were asked for: hosts may cut ranges down.

    Raises:
        TryAgainError: it may work another time.
        StartOverError: the file has changed, or the host does not do what a range asks for.
        WorkerError: see `answers.require_file` and `Web.ask`.
    """
    headers = {"Range": f"bytes={at}-{end - 1}"}
    if offer.etag:
        headers["If-Range"] = offer.etag
    response = source.open(headers)
    try:
        _require_rest(source, response, offer, at)
    except BaseException:
        response.close()
        raise
    return response


def _require_rest(source: Source, response: requests.Response, offer: Offer, at: int) -> None:
    if response.status_code == 416:
        raise StartOverError(incomplete(source, "has become another file, or refuses ranges"))
    answers.require_file(response, source.download, redirected=source.is_redirected)
    span, etag = answers.span(response), answers.strong_etag(response)
    same = span is not None and span.total == offer.span.total
    if response.status_code == 200:
        if same and etag == offer.etag and source.forgives():
            raise TryAgainError(incomplete(source, "sent all of the file in place of a part"))
        whole = same and etag == offer.etag
        raise StartOverError(incomplete(source, "ignores ranges, or has changed"), whole=whole)
    if span is None or span.start != at:
        raise StartOverError(incomplete(source, "sent another part than was asked for"), whole=True)
    # Source: RFC 9110 section 15.3.7: an answer to If-Range may leave the validator out.
    if not same or etag not in {"", offer.etag}:
        raise StartOverError(incomplete(source, "has become another file"))


def chunks(
    response: requests.Response, error: Callable[[str], WorkerError], *, at: int
) -> Iterator[bytes]:
    """Yield what comes, as it comes, `CHUNK_BYTES` at most.

    The first chunk of the file, `at` 0, is long enough to be looked at. `error` makes the error to
    end with out of how the answer failed.

    Raises:
        TryAgainError: the connection broke, or was silent for too long.
        StartOverError: more came than the answer had said.
    """
    span = answers.span(response)
    left = None if span is None or span.end is None else span.end - span.start
    size = FIRST_BYTES if at == 0 else _LEAST_BYTES
    try:
        while True:
            asked_at = time.monotonic()
            chunk = response.raw.read(size, decode_content=False)
            if not chunk:
                return
            size = _next_size(size, time.monotonic() - asked_at)
            if left is not None and len(chunk) > left:
                yield chunk[:left]
                raise StartOverError(error("sent more than it had said"), whole=True)
            left = None if left is None else left - len(chunk)
            yield chunk
    except (urllib3.exceptions.HTTPError, OSError):
        raise TryAgainError(error("broke off")) from None


def _next_size(size: int, took_s: float) -> int:
    """Return how much to read next: what comes in some tens of milliseconds.

    What was read when a connection breaks is lost, so not more; and every read costs the same
    beside its bytes, of which TLS brings no more than 16 KiB at once, so not less.
    """
    if took_s < _QUICK_S:
        return min(CHUNK_BYTES, max(2 * size, _LEAST_BYTES))
    return max(_LEAST_BYTES, size // 2) if took_s > _SLOW_S else max(_LEAST_BYTES, size)


def incomplete(source: Source, how: str, **details: int) -> DownloadIncompleteError:
    """Return the error of a host that did not bring what it should."""
    return DownloadIncompleteError(
        f"{place(source.download.url)} {how}.", hint="Try again later.", **details
    )
