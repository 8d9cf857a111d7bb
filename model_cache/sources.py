"""What a reference to something on the web means, and where its bytes come from.

`read` is pure: it tells which resolver is meant and the one key under which all spellings of a file
are known, so that a model that is here is found without a network. `resolve` asks the host for
what it knows of the file: size, digest, name, and which version a moving reference means today.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

from model_cache.engine.download import Download
from model_cache.hosts import civitai, huggingface, s3, urls
from model_cache.hosts import tokens as token_table
from model_cache.hosts.metadata import Asker
from schemas.model_ref import Kind
from schemas.settings import CacheSettings


@dataclass(frozen=True)
class WebFile:
    """A file at a URL of which nothing is known."""

    url: str = field(repr=False)
    """May be signed: never to be shown."""

    @cached_property
    def key(self) -> str:
        """The source key."""
        return urls.source_key(self.url)

    @property
    def mutable(self) -> bool:
        """A URL is taken to mean one file for ever."""
        return False


Reference: TypeAlias = huggingface.Reference | civitai.Reference | s3.Reference | WebFile
"""Each has a `key`, which may be kept and shown, and says whether it is `mutable`."""

_READERS = (huggingface.read, civitai.read, s3.read)


def read(url: str, settings: CacheSettings) -> Reference:
    """Return what `url`, the `url` of a `ModelRef`, means. Asks nobody.

    Raises:
        InvalidInputError: it means no file; the message shows nothing secret.
    """
    for reader in _READERS:
        reference = reader(url, settings)
        if reference is not None:
            return reference
    urls.source_key(url)  # Raises if it names no host.
    return WebFile(url)


def resolve(reference: Reference, kind: Kind, asker: Asker) -> Download:
    """Return what to ask for to get the file, and what its host declares of it.

    Args:
        reference: from `read`.
        kind: of the model; tells which of several files is meant.
        asker: with the settings that `read` was given.

    Raises:
        WorkerError: the host refuses it, does not have it, or does not answer; see the resolvers.
    """
    match reference:
        case huggingface.Reference():
            return huggingface.resolve(reference, kind, asker)
        case civitai.Reference():
            return civitai.resolve(reference, kind, asker)
        case s3.Reference():
            return s3.resolve(reference, asker.settings)
        case WebFile(url):
            return web_file(url, asker.settings, asker.tokens)


def web_file(url: str, settings: CacheSettings, tokens: Mapping[str, str]) -> Download:
    """Return what to ask for to get the file at a plain URL. Asks nobody.

    Raises:
        InvalidInputError: it names no host, or a token cannot be sent in a header.
    """
    authorization = token_table.authorization(url, settings, tokens)
    return Download(url, urls.source_key(url), authorization)
