"""URLs taken apart: what of one tells which file is meant, and what may be shown. Pure.

A *source key* is a URL without what expires or must stay secret: two references with one key mean
the same file. It is what manifests keep and messages may show.
"""

import hashlib
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit, urlunsplit

from schemas.errors import InvalidInputError

# Query parameters that are credentials, signatures, or ask for nothing but an attachment. What may
# as well choose a file stays in the key, or two files would pass for one.
_SECRET = frozenset(
    {
        *("token", "access_token", "auth_token", "api_key", "api-key", "apikey", "jwt", "hmac"),
        *("auth", "authorization", "password", "secret", "signature", "sig", "policy"),
        *("expires", "expires_in", "expiry", "key-pair-id", "awsaccesskeyid", "googleaccessid"),
        *("response-content-disposition", "response-content-type"),
    }
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


def source_key(url: str) -> str:
    """Return the key of a URL: no fragment, credentials, signature or expiry; the rest in order."""
    parts = split(url)
    query = urlencode(sorted(_telling(parse_qsl(parts.query, keep_blank_values=True))))
    netloc = host(url)
    if parts.port is not None and parts.port != {"https": 443, "http": 80}.get(parts.scheme):
        netloc = f"{netloc}:{parts.port}"
    return urlunsplit((parts.scheme, netloc, parts.path, query, ""))


def place(url: str) -> str:
    """Return host and path of a URL, the part that may be shown in a message."""
    return f"{host(url)}{split(url).path}"


def origin(url: str) -> tuple[str, str, int | None]:
    """Return scheme, host and port: a token is for one origin alone."""
    parts = split(url)
    return parts.scheme, host(url), parts.port


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


def _telling(query: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the parameters that tell which file is meant."""
    signed_by_azure = any(name.lower() == "sig" for name, _ in query)
    kept = []
    for name, value in query:
        low = name.lower()
        if (
            low in _SECRET
            or low.startswith(_SECRET_PREFIXES)
            or (signed_by_azure and low in _AZURE)
        ):
            continue
        if low == "download" and value.lower() in {"", "1", "true"}:
            continue
        # `key` is a credential at Google and a file's name in many a bucket: only its digest is
        # kept, so it stays secret and tells files apart.
        secret = hashlib.sha256(value.encode(errors="replace")).hexdigest()[:16]
        kept.append((name, secret if low == "key" else value))
    return kept
