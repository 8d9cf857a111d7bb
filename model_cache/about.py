"""What Civitai says of a model, and what of it is here."""

from collections.abc import Mapping
from typing import Any

from model_cache.asking import asking
from model_cache.cache import ModelCache
from model_cache.hosts import civitai, civitai_about
from model_cache.turns import Errand
from schemas.errors import InvalidInputError, shown
from schemas.model_ref import Kind, ModelRef
from schemas.settings import CacheSettings


def of_url(
    url: str, settings: CacheSettings, errand: Errand, tokens: Mapping[str, str]
) -> dict[str, Any]:
    """Return what Civitai says of the version, or of all versions, that a reference means.

    Raises:
        InvalidInputError: it is no reference to Civitai.
        WorkerError: Civitai does not know it, or does not answer.
    """
    reference = civitai.read(url, settings)
    if reference is None:
        raise InvalidInputError(
            f"{shown(url.partition('?')[0])} is no model of Civitai.",
            hint="Give its page, https://civitai.com/models/…, or its AIR.",
            field="url",
        )
    with asking(settings, tokens, errand, reference.key) as asker:
        return civitai_about.by_reference(reference, asker)


def of_hash(
    digest: str, settings: CacheSettings, errand: Errand, tokens: Mapping[str, str]
) -> dict[str, Any]:
    """Return what Civitai says of the version that has a file with this hash.

    Raises:
        WorkerError: Civitai does not know it, or does not answer.
    """
    with asking(settings, tokens, errand, digest) as asker:
        return civitai_about.by_hash(digest, asker)


def mark_present(told: Mapping[str, Any], cache: ModelCache) -> None:
    """Add to each file of an answer which models on the volume it is: `here`, a list.

    By its SHA-256, or as what was fetched from there. A file that people brought is known once its
    hash was taken.
    """
    for version in told["versions"]:
        for file in version["files"]:
            sha256 = file["hashes"].get("SHA256")
            models = [
                model
                for kind in Kind
                if (model := cache.likely(ModelRef(kind=kind, url=file["url"])))
                or (sha256 and (model := cache.find(kind, sha256)))
            ]
            file["here"] = [{"kind": str(model.kind), "name": model.name} for model in models]
