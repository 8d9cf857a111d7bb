"""The header of a safetensors file: read, and checked against every rule of the format.

    u64 little-endian length N | N bytes of JSON | tensor data up to the end of the file

    {"__metadata__": {"key": "text", …},
     "tensor name": {"dtype": "F16", "shape": [320, 4, 3, 3], "data_offsets": [0, 23040]}, …}

The rules together are an integrity check for the price of 8 + N bytes: a file that lost its last
byte, or a web page saved under a model's name, does not pass. Files come from strangers, so
whatever the bytes are, the outcome is a `Header` or one of our errors.

Source: huggingface/safetensors, README "Format" and safetensors/src/tensor.rs.
"""

import json
import os
import stat
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TypeGuard

from model_cache.weights import magic
from schemas.errors import ModelCorruptError

MAX_DATA_BYTES = 1 << 62

_DTYPE_BITS = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip


@dataclass(frozen=True)
class Header:
    """What a safetensors file says of itself."""

    shapes: Mapping[str, tuple[int, ...]]
    """Tensor name -> shape."""
    metadata: Mapping[str, str]


class FlawError(ValueError):
    """A rule of the format that is broken; the text says which. Becomes a `ModelCorruptError`."""


def read(path: Path, called: str) -> Header:
    """Read and check the header of the file at `path`; nothing of the weights is read.

    `called` is what messages call it: the path of a fetched file is a random one.

    Raises:
        ModelUnsafeError: it is a pickle, an archive or a web page.
        ModelCorruptError: it is damaged or cut off.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ModelCorruptError(f"The file of {called!r} is not a regular file.")
        with _flaws(called):
            return _read(file, status.st_size)


def end(start: bytes, called: str) -> int:
    """Return where the header of a file ends, of which `start` are the first bytes, at least 8.

    Raises:
        ModelCorruptError: there is no file with such a header.
    """
    with _flaws(called):
        return _end(start)


def of_start(start: bytes, called: str) -> Header:
    """Return the header that `start` consists of, checked; the rest of the file may be on its way.

    Raises:
        ModelCorruptError: it breaks a rule of the format.
    """
    with _flaws(called):
        return parse(start[8:], data_bytes=None)


@contextmanager
def _flaws(called: str) -> Iterator[None]:
    try:
        yield
    except FlawError as error:
        raise ModelCorruptError(
            f"The file of {called!r} is not a whole safetensors file: {error}.",
            hint="It may have been cut off, or be still on its way here.",
        ) from error


def _end(start: bytes) -> int:
    (length,) = struct.unpack("<Q", start[:8])
    if length > magic.MAX_HEADER_BYTES:
        raise FlawError("its header would be longer than 100 MB")
    return 8 + int(length)


def _read(file: BinaryIO, size: int) -> Header:
    start = file.read(magic.LOOK_BYTES)
    magic.refuse(start)
    if len(start) < 8:
        raise FlawError(f"it has {size} bytes")
    end = _end(start)
    if end > size:
        raise FlawError(f"its header ends at {end}, the file at {size}")
    file.seek(8)
    return parse(file.read(end - 8), data_bytes=size - end)


def parse(raw: bytes, *, data_bytes: int | None) -> Header:
    """Return the header that the JSON text `raw` stands for, checked.

    `data_bytes` is what follows the header in the file; None if that is not known yet.

    Raises:
        FlawError: it breaks a rule of the format.
    """
    if not raw.startswith(b"{"):
        raise FlawError("its header does not begin with '{'")
    entries = _load(raw)
    metadata = _metadata(entries.pop("__metadata__", None))
    shapes = {}
    spans = []
    for name, entry in entries.items():
        shapes[name], span = _tensor(
            name, entry, MAX_DATA_BYTES if data_bytes is None else data_bytes
        )
        spans.append(span)
    position = 0
    for begin, end in sorted(spans):
        if begin != position:
            raise FlawError(f"there is a hole or an overlap at byte {position} of its data")
        position = end
    if data_bytes not in {None, position}:
        raise FlawError(f"its tensors take {position} bytes, {data_bytes} are there")
    return Header(shapes, metadata)


def _load(raw: bytes) -> dict[str, Any]:
    try:
        entries = json.loads(
            raw.decode("utf-8"), object_pairs_hook=_without_repeats, parse_constant=_no_constant
        )
    except RecursionError:
        raise FlawError("its header is nested too deep") from None
    except ValueError as error:
        if isinstance(error, FlawError):
            raise
        # The text of the JSON error is left out: it may quote what a stranger wrote.
        raise FlawError("its header is not JSON") from None
    if not isinstance(entries, dict):
        raise FlawError("its header is not an object")
    return entries


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise FlawError("its header says the same key twice")
    return entries


def _no_constant(text: str) -> NoReturn:
    raise FlawError(f"its header holds {text}")


def _metadata(value: object) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise FlawError("its metadata is not a map from text to text")
    return value


def _tensor(name: str, entry: Any, data_bytes: int) -> tuple[tuple[int, ...], tuple[int, int]]:
    """Return shape and byte span of one tensor."""
    where = f"tensor {name[:80]!r}"
    if not isinstance(entry, dict):
        raise FlawError(f"{where} is not an object")
    dtype, shape, span = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in _DTYPE_BITS:
        raise FlawError(f"{where} is of an unknown type")
    if not _are_sizes(shape):
        raise FlawError(f"{where} has an impossible shape")
    if not _are_sizes(span) or len(span) != 2 or not span[0] <= span[1] <= data_bytes:
        raise FlawError(f"{where} lies outside of the file")
    if _bits(shape, _DTYPE_BITS[dtype]) != 8 * (span[1] - span[0]):
        raise FlawError(f"{where} does not have as many bytes as its shape asks for")
    return tuple(shape), (span[0], span[1])


def _are_sizes(value: object) -> TypeGuard[list[int]]:
    # type() and not isinstance(): True is an int to Python, and no size.
    return isinstance(value, list) and all(
        type(item) is int and 0 <= item <= MAX_DATA_BYTES for item in value
    )


def _bits(shape: list[int], width: int) -> int:
    """Return the bits that a tensor takes; stops counting where no file could hold it.

    Without that end, a shape of a million large numbers takes hours to multiply.
    """
    if 0 in shape:
        return 0
    bits = width
    for size in shape:
        bits *= size
        if bits > 8 * MAX_DATA_BYTES:
            break
    return bits
