"""What the operating system says about the volume, in our errors."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from schemas.errors import VolumeBusyError, VolumeError, VolumeFullError, VolumeMissingError

# A network volume reports its quota as EDQUOT, and often only at fsync or close.
# Source: errno(3); RunPod's "[Errno 122] Disk quota exceeded", Comfy-Org/ComfyUI issue 8932.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_BUSY = {errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ETIMEDOUT}


def volume_error(error: OSError) -> VolumeError:
    """Return our error for what the disk said."""
    said = error.strerror or type(error).__name__
    if error.errno in _FULL:
        return VolumeFullError(
            f"The volume has no room left: {said}.",
            hint="Delete models that are not needed, or use a larger volume.",
        )
    if error.errno in _BUSY:
        return VolumeBusyError(f"The volume did not answer in time: {said}.", hint="Try again.")
    return VolumeMissingError(
        f"The volume cannot be used: {said}.",
        hint="Check that the network volume is attached to the endpoint and can be written to.",
    )


# What was mounted where when this process started, by device number.
_devices: dict[Path, int] = {}


@contextmanager
def disk_errors() -> Iterator[None]:
    """Raise a `VolumeError` in place of an `OSError` from the lines inside.

    Use it around work on the volume alone: what a socket raises is an `OSError` too.
    """
    try:
        yield
    except OSError as error:
        raise volume_error(error) from error


def remember_volume(volume: Path) -> None:
    """From now on take `volume` for missing if another file system is at that place.

    A mount that went leaves an empty folder on the container's own disk, which would fill in silence.
    Does nothing if there is no such folder.
    """
    with suppress(OSError):
        _devices[volume] = volume.stat().st_dev


def require_volume(volume: Path) -> None:
    """Raise `VolumeMissingError` if there is no folder `volume`; it is a mount point, not ours.

    Raises:
        VolumeError: also if the disk does not tell.
    """
    with disk_errors():
        is_there = volume.is_dir()
        kept = _devices.get(volume)
        is_another = is_there and kept is not None and volume.stat().st_dev != kept
    if is_another:
        raise VolumeMissingError(
            f"The volume at {volume} was taken away while the worker ran.",
            hint="Attach the network volume to the endpoint again, and start a new worker.",
        )
    if not is_there:
        raise VolumeMissingError(
            f"There is no folder {volume}.",
            hint="Attach a network volume to the endpoint, or set A1111_CACHE_VOLUME.",
        )
