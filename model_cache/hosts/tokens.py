"""Which token which host may see. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from model_cache.hosts import urls
from schemas.errors import InvalidInputError
from schemas.settings import CacheSettings

HUGGING_FACE = "huggingface"
CIVITAI = "civitai"


@dataclass(frozen=True)
class _Company:
    """A company whose hosts take one token."""

    key: str
    """In a request's `tokens`."""
    variable: str
    suffixes: tuple[str, ...]


_COMPANIES = (
    _Company(HUGGING_FACE, "HF_TOKEN", ("huggingface.co", "hf.co")),
    _Company(CIVITAI, "CIVITAI_TOKEN", ("civitai.com", "civitai.red", "civitai.green")),
)


def authorization(url: str, settings: CacheSettings, tokens: Mapping[str, str]) -> str:
    """Return the Authorization header for the host of `url`; empty for none.

    A company's token is for its own hosts, and for the mirror that the settings name in its place.

    Args:
        url: what will be asked.
        settings: hold the worker's own tokens.
        tokens: of the request (`huggingface`, `civitai`); they win.

    Raises:
        InvalidInputError: a token cannot be sent in a header.
    """
    company = _company_of(urls.host(url))
    if company is not None:
        return bearer(company.key, settings, tokens)
    mirrors = {HUGGING_FACE: settings.hf_endpoint, CIVITAI: settings.civitai_endpoint}
    for key, mirror in mirrors.items():
        if urls.origin(url) == urls.origin(mirror):
            return bearer(key, settings, tokens)
    return ""


def bearer(company: str, settings: CacheSettings, tokens: Mapping[str, str]) -> str:
    """Return the Authorization header with the token of `company`; empty if there is none.

    Only for the company's own hosts, or for the endpoint that the settings name for it.

    Raises:
        InvalidInputError: the token cannot be sent in a header.
    """
    own = {HUGGING_FACE: settings.hf_token, CIVITAI: settings.civitai_token}[company]
    token = tokens.get(company) or (own.get_secret_value() if own else "")
    if not (token.isascii() and token.isprintable()):
        raise InvalidInputError(
            f"The token for {company} holds characters that no token has.",
            field=f"tokens.{company}",
        )
    return f"Bearer {token}" if token else ""


def access_hint(url: str) -> str:
    """Return what to do when the host of `url` asks for a token, or refuses the one it got."""
    company = _company_of(urls.host(url))
    if company is None:
        return "The file must be readable without a login, or by a signed URL."
    return company_hint(company.key)


def company_hint(company: str) -> str:
    """Return what to do when `company` asks for a token, or refuses the one it got."""
    variable = next(known.variable for known in _COMPANIES if known.key == company)
    return (
        f"Set {variable} on the endpoint, or send `tokens.{company}` with the request; "
        "its account must have been granted access to this model."
    )


def _company_of(host: str) -> _Company | None:
    for company in _COMPANIES:
        if any(host == suffix or host.endswith(f".{suffix}") for suffix in company.suffixes):
            return company
    return None
