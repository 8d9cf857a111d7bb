"""Where the bytes of a reference come from, and which token its host may see. Pure.

A *source key* is a URL without what expires or must stay secret: two references with one key mean
the same file. It is what manifests keep and messages may show.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit, urlunsplit

from schemas.errors import InvalidInputError
from schemas.settings import CacheSettings


@dataclass(frozen=True)
class Download:
    """A file to fetch."""

    url: str = field(repr=False)
    """May be signed: never to be shown."""
    source: str
    """The source key of `url`."""
    authorization: str = field(default="", repr=False)
    """For the host of `url` alone; empty for none."""


@dataclass(frozen=True)
class _TokenHost:
    """A company whose hosts take one token."""

    key: str
    """In a request's `tokens`."""
    variable: str
    suffixes: tuple[str, ...]


_TOKEN_HOSTS = (
    _TokenHost("huggingface", "HF_TOKEN", ("huggingface.co", "hf.co")),
    _TokenHost("civitai", "CIVITAI_TOKEN", ("civitai.com", "civitai.red", "civitai.green")),
)

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


def resolve(url: str, settings: CacheSettings, tokens: Mapping[str, str]) -> Download:
    """Return what to ask for to get the file at `url`.

    `tokens` are those of the request (`huggingface`, `civitai`) and win over the settings'.

    Raises:
        InvalidInputError: a token cannot be sent in a header.
    """
    host = _token_host(_host(url))
    token = ""
    if host is not None:
        own = {"huggingface": settings.hf_token, "civitai": settings.civitai_token}[host.key]
        token = tokens.get(host.key) or (own.get_secret_value() if own else "")
        if not (token.isascii() and token.isprintable()):
            raise InvalidInputError(
                f"The token for {host.key} holds characters that no token has.",
                field=f"tokens.{host.key}",
            )
    return Download(url, source_key(url), f"Bearer {token}" if token else "")


def source_key(url: str) -> str:
    """Return the key of a URL: no fragment, credentials, signature or expiry; the rest in order."""
    parts = _split(url)
    query = urlencode(sorted(_telling(parse_qsl(parts.query, keep_blank_values=True))))
    netloc = _host(url)
    if parts.port is not None and parts.port != {"https": 443, "http": 80}.get(parts.scheme):
        netloc = f"{netloc}:{parts.port}"
    return urlunsplit((parts.scheme, netloc, parts.path, query, ""))


def place(url: str) -> str:
    """Return host and path of a URL, the part that may be shown in a message."""
    return f"{_host(url)}{_split(url).path}"


def origin(url: str) -> tuple[str, str, int | None]:
    """Return scheme, host and port: a token is for one origin alone."""
    parts = _split(url)
    return parts.scheme, _host(url), parts.port


def access_hint(url: str) -> str:
    """Return what to do when the host of `url` asks for a token, or refuses the one it got."""
    host = _token_host(_host(url))
    if host is None:
        return "The file must be readable without a login, or by a signed URL."
    return (
        f"Set {host.variable} on the endpoint, or send `tokens.{host.key}` with the request; "
        "its account must have been granted access to this model."
    )


def _split(url: str) -> SplitResult:
    """Split a URL, or raise `InvalidInputError`: a stranger wrote it, or a stranger's server."""
    try:
        parts = urlsplit(url)
        if parts.hostname and parts.port != 0:
            return parts
    except ValueError:
        pass  # An impossible port or a broken IPv6 address; the message must not quote it.
    raise InvalidInputError("The URL does not name a host that could be asked.", field="url")


def _host(url: str) -> str:
    host = str(_split(url).hostname).rstrip(".")
    return f"[{host}]" if ":" in host else host


def _token_host(host: str) -> _TokenHost | None:
    for candidate in _TOKEN_HOSTS:
        if any(host == suffix or host.endswith(f".{suffix}") for suffix in candidate.suffixes):
            return candidate
    return None


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
