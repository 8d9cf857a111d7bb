import errno
import os
from pathlib import Path

import pytest

from model_cache.cache import ModelCache
from model_cache.volume import disk, publish
from model_cache.volume.disk import disk_errors, remember_volume, require_volume
from schemas.errors import VolumeBusyError, VolumeError, VolumeFullError, VolumeMissingError
from tests.model_cache.conftest import settings_for


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


@pytest.mark.parametrize("number", [errno.ESTALE, errno.ENOTCONN, errno.EIO])
def test_a_volume_that_does_not_answer_is_our_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def stale(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "stat", stale)

    with pytest.raises(VolumeMissingError, match=os.strerror(number)):
        require_volume(tmp_path)


def test_a_volume_whose_mount_went_is_missing_and_the_disk_below_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_volume(tmp_path)
    remember_volume(tmp_path)
    require_volume(tmp_path)

    # As it looks when the mount is gone: the folder is there, on another file system.
    monkeypatch.setitem(disk._devices, tmp_path, tmp_path.stat().st_dev + 1)

    with pytest.raises(VolumeMissingError, match="taken away while the worker ran"):
        require_volume(tmp_path)
    with (
        pytest.raises(VolumeMissingError, match="taken away"),
        publish.private_file(tmp_path),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_volume_that_was_never_there_is_not_remembered(tmp_path: Path) -> None:
    remember_volume(tmp_path / "none")

    (tmp_path / "none").mkdir()

    require_volume(tmp_path / "none")


@pytest.mark.parametrize("required", [True, False])
def test_a_store_remembers_a_volume_that_is_required(tmp_path: Path, *, required: bool) -> None:
    ModelCache(settings_for(tmp_path, require_volume=required))

    assert (tmp_path in disk._devices) is required
