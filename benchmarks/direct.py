"""The fastest way to one picture that we know: the same request, straight to A1111.

It is what the worker is measured against, so it does nothing that could be left out: the body is
bytes already, the answer is read in one piece, and nobody looks at it.
"""

import http.client
import json
from typing import Any

HEADERS = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
TIMEOUT_S = 120.0


class Direct:
    """Posts the same body again and again, over a kept or a new connection."""

    def __init__(self, port: int, body: dict[str, Any], *, keep: bool) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
        self._body = json.dumps(body).encode()
        self._keep = keep

    def images(self) -> list[str]:
        """Return the pictures of one answer, base64.

        Raises:
            RuntimeError: A1111 did not answer 200.
        """
        self._connection.request("POST", "/sdapi/v1/txt2img", self._body, HEADERS)
        response = self._connection.getresponse()
        data = response.read()
        if not self._keep:
            self._connection.close()
        if response.status != 200:
            raise RuntimeError(f"the WebUI answered {response.status}: {data[:300]!r}")
        images: list[str] = json.loads(data)["images"]
        return images

    def close(self) -> None:
        """Close the connection, if one is kept."""
        self._connection.close()
