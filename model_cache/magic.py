"""What the first bytes of a file tell: that it is something else than a safetensors file."""

import struct

from schemas.errors import ModelUnsafeError

LOOK_BYTES = 512
"""How many first bytes `refuse` wants to see; it takes fewer."""

MAX_HEADER_BYTES = 100_000_000
"""Longest header of a safetensors file. Source: huggingface/safetensors, src/tensor.rs."""

_SIGNATURES = {
    b"PK\x03\x04": "a zip archive, as PyTorch pickles (.ckpt, .pt, .pth, .bin) are",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"\x1f\x8b": "gzip data",
    b"GGUF": "a GGUF file",
    b"\x93NUMPY": "a NumPy file",
    b"version https://git-lfs": "a pointer of Git LFS, not the file that it stands for",
}
# The opcode PROTO, with the protocols that have it. Source: Lib/pickletools.py.
_PICKLES = tuple(b"\x80" + bytes([protocol]) for protocol in range(2, 6))
_BLANK = b"\xef\xbb\xbf \t\r\n"


def refuse(start: bytes) -> None:
    """Raise if `start`, the first bytes of a file, belong to something that we never take.

    What is not recognised passes: whether it is a sound safetensors file, `header.read` tells.

    Raises:
        ModelUnsafeError: it is a pickle, an archive, a web page or a JSON text.
    """
    what = "" if _may_be_safetensors(start) else _named(start)
    if what:
        raise ModelUnsafeError(
            f"What came is {what}; only safetensors files are taken.",
            hint="Use the .safetensors file of this model, by the URL of the file itself.",
        )


def _may_be_safetensors(start: bytes) -> bool:
    if len(start) < 9:
        return False
    (length,) = struct.unpack("<Q", start[:8])
    return bool(length <= MAX_HEADER_BYTES) and start[8:9] == b"{"


def _named(start: bytes) -> str:
    for signature, what in _SIGNATURES.items():
        if start.startswith(signature):
            return what
    if start.startswith(_PICKLES):
        return "a Python pickle, which can run any program"
    text = start.lstrip(_BLANK)
    if text.startswith(b"<"):
        return "a web page or XML text"
    if text.startswith((b"{", b"[")):
        return "a JSON text"
    return ""
