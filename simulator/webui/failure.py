"""How the simulated program fails: the exceptions it raises and the JSON they become.

Only these become an answer. Anything else that escapes a handler is a bug of the simulator, and the
web server answers it with a plain-text 500 that looks like none of A1111's.
"""

from typing import Any

# What PyTorch says when a kernel read or wrote where it must not. As in users' logs of PyTorch 2.0 to
# 2.7, a RuntimeError; newer ones name it AcceleratorError. Not seen by us: no GPU was at hand.
ILLEGAL_ACCESS = """\
CUDA error: an illegal memory access was encountered
CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below \
might be incorrect.
For debugging consider passing CUDA_LAUNCH_BLOCKING=1.
Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.
"""


class WebuiError(Exception):
    """An exception of A1111's, by the name of its class; answered with 500.

    `kind` is what `type(e).__name__` is there (`KeyError`, `NansException`, …), `text` its `str(e)`.

    Source: A1111 1.10.1, modules/api/api.py, handle_exception.
    """

    def __init__(self, kind: str, text: str = "") -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind
        self.text = text


class HttpError(Exception):
    """An HTTPException of a handler: its status, and its text in `detail`."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(f"{status}: {detail}")
        self.status = status
        self.detail = detail


class InvalidRequestError(Exception):
    """A request that pydantic refuses: 422 with a list of errors, each with loc, msg and type."""

    def __init__(self, errors: list[dict[str, Any]]) -> None:
        super().__init__(f"{len(errors)} validation errors")
        self.errors = errors


def handler_shape(kind: str, *, detail: str = "", text: str = "") -> dict[str, str]:
    """Return the body of an exception that A1111's own handler answers."""
    return {"error": kind, "detail": detail, "body": "", "errors": text}


def routing_shape(status: int) -> dict[str, str]:
    """Return the body of a request that reaches no handler (404 or 405)."""
    return {"detail": {404: "Not Found", 405: "Method Not Allowed"}[status]}


def out_of_memory() -> WebuiError:
    """Return what a GPU that is too small raises.

    A guess at the text: no GPU was at hand when the answers were recorded. The class and the shape
    are PyTorch's and A1111's.
    """
    text = (
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.64 GiB "
        "of which 1.12 GiB is free."
    )
    return WebuiError("OutOfMemoryError", text)
