"""Model files as far as the simulated program looks into them: headers, widths, NaN, fingerprints.

    safetensors    u64 length of the header | JSON header | tensor data
    .pt            a zip with data.pkl and the tensors, or (before torch 1.6) five pickles in a row

Nothing is ever executed: a pickle's classes are replaced by inert stand-ins.

Source: README of huggingface/safetensors, "Format"; PyTorch, torch/serialization.py.
"""

import array
import hashlib
import json
import pickle
import struct
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from simulator.webui.failure import WebuiError

# Above this the header is not believed. Source: huggingface/safetensors, safetensors/src/tensor.rs.
MAX_HEADER = 100_000_000
# A file up to this size is hashed whole for its fingerprint, a larger one in samples.
_WHOLE = 16 << 20
_SAMPLE = 1 << 20


@dataclass(frozen=True)
class Header:
    """The tensors of a safetensors file and its metadata, in the order of the file."""

    tensors: dict[str, dict[str, Any]]
    metadata: dict[str, Any]
    data_start: int

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of the tensor `name`."""
        return tuple(self.tensors[name]["shape"])


def read_header(path: Path) -> Header:
    """Return the header of a safetensors file.

    Raises:
        WebuiError: FileNotFoundError, or SafetensorError with the library's text.
    """
    try:
        with path.open("rb") as file:
            return _parse(file, path.stat().st_size)
    except FileNotFoundError as error:
        raise not_found(path) from error


def _parse(file: IO[bytes], size: int) -> Header:
    prefix = file.read(8)
    if len(prefix) < 8:
        raise _damaged("HeaderTooSmall")
    (length,) = struct.unpack("<Q", prefix)
    if length > MAX_HEADER:
        raise _damaged("HeaderTooLarge")
    if length + 8 > size:
        raise _damaged("InvalidHeaderLength")
    try:
        entries = json.loads(file.read(length))
        metadata = entries.pop("__metadata__", {})
        end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise _damaged("InvalidHeaderDeserialization") from error
    if end + length + 8 != size:
        raise _damaged("MetadataIncompleteBuffer")
    return Header(entries, metadata, length + 8)


def _damaged(reason: str) -> WebuiError:
    return WebuiError("SafetensorError", f"Error while deserializing header: {reason}")


def not_found(path: Path) -> WebuiError:
    """Return the failure of opening a file that is not there."""
    return WebuiError("FileNotFoundError", f"[Errno 2] No such file or directory: {str(path)!r}")


def listed_metadata(path: Path) -> dict[str, Any]:
    """Return the metadata that lists show; a value that is a JSON object is parsed.

    A damaged file has none.

    Source: A1111 1.10.1, modules/sd_models.py, read_metadata_from_safetensors.
    """
    try:
        metadata = read_header(path).metadata
    except WebuiError:
        return {}
    return {key: _parsed(value) for key, value in metadata.items()}


def _parsed(value: object) -> object:
    if isinstance(value, str) and value.startswith("{"):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def text_width(header: Header) -> int:
    """Return the width of the text that a checkpoint's UNet attends to: 768, 1024, 2048; 0 unknown.

    It is what tells whether a LoRA or an embedding belongs to it.
    """
    for name in header.tensors:
        if name.endswith("attn2.to_k.weight"):
            return header.shape(name)[1]
    for name in header.tensors:
        if name.endswith("token_embedding.weight"):
            return header.shape(name)[1]
    return 0


def takes_mask(header: Header) -> bool:
    """Return whether a checkpoint is one for inpainting, whose UNet has nine input channels."""
    name = "model.diffusion_model.input_blocks.0.0.weight"
    return name in header.tensors and header.shape(name)[1:2] == (9,)


def autoencoder(header: Header) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a checkpoint's own VAE, by the names that a VAE's file has for them."""
    start = "first_stage_model."
    own = [name for name in header.tensors if name.startswith(start)]
    return {name.removeprefix(start): header.shape(name) for name in own}


def mismatch(
    module: str, wrong: Sequence[tuple[str, tuple[int, ...], tuple[int, ...]]]
) -> WebuiError:
    """Return the failure of tensors, each with the file's shape and the model's, that do not fit.

    Source: PyTorch, torch/nn/modules/module.py, Module.load_state_dict, which raises after it has copied
    what fits.
    """
    lines = [
        f"size mismatch for {name}: copying a param with shape torch.Size({list(given)}) from "
        f"checkpoint, the shape in current model is torch.Size({list(own)})."
        for name, given, own in wrong
    ]
    text = "\n\t".join([f"Error(s) in loading state_dict for {module}:", *lines])
    return WebuiError("RuntimeError", text)


def has_nan_weights(path: Path, header: Header) -> bool:
    """Return whether the first weights of the UNet are NaN, as in a checkpoint merged wrongly."""
    for name, entry in header.tensors.items():
        if name.startswith("model.diffusion_model.") and entry["dtype"] in {"F16", "F32"}:
            start, end = entry["data_offsets"]
            with path.open("rb") as file:
                file.seek(header.data_start + start)
                data = file.read(min(end - start, 4096))
            return any(value != value for value in _floats(entry["dtype"], data))  # noqa: PLR0124 - that is what NaN is
    return False


def _floats(dtype: str, data: bytes) -> Iterator[float]:
    if dtype == "F32":
        yield from array.array("f", data[: len(data) // 4 * 4])
    else:
        yield from (value for (value,) in struct.iter_unpack("<e", data[: len(data) // 2 * 2]))


def fingerprint(path: Path) -> str:
    """Return a digest of the file's content; of a large file, of its size and three samples.

    Raises:
        WebuiError: FileNotFoundError.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            if size <= _WHOLE:
                digest.update(file.read())
            else:
                digest.update(str(size).encode())
                for start in (0, size // 2, size - _SAMPLE):
                    file.seek(start)
                    digest.update(file.read(_SAMPLE))
    except FileNotFoundError as error:
        raise not_found(path) from error
    return digest.hexdigest()


# Bytes that are no pickle make the unpickler raise nearly anything.
_BAD_PICKLE = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    struct.error,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    StopIteration,
    TypeError,
    ValueError,
)


class _Inert:
    """What every class and function named in a pickle becomes."""

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def __setitem__(self, key: object, value: object) -> None:
        """Take an item of an OrderedDict's like, and forget it."""


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Return a dict for a dict's like, and an inert stand-in for everything else."""
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        return _Inert

    def persistent_load(self, pid: object) -> object:
        """Return the storage's description: only shapes are looked at."""
        return pid


def read_pickled(path: Path) -> dict[str, Any]:
    """Return the dictionary in a .pt file; a tensor in it is its shape, as a tuple.

    Raises:
        WebuiError: UnpicklingError, when it is no such file.
    """
    try:
        with path.open("rb") as file:
            if zipfile.is_zipfile(file):
                with zipfile.ZipFile(file) as archive:
                    name = next(n for n in archive.namelist() if n.endswith("/data.pkl"))
                    with archive.open(name) as data:
                        content = _Reader(data).load()
            else:
                file.seek(0)
                # Magic number, protocol version and machine come first.
                content = [_Reader(file).load() for _ in range(4)][-1]
    except FileNotFoundError as error:
        raise not_found(path) from error
    except _BAD_PICKLE as error:
        raise WebuiError("UnpicklingError", str(error)) from error
    return (
        {key: _shaped(value) for key, value in content.items()} if isinstance(content, dict) else {}
    )


def _shaped(value: object) -> object:
    if isinstance(value, dict):
        return {key: _shaped(inner) for key, inner in value.items()}
    # torch._utils._rebuild_tensor_v2(storage, offset, size, stride, …)
    if isinstance(value, _Inert) and len(value.arguments) >= 4:
        return value.arguments[2]
    return value
