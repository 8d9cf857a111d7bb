"""What the first bytes of a file tell: that it is something else than a model file."""

import struct

from schemas.errors import ModelUnsafeError

LOOK_BYTES = 512
"""How many first bytes `refuse` wants to see; it takes fewer."""

MAX_HEADER_BYTES = 100_000_000
"""Longest header of a safetensors file. Source: huggingface/safetensors, src/tensor.rs."""

ZIP = b"PK\x03\x04"

_SIGNATURES = {
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"\x1f\x8b": "gzip data",
    b"GGUF": "a GGUF file",
    b"\x93NUMPY": "a NumPy file",
    b"version https://git-lfs": "a pointer of Git LFS, not the file that it stands for",
}
_PICKLES = {ZIP: "a zip archive, as PyTorch pickles (.ckpt, .pt, .pth, .bin) are"} | {
    # The opcode PROTO, with the protocols that have it. Source: Lib/pickletools.py.
    b"\x80" + bytes([protocol]): "a Python pickle, which can run any program"
    for protocol in range(2, 6)
}
_BLANK = b"\xef\xbb\xbf \t\r\n"


def refuse(start: bytes, *, pickle_allowed: bool = False) -> None:
    """Raise if `start`, the first bytes of a file, belong to something that we never take.

    What is not recognised passes: whether it is a sound model file, `verify.inspect` tells. With
    `pickle_allowed` what may be a PyTorch pickle passes too.

    Raises:
        ModelUnsafeError: it is a pickle, an archive, a web page or a JSON text.
    """
    if _may_be_safetensors(start) or (pickle_allowed and is_pickle(start)):
        return
    if what := _named(start):
        taken = "only safetensors files and PyTorch pickles are" if pickle_allowed else ""
        raise ModelUnsafeError(
            f"What came is {what}; {taken or 'only safetensors files are'} taken.",
            hint="Use the .safetensors file of this model, by the URL of the file itself.",
        )


def is_pickle(start: bytes) -> bool:
    """Tell whether `start`, the first bytes of a file, are those of a pickle or a zip of one."""
    return not _may_be_safetensors(start) and start.startswith(tuple(_PICKLES))


def _may_be_safetensors(start: bytes) -> bool:
    if len(start) < 9:
        return False
    (length,) = struct.unpack("<Q", start[:8])
    return bool(length <= MAX_HEADER_BYTES) and start[8:9] == b"{"


def _named(start: bytes) -> str:
    for signature, what in (_SIGNATURES | _PICKLES).items():
        if start.startswith(signature):
            return what
    text = start.lstrip(_BLANK)
    if text.startswith(b"<"):
        return "a web page or XML text"
    if text.startswith((b"{", b"[")):
        return "a JSON text"
    return ""
