"""One S3-compatible store: requests that botocore signs and reads, over connections of our own.

boto3 knows S3; the sockets are those of `model_cache`, so an endpoint that a caller names meets the
same guard as a model's URL, and an upload that is not wanted any more can be cut. Nothing is tried
twice here: whoever calls knows how long it may take.
"""

import functools
import logging
import re
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import requests
import urllib3
from requests.structures import CaseInsensitiveDict

from model_cache.engine.answers import TryAgainError, retry_after_s
from model_cache.engine.guard import BlockedAddressError, WebSession
from model_cache.hosts.urls import host
from schemas.bucket import Destination
from schemas.errors import UploadFailedError, UploadRefusedError

# It writes signatures and session tokens at DEBUG. Source: botocore, auth.py and endpoint.py.
for _name in ("boto3", "botocore"):
    logging.getLogger(_name).setLevel(logging.WARNING)

_CONNECT_S = 10.0
_SILENCE_S = 30.0
# What a store says is short; one that a caller names may send what it likes.
_MAX_ANSWER_BYTES = 1 << 20
_CODE = re.compile(r"[A-Za-z0-9._-]{1,60}")

_SKEWED = frozenset({"RequestTimeTooSkewed", "RequestExpired"})
# With whatever status. Source: Amazon S3, "Error responses", list of error codes.
_PASSING = frozenset(
    {
        *("SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "OperationAborted"),
        *("Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests"),
        *("IncompleteBody", "BadDigest"),
    }
)
_WHAT_TO_DO = {
    "NoSuchBucket": "Check BUCKET_NAME and BUCKET_ENDPOINT_URL; the worker makes no buckets.",
    "InvalidBucketName": "Check BUCKET_NAME.",
    "InvalidAccessKeyId": "Check BUCKET_ACCESS_KEY_ID; keys belong to one store.",
    "SignatureDoesNotMatch": "Check BUCKET_SECRET_ACCESS_KEY, and BUCKET_REGION.",
    "AuthorizationHeaderMalformed": "Set BUCKET_REGION to the bucket's region.",
    "PermanentRedirect": "Set BUCKET_REGION and BUCKET_ENDPOINT_URL to where the bucket is.",
    "IllegalLocationConstraintException": "Set BUCKET_REGION to the bucket's region.",
    "ExpiredToken": "The temporary keys have ended; set new ones.",
    "InvalidToken": "Check A1111_OUTPUT_BUCKET_SESSION_TOKEN.",
    "EntityTooLarge": "The store takes no objects of that size.",
    "QuotaExceeded": "The bucket is full.",
    "InsufficientStorage": "The store is full.",
}
_DENIED = "The keys need the right to put objects (s3:PutObject) there."
_session_lock = threading.Lock()


class Store:
    """A client for one bucket. Safe to use from several threads.

    Args:
        destination: the bucket, and the keys to it.
        allow_private: whether it may be at an address that is not public.

    Raises:
        UploadRefusedError: these make no client.
    """

    def __init__(self, destination: Destination, *, allow_private: bool) -> None:
        self._destination = destination
        self._bucket = destination.address.bucket
        self._web = WebSession(allow_private=allow_private)
        self._client = _client(destination)
        # Whatever this returns is taken for the answer. Source: botocore 1.44, endpoint.py,
        # Endpoint._do_get_response; moto hangs itself in there as well.
        self._client.meta.events.register("before-send.s3", self._send)
        self.is_shut = False

    def shut(self) -> None:
        """Break every connection, from any thread, and open no other."""
        self.is_shut = True
        self._web.shut()

    def put(self, key: str, data: bytes, content_type: str) -> None:
        """Make an object, or replace it; it is seen whole or not at all.

        Raises:
            TryAgainError: it may succeed when it is tried again; carries `UploadFailedError`.
            UploadFailedError, UploadRefusedError: not soon, or never.
                The other methods raise the same.
        """
        self._ask("put_object", Key=key, Body=data, ContentType=content_type)

    def begin(self, key: str, content_type: str) -> str:
        """Begin an upload in parts and return its id."""
        answer = self._ask("create_multipart_upload", Key=key, ContentType=content_type)
        return str(answer["UploadId"])

    def part(self, key: str, upload: str, number: int, data: bytes) -> str:
        """Send one part, the first being number 1, and return its tag."""
        answer = self._ask("upload_part", Key=key, UploadId=upload, PartNumber=number, Body=data)
        return str(answer["ETag"])

    def complete(self, key: str, upload: str, tags: list[str]) -> None:
        """Make an object of the parts, whose tags come in their order."""
        parts = [{"PartNumber": number, "ETag": tag} for number, tag in enumerate(tags, 1)]
        self._ask(
            "complete_multipart_upload", Key=key, UploadId=upload, MultipartUpload={"Parts": parts}
        )

    def abort(self, key: str, upload: str) -> None:
        """Throw away the parts that came: nobody sees them, and somebody pays for them."""
        self._ask("abort_multipart_upload", Key=key, UploadId=upload)

    def link(self, key: str, life_s: int) -> str:
        """Return a URL that opens the object: for `life_s` seconds, or for ever if it is public."""
        if (public := self._destination.public_url) is not None:
            return f"{public}/{quote(key)}"
        wanted = {"Bucket": self._bucket, "Key": key}
        return str(
            self._client.generate_presigned_url("get_object", Params=wanted, ExpiresIn=life_s)
        )

    def opens(self, url: str) -> int | None:
        """Return the status with which a link answers; None if its host cannot be reached."""
        try:
            with self._web.get(
                url, stream=True, allow_redirects=False, timeout=(_CONNECT_S, _SILENCE_S)
            ) as response:
                return response.status_code
        except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError):
            return None

    def _ask(self, operation: str, **wanted: Any) -> dict[str, Any]:
        from botocore import exceptions, parsers  # noqa: PLC0415 - see `_client`

        try:
            answer = getattr(self._client, operation)(Bucket=self._bucket, **wanted)
        except exceptions.ClientError as error:
            raise self._refusal(error.response) from None
        except parsers.ResponseParserError:
            raise TryAgainError(self._failure("did not answer as S3 does")) from None
        except exceptions.BotoCoreError as error:
            raise self._refused(f"cannot be asked ({type(error).__name__})") from None
        return dict(answer)

    def _send(self, request: Any, **_: object) -> Any:
        """Send what botocore has signed, as it is, and return the answer in its form."""
        from botocore.awsrequest import AWSResponse  # noqa: PLC0415 - see `_client`

        wire = requests.PreparedRequest()
        wire.method, wire.url, wire.body = request.method, request.url, request.body
        wire.headers = CaseInsensitiveDict(request.headers.items())
        # Not through the session: it would follow up redirects and keep cookies.
        adapter = self._web.get_adapter(request.url)
        # The texts of these exceptions hold the whole URL: none is kept.
        try:
            with adapter.send(
                wire, stream=True, verify=True, timeout=(_CONNECT_S, _SILENCE_S)
            ) as response:
                said = response.raw.read(_MAX_ANSWER_BYTES, decode_content=True)
        except BlockedAddressError:
            raise self._refused(
                "is not at a public address",
                "Uploads go to the internet only, unless A1111_CACHE_ALLOW_PRIVATE_HOSTS is set.",
            ) from None
        except requests.exceptions.SSLError:
            raise self._refused("shows no certificate that we trust") from None
        except ValueError:  # of URLs and headers that cannot be sent
            raise self._refused("cannot be asked") from None
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            how = "was silent" if isinstance(error, requests.Timeout) else "could not be reached"
            raise TryAgainError(self._failure(how)) from None
        if response.status_code == 429 or response.status_code >= 500:
            raise TryAgainError(
                self._failure(f"answered {response.status_code}", status=response.status_code),
                retry_after_s(response),
            )
        return AWSResponse(request.url, response.status_code, response.headers, _Said(said))

    def _refusal(self, answer: dict[str, Any]) -> Exception:
        """Return what an answer that refuses means."""
        meta = answer.get("ResponseMetadata", {})
        status = meta.get("HTTPStatusCode", 0)
        code = str(answer.get("Error", {}).get("Code", ""))
        # The rest of its words may repeat a key, and a caller's store may say anything.
        code = code if _CODE.fullmatch(code) else "no code"
        told = {"status": status, "store_code": code}
        if code in _SKEWED:
            date = str(meta.get("HTTPHeaders", {}).get("date", ""))[:40]
            return self._failure(
                f"says that this machine's clock is wrong ({code}; its own says {date or 'nothing'})",
                "Another worker's may be right; the keys are not at fault.",
                **told,
            )
        if code in _PASSING or status in {408, 429} or status >= 500:
            return TryAgainError(self._failure(f"answered {code} ({status})", **told))
        what_to_do = _WHAT_TO_DO.get(code, _DENIED if status in {401, 403} else "")
        return self._refused(f"refused with {code} ({status})", what_to_do, **told)

    def _failure(self, how: str, hint: str = "Try again later.", **told: Any) -> UploadFailedError:
        return UploadFailedError(f"{self._place()} {how}.", hint=hint, bucket=self._bucket, **told)

    def _refused(self, how: str, hint: str = "", **told: Any) -> UploadRefusedError:
        return UploadRefusedError(f"{self._place()} {how}.", hint=hint, bucket=self._bucket, **told)

    def _place(self) -> str:
        return f"The bucket {self._bucket} at {host(self._client.meta.endpoint_url)}"


class _Said:
    """The body of an answer, as botocore reads one."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def stream(self) -> Iterator[bytes]:
        yield self._data


def _client(destination: Destination) -> Any:
    """Return a client of boto3 that tries everything once."""
    # Takes 0.2 s, and 1 s with cold caches: not at the start of a worker that uploads nothing.
    from botocore import config, exceptions  # noqa: PLC0415 - see above

    address, keys = destination.address, destination.keys
    token = keys.session_token
    how = config.Config(
        signature_version="s3v4",
        # Left to itself it signs links for AWS's global host, which redirects to a region's for which
        # the signature is wrong. Names that no host can have go into the path all the same.
        # Source: botocore 1.44, signers.py, _should_use_global_endpoint; endpoint rules of S3.
        s3={"addressing_style": "path" if address.addressing == "path" else "virtual"},
        retries={"mode": "standard", "total_max_attempts": 1},
        # Else every request carries a checksum in a form that R2, GCS and B2 refused.
        # Source: boto/s3transfer issue 327, boto/boto3 1.36 release notes.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        ignore_configured_endpoint_urls=True,
    )
    try:
        # Clients are made from one session by one thread at a time. Source: boto3, "Session
        # reference", multithreading.
        with _session_lock:
            return _session().client(
                "s3",
                region_name=address.region,
                endpoint_url=address.endpoint,
                aws_access_key_id=keys.access_key_id.get_secret_value(),
                aws_secret_access_key=keys.secret_access_key.get_secret_value(),
                aws_session_token=token.get_secret_value() if token else None,
                config=how,
            )
    except (exceptions.BotoCoreError, ValueError) as error:
        raise UploadRefusedError(
            f"The bucket {address.bucket} cannot be asked with these settings"
            f" ({type(error).__name__}).",
            hint="Check BUCKET_ENDPOINT_URL and BUCKET_REGION.",
        ) from None


@functools.cache
def _session() -> Any:
    """Return the session that holds what boto3 knows of S3: the second client takes 5 ms."""
    import boto3  # noqa: PLC0415 - see `_client`

    return boto3.session.Session()
