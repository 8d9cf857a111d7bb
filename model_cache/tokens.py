"""Which token which host may see. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from model_cache import urls
from schemas.errors import InvalidInputError
from schemas.settings import CacheSettings


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


def authorization(url: str, settings: CacheSettings, tokens: Mapping[str, str]) -> str:
    """Return the Authorization header for the host of `url`; empty for none.

    `tokens` are those of the request (`huggingface`, `civitai`) and win over the settings'.

    Raises:
        InvalidInputError: a token cannot be sent in a header.
    """
    host = _token_host(urls.host(url))
    if host is None:
        return ""
    own = {"huggingface": settings.hf_token, "civitai": settings.civitai_token}[host.key]
    token = tokens.get(host.key) or (own.get_secret_value() if own else "")
    if not (token.isascii() and token.isprintable()):
        raise InvalidInputError(
            f"The token for {host.key} holds characters that no token has.",
            field=f"tokens.{host.key}",
        )
    return f"Bearer {token}" if token else ""


def access_hint(url: str) -> str:
    """Return what to do when the host of `url` asks for a token, or refuses the one it got."""
    host = _token_host(urls.host(url))
    if host is None:
        return "The file must be readable without a login, or by a signed URL."
    return (
        f"Set {host.variable} on the endpoint, or send `tokens.{host.key}` with the request; "
        "its account must have been granted access to this model."
    )


def _token_host(host: str) -> _TokenHost | None:
    for candidate in _TOKEN_HOSTS:
        if any(host == suffix or host.endswith(f".{suffix}") for suffix in candidate.suffixes):
            return candidate
    return None
