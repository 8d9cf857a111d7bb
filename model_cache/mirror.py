"""What of a Hugging Face repository belongs into which folder of models. Fetches no model.

The older workers copied a repository's folders below a folder of the volume, and left out what lies
in no folder. So do we, but for what is no model; a file at the top is taken where a pattern asks for
it and the folder of the volume tells its kind.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from urllib.parse import quote

from model_cache import sources
from model_cache.asking import asking
from model_cache.hosts import huggingface
from model_cache.turns import Errand
from model_cache.volume import asked
from schemas.errors import InvalidInputError
from schemas.model_ref import SUFFIX, SUFFIXES, Kind, ModelRef, parse_ref
from schemas.settings import CacheSettings


@dataclass(frozen=True)
class Plan:
    """What is to be fetched of a repository, and what is not."""

    commit: str
    """That was looked at; empty if the Hub did not tell."""
    wanted: Mapping[str, ModelRef]
    """By path in the repository."""
    skipped: Mapping[str, str]
    """Files that may be models -> why they are left out, a sentence."""


@dataclass(frozen=True)
class Repository:
    """What of a repository is meant, and where it is to go."""

    name: str
    """`org/name`, after `datasets/` or `spaces/` for those."""
    revision: str
    folder: str
    """On the volume, as somebody wrote it."""
    patterns: Sequence[str] | None
    """Of paths in the repository, as `fnmatch` reads them; None for all."""


def plan(
    repository: Repository, settings: CacheSettings, errand: Errand, tokens: Mapping[str, str]
) -> Plan:
    """Return what to fetch of a repository.

    Raises:
        InvalidInputError: the folder is in no folder of models, nor above one, no file fits the
            patterns, or there can be no such repository.
        WorkerError: the Hub does not show it; see `huggingface.listed`.
    """
    target = asked.read(settings.volume, repository.folder, "sync_path")
    pinned = f"{repository.name}@{quote(repository.revision, '')}"
    reference = huggingface.read(f"hf:{pinned}", settings)
    if reference is None:
        raise AssertionError("hf: is always about the Hub")
    with asking(settings, tokens, errand, reference.key) as asker:
        paths, commit = huggingface.listed(reference, asker)
    meant = [path for path in paths if _fits(path, repository.patterns)]
    if repository.patterns is not None and not meant:
        raise InvalidInputError(
            f"`allow_patterns` fit none of the {len(paths)} files of {repository.name}.",
            hint="They are compared with whole paths, as in `loras/*`; upper and lower case differ.",
            field="allow_patterns",
        )
    wanted: dict[str, ModelRef] = {}
    skipped: dict[str, str] = {}
    for path in meant:
        if not path.endswith(SUFFIXES):
            continue
        try:
            wanted[path] = _meant(path, repository, target, settings)
        except InvalidInputError as error:
            skipped[path] = str(error)
    return Plan(commit, wanted, skipped)


def _fits(path: str, patterns: Sequence[str] | None) -> bool:
    """Tell whether a pattern asks for the file; one with a slash at its end is a folder's."""
    if patterns is None:
        return True
    return any(fnmatchcase(path, f"{one}*" if one.endswith("/") else one) for one in patterns)


def _meant(
    path: str, repository: Repository, target: asked.Asked, settings: CacheSettings
) -> ModelRef:
    """Return the model that a file of the repository is.

    Raises:
        InvalidInputError: it is none that we take; the message says why.
    """
    folder, _, _ = path.rpartition("/")
    if not folder and repository.patterns is None:
        raise InvalidInputError("It is in no folder; name it in `allow_patterns` to have it.")
    kind = asked.below(settings.volume, target, folder).kind
    if kind is None:
        raise InvalidInputError("Neither its folder nor `sync_path` tells its kind.")
    _require_safe(path, kind, settings)
    url = f"hf:{repository.name}/{path}@{quote(repository.revision, '')}"
    sources.read(url, settings)
    return parse_ref({"url": url, "refresh": True}, kind, "repo_id")


def _require_safe(path: str, kind: Kind, settings: CacheSettings) -> None:
    if not path.endswith(SUFFIX) and kind not in settings.allow_pickle:
        raise InvalidInputError(
            f"It is a pickle, and A1111_CACHE_ALLOW_PICKLE does not name {kind}."
        )
