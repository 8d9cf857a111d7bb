"""Where the bytes of a reference come from. Pure."""

from collections.abc import Mapping

from model_cache import tokens as token_table
from model_cache.download import Download
from model_cache.urls import source_key
from schemas.settings import CacheSettings


def resolve(url: str, settings: CacheSettings, tokens: Mapping[str, str]) -> Download:
    """Return what to ask for to get the file at `url`.

    Raises:
        InvalidInputError: a token cannot be sent in a header.
    """
    return Download(url, source_key(url), token_table.authorization(url, settings, tokens))
