"""The digests that a model file is known by, of bytes that come in order. Touches no disk.

    AutoV1   8 hex digits: SHA-256 of 64 KiB at offset 1 MiB; says too little, and is not taken here
    AutoV2   the first 10 of the SHA-256 of the file: what A1111 calls its short hash
    AutoV3   the first 12 of the SHA-256 of what follows the header of a safetensors file

Source: A1111 1.10.1, modules/hashes.py, addnet_hash_safetensors, and
extensions-builtin/Lora/network.py, NetworkOnDisk.set_hash; the names are Civitai's.
"""

import hashlib
import struct

SHORT_DIGITS = 10
"""Digits of A1111's short hash, the one in a title, which Civitai calls AutoV2."""
AUTOV3_DIGITS = 12

_LENGTH_BYTES = 8


class Digests:
    """Takes the bytes of one file in order, and knows its digests so far."""

    def __init__(self, *, autov3: bool = False) -> None:
        """Begin; with `autov3` a second hash of the weights is kept, which costs as much again."""
        self._whole = hashlib.sha256()
        self._weights = hashlib.sha256() if autov3 else None
        self._length = b""
        self._to_skip = 0

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next bytes of the file."""
        self._whole.update(data)
        if self._weights is not None:
            self._weights.update(self._after_header(memoryview(data).cast("B")))

    def _after_header(self, data: memoryview) -> memoryview:
        """Return the part of the next bytes that does not belong to the header."""
        missing = _LENGTH_BYTES - len(self._length)
        if missing:
            self._length += data[:missing]
            if len(self._length) == _LENGTH_BYTES:
                (self._to_skip,) = struct.unpack("<Q", self._length)
            data = data[missing:]
        skipped = min(self._to_skip, len(data))
        self._to_skip -= skipped
        return data[skipped:]

    @property
    def sha256(self) -> str:
        """SHA-256 of the bytes so far, 64 hex digits."""
        return self._whole.hexdigest()

    @property
    def autov3(self) -> str:
        """12 hex digits, right for a safetensors file only; empty if it was not asked for."""
        return "" if self._weights is None else self._weights.hexdigest()[:AUTOV3_DIGITS]
