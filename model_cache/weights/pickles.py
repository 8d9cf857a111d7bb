"""Whether a PyTorch pickle looks harmless. A tripwire, no proof.

To load a pickle is to run a small program that may call any function it names. What is here only
reads that program. It lets pass what A1111's own loader would let pass, and nothing else: A1111
1.10.1 checks again when it loads the file, and stays told to (`--disable-safe-unpickle` is never
given). Whoever wants to be sure takes safetensors files.

    zip      <folder>/data.pkl          the program, the only pickle in there
             <folder>/data/0, 1, …      the weights, read as they are
             <folder>/version, byteorder, …
    legacy   magic number | protocol | system | the program | list of weights     five pickles,
             weights                                                              then raw data

Two looks, one after the other: ours, which knows the few functions that weights need, and picklescan's,
which knows many that attacks use. Bounded: at most 8 MiB of a file are read, whatever its size, and
half a million instructions.

Source: pytorch torch/serialization.py, _save and _legacy_save; A1111 1.10.1 modules/safe.py.
"""

import io
import os
import pickletools
import re
import struct
import tarfile
import zipfile
from pathlib import Path

from picklescan.scanner import SafetyLevel, scan_pickle_bytes

from model_cache.weights import magic
from schemas.errors import ModelUnsafeError, shown

_MAX_BYTES = 8 << 20
"""Of programs and of a zip's directory; those of a checkpoint with all its training take 2 MiB."""
_MAX_INSTRUCTIONS = 500_000
_LEGACY_PICKLES = 5

# The number that torch.save writes first. Source: pytorch torch/serialization.py, MAGIC_NUMBER.
_LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."

# Source: A1111 1.10.1 modules/safe.py, allowed_zip_names_re; the last two are of newer PyTorch.
_ENTRY = re.compile(
    r"(?P<folder>[^/]+)/(data\.pkl|data/\d+|version|byteorder|\.data/serialization_id"
    r"|\.format_version|\.storage_alignment)"
)

# Source: A1111 1.10.1 modules/safe.py, RestrictedUnpickler.find_class.
_HARMLESS = frozenset(
    {
        "collections OrderedDict",
        "torch._utils _rebuild_tensor_v2",
        "torch._utils _rebuild_parameter",
        "torch._utils _rebuild_device_tensor_from_numpy",
        "torch FloatStorage",
        "torch HalfStorage",
        "torch IntStorage",
        "torch LongStorage",
        "torch DoubleStorage",
        "torch ByteStorage",
        "torch BFloat16Storage",
        "torch float32",
        "torch.nn.modules.container ParameterDict",
        "numpy.core.multiarray scalar",
        "numpy.core.multiarray _reconstruct",
        "numpy dtype",
        "numpy ndarray",
        "_codecs encode",
        "pytorch_lightning.callbacks model_checkpoint",
        "pytorch_lightning.callbacks.model_checkpoint ModelCheckpoint",
        "__builtin__ set",
    }
)

# Further ways to name a function. torch.save writes protocol 2, which has GLOBAL alone.
_OTHER_IMPORTS = frozenset({"STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"})

# What pickletools, zipfile and picklescan raise on bytes that are something else.
_BROKEN = (
    ValueError,
    LookupError,
    TypeError,
    ArithmeticError,
    EOFError,
    RuntimeError,
    struct.error,
    zipfile.BadZipFile,
)


class _RefusedError(Exception):
    """Why a file is refused, to follow "because"; becomes a `ModelUnsafeError`."""


class _Bounded(io.FileIO):
    """A file that gives `_MAX_BYTES` in all: what claims to be gigabytes is not even tried."""

    left = _MAX_BYTES

    def read(self, size: int | None = -1, /) -> bytes:
        """Read as any file does, or refuse the whole file."""
        if size is None or size < 0:
            size = max(0, os.fstat(self.fileno()).st_size - self.tell())
        if size > self.left:
            raise _RefusedError("what describes its weights is too large")
        data = super().read(size) or b""
        self.left -= len(data)
        return data


def require_harmless(path: Path, called: str) -> None:
    """Raise if the pickle at `path` holds anything but weights, as far as one can see.

    `called` is what messages call the model. Memory: some 200 MiB for the worst file that passes.

    Raises:
        ModelUnsafeError: it names a function that weights do not need, or cannot be read.
        OSError: the disk failed.
    """
    try:
        with _Bounded(path) as file:
            zipped = file.read(len(magic.ZIP)) == magic.ZIP
            for program in _zipped(file) if zipped else _legacy(file):
                _scan(program, called)
    except _RefusedError as refused:
        raise ModelUnsafeError(
            f"The pickle of {called!r} is refused because {refused}.",
            hint="Use a safetensors file of this model.",
        ) from None
    except _BROKEN as error:
        # The text of the error is left out: it may quote what a stranger wrote.
        raise ModelUnsafeError(
            f"The file of {called!r} is no PyTorch pickle that can be read and checked.",
            hint="It may be damaged. Use a safetensors file of this model.",
        ) from error


def _zipped(file: _Bounded) -> list[bytes]:
    """Return the one program, looked at, of a zip that is as torch.save writes it."""
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if archive.comment or min(entry.header_offset for entry in entries) != 0:
            raise _RefusedError("something is put before or after the zip archive")
        folders = {_folder(entry) for entry in entries}
        names = {entry.filename for entry in entries}
        if len(folders) != 1 or len(names) != len(entries):
            raise _RefusedError("it holds several folders or files of one name")
        return [_program(io.BytesIO(archive.read(f"{folders.pop()}/data.pkl")))]


def _folder(entry: zipfile.ZipInfo) -> str:
    match = _ENTRY.fullmatch(entry.filename)
    if match is None or entry.orig_filename != entry.filename:
        raise _RefusedError(f"it holds {shown(entry.orig_filename)}, which no model has")
    # torch.save neither packs nor encrypts; small things that unpack to large ones end here too.
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
        raise _RefusedError(f"{shown(entry.filename)} in it is packed or encrypted")
    return match["folder"]


def _legacy(file: _Bounded) -> list[bytes]:
    """Return the five pickles, looked at, of a file from before PyTorch 1.6."""
    file.seek(0)
    # PyTorch tries this before all else, and it has its pickles elsewhere.
    if tarfile.is_tarfile(file):
        raise _RefusedError("it can be read as a tar archive as well")
    file.seek(0)
    data = io.BytesIO(file.read(min(file.left, os.fstat(file.fileno()).st_size)))
    programs = [_program(data) for _ in range(_LEGACY_PICKLES)]
    if programs[0] != _LEGACY_MAGIC:
        raise _RefusedError("it does not begin as torch.save begins a file")
    return programs


def _program(data: io.BytesIO) -> bytes:
    """Take one pickle from `data` and return its bytes, if all that it names is harmless."""
    begin = data.tell()
    for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        if count > _MAX_INSTRUCTIONS:
            raise _RefusedError(f"it has more than {_MAX_INSTRUCTIONS} instructions")
        if opcode.name in _OTHER_IMPORTS:
            raise _RefusedError(f"it names functions by {opcode.name}, which torch.save does not")
        if opcode.name == "GLOBAL" and argument not in _HARMLESS:
            name = shown(str(argument).replace(" ", "."))
            raise _RefusedError(f"it names {name}, which weights do not need")
    return data.getvalue()[begin : data.tell()]


def _scan(program: bytes, called: str) -> None:
    """Have picklescan look at one pickle.

    It gets the bytes alone: given a file it would take in whole whatever in there begins as a pickle
    does. Source: picklescan 1.0.5, scanner.py, scan_zip_bytes and _list_globals.
    """
    result = scan_pickle_bytes(io.BytesIO(program), called)
    found = [
        f"{found.module}.{found.name}"
        for found in result.globals
        if found.safety is SafetyLevel.Dangerous
    ]
    if found or result.scan_err or not result.scanned_files:
        what = f"finds {shown(', '.join(found))} dangerous" if found else "cannot read it"
        raise _RefusedError(f"picklescan {what}")
