"""URLs taken apart: what of one tells which file is meant, and what may be shown. Pure.

A *source key* is a URL without what expires or must stay secret: two references with one key mean
the same file. It is what manifests keep and messages may show.
"""

import hashlib
import re
from collections.abc import Iterator
from typing import TypeAlias
from urllib.parse import SplitResult, parse_qsl, quote, quote_plus, urlencode, urlsplit, urlunsplit

from schemas.errors import InvalidInputError

Origin: TypeAlias = tuple[str, str, int | None]
"""Scheme, host and port."""

_PORTS = {"https": 443, "http": 80}
# A longer value may be a secret by whatever name; a shorter one is none.
_LONG_CHARS, _SHORT_CHARS = 16, 5

# Query parameters that are credentials, signatures, or ask for nothing but an attachment. What may
# as well choose a file, as an author or a tokenizer does, stays in the key, or two files would pass
# for one.
_SECRET = frozenset(
    {
        *("jwt", "hmac", "sig", "policy", "hdnts", "hdnea", "hdntl"),
        *("expires", "expires_in", "expiry", "key-pair-id", "awsaccesskeyid", "googleaccessid"),
        *("response-content-disposition", "response-content-type"),
    }
)
_SECRET_PART = re.compile(
    r"token(?!iz)|secret|passw|credential|signature|api[_-]?key|auth(?!or(?!i[sz]))"
)
_SECRET_PREFIXES = ("x-amz-", "x-goog-")
# Two letters that other sites may use for their own ends; Azure's when a signature is there.
# Source: Azure Storage, "Create a service SAS" and "Create a user delegation SAS".
_AZURE = frozenset(
    {
        *("se", "sp", "sv", "sr", "st", "spr", "sip", "ss", "srt"),
        *("skoid", "sktid", "skt", "ske", "sks", "skv"),
    }
)
# A digest that is a signature, and when it expires: neither goes without the other. Source: nginx,
# ngx_http_secure_link_module, and the names that its manual and its users give them.
_TIMED = ({"md5", "expires"}, {"st", "e"})
# When it was made, and the signature. Source: Cloudflare, "Configure token authentication".
_VERIFY = re.compile(r"\d+-.+")


def source_key(url: str) -> str:
    """Return the key of a URL: no fragment, credentials, signature or expiry; the rest in order."""
    parts = split(url)
    query = urlencode(sorted(_telling(parse_qsl(parts.query, keep_blank_values=True))))
    netloc = host(url)
    if parts.port is not None and parts.port != _PORTS.get(parts.scheme):
        netloc = f"{netloc}:{parts.port}"
    return urlunsplit((parts.scheme, netloc, parts.path, query, ""))


def place(url: str) -> str:
    """Return host and path of a URL, the part that may be shown in a message."""
    return f"{host(url)}{split(url).path}"


def secrets(url: str) -> list[str]:
    """Return what of a URL must not be shown in whatever text repeats it, the longest first.

    That is what a source key leaves out, in both spellings, and what is too long to be a plain word.
    """
    parts = split(url)
    query = parse_qsl(parts.query, keep_blank_values=True)
    telling = set(_telling(query))
    kept = {value for name, value in query if (name, value) in telling and len(value) < _LONG_CHARS}
    hidden = {value for _, value in query} | {parts.username or "", parts.password or ""}
    hidden -= kept
    hidden = {value for value in hidden if len(value) >= _SHORT_CHARS}
    spelled = hidden | {quote(value, safe="") for value in hidden} | set(map(quote_plus, hidden))
    return sorted(spelled, key=len, reverse=True)


def origin(url: str) -> Origin:
    """Return scheme, host and port: a token is for one origin alone."""
    parts = split(url)
    return parts.scheme, host(url), parts.port or _PORTS.get(parts.scheme)


def split(url: str) -> SplitResult:
    """Split a URL, or raise `InvalidInputError`: a stranger wrote it, or a stranger's server."""
    try:
        parts = urlsplit(url)
        if parts.hostname and parts.port != 0:
            return parts
    except ValueError:
        pass  # An impossible port or a broken IPv6 address; the message must not quote it.
    raise InvalidInputError("The URL does not name a host that could be asked.", field="url")


def host(url: str) -> str:
    host = str(split(url).hostname).rstrip(".")
    return f"[{host}]" if ":" in host else host


def _telling(query: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Yield the parameters that tell which file is meant."""
    names = {name.lower() for name, _ in query}
    passing = set[str]().union(*(timed for timed in _TIMED if timed <= names))
    if "sig" in names:
        passing |= _AZURE
    for name, value in query:
        low = name.lower()
        if low in passing or _is_secret(low):
            continue
        if low == "download" and value.lower() in {"", "1", "true"}:
            continue
        if low == "verify" and _VERIFY.fullmatch(value):
            continue
        # `key` is a credential at Google and a file's name in many a bucket: only its digest is
        # kept, so it stays secret and tells files apart.
        secret = hashlib.sha256(value.encode(errors="replace")).hexdigest()[:16]
        yield name, secret if low == "key" else value


def _is_secret(name: str) -> bool:
    """Tell whether a parameter of this name, in lower case, is secret or expires at any host."""
    return (
        name in _SECRET
        or name.startswith(_SECRET_PREFIXES)
        or _SECRET_PART.search(name) is not None
    )
