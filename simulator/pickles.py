"""Small model files as `torch.save` writes them, without PyTorch: real pickles, and harmless ones.

    zip      archive/data.pkl | archive/version | archive/data/0, 1, …
    legacy   magic number | protocol | system | program | keys of storages     five pickles,
             count and numbers of each storage                                 then raw data

The program says: a dictionary of tensors, each rebuilt from a storage that is read beside it.

Source: pytorch torch/serialization.py, _save and _legacy_save; torch/_tensor.py, __reduce_ex__.
"""

import hashlib
import os
import pickle
import struct
import zipfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

from simulator.models import UPSCALER

_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_ITEM_BYTES = 4
# torch.save gives every entry one date, so that the same weights make the same file.
_DATE = (2011, 1, 1, 0, 0, 0)


def write_pickle(
    path: Path,
    *,
    seed: str,
    tensors: Mapping[str, tuple[int, ...]] = UPSCALER,
    legacy: bool = False,
) -> str:
    """Write a state dictionary of F32 tensors and return its sha256; every byte follows from `seed`.

    `legacy` is the format from before PyTorch 1.6.
    """
    weights = {
        str(number): hashlib.shake_256(f"{seed}/{name}".encode()).digest(
            _ITEM_BYTES * _count(shape)
        )
        for number, (name, shape) in enumerate(tensors.items())
    }
    data = as_legacy(program(tensors), weights) if legacy else as_zip(program(tensors), weights)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    part.write_bytes(data)
    part.replace(path)
    return hashlib.sha256(data).hexdigest()


def program(tensors: Mapping[str, tuple[int, ...]]) -> bytes:
    """Return the pickle that rebuilds `tensors`, protocol 2."""
    items = b"".join(
        _text(name) + _tensor(str(number), shape) + pickle.SETITEM
        for number, (name, shape) in enumerate(tensors.items())
    )
    return pickle.PROTO + b"\2" + pickle.EMPTY_DICT + items + pickle.STOP


def as_zip(program: bytes, weights: Mapping[str, bytes]) -> bytes:
    """Return the file of today's PyTorch."""
    file = BytesIO()
    entries = {"data.pkl": program, "version": b"3\n"} | {
        f"data/{key}": data for key, data in weights.items()
    }
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in entries.items():
            archive.writestr(zipfile.ZipInfo(f"archive/{name}", _DATE), data)
    return file.getvalue()


def as_legacy(program: bytes, weights: Mapping[str, bytes]) -> bytes:
    """Return the file of PyTorch before 1.6."""
    system = {"protocol_version": _LEGACY_PROTOCOL, "little_endian": True, "type_sizes": {}}
    head = b"".join(pickle.dumps(value, 2) for value in (_MAGIC, _LEGACY_PROTOCOL, system))
    raw = b"".join(struct.pack("<q", len(data) // _ITEM_BYTES) + data for data in weights.values())
    return head + program + pickle.dumps(list(weights), 2) + raw


def _tensor(key: str, shape: tuple[int, ...]) -> bytes:
    strides = tuple(_count(shape[axis + 1 :]) for axis in range(len(shape)))
    storage = _tuple(
        _text("storage"),
        _global("torch", "FloatStorage"),
        _text(key),
        _text("cpu"),
        _number(_count(shape)),
    )
    hooks = _global("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
    arguments = _tuple(
        storage + pickle.BINPERSID,
        _number(0),
        _tuple(*map(_number, shape)),
        _tuple(*map(_number, strides)),
        pickle.NEWFALSE,
        hooks,
    )
    return _global("torch._utils", "_rebuild_tensor_v2") + arguments + pickle.REDUCE


def _tuple(*items: bytes) -> bytes:
    return pickle.MARK + b"".join(items) + pickle.TUPLE


def _text(text: str) -> bytes:
    return pickle.BINUNICODE + struct.pack("<I", len(text.encode())) + text.encode()


def _number(number: int) -> bytes:
    return pickle.BININT + struct.pack("<i", number)


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
