import errno
import os

import pytest

from model_cache.disk import disk_errors
from schemas.errors import VolumeBusyError, VolumeError, VolumeFullError, VolumeMissingError


@pytest.mark.parametrize(
    ("number", "error"),
    [
        (errno.ENOSPC, VolumeFullError),
        (errno.EDQUOT, VolumeFullError),
        (errno.EBUSY, VolumeBusyError),
        (errno.ETIMEDOUT, VolumeBusyError),
        (errno.EROFS, VolumeMissingError),
        (errno.EIO, VolumeMissingError),
        (errno.ENOTCONN, VolumeMissingError),
        (errno.ESTALE, VolumeMissingError),
        (errno.EACCES, VolumeMissingError),
    ],
)
def test_what_the_disk_says_becomes_our_error(number: int, error: type[VolumeError]) -> None:
    with pytest.raises(error, match=os.strerror(number)) as caught, disk_errors():
        raise OSError(number, os.strerror(number), "/secret/path")

    assert "/secret/path" not in str(caught.value.as_response())


def test_other_errors_pass() -> None:
    with pytest.raises(KeyError), disk_errors():
        raise KeyError
