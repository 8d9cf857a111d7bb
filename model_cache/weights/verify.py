"""Is this file really that model: its digests, and what its bytes say it is."""

import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path

from model_cache.models import REPORT_EVERY_S, Progress
from model_cache.volume.disk import disk_errors
from model_cache.weights import architecture, header, magic, pickles
from model_cache.weights.architecture import Nature
from model_cache.weights.digests import AUTOV3_DIGITS, Digests
from schemas.errors import (
    JobCancelledError,
    ModelCorruptError,
    ModelIncompatibleError,
    ModelUnsafeError,
)
from schemas.model_ref import PICKLE_SUFFIXES, SUFFIX, HashForm, Kind, hash_form

# Of a header, while the file is on its way: it is in memory. The longest that are known have 2 MB.
_MOST_LOOKED_AT = 8 << 20
# Larger reads than this do not hash faster (measured: 1 MiB 1.78 GB/s, 8 MiB 1.77 GB/s).
_CHUNK_BYTES = 1 << 20
_HASH_NAMES = {
    HashForm.SHA256: "SHA-256",
    HashForm.AUTOV2: "AutoV2",
    HashForm.AUTOV3: "AutoV3",
}


def digest(
    path: Path,
    *,
    cancelled: threading.Event,
    progress: Callable[[Progress], None] | None = None,
) -> str:
    """Return the SHA-256 of a file, 64 hex digits; see `digests`."""
    return digests(path, autov3=False, cancelled=cancelled, progress=progress).sha256


def digests(
    path: Path,
    *,
    autov3: bool,
    cancelled: threading.Event,
    progress: Callable[[Progress], None] | None = None,
) -> Digests:
    """Return the digests of a file, with its AutoV3 if that is asked for; reads all of it once.

    `progress` is called at most four times a second, and at the end.

    Raises:
        JobCancelledError: `cancelled` was set.
        VolumeError: the file cannot be read.
    """
    known = Digests(autov3=autov3)
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    done, reported_at = 0, time.monotonic()
    with disk_errors(), path.open("rb", buffering=0) as file:
        total = path.stat().st_size
        while size := file.readinto(buffer):
            if cancelled.is_set():
                raise JobCancelledError("The job was cancelled while a model was checked.")
            known.update(buffer[:size])
            done += size
            if progress is not None and time.monotonic() - reported_at > REPORT_EVERY_S:
                reported_at = time.monotonic()
                progress(Progress(done, total))
    if progress is not None:
        progress(Progress(done, done))
    return known


def matches(expected: str, sha256: str, autov3: str) -> bool:
    """Tell whether a file with these digests has the hash `expected`, in whichever form.

    Of 12 digits, the start of the SHA-256 will do as well: A1111 lists that for a LoRA that is a
    pickle. Source: A1111 1.10.1, extensions-builtin/Lora/network.py, NetworkOnDisk.
    """
    match hash_form(expected):
        case HashForm.SHA256:
            return sha256 == expected
        case HashForm.AUTOV2:
            return sha256.startswith(expected)
        case HashForm.AUTOV3:
            return expected in {autov3, sha256[:AUTOV3_DIGITS]}


def require_hash(expected: str, sha256: str, autov3: str, called: str) -> HashForm:
    """Return which check was made of a file with these digests; `called` is for messages.

    Raises:
        ModelCorruptError: the file does not have the hash `expected`.
    """
    form = hash_form(expected)
    if not matches(expected, sha256, autov3):
        actual = {HashForm.SHA256: sha256, HashForm.AUTOV2: sha256[: len(expected)]}.get(
            form, autov3 or sha256[:AUTOV3_DIGITS]
        )
        raise ModelCorruptError(
            f"The file of {called!r} has the {_HASH_NAMES[form]} {actual}, not {expected}.",
            hint="The file was replaced at its source, or the hash is wrong.",
            expected=expected,
            actual=actual,
        )
    return form


def look(start: bytes, kind: Kind, called: str, *, allow_pickle: Collection[Kind] = ()) -> int:
    """Judge a file that is still on its way by its first bytes; see `Watch.look` for what returns.

    What passes is not proven to be anything: `inspect` has the last word.

    Raises:
        ModelCorruptError, ModelUnsafeError, ModelIncompatibleError: as `inspect` raises them.
    """
    magic.refuse(start, pickle_allowed=kind in allow_pickle)
    if len(start) < magic.LOOK_BYTES or magic.is_pickle(start):
        return 0
    end = header.end(start, called)
    if len(start) < end <= _MOST_LOOKED_AT:
        return end
    if end <= len(start):
        _require_kind(architecture.nature(header.of_start(start[:end], called)), kind, called)
    return 0


def inspect(path: Path, kind: Kind, called: str, *, allow_pickle: Collection[Kind] = ()) -> Nature:
    """Tell what the model in the file at `path` is, by its bytes, and check what can be checked.

    `called` is what messages call the model; `allow_pickle` are the kinds whose pickles are taken.

    A file of a kind that we do not recognise passes: new kinds of models appear every month, and a
    pickle tells nothing. Suffix and bytes must agree, as A1111 goes by the suffix; a file that has
    neither suffix, as while it is fetched, may be either.

    Raises:
        ModelCorruptError: it is damaged or cut off, or a safetensors file that is called a pickle.
        ModelUnsafeError: it is something else, a pickle that is not allowed, or one with a program.
        ModelIncompatibleError: it is a model of another kind than `kind`.
        VolumeError: it cannot be read.
    """
    with disk_errors():
        with path.open("rb", buffering=0) as file:
            start = file.read(magic.LOOK_BYTES) or b""
        if magic.is_pickle(start):
            _require_allowed(path, kind, called, allow_pickle)
            pickles.require_harmless(path, called)
            return Nature(None, "unknown", "", pickle=True)
        nature = architecture.nature(header.read(path, called))
    if path.suffix in PICKLE_SUFFIXES:
        raise ModelCorruptError(
            f"The file of {called!r} is a safetensors file, and is called {path.suffix}.",
            hint=f"Rename it to {path.stem}{SUFFIX}.",
        )
    _require_kind(nature, kind, called)
    return nature


def _require_kind(nature: Nature, kind: Kind, called: str) -> None:
    if nature.kind not in {None, kind}:
        raise ModelIncompatibleError(
            f"The file of {called!r} is a model of kind {nature.kind}, not {kind}.",
            hint=f"Use it as {nature.kind}.",
            found=str(nature.kind),
        )


def _require_allowed(path: Path, kind: Kind, called: str, allow_pickle: Collection[Kind]) -> None:
    if path.suffix == SUFFIX:
        raise ModelUnsafeError(
            f"The file of {called!r} is a zip archive or a Python pickle that is called {SUFFIX}.",
            hint="Delete it: whoever named it so meant to have its program run.",
        )
    if kind not in allow_pickle:
        raise ModelUnsafeError(
            f"The file of {called!r} is a zip archive or a Python pickle, which can run any program;"
            f" of kind {kind} only safetensors files are taken.",
            hint="Use its .safetensors file, or name the kind in A1111_CACHE_ALLOW_PICKLE.",
        )
