"""What a host's answer means: a file, a reason to try again, or an error that the caller can read.

Hosts write these texts and headers, so they are hostile: nothing of them is shown before it is cut
and rid of queries and tokens.
"""

import json
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from email.message import Message
from email.utils import collapse_rfc2231_value, parsedate_to_datetime
from typing import TypeAlias
from urllib.parse import unquote, urlsplit

import requests
import urllib3

from model_cache.engine.download import Download
from model_cache.hosts.tokens import access_hint
from model_cache.hosts.urls import place, secrets
from schemas.errors import (
    ModelAccessDeniedError,
    ModelNotFoundError,
    ModelUnsafeError,
    SourceQuotaError,
    SourceUnavailableError,
    WorkerError,
)

_MAX_SAID_BYTES = 4096
_MAX_SAID_CHARS = 200
_TEXT_TYPES = re.compile(r"(text/(html|xml)|application/(xhtml\+xml|xml|json|[\w.-]+\+json))$")
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})$")
_RATE_LIMIT = re.compile(r";\s*t\s*=\s*(\d{1,9})\b")
_STRONG_ETAG = re.compile(r'"[\x21\x23-\x7e]*"$')
_Parameter: TypeAlias = str | tuple[str | None, str | None, str]


class TryAgainError(Exception):
    """An attempt failed in a way that another one may not; carries the error to end with."""

    def __init__(
        self, error: WorkerError, after_s: float | None = None, *, is_settled: bool = False
    ) -> None:
        """Remember the error.

        Args:
            error: to end with.
            after_s: how long the host asked us to wait.
            is_settled: whether it takes a person to change it, most often: a wrong name, or certificate.
        """
        super().__init__(str(error))
        self.error = error
        self.after_s = after_s
        self.is_settled = is_settled

    @property
    def is_busy(self) -> bool:
        """Whether the host said that this was one request too many."""
        return self.error.details.get("status") in {429, 503}


@dataclass(frozen=True)
class Span:
    """Which bytes of the file an answer brings."""

    start: int
    end: int | None
    """After the last byte; None if the host does not say."""
    total: int | None
    """Size of the whole file; None if the host does not say."""


def require_file(
    response: requests.Response, download: Download, *, redirected: bool = False
) -> None:
    """Raise unless the answer is one with the bytes of a file.

    `redirected`: it came from elsewhere than `download.url`. A host that has just named that place
    knows the file, so its absence there may pass; Civitai's own may, too.

    Raises:
        TryAgainError: 408, 429, 5xx; 404 of Civitai, or after a redirect.
        ModelAccessDeniedError: 401, 403.
        ModelNotFoundError: 404, 410 and every other refusal.
        ModelUnsafeError: a web page or a JSON text in place of the file, or packed bytes.
    """
    if response.status_code not in {200, 206}:
        refusal = _refusal(response, download)
        passing = redirected or download.source.startswith("civitai:")
        if isinstance(refusal, ModelNotFoundError) and response.status_code == 404 and passing:
            raise TryAgainError(refusal)
        raise refusal
    where = place(download.url)
    content_type = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if _TEXT_TYPES.match(content_type):
        raise ModelUnsafeError(
            f"{where} answered with {content_type} instead of a model{_said(response, download)}.",
            hint=f"The URL must be that of the file itself, not of its page. {access_hint(download.url)}",
        )
    encoding = response.headers.get("Content-Encoding", "").strip().lower()
    if encoding not in {"", "identity"}:
        raise ModelUnsafeError(
            f"{where} sent the file packed as {encoding[:20]!r}, which was not asked for.",
            hint="Serve the file as it is, without Content-Encoding.",
        )


def span(response: requests.Response) -> Span | None:
    """Return which bytes come; None if a partial answer does not say it in a way that adds up."""
    length = response.headers.get("Content-Length", "")
    size = int(length) if re.fullmatch(r"\d{1,18}", length) else None
    if response.status_code == 200:
        return Span(0, size, size)
    match = _CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
    if match is None:
        return None
    start, last, total = (int(group) for group in match.groups())
    adds_up = start <= last < total and size in {None, last + 1 - start}
    return Span(start, last + 1, total) if adds_up else None


def strong_etag(response: requests.Response) -> str:
    """Return the validator that a resumed request may rest on; empty if there is none.

    Source: RFC 9110 section 8.8.3 and 13.1.5: a weak one cannot be used with If-Range.
    """
    etag = response.headers.get("ETag", "")
    return etag if _STRONG_ETAG.match(etag) else ""


def file_name(response: requests.Response, url: str) -> str:
    """Return what the host calls the file, or else the last part of the URL; hostile text.

    Source: RFC 6266 (`filename*` before `filename`).
    """
    return disposition_name(response.headers.get("Content-Disposition", "")) or unquote(
        urlsplit(url).path.rstrip("/").rpartition("/")[2]
    )


def disposition_name(header: str) -> str:
    """Return the file name of a Content-Disposition header; empty if there is none."""
    # http.client reads headers as Latin-1, while many hosts write UTF-8.
    with suppress(UnicodeError):
        header = header.encode("latin-1").decode("utf-8")
    message = Message()
    message["Content-Disposition"] = header
    offered: list[tuple[str, _Parameter]] = [*message.get_params([], "Content-Disposition")]
    names = [value for parameter, value in offered if parameter.lower() == "filename"]
    # A tuple is what `filename*` was read as.
    names.sort(key=lambda name: not isinstance(name, tuple))
    try:
        return collapse_rfc2231_value(names[0]).strip() if names else ""
    except ValueError:  # Its encoding is none that there can be.
        return ""


def _refusal(response: requests.Response, download: Download) -> Exception:
    status = response.status_code
    what = f"{place(download.url)} answered {status}{_said(response, download)}."
    if status in {401, 403}:
        return ModelAccessDeniedError(what, hint=access_hint(download.url), status=status)
    if status == 429:
        error: WorkerError = SourceQuotaError(
            what, hint="Too many requests; try again later.", status=status
        )
        return TryAgainError(error, retry_after_s(response))
    if status >= 500 or status == 408:
        error = SourceUnavailableError(what, hint="Try again later.", status=status)
        return TryAgainError(error, retry_after_s(response))
    return ModelNotFoundError(what, hint="Check the URL.", field="url", status=status)


def retry_after_s(response: requests.Response) -> float | None:
    """Return the seconds that the host asks us to wait; None if it does not, or makes no sense.

    Source: RFC 9110 section 10.2.3; Hugging Face says it in `RateLimit: "resolvers";r=0;t=55`
    (huggingface_hub 2.4, utils/_http.py; draft-ietf-httpapi-ratelimit-headers-09).
    """
    limit = _RATE_LIMIT.search(response.headers.get("RateLimit", ""))
    if limit is not None and response.status_code == 429 and "Retry-After" not in response.headers:
        return float(limit[1])
    text = response.headers.get("Retry-After", "").strip()
    if re.fullmatch(r"\d{1,9}", text):
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _said(response: requests.Response, download: Download) -> str:
    """Return what the host says about its answer, as the tail of a sentence; empty if nothing."""
    text = response.headers.get("X-Error-Message", "") or _message(response)
    token = download.authorization.removeprefix("Bearer ")
    repeated = {*secrets(download.url), *secrets(response.url or download.url), token} - {""}
    for secret in sorted(repeated, key=len, reverse=True):
        text = text.replace(secret, "…")
    text = re.sub(r"\?\S*", "?…", text)
    text = "".join(c if c.isprintable() else " " for c in text).strip(" .")
    return f': "{text[:_MAX_SAID_CHARS]}"' if text else ""


def _message(response: requests.Response) -> str:
    """Return the message of a JSON error, as Civitai and others send it."""
    try:
        body = json.loads(response.raw.read(_MAX_SAID_BYTES, decode_content=False))
    except (ValueError, RecursionError, OSError, urllib3.exceptions.HTTPError):
        return ""  # No JSON, or it broke off: the status says enough.
    if not isinstance(body, dict):
        return ""
    return next((body[key] for key in ("message", "error") if isinstance(body.get(key), str)), "")
