"""Links to the second host that expire, as object stores sign them."""

import hashlib
import hmac
import os
import time
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field

EXPIRES = "X-Expires"
SIGNATURE = "X-Signature"


@dataclass
class Links:
    """Signs paths of the second host and checks what comes back. `ttl_s` is how long a link lives."""

    ttl_s: float = 300.0
    base_url: str = ""
    _secret: bytes = field(default_factory=lambda: os.urandom(16))

    def sign(self, path: str, query: Mapping[str, str], *, ttl_s: float | None = None) -> str:
        """Return the URL under which the second host serves `path` until `ttl_s` have passed.

        `query` goes along and is not signed.
        """
        expires = f"{time.time() + (self.ttl_s if ttl_s is None else ttl_s):.3f}"
        signed = {EXPIRES: expires, SIGNATURE: self._signature(path, expires), **query}
        return f"{self.base_url}/signed/{urllib.parse.quote(path)}?{urllib.parse.urlencode(signed)}"

    def is_valid(self, path: str, query: Mapping[str, str]) -> bool:
        """Say whether the signature is ours, for this path, and has not expired."""
        expires = query.get(EXPIRES, "0")
        wanted = self._signature(path, expires)
        return (
            hmac.compare_digest(wanted, query.get(SIGNATURE, "")) and float(expires) > time.time()
        )

    def _signature(self, path: str, expires: str) -> str:
        return hmac.new(self._secret, f"{path}\n{expires}".encode(), hashlib.sha256).hexdigest()
