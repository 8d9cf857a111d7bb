"""Asking hosts: one request over guarded connections, redirects walked by hand.

Knows which hosts may be asked and who may see a token, not what is asked for or what the answer
means.
"""

import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from urllib.parse import urljoin, urlsplit

import requests
import urllib3

from model_cache.engine.answers import TryAgainError
from model_cache.engine.guard import BlockedAddressError, WebSession
from model_cache.engine.sending import Sending
from model_cache.hosts.urls import Origin, origin, place
from schemas.errors import InvalidInputError, SourceUnavailableError, WorkerError

MAX_REDIRECTS = 5
CONNECT_TIMEOUT_S = 10
# Plain on purpose: a browser's name makes Civitai redirect its errors to a page.
# Source: civitai/civitai, src/server/utils/request-helpers, isRequestFromBrowser.
_HEADERS = {"User-Agent": "a1111-worker/0.1", "Accept": "*/*", "Accept-Encoding": "identity"}
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_WATCH_EVERY_S = 0.1
# Of those that a name server gave, and not of one that did not answer.
# Source: getaddrinfo(3); EAI_NODATA is glibc's, for a name without addresses.
_NO_SUCH_NAME = frozenset({socket.EAI_NONAME, socket.EAI_NODATA})


@dataclass(frozen=True)
class Answer:
    """A response, open, its body unread, and where it came from after all redirects."""

    response: requests.Response
    url: str = field(repr=False)
    """May be signed: never to be shown."""
    authorization: str = field(repr=False)
    """What that URL was allowed to see."""


@dataclass(frozen=True)
class _Step:
    """One request on the way from the first URL to the answer."""

    method: str
    url: str = field(repr=False)
    headers: Mapping[str, str]
    authorization: str = field(repr=False)

    def to(self, target: str) -> "_Step":
        """Return the request that follows a redirect to `target`."""
        url = _joined(self.url, target)
        # Dropped for good, even if a later hop leads back.
        authorization = self.authorization if origin(url) == origin(self.url) else ""
        return replace(self, url=url, authorization=authorization)


class Web:
    """Asks hosts on behalf of one job. Safe to use from several threads."""

    def __init__(
        self,
        *,
        stall_s: float,
        allow_private_hosts: bool = False,
        require: Callable[[], None],
        allowed_hosts: tuple[str, ...] = (),
        trusted_origins: frozenset[Origin] = frozenset(),
    ) -> None:
        """Prepare a session.

        Args:
            stall_s: longest silence of a connection.
            allow_private_hosts: ask private addresses, and by plain http, too.
            require: raises when the job was cancelled or its time is over; called before each
                request, and often while one waits for its answer and within `watching`.
            allowed_hosts: the only ones that a first URL may name, sub-domains included; any if
                empty. Where those redirect to is their business.
            trusted_origins: those that the operator named, asked as if `allow_private_hosts` were
                set; not where they redirect to, and not because somebody else redirects to them.
        """
        self._session = WebSession(allow_private=allow_private_hosts)
        # Of its own, so that a connection that was not judged is never used by who must not.
        self._trusted = WebSession(allow_private=True)
        self._stall_s = stall_s
        self._schemes = {"https", "http"} if allow_private_hosts else {"https"}
        self.require = require
        self._allowed_hosts = allowed_hosts
        self._trusted_origins = trusted_origins
        self._is_closed = False

    def cut(self) -> None:
        """Break every connection that is open; their readers get an error, and may ask again."""
        for session in (self._session, self._trusted):
            session.cut()

    def close(self) -> None:
        """Close every connection, those that are being read too; no other is made after that."""
        self._is_closed = True
        for session in (self._session, self._trusted):
            session.shut()
            session.close()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Cut every connection as soon as `require` raises, while the context lasts.

        A thread that waits for a silent host looks at nothing; this one looks for it.
        """
        finished = threading.Event()

        def cut_when_over() -> None:
            while not finished.wait(_WATCH_EVERY_S):
                if self._is_over():
                    self.cut()

        watcher = threading.Thread(target=cut_when_over, name="fetch-watch", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            finished.set()
            watcher.join()
            self.close()

    def ask(
        self,
        url: str,
        headers: Mapping[str, str] = {},
        *,
        authorization: str = "",
        method: str = "GET",
        redirects: int = MAX_REDIRECTS,
    ) -> Answer:
        """Send a request and follow redirects, each of which is checked like the first URL.

        `authorization` is dropped at the first redirect to another origin, for good. With
        `redirects=0` a redirect is returned as it is.

        Raises:
            TryAgainError: the host could not be reached; carries `SourceUnavailableError`.
            InvalidInputError: the URL, or one that it redirects to, may not be asked.
            SourceUnavailableError: too many redirects.
            Exception: what `require` raises.
        """
        self._require_allowed(url)
        return self._walk(_Step(method, url, headers, authorization), redirects)

    def ask_again(self, url: str, authorization: str, headers: Mapping[str, str]) -> Answer:
        """Ask where an earlier answer came from, its `url` and `authorization`, for more of it.

        As `ask`, but without `allowed_hosts`: an allowed host has led there.
        """
        return self._walk(_Step("GET", url, headers, authorization), MAX_REDIRECTS)

    def _walk(self, step: "_Step", redirects: int) -> Answer:
        first, left = step.url, redirects
        while True:
            self.require()
            trusted = self._trusts(step.url) and origin(step.url) == origin(first)
            if not trusted:
                self._require_scheme(step.url)
            response = self._send(step, self._trusted if trusted else self._session)
            target = response.headers.get("Location")
            if response.status_code not in _REDIRECTS or not target or redirects == 0:
                return Answer(response, step.url, step.authorization)
            response.close()
            left -= 1
            if left < 0:
                raise SourceUnavailableError(
                    f"{place(first)} redirects more than {redirects} times."
                )
            step = step.to(target)

    def _send(self, step: "_Step", session: WebSession) -> requests.Response:
        url = step.url
        sending = Sending(
            session.request,
            step.method,
            url,
            headers={**_HEADERS, **step.headers, **_credentials(step.authorization)},
            stream=True,
            allow_redirects=False,
            # For each of the host's addresses.
            timeout=(min(CONNECT_TIMEOUT_S, self._stall_s), self._stall_s),
        )
        # The texts of these exceptions hold the whole URL, signature included: none is kept.
        try:
            return sending.answer(self._require_open)
        except BlockedAddressError:
            raise InvalidInputError(
                f"{place(url)} is not at a public address.",
                hint="Files are fetched from the internet only, unless "
                "A1111_CACHE_ALLOW_PRIVATE_HOSTS is set.",
                field="url",
            ) from None
        except (requests.ConnectionError, requests.Timeout, urllib3.exceptions.HTTPError) as error:
            self.require()
            how, is_settled = _how(error)
            hint = "Is the URL right?" if is_settled else "Try again later."
            failure = SourceUnavailableError(f"{place(url)} {how}.", hint=hint)
            raise TryAgainError(failure, is_settled=is_settled) from None
        except (requests.RequestException, ValueError):
            raise InvalidInputError(f"{place(url)} cannot be asked.", field="url") from None

    def _require_open(self) -> None:
        self.require()
        if self._is_closed:
            raise requests.ConnectionError

    def _is_over(self) -> bool:
        try:
            self.require()
        except WorkerError:
            return True
        return False

    def _require_allowed(self, url: str) -> None:
        host = str(urlsplit(url).hostname).rstrip(".")
        if self._allowed_hosts and not any(
            host == allowed or host.endswith(f".{allowed}") for allowed in self._allowed_hosts
        ):
            raise InvalidInputError(
                f"Files may not be fetched from {host}.",
                hint=f"A1111_CACHE_ALLOWED_HOSTS allows: {', '.join(self._allowed_hosts)}.",
                field="url",
            )

    def _trusts(self, url: str) -> bool:
        # Most have none, and then a URL that names no host is for `_require_scheme` to refuse.
        return bool(self._trusted_origins) and origin(url) in self._trusted_origins

    def _require_scheme(self, url: str) -> None:
        if urlsplit(url).scheme not in self._schemes:
            raise InvalidInputError(
                f"{place(url)} is not asked for by https, or redirects to what is not.", field="url"
            )


def _credentials(authorization: str) -> dict[str, str]:
    return {"Authorization": authorization} if authorization else {}


def _how(error: Exception) -> tuple[str, bool]:
    """Say in our own words how a host could not be reached, and whether that is settled."""
    cause = _cause(error)
    if isinstance(cause, socket.gaierror) and cause.errno in _NO_SUCH_NAME:
        return "names a host that there is not", True
    if isinstance(error, requests.exceptions.SSLError):
        is_settled = isinstance(cause, ssl.SSLCertVerificationError)
        return "does not prove its name with a certificate that we trust", is_settled
    if isinstance(error, requests.exceptions.ReadTimeout):
        return "took the request and did not answer", False
    return "could not be reached", False


def _cause(error: BaseException) -> BaseException:
    """Return what the system said, of which the libraries made their own errors."""
    while (below := error.__cause__ or error.__context__) is not None:
        error = below
    return error


def _joined(url: str, target: str) -> str:
    try:
        return urljoin(url, target)
    except ValueError:
        return target  # Broken; the check of the next hop says so.
