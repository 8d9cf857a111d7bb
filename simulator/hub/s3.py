"""An object store's routes: `/s3/<bucket>/<key>`, for those who sign and for public buckets.

`ROOT/s3/<bucket>/` holds the objects; with a file `.public` in it, anybody may read them. The
signature in a URL's query is checked for real, and so is when it expires.

Source: Amazon S3, "Authenticating Requests: Using Query Parameters (AWS Signature Version 4)" and
"Error responses".
"""

import hashlib
import hmac
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from urllib.parse import quote

from aiohttp import web

from simulator.hub.site import SITE

_PREFIX = "X-Amz-"
_SIGNATURE = f"{_PREFIX}Signature"
_MOST_LIFE_S = 7 * 24 * 3600


async def _object(request: web.Request) -> web.StreamResponse:
    site, bucket = request.app[SITE], request.match_info["bucket"]
    folder = site.root / "s3" / bucket
    if not folder.is_dir():
        return _refused(404, "NoSuchBucket", "The specified bucket does not exist")
    signed = _SIGNATURE in request.query
    if signed or not (folder / ".public").exists():
        refusal = _refusal(request, site.s3_keys)
        if refusal is not None:
            return refusal
    path = site.find(f"s3/{bucket}/{request.match_info['key']}")
    if path is None:
        return _refused(404, "NoSuchKey", "The specified key does not exist.")
    return await site.send(request, path)


def _refusal(request: web.Request, keys: Mapping[str, str]) -> web.Response | None:
    """Return why the request is not let through; None if its signature is good."""
    query = request.query
    if "Authorization" in request.headers:
        # As stores answer a signed link with a second way to authenticate.
        return _refused(400, "InvalidArgument", "Only one auth mechanism allowed")
    if _SIGNATURE not in query:
        return _refused(403, "AccessDenied", "Access Denied")
    key, _, scope = query.get(f"{_PREFIX}Credential", "").partition("/")
    if key not in keys:
        return _refused(403, "InvalidAccessKeyId", "The key does not exist in our records.")
    if not hmac.compare_digest(_signature(request, keys[key], scope), query[_SIGNATURE]):
        message = "The request signature we calculated does not match the signature you provided."
        return _refused(403, "SignatureDoesNotMatch", message)
    return _lapsed(request)


def _lapsed(request: web.Request) -> web.Response | None:
    """Return the refusal of a signature that is good and out of its time; None for one in time."""
    life_s = int(request.query.get(f"{_PREFIX}Expires", "0"))
    if life_s > _MOST_LIFE_S:
        return _refused(400, "AuthorizationQueryParametersError", "X-Amz-Expires is too large")
    text = request.query.get(f"{_PREFIX}Date", "")
    signed_at = datetime.strptime(text, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    if signed_at.timestamp() + life_s <= time.time():
        return _refused(403, "AccessDenied", "Request has expired")
    return None


def _signature(request: web.Request, secret: str, scope: str) -> str:
    """Return the signature that a request with these parts must have: 64 hex digits."""
    pairs = sorted(
        (quote(name, safe="~"), quote(value, safe="~"))
        for name, value in request.query.items()
        if name != _SIGNATURE
    )
    names = request.query.get(f"{_PREFIX}SignedHeaders", "").split(";")
    lines = [
        request.method,
        request.rel_url.raw_path,
        "&".join(f"{name}={value}" for name, value in pairs),
        *(f"{name}:{request.headers.get(name, '').strip()}" for name in names),
        "",
        ";".join(names),
        "UNSIGNED-PAYLOAD",
    ]
    to_sign = [
        "AWS4-HMAC-SHA256",
        request.query.get(f"{_PREFIX}Date", ""),
        scope,
        hashlib.sha256("\n".join(lines).encode()).hexdigest(),
    ]
    signing = f"AWS4{secret}".encode()
    for part in scope.split("/"):
        signing = hmac.new(signing, part.encode(), hashlib.sha256).digest()
    return hmac.new(signing, "\n".join(to_sign).encode(), hashlib.sha256).hexdigest()


def _refused(status: int, code: str, message: str) -> web.Response:
    text = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'
    return web.Response(status=status, text=text, content_type="application/xml")


ROUTES = [web.get("/s3/{bucket}/{key:.+}", _object)]
