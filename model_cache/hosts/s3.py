"""Files in a bucket: `s3://bucket/key`, with `?versionId=…` for one version of an object.

The bucket may be anywhere that speaks S3. A presigned GET is what is asked for, so the engine needs
no credentials; without keys the object must be public.
"""

import logging
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote

from model_cache.engine.download import Download
from model_cache.hosts.urls import place
from schemas.errors import InvalidInputError
from schemas.settings import CacheSettings

_SCHEME = "s3://"
_LEAST_LIFE_S = 3600
# The longest that SigV4 takes. Source: Amazon S3, "Authenticating Requests: Using Query Parameters".
_MOST_LIFE_S = 7 * 24 * 3600

# It writes signatures and session tokens at DEBUG. Source: botocore, auth.py and endpoint.py.
for _name in ("boto3", "botocore"):
    logging.getLogger(_name).setLevel(logging.WARNING)


@dataclass(frozen=True)
class Reference:
    """One object, or one version of it."""

    bucket: str
    path: str
    """The object's key, as it is: nothing in it is an escape."""
    version: str = ""

    @property
    def key(self) -> str:
        """The source key; reading it gives this reference again."""
        tail = f"?versionId={quote(self.version, '')}" if self.version else ""
        return f"{_SCHEME}{self.bucket}/{self.path}{tail}"

    @property
    def mutable(self) -> bool:
        """An object is taken to stay what it is."""
        return False


def read(url: str, settings: CacheSettings) -> Reference | None:
    """Return the object that `url` means; None if it is no `s3://` reference.

    Raises:
        InvalidInputError: it is one, and names no object.
    """
    del settings
    if url[: len(_SCHEME)].lower() != _SCHEME:
        return None
    rest, _, query = url[len(_SCHEME) :].partition("?")
    bucket, _, path = rest.partition("/")
    version = dict(parse_qsl(query)).get("versionId", "")
    whole = path and not path.endswith("/") and path.isprintable() and version.isprintable()
    # Source: Amazon S3, "Bucket naming rules"; other stores take upper case and `_` as well.
    plain = bucket.replace("-", "").replace(".", "").replace("_", "")
    if not (whole and plain.isascii() and plain.isalnum() and ".." not in bucket):
        raise InvalidInputError(
            "That names no object in a bucket.", hint="Write s3://bucket/key.", field="url"
        )
    return Reference(bucket, path, version)


def resolve(reference: Reference, settings: CacheSettings) -> Download:
    """Return a signed URL of the object that outlives the longest download. Asks nobody.

    Raises:
        InvalidInputError: the settings do not make a URL.
    """
    # Most workers never need it, and it takes 70 ms with warm caches, 0.9 s with cold ones.
    import boto3  # noqa: PLC0415 - see above
    from botocore import UNSIGNED, config, exceptions  # noqa: PLC0415 - see above

    key, secret = settings.s3_access_key_id, settings.s3_secret_access_key
    session_token = settings.s3_session_token
    how = config.Config(
        signature_version="s3v4" if key and secret else UNSIGNED,
        # A store that is not AWS's seldom has a host name for each bucket.
        s3={"addressing_style": "path" if settings.s3_endpoint else "virtual"},
        ignore_configured_endpoint_urls=True,
    )
    wanted = {"Bucket": reference.bucket, "Key": reference.path}
    if reference.version:
        wanted["VersionId"] = reference.version
    life_s = min(max(_LEAST_LIFE_S, 2 * settings.max_download_s), _MOST_LIFE_S)
    try:
        client = boto3.session.Session().client(
            "s3",
            region_name=settings.s3_region,
            endpoint_url=settings.s3_endpoint,
            aws_access_key_id=key.get_secret_value() if key else None,
            aws_secret_access_key=secret.get_secret_value() if secret else None,
            aws_session_token=session_token.get_secret_value() if session_token else None,
            config=how,
        )
        url = client.generate_presigned_url("get_object", Params=wanted, ExpiresIn=int(life_s))
    except (exceptions.BotoCoreError, ValueError) as error:
        raise InvalidInputError(
            f"{reference.key.partition('?')[0]} makes no URL with these settings "
            f"({type(error).__name__}).",
            hint="Check A1111_CACHE_S3_ENDPOINT and A1111_CACHE_S3_REGION.",
            field="url",
        ) from None
    place(url)  # Raises if the settings made one that names no host.
    return Download(url, reference.key, file_name=reference.path.rpartition("/")[2])
