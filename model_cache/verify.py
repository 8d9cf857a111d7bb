"""Is this file really that model: its digest, and what its header says it is."""

import hashlib
import threading
import time
from collections.abc import Callable
from pathlib import Path

from model_cache import architecture, header
from model_cache.architecture import Nature
from model_cache.disk import disk_errors
from model_cache.models import REPORT_EVERY_S, Progress
from schemas.errors import JobCancelledError, ModelIncompatibleError
from schemas.model_ref import Kind

# Larger reads than this do not hash faster (measured: 1 MiB 1.78 GB/s, 8 MiB 1.77 GB/s).
_CHUNK_BYTES = 1 << 20


def digest(
    path: Path,
    *,
    cancelled: threading.Event,
    progress: Callable[[Progress], None] | None = None,
) -> str:
    """Return the SHA-256 of a file, 64 hex digits; reads all of it.

    `progress` is called at most four times a second, and at the end.

    Raises:
        JobCancelledError: `cancelled` was set.
        VolumeError: the file cannot be read.
    """
    sha256 = hashlib.sha256()
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    done, reported_at = 0, time.monotonic()
    with disk_errors(), path.open("rb", buffering=0) as file:
        total = path.stat().st_size
        while size := file.readinto(buffer):
            if cancelled.is_set():
                raise JobCancelledError("The job was cancelled while a model was checked.")
            sha256.update(buffer[:size])
            done += size
            if progress is not None and time.monotonic() - reported_at > REPORT_EVERY_S:
                reported_at = time.monotonic()
                progress(Progress(done, total))
    if progress is not None:
        progress(Progress(done, done))
    return sha256.hexdigest()


def inspect(path: Path, kind: Kind, called: str) -> Nature:
    """Read the header of the file at `path`, check it, and return what the model is.

    `called` is what messages call the model.

    A file of a kind that we do not recognise passes: new kinds of models appear every month.

    Raises:
        ModelCorruptError: it is damaged or cut off.
        ModelUnsafeError: it is no safetensors file.
        ModelIncompatibleError: it is a model of another kind than `kind`.
        VolumeError: it cannot be read.
    """
    with disk_errors():
        nature = architecture.nature(header.read(path, called))
    if nature.kind not in {None, kind}:
        raise ModelIncompatibleError(
            f"The file of {called!r} is a model of kind {nature.kind}, not {kind}.",
            hint=f"Use it as {nature.kind}.",
            found=str(nature.kind),
        )
    return nature
