"""A bucket that pictures go to, as the settings or a job's `s3Config` name it. Pure."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationError

from schemas.errors import InvalidInputError

Addressing = Literal["auto", "path", "virtual"]
"""Where a bucket's name stands in a URL: in its path, or in front of its host."""

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
# Hosts of stores without a bucket's name, and what each takes as its region where the host does not
# say. Source: the stores' own pages on their endpoints, as docs/storage.md names them.
_STORES = (
    (r"s3[.-](?:dualstack\.)?(?P<region>[a-z]{2}(?:-[a-z]+)+-\d)\.amazonaws\.com(?:\.cn)?", ""),
    (r"s3\.amazonaws\.com", "us-east-1"),
    (r"[0-9a-f]{32}(?:\.[a-z]+)?\.r2\.cloudflarestorage\.com", "auto"),
    (r"storage\.googleapis\.com", "auto"),
    (r"s3\.(?P<region>[a-z0-9-]+)\.backblazeb2\.com", ""),
    (r"(?P<region>[a-z]{3}\d)\.digitaloceanspaces\.com", ""),
    (r"s3\.(?P<region>[a-z0-9-]+)\.wasabisys\.com", ""),
    (r"s3api-(?P<region>[a-z0-9-]+)\.runpod\.io", ""),
)
# What MinIO and most others go by when nobody told them a region.
_USUAL_REGION = "us-east-1"
# What may be part of a host's name, and of the scope that a request is signed for.
_REGION = re.compile(r"(?!\d+$)[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")


@dataclass(frozen=True)
class Address:
    """Where a bucket is."""

    bucket: str
    endpoint: str | None
    """URL of the store without the bucket's name; None: AWS, which has one for each region."""
    region: str
    addressing: Addressing


def _as_key(secret: SecretStr) -> SecretStr:
    """Return a key without what pasting left round it; it travels in a header, so it is one word."""
    key = secret.get_secret_value().strip()
    if not (key.isascii() and key.isprintable()) or " " in key or not key:
        raise ValueError("must be one word of letters, digits and signs of ASCII")
    return SecretStr(key)


Key = Annotated[SecretStr, AfterValidator(_as_key)]


class Keys(BaseModel):
    """What lets one write to a bucket; prints nothing of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    access_key_id: Key
    secret_access_key: Key
    session_token: Key | None = None


@dataclass(frozen=True)
class Destination:
    """A bucket, the keys to it, and how what is put there is found again."""

    address: Address
    keys: Keys
    prefix: str = ""
    """In front of every key, without a slash at its end."""
    public_url: str | None = None
    """What the keys follow in links; None: links are signed."""


class _S3Config(BaseModel):
    """What RunPod passes beside `input`.

    Source: docs.runpod.io, serverless/endpoints/send-requests; `region` is ours.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    access_id: Key = Field(alias="accessId")
    access_secret: Key = Field(alias="accessSecret")
    bucket_name: str = Field("", alias="bucketName")
    endpoint_url: str = Field("", alias="endpointUrl")
    region: str = Field("", pattern=r"^[A-Za-z0-9-]*$")


def destination_of(config: Mapping[str, Any]) -> Destination:
    """Return the bucket that a job's `s3Config` names.

    Raises:
        InvalidInputError: it names none; no message holds one of its values.
    """
    try:
        wanted = _S3Config.model_validate(config)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
        field = ".".join(["s3Config", *map(str, problem["loc"])])
        raise InvalidInputError(
            f"`{field}`: {problem['msg']}.",
            hint='Send "s3Config": {"accessId", "accessSecret", "bucketName", "endpointUrl"}.',
            field=field,
        ) from None
    try:
        address = address_of(wanted.endpoint_url, wanted.bucket_name, wanted.region)
    except ValueError as error:
        raise InvalidInputError(
            f"`s3Config` names no bucket: {error}.", field="s3Config.endpointUrl"
        ) from None
    keys = Keys(access_key_id=wanted.access_id, secret_access_key=wanted.access_secret)
    return Destination(address, keys)


def address_of(
    endpoint: str, bucket: str = "", region: str = "", addressing: Addressing = "auto"
) -> Address:
    """Return where a bucket is.

    Args:
        endpoint: URL of a store, with the bucket's name in its host or as its path if `bucket` is
            empty; empty for AWS.
        bucket: its name.
        region: what requests are signed for; empty: as the store's host says.
        addressing: auto: as the endpoint has it, else by path; for AWS as AWS wants it.

    Raises:
        ValueError: these name no bucket, or two.
    """
    if region and not _REGION.fullmatch(region):
        raise ValueError("that is no name of a region")
    if not endpoint:
        return Address(_named(bucket), None, region or _USUAL_REGION, addressing)
    parts = _split(endpoint)
    for pattern, usual in _STORES:
        whole = rf"(?:(?P<bucket>.+)\.)?(?P<store>{pattern})"
        if parts.port is None and (known := re.fullmatch(whole, str(parts.hostname))):
            found = known.groupdict().get("region") or usual
            return _at_known(parts, known, bucket, region or found, addressing)
    return _elsewhere(parts, bucket, region or _USUAL_REGION, addressing)


def _at_known(
    parts: SplitResult, known: re.Match[str], bucket: str, region: str, addressing: Addressing
) -> Address:
    """Return where a bucket is in a store whose host tells what else there is to know."""
    in_host = known["bucket"] or ""
    if in_host and bucket and in_host != bucket:
        raise ValueError("the endpoint's host names another bucket")
    path, name = _path_and_name(parts.path, in_host or bucket)
    if path:
        raise ValueError("the endpoint has a path besides the bucket; a prefix is for that")
    if "amazonaws" in known["store"]:
        return Address(_named(name), None, region, addressing)
    if addressing == "auto":
        addressing = "virtual" if in_host else "path"
    return Address(_named(name), f"{parts.scheme}://{known['store']}", region, addressing)


def _elsewhere(parts: SplitResult, bucket: str, region: str, addressing: Addressing) -> Address:
    """Return where a bucket is in a store that we do not know."""
    path, name = _path_and_name(parts.path, bucket)
    netloc = parts.netloc
    in_host = bool(bucket) and netloc.lower().startswith(f"{bucket.lower()}.")
    if in_host and addressing != "path":
        netloc = netloc[len(bucket) + 1 :]
        addressing = "virtual"
    endpoint = f"{parts.scheme}://{netloc}{path}"
    return Address(_named(name), endpoint, region, "path" if addressing == "auto" else addressing)


def _split(endpoint: str) -> SplitResult:
    try:
        parts = urlsplit(endpoint)
        usable = parts.scheme in {"https", "http"} and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable or parts.username or parts.query or parts.fragment:
        raise ValueError("the endpoint is not the URL of a store, as in https://s3.example.com")
    return parts


def _path_and_name(path: str, bucket: str) -> tuple[str, str]:
    """Return what of an endpoint's path belongs to the store, and the bucket's name."""
    folders = [folder for folder in path.split("/") if folder]
    if bucket:
        if folders[-1:] == [bucket]:
            folders.pop()
        return "".join(f"/{folder}" for folder in folders), bucket
    if len(folders) > 1:
        raise ValueError("the endpoint's path has several parts: name the bucket by itself")
    return "", "".join(folders)


def _named(bucket: str) -> str:
    if not bucket:
        raise ValueError("no bucket is named, neither by itself nor in the endpoint")
    if not _BUCKET.fullmatch(bucket) or ".." in bucket:
        raise ValueError("that is no name of a bucket")
    return bucket
