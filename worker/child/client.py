"""HTTP to the A1111 on loopback: its answers, or our errors. Knows routes, not their meaning."""

import json
import re
from collections.abc import Mapping
from typing import Any

import requests
import urllib3

from schemas.errors import (
    BackendCrashedError,
    BackendFailedError,
    BackendNotReadyError,
    BackendOutOfMemoryError,
    BackendStalledError,
    InvalidInputError,
    WorkerError,
)
from schemas.result import Backend

API = "/sdapi/v1/"
CONNECT_S = 2.0
WORDS_CHARS = 500
# Many times what RunPod carries; without a bound one answer could take all memory.
MAX_ANSWER_BYTES = 256 << 20

# After these the process can do nothing more on the GPU: errors of its context are sticky.
# Source: CUDA Runtime API, cudaError_t ("leaves the process in an inconsistent state").
_BROKEN_GPU = re.compile(
    r"CUDA error: (?!out of memory|no kernel image)|CUBLAS_STATUS_(?!ALLOC)|cuDNN error|device-side assert"
)
_NO_KERNEL = "no kernel image is available"
_OUT_OF_MEMORY = re.compile(r"out of memory|CUBLAS_STATUS_ALLOC_FAILED", re.IGNORECASE)


class WebuiClient:
    """The way to one A1111. Safe to use from several threads.

    Each call opens its own connection: uvicorn closes an idle one after 5 s, and a generation sent
    into a connection that is just being closed would look like a crash.
    Source: uvicorn, `timeout_keep_alive` (default 5).
    """

    backend: Backend = "a1111"
    """Who answered last: the simulator says so itself, whoever started it and however."""

    def __init__(self, base_url: str) -> None:
        self._base_url = base_url
        self._session = requests.Session()
        self._session.trust_env = False  # no proxy and no ~/.netrc for loopback
        self._session.headers["Connection"] = "close"
        self._session.headers["Accept-Encoding"] = "identity"  # zipping base64 on loopback costs

    def get(self, route: str, *, timeout_s: float = 10) -> Any:
        """Return the JSON that A1111 answers to GET `route`.

        A route is a name below /sdapi/v1/, or a whole path; a query may follow.
        """
        return self._call("GET", route, None, timeout_s)

    def post(self, route: str, body: Any = None, *, timeout_s: float | None) -> Any:
        """Send `body` to `route` (see `get`) and return the JSON of the answer.

        Raises:
            BackendNotReadyError: nobody listens, so nothing was asked.
            InvalidInputError: A1111 refused the request; its own words are the message.
            BackendOutOfMemoryError: the GPU's memory did not suffice.
            BackendFailedError: A1111 failed (5xx), or answered something that is not JSON.
            BackendStalledError: no answer within `timeout_s` seconds.
            BackendCrashedError: the connection broke, or the GPU's state is broken.
        """
        return self._call("POST", route, body, timeout_s)

    def _call(self, method: str, route: str, body: Any, timeout_s: float | None) -> Any:
        status, data = self._asked(method, route, body, timeout_s)
        if status >= 400:
            raise failure(status, data)
        try:
            text = data.decode("utf-8", "surrogatepass")
            # Else there would be three of it while it is parsed, and it may be a hundred megabytes.
            del data
            return json.loads(text)
        except ValueError as error:
            raise BackendFailedError(
                f"A1111 answered {route} with something else than JSON."
            ) from error

    def _asked(
        self, method: str, route: str, body: Any, timeout_s: float | None
    ) -> tuple[int, bytes]:
        """Return the status and the whole body of an answer."""
        try:
            with self._session.request(
                method,
                self._base_url + (route if route.startswith("/") else API + route),
                json=body,
                timeout=(CONNECT_S, timeout_s),
                stream=True,
            ) as response:
                # In one piece: requests would gather ten megabytes of base64 in 10 KB slices.
                data = response.raw.read(MAX_ANSWER_BYTES + 1)
                expected = response.headers.get("Content-Length")
                self.backend = "simulator" if "X-Simulator" in response.headers else "a1111"
        except requests.exceptions.InvalidJSONError as error:
            raise InvalidInputError(
                "The request holds a value that JSON cannot say.", field="input"
            ) from error
        except (requests.Timeout, urllib3.exceptions.TimeoutError) as error:
            raise BackendStalledError(
                f"A1111 gave no answer to {route} in {timeout_s or CONNECT_S:g} s."
            ) from error
        except requests.ConnectionError as error:
            if _is_refusal(error):
                raise BackendNotReadyError("A1111 does not listen.") from error
            raise BackendCrashedError(f"A1111 closed the connection during {route}.") from error
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            raise BackendCrashedError(f"A1111 closed the connection during {route}.") from error
        _require_whole(data, expected, route)
        return response.status_code, data


def _require_whole(data: bytes, expected: str | None, route: str) -> None:
    if len(data) > MAX_ANSWER_BYTES:
        raise BackendFailedError(
            f"A1111 answered {route} with more than {MAX_ANSWER_BYTES >> 20} MiB.",
            hint="Ask for fewer or smaller pictures.",
        )
    if expected is not None and len(data) != int(expected):
        raise BackendCrashedError(f"A1111 broke off its answer to {route}.")


def _is_refusal(error: requests.ConnectionError) -> bool:
    """Tell whether the connection was never made."""
    cause = getattr(error.args[0], "reason", None) if error.args else None
    return isinstance(cause, urllib3.exceptions.NewConnectionError)


def failure(status: int, data: bytes) -> WorkerError:
    """Return the error that an answer of A1111 outside 2xx stands for.

    A1111 has three shapes: `{"error", "detail", "body", "errors"}` of its handlers, pydantic's
    `{"detail": [{"loc", "msg", "type"}]}`, and `{"detail": "Not Found"}` of the router.
    Source: recorded from A1111 1.10.1: txt2img_prompt_null, txt2img_steps_str, err_404_path.
    """
    try:
        answer = json.loads(data)
    except ValueError:
        answer = None
    answer = answer if isinstance(answer, dict) else {}
    kind = str(answer.get("error") or "")
    detail = answer.get("detail")
    field = "input"
    if isinstance(detail, list):
        problems = [(_place(problem), problem) for problem in detail if isinstance(problem, dict)]
        words = "; ".join(f"{place}: {problem.get('msg')}" for place, problem in problems)
        field = next((place for place, _ in problems if place), field)
    else:
        words = str(detail or answer.get("errors") or kind or f"status {status}")
    words = words[:WORDS_CHARS]
    if kind == "OutOfMemoryError" or _OUT_OF_MEMORY.search(words):
        return BackendOutOfMemoryError(
            "The GPU's memory does not suffice for this request.",
            hint="Ask for a smaller size or batch_size.",
        )
    if _NO_KERNEL in words:
        return BackendFailedError(
            "This image's PyTorch has no program for this GPU.",
            hint="Use the image for CUDA 12.8, or another GPU.",
        )
    if _BROKEN_GPU.search(words):
        return BackendCrashedError(f"The state of the GPU is broken: {words}.")
    if status < 500 or kind == "HTTPException":
        return InvalidInputError(f"A1111 refused the request: {words}.", field=field)
    return BackendFailedError(
        f"A1111 failed: {f'{kind}: ' if kind else ''}{words}.",
        **({"exception": kind} if kind else {}),
    )


def _place(problem: Mapping[str, Any]) -> str:
    """Return which field a problem of A1111's own is in."""
    return ".".join(str(part) for part in problem.get("loc", ())[1:])
