"""Files on the Hugging Face Hub: how they are referred to, and what the Hub says of one.

    hf:org/repo/path@revision        revision: a branch, a tag or a commit; `main` if not given
    hf:org/repo@revision/path        as `huggingface_hub` spells it
    hf:org/repo                      the only model of the repository
    https://huggingface.co/org/repo/{resolve,blob,raw}/revision/path, /tree/revision, or none of it

All spellings of one file have one key, `hf:org/repo/path@revision`. Data sets and spaces are
`datasets/org/repo` and `spaces/org/repo`.

Source: huggingface_hub 2.4, utils/_hf_uris.py (spelling), file_download.py, get_hf_file_metadata
(headers), utils/_http.py, hf_raise_for_status (X-Error-Code).
"""

import re
from dataclasses import dataclass, replace
from typing import NoReturn
from urllib.parse import quote, unquote, urljoin

from model_cache.engine.download import Download
from model_cache.hosts import tokens, urls
from model_cache.hosts.metadata import Asker, Reply, ask
from schemas.errors import (
    InvalidInputError,
    ModelAccessDeniedError,
    ModelNotFoundError,
    SourceUnavailableError,
    WorkerError,
    shown,
)
from schemas.model_ref import PICKLE_SUFFIXES, SUFFIX, SUFFIXES, Kind
from schemas.settings import CacheSettings

_HOSTS = frozenset({"huggingface.co", "www.huggingface.co", "hf.co"})
_TYPES = ("datasets", "spaces")
_VERBS = ("resolve", "blob", "raw")
# First parts of pages that are no repositories.
_NO_OWNERS = frozenset({"api", "docs", "blog", "papers", "collections", "settings", "models"})
_SHORT = "hf:"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
# The only revisions with a slash that the Hub takes unquoted.
_SPECIAL = re.compile(r"(refs/(?:pr/\d+|convert/[\w.-]+))(?:/|$)", re.ASCII)
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.")
_MOST_HOPS = 5
_MOST_LISTED = 12
_HOW = "Write hf:org/repo/path/of/the/file.safetensors@revision."


@dataclass(frozen=True)
class Reference:
    """One file of a repository, or the only model of one."""

    repo: str
    """`org/name`, after `datasets/` or `spaces/` for those."""
    path: str = ""
    """Within the repository; empty for the only model there is."""
    revision: str = "main"

    @property
    def key(self) -> str:
        """The source key; reading it gives this reference again."""
        return (
            f"{_SHORT}{'/'.join(filter(None, (self.repo, self.path)))}@{quote(self.revision, '')}"
        )

    @property
    def mutable(self) -> bool:
        """Whether it may mean another file tomorrow: branches move, and tags can."""
        return _COMMIT.fullmatch(self.revision) is None


def read(url: str, settings: CacheSettings) -> Reference | None:
    """Return the file that `url` means; None if it is not about the Hub.

    Raises:
        InvalidInputError: it is, and no file can be meant.
    """
    if url[: len(_SHORT)].lower() == _SHORT:
        return _of_short(url[len(_SHORT) :].lstrip("/"))
    if not url.lower().startswith(("https://", "http://")):
        return None
    path = urls.split(url).path
    if urls.origin(url) == urls.origin(settings.hf_endpoint):
        path = path.removeprefix(urls.split(settings.hf_endpoint).path)
    elif urls.host(url) not in _HOSTS:
        return None
    return _of_page(path)


def is_single_file(name: str, suffixes: tuple[str, ...] = (SUFFIX,)) -> bool:
    """Say whether a file called `name` at the top of a repository may be a whole model."""
    return "/" not in name and name.endswith(suffixes) and _SHARD.search(name) is None


def resolve(reference: Reference, kind: Kind, asker: Asker) -> Download:
    """Return what to ask for to get the file, pinned to today's commit.

    Raises:
        InvalidInputError: the repository has not exactly one model, and no path is given.
        ModelNotFoundError: there is no such repository, revision or file.
        ModelAccessDeniedError: it is gated or private, and the token does not open it.
        SourceUnavailableError, SourceQuotaError: the Hub did not answer.
    """
    authorization = tokens.bearer(tokens.HUGGING_FACE, asker.settings, asker.tokens)
    file = reference if reference.path else _only_model(reference, kind, asker)
    reply = _head(file, asker, authorization)
    commit = reply.headers.get("X-Repo-Commit", "").strip().lower()
    pinned = replace(file, revision=commit) if _COMMIT.fullmatch(commit) else file
    branch = replace(file, revision=reference.revision)
    etag = reply.headers.get("X-Linked-Etag", "").removeprefix("W/").strip('"').lower()
    size = reply.headers.get("X-Linked-Size") or (
        reply.headers.get("Content-Length", "") if reply.status == 200 else ""
    )
    return Download(
        url=_file_url(pinned, asker.settings),
        source=pinned.key,
        authorization=authorization,
        size_bytes=int(size) if re.fullmatch(r"[0-9]{1,18}", size) else None,
        # Of files kept as large objects; of others the header has git's digest, of 40 digits.
        sha256=etag if _SHA256.fullmatch(etag) else None,
        file_name=file.path.rpartition("/")[2],
        also_from=tuple(dict.fromkeys(k for k in (reference.key, branch.key) if k != pinned.key)),
    )


def listed(reference: Reference, asker: Asker) -> tuple[list[str], str]:
    """Return the paths of a repository's files, sorted, and the commit that has them (may be empty).

    Raises:
        ModelNotFoundError: there is no such repository or revision.
        ModelAccessDeniedError: it is gated or private, and the token does not open it.
        SourceUnavailableError, SourceQuotaError: the Hub did not answer.
    """
    authorization = tokens.bearer(tokens.HUGGING_FACE, asker.settings, asker.tokens)
    *type_, owner, name = reference.repo.split("/")
    place = f"{type_[0] if type_ else 'models'}/{owner}/{name}"
    url = f"{asker.settings.hf_endpoint}/api/{place}/revision/{quote(reference.revision, '')}"
    reply = ask(asker, url, authorization)
    if reply.status != 200:
        _refuse(reply, reference, authorization)
    entries = reply.fields.get("siblings")
    if not isinstance(entries, list):
        # Else a page that says anything at all would be a repository without files.
        raise SourceUnavailableError(
            f"{urls.place(url)} did not say which files there are.", hint="Try again later."
        )
    names = [
        entry["rfilename"]
        for entry in entries
        if isinstance(entry, dict) and isinstance(entry.get("rfilename"), str)
    ]
    commit = reply.fields.get("sha")
    return sorted(names), commit if isinstance(commit, str) and _COMMIT.fullmatch(commit) else ""


def _of_short(text: str) -> Reference:
    parts = text.split("/")
    n_name = 3 if parts[0] in _TYPES else 2
    name, rest = "/".join(parts[:n_name]), "/".join(parts[n_name:])
    repo, at, revision = name.partition("@")
    path = rest
    if at:
        revision, path = _split_revision(f"{revision}/{rest}" if rest else revision)
    elif "@" in rest:
        path, _, revision = rest.rpartition("@")
    else:
        revision = "main"
    return _checked(repo, path, unquote(revision))


def _of_page(page: str) -> Reference | None:
    """Return what a path of the web site means; None where it is no page of a repository."""
    parts = [unquote(part) for part in page.strip("/").split("/")]
    n_name = 3 if parts[0] in _TYPES else 2
    if len(parts) < n_name or parts[0] in _NO_OWNERS or parts[n_name - 1] in _VERBS:
        return None
    repo, rest = "/".join(parts[:n_name]), parts[n_name:]
    if not rest:
        # A file beside the repositories is a mirror's own affair.
        return None if repo.endswith(SUFFIXES) else _checked(repo, "", "main")
    if rest[0] not in (*_VERBS, "tree"):
        return None
    revision, path = _split_revision("/".join(rest[1:]), first=rest[1] if rest[1:] else "")
    if rest[0] == "tree" and path:
        raise InvalidInputError(
            f"{shown(path)} is a folder of {repo}, and a model is a file.", hint=_HOW, field="url"
        )
    return _checked(repo, path, revision)


def _split_revision(text: str, first: str = "") -> tuple[str, str]:
    """Return revision and path of `revision/path`; `first` is a revision that may have a slash."""
    special = _SPECIAL.match(text)
    revision = special[1] if special else first or text.partition("/")[0]
    return revision, text[len(revision) + 1 :]


def _checked(repo: str, path: str, revision: str) -> Reference:
    """Return a reference of which every part can be asked for and kept.

    Raises:
        InvalidInputError: there is a part that cannot.
    """
    names = repo.split("/")
    if names[0] in _TYPES:
        names = names[1:]
    plain = len(names) == 2 and all(_NAME.fullmatch(n) and ".." not in n for n in names)
    parts = [*path.split("/"), *revision.split("/")] if path else revision.split("/")
    whole = all(part not in {"", ".", ".."} and part.isprintable() for part in parts)
    if plain and whole and "\\" not in path and "?" not in path + revision:
        return Reference(repo, path, revision)
    raise InvalidInputError(
        f"{shown(f'{repo}/{path}'.partition('?')[0])} names no file on Hugging Face.",
        hint=_HOW,
        field="url",
    )


def _only_model(reference: Reference, kind: Kind, asker: Asker) -> Reference:
    """Return the only file of the repository that can be the model."""
    names, commit = listed(reference, asker)
    tops = [name for name in names if is_single_file(name)]
    if not tops and kind in asker.settings.allow_pickle:
        tops = [name for name in names if is_single_file(name, PICKLE_SUFFIXES)]
    if len(tops) == 1:
        return replace(reference, path=tops[0], revision=commit or reference.revision)
    if not tops and "model_index.json" in names:
        raise InvalidInputError(
            f"{reference.repo} is a diffusers folder: its model lies in several files.",
            hint="A1111 needs a single-file checkpoint; look for one in this or another repository.",
            field="url",
        )
    files = tops or [name for name in names if name.endswith(SUFFIXES)]
    offered = ", ".join(shown(name) for name in files[:_MOST_LISTED]) or "none"
    raise InvalidInputError(
        f"{reference.repo} holds {len(tops) or 'no'} files that may be the {kind}: {offered}.",
        hint=f"Say which. {_HOW}",
        field="url",
    )


def _head(file: Reference, asker: Asker, authorization: str) -> Reply:
    """Ask for a file's headers, on the Hub itself: what it redirects to elsewhere knows less.

    A repository that was renamed redirects to its new name, and a small file to another path.
    """
    url = _file_url(file, asker.settings)
    for _ in range(_MOST_HOPS):
        reply = ask(asker, url, authorization, method="HEAD", redirects=0)
        if reply.status >= 400:
            _refuse(reply, file, authorization)
        target = urljoin(url, reply.headers.get("Location", ""))
        is_told = "X-Linked-Etag" in reply.headers or not 300 <= reply.status < 400
        if is_told or urls.origin(target) != urls.origin(url):
            return reply
        url = target
    raise SourceUnavailableError(f"{urls.place(url)} redirects again and again.")


def _file_url(file: Reference, settings: CacheSettings) -> str:
    return (
        f"{settings.hf_endpoint}/{file.repo}/resolve/{quote(file.revision, '')}/{quote(file.path)}"
    )


def _refuse(reply: Reply, reference: Reference, authorization: str) -> NoReturn:
    """Raise what a refusal of the Hub means."""
    code = reply.headers.get("X-Error-Code", "")
    repo, revision = reference.repo, shown(reference.revision)
    hint = tokens.company_hint(tokens.HUGGING_FACE)
    error: WorkerError
    if code == "RevisionNotFound":
        error = ModelNotFoundError(
            f"{repo} has no revision {revision}.",
            hint="Leave it out for `main`.",
            field="url",
            revision=reference.revision,
        )
    elif code == "EntryNotFound":
        error = ModelNotFoundError(
            f"{repo} has no file {shown(reference.path)} at {revision}.",
            hint="Check the path: upper and lower case differ.",
            field="url",
        )
    elif code == "GatedRepo":
        error = ModelAccessDeniedError(
            f"{repo} is gated.",
            hint=f"Accept its terms on its page on huggingface.co. {hint}",
            status=reply.status,
        )
    elif code == "RepoNotFound" or reply.status == 404:
        # To whom it is hidden from, the Hub says of a private one that there is none.
        seen = "that this token may see" if authorization else "that may be seen without a token"
        error = ModelNotFoundError(
            f"There is no {repo} on Hugging Face {seen}.",
            hint=f"Check the spelling. If it is private: {hint}",
            field="url",
        )
    elif reply.status in {401, 403}:
        error = ModelAccessDeniedError(
            f"Hugging Face refuses {repo} ({reply.status}).", hint=hint, status=reply.status
        )
    else:
        error = ModelNotFoundError(
            f"Hugging Face answered {reply.status} for {repo}.", hint=_HOW, status=reply.status
        )
    raise error
