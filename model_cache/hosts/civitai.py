"""Files on Civitai: how they are referred to, and what its API says of one.

    https://civitai.com/models/ID[/any-words][?modelVersionId=VERSION]
    https://civitai.com/model-versions/VERSION
    https://civitai.com/api/download/models/VERSION      also /api/v1/{models,model-versions}/…
    urn:air:ecosystem:type:civitai:ID[@VERSION][+FILE][.format]
    civitai:model:ID, civitai:version:VERSION, each with :file:FILE or ?format=…&…

and the same on civitai.red and civitai.green. `?fileId=`, or `type`, `format`, `size`, `fp` and
`quantType`, choose among the files of a version; the last line's spelling is the source key.

Source: civitai/civitai, src/pages/api/v1/models/[id].ts and model-versions/[id].ts,
src/server/services/file.service.ts, getFileForModelVersion, as of 2026-08; the AIR specification in
Civitai's developer documentation.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn
from urllib.parse import parse_qsl, urlencode

from model_cache.engine.download import Download
from model_cache.hosts import civitai_files, tokens, urls
from model_cache.hosts.civitai_files import Choice, File
from model_cache.hosts.metadata import Asker, Reply, ask
from schemas.errors import (
    InvalidInputError,
    ModelAccessDeniedError,
    ModelNotFoundError,
    SourceQuotaError,
    SourceUnavailableError,
)
from schemas.model_ref import Kind
from schemas.settings import CacheSettings

_HOSTS = ("civitai.com", "civitai.red", "civitai.green")
_ID = r"[1-9][0-9]{0,9}"
_PAGE = re.compile(rf"/(?:api/v1/)?models/(?P<model>{_ID})(?:/[^/]*)?/?")
_VERSION_PAGE = re.compile(
    rf"/(?:(?:api/v1/)?model-versions|api/download/models)/(?P<version>{_ID})/?"
)
_AIR = re.compile(
    rf"urn:air:(?:[\w/-]+:){{0,2}}civitai:(?P<model>{_ID})(?:@(?P<version>{_ID}))?"
    rf"(?:\+(?P<file>{_ID}))?(?:\.(?P<format>[\w ]+))?",
    re.IGNORECASE | re.ASCII,
)
_KEY = re.compile(
    rf"civitai:(?:model:(?P<model>{_ID})|version:(?P<version>{_ID}))"
    rf"(?::file:(?P<file>{_ID})|\?(?P<query>.*))?",
    re.IGNORECASE,
)
# An AIR's words for what the API calls by other names.
_AIR_FORMATS = {
    "safetensor": "SafeTensor",
    "safetensors": "SafeTensor",
    "ckpt": "PickleTensor",
    "diffuser": "Diffusers",
}


@dataclass(frozen=True)
class Reference:
    """One file of a model's version, or of its newest."""

    model: int | None
    """Known if the version is not."""
    version: int | None
    choice: Choice
    base: str = field(compare=False)
    """URL of the host to ask."""
    token: str = field(default="", repr=False, compare=False)
    """That somebody wrote into the URL."""

    @property
    def key(self) -> str:
        """The source key; reading it gives this reference again."""
        place = f"model:{self.model}" if self.version is None else f"version:{self.version}"
        return f"civitai:{place}{self.choice.key}"

    @property
    def mutable(self) -> bool:
        """Whether it may mean another file tomorrow: a model without a version does."""
        return self.version is None


def read(url: str, settings: CacheSettings) -> Reference | None:
    """Return the file that `url` means; None if it is not about a model of Civitai.

    A host other than civitai.com is asked itself, because each shows models of other ratings; but an
    endpoint that the settings put in the place of civitai.com stands for all of them.

    Raises:
        InvalidInputError: it is, and no file can be meant.
    """
    low = url.lower()
    if low.startswith(("urn:", "civitai:")):
        return _of_name(url, settings.civitai_endpoint)
    if not low.startswith(("https://", "http://")):
        return None
    parts = urls.split(url)
    endpoint, path = settings.civitai_endpoint, parts.path
    host = urls.host(url).removeprefix("www.")
    base = endpoint
    if urls.origin(url) == urls.origin(endpoint):
        path = path.removeprefix(urls.split(endpoint).path)
    elif host not in _HOSTS:
        return None
    elif urls.host(endpoint) in _HOSTS and host != _HOSTS[0]:
        base = f"https://{host}"
    query = dict(parse_qsl(parts.query))
    return _of_page(path, query, base)


def resolve(reference: Reference, kind: Kind, asker: Asker) -> Download:
    """Return what to ask for to get the file; its size is not told exactly, so it is left open.

    While the API is down, or has no more answers for us (429), the download of a known version is
    asked for without it.

    Raises:
        ModelNotFoundError: there is no such model or version, or no file of it fits.
        ModelAccessDeniedError: it is in early access, or not for download.
        ModelIncompatibleError: it is a model of another kind.
        ModelUnsafeError: it is a pickle that Civitai's scanners did not clear.
        SourceUnavailableError, SourceQuotaError: Civitai did not answer.
    """
    authorization = _authorization(reference, asker)
    try:
        version = _version(reference, asker)
    except (SourceUnavailableError, SourceQuotaError):
        if reference.version is None:
            raise
        url = _download_url(reference.base, reference.version, reference.choice.query)
        return Download(url, reference.key, authorization)
    civitai_files.require_open(version, has_token=bool(authorization))
    file = civitai_files.choose(version, reference.choice, kind)
    civitai_files.require_kind(version, file, kind)
    civitai_files.require_scanned(file)
    pinned = Reference(None, version.id, Choice(file=file.id), reference.base)
    return Download(
        url=_download_url(reference.base, version.id, file.query),
        source=pinned.key,
        authorization=authorization,
        sha256=file.sha256,
        file_name=file.name,
        also_from=_also_from(reference, version, file, kind),
    )


def described(reference: Reference, asker: Asker) -> Mapping[str, Any]:
    """Return what the API says of the version that is meant, or of the model where none is.

    A stranger's words: see `civitai_files`.

    Raises:
        ModelNotFoundError: there is no such model or version.
        ModelAccessDeniedError: Civitai refuses it.
        SourceUnavailableError, SourceQuotaError: Civitai did not answer.
    """
    if reference.version is not None:
        place = f"model-versions/{reference.version}"
    else:
        place = f"models/{reference.model}"
    reply = ask(asker, f"{reference.base}/api/v1/{place}", _authorization(reference, asker))
    if reply.status != 200:
        _refuse(reply, reference)
    return reply.fields


def with_hash(digest: str, asker: Asker) -> Mapping[str, Any] | None:
    """Return what the API says of the version that has a file with this hash; None if none has.

    Args:
        digest: a SHA-256, AutoV2 or AutoV3, in hex digits.
        asker: asks the endpoint that the settings name.

    Raises:
        ModelAccessDeniedError: Civitai refuses to tell.
        SourceUnavailableError, SourceQuotaError: Civitai did not answer.
    """
    url = f"{asker.settings.civitai_endpoint}/api/v1/model-versions/by-hash/{digest}"
    reply = ask(asker, url, tokens.bearer(tokens.CIVITAI, asker.settings, asker.tokens))
    if reply.status in {401, 403}:
        raise ModelAccessDeniedError(
            f"Civitai refuses to tell whose hash {digest} is ({reply.status}).",
            hint=tokens.company_hint(tokens.CIVITAI),
            status=reply.status,
        )
    return reply.fields if reply.status == 200 else None


def published_versions(fields: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the versions of a model that everybody may see, the newest first."""
    versions = fields.get("modelVersions")
    return [
        version
        for version in (versions if isinstance(versions, list) else [])
        if isinstance(version, dict)
        and isinstance(version.get("id"), int)
        and version.get("status", "Published") == "Published"
    ]


def _of_name(url: str, base: str) -> Reference:
    """Return what an AIR or a key means."""
    match = _AIR.fullmatch(url) or _KEY.fullmatch(url)
    if match is None:
        raise InvalidInputError(
            "That names no model of Civitai.",
            hint="An AIR is urn:air:ecosystem:type:civitai:MODEL@VERSION, as its page shows it.",
            field="url",
        )
    named = match.groupdict()
    query = dict(parse_qsl(named.get("query") or ""))
    format_ = named.get("format") or ""
    if format_:
        query["format"] = _AIR_FORMATS.get(format_.lower(), format_)
    if named["file"]:
        query["fileId"] = named["file"]
    return _reference(named["model"], named["version"], query, base)


def _of_page(path: str, query: Mapping[str, str], base: str) -> Reference | None:
    if match := _VERSION_PAGE.fullmatch(path):
        return _reference(None, match["version"], query, base)
    match = _PAGE.fullmatch(path)
    if match is None:
        return None
    version = query.get("modelVersionId", "")
    if version and not re.fullmatch(_ID, version):
        raise InvalidInputError("`modelVersionId` is not the number of a version.", field="url")
    return _reference(match["model"], version or None, query, base)


def _reference(
    model: str | None, version: str | None, query: Mapping[str, str], base: str
) -> Reference:
    # A version tells its model, so that the page and the download of a version have one key.
    known = None if version else int(model or 0)
    choice = Choice.of_query(query)
    return Reference(known, int(version) if version else None, choice, base, query.get("token", ""))


def _authorization(reference: Reference, asker: Asker) -> str:
    own = {tokens.CIVITAI: reference.token} if reference.token else {}
    return tokens.bearer(tokens.CIVITAI, asker.settings, {**asker.tokens, **own})


def _version(reference: Reference, asker: Asker) -> civitai_files.Version:
    """Return what the version, or the model's newest, consists of."""
    fields = described(reference, asker)
    if reference.version is not None:
        return civitai_files.version(fields, reference.version)
    published = published_versions(fields)
    if not published:
        raise ModelNotFoundError(
            f"Model {reference.model} of Civitai has no published version.", field="url"
        )
    # In the order of the model's page, which shows the first. Source: models/[id].ts.
    newest = published[0]
    return civitai_files.version({**newest, "model": fields}, newest["id"])


def _also_from(
    reference: Reference, version: civitai_files.Version, file: File, kind: Kind
) -> tuple[str, ...]:
    """Return the other keys that mean this file: what was asked, and the version if it does."""
    keys = [reference.key]
    if civitai_files.choose(version, Choice(), kind) == file:
        keys.append(Reference(None, version.id, Choice(), reference.base).key)
    pinned = Reference(None, version.id, Choice(file=file.id), reference.base).key
    return tuple(dict.fromkeys(key for key in keys if key != pinned))


def _download_url(base: str, version: int, query: Mapping[str, str]) -> str:
    tail = f"?{urlencode(query)}" if query else ""
    return f"{base}/api/download/models/{version}{tail}"


def _refuse(reply: Reply, reference: Reference) -> NoReturn:
    """Raise what a refusal of the API means."""
    what = reference.key.partition("?")[0]
    if reply.status in {401, 403}:
        raise ModelAccessDeniedError(
            f"Civitai refuses {what} ({reply.status}).",
            hint=tokens.company_hint(tokens.CIVITAI),
            status=reply.status,
        )
    raise ModelNotFoundError(
        f"{urls.host(reference.base)} does not know {what}.",
        hint="It was deleted, is not published, or is rated for another of Civitai's hosts: try its "
        "address on civitai.red.",
        field="url",
        status=reply.status,
    )
