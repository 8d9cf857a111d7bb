import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_cache.engine import partial
from model_cache.engine.partial import Part, private_part
from model_cache.volume import layout
from model_cache.volume.publish import PartLostError
from schemas.errors import (
    DownloadIncompleteError,
    InvalidInputError,
    ModelCorruptError,
    ModelIncompatibleError,
    ModelUnsafeError,
    VolumeFullError,
    VolumeMissingError,
    WorkerError,
)

ETAG = '"a"'


def names(volume: Path) -> list[str]:
    return sorted(path.suffix for path in layout.tmp_folder(volume).iterdir())


def begun(volume: Path, key: str = "ab", etag: str = ETAG) -> Part:
    """Return a part of 100 bytes of which the first ten are there."""
    part = Part(volume, key)
    part.begin(100, etag)
    part.write(0, memoryview(b"0123456789"))
    part.save([(0, 10)])
    return part


def test_a_part_has_its_size_from_the_start_and_no_more_room_than_it_needs(volume: Path) -> None:
    part = Part(volume, "ab")

    part.begin(10**9, ETAG)

    status = part.path.stat()
    assert (status.st_size, status.st_blocks) == (10**9, 0)
    part.delete()


def test_a_success_leaves_nothing_of_anybody_under_its_key(volume: Path) -> None:
    begun(volume).close()
    begun(volume, key="cd").close()

    with private_part(volume, "ab") as part:
        part.seal()

    assert {path.name.partition(".")[0] for path in layout.tmp_folder(volume).iterdir()} == {"cd"}


def fail(volume: Path, error: BaseException, *, saved: bool) -> None:
    with private_part(volume, "ab") as part:
        part.begin(100, ETAG)
        part.write(0, memoryview(b"0123456789"))
        if saved:
            part.save([(0, 10)])
        raise error


@pytest.mark.parametrize(
    ("error", "saved", "left"),
    [
        (DownloadIncompleteError("x"), True, [".json", ".part"]),
        (DownloadIncompleteError("x"), False, []),
        (ModelCorruptError("x"), True, []),
        (VolumeFullError("x"), True, []),
        (InvalidInputError("x"), True, []),
        (PartLostError("x"), True, []),
        (KeyboardInterrupt(), True, []),
    ],
)
def test_what_another_try_can_use_is_left_and_nothing_else(
    volume: Path, error: BaseException, *, saved: bool, left: list[str]
) -> None:
    with pytest.raises(type(error)):
        fail(volume, error, saved=saved)

    assert names(volume) == left


@pytest.mark.parametrize(
    "error", [ModelCorruptError, ModelIncompatibleError, ModelUnsafeError], ids=lambda e: e.code
)
def test_what_was_copied_into_a_file_that_is_refused_goes_with_it(
    volume: Path, error: type[WorkerError]
) -> None:
    used, unused = begun(volume), begun(volume)
    for left in (used, unused):
        left.close()

    def copy_and_refuse() -> None:
        with private_part(volume, "ab") as part:
            part.used = [left for left in part.leftovers() if left.path == used.path]
            raise error("x")

    with pytest.raises(error):
        copy_and_refuse()

    assert {path.stem for path in layout.tmp_folder(volume).iterdir()} == {unused.path.stem}


def test_what_was_left_is_found_with_what_its_journal_says(volume: Path) -> None:
    left = begun(volume)
    left.close()
    begun(volume, key="cd").close()

    with private_part(volume, "ab") as part:
        (found,) = part.leftovers()

    assert (found.path, found.etag, found.size) == (left.path, ETAG, 100)
    assert [*found.done] == [(0, 10)]


def test_without_a_strong_etag_nothing_is_noted(volume: Path) -> None:
    part = begun(volume, etag="")

    assert names(volume) == [".part"]
    part.close()
    assert names(volume) == []


def test_to_start_over_is_to_begin_another_file(volume: Path) -> None:
    part = begun(volume)
    before = part.path

    part.start_over()

    assert part.path != before
    assert names(volume) == [".part"]
    assert part.path.stat().st_size == 0
    part.delete()


@pytest.mark.parametrize("journal", [b"", b"{", b"[]", b"null", b'{"version": 1}', b"9" * 5000])
def test_a_damaged_journal_is_of_no_use_and_no_harm(volume: Path, journal: bytes) -> None:
    left = begun(volume)
    left.path.with_suffix(".json").write_bytes(journal)

    with private_part(volume, "ab") as part:
        assert part.leftovers() == []
    left.delete()


@pytest.mark.parametrize(
    "wrong",
    [
        {"version": 2},
        {"etag": ""},
        {"size": 99},
        {"size": "100"},
        {"done": [[0, 101]]},
        {"done": [[5, 5]]},
        {"done": [[-1, 5]]},
        {"done": [[1, 2, 3]]},
        {"done": 7},
    ],
)
def test_a_journal_that_does_not_add_up_is_not_believed(volume: Path, wrong: Any) -> None:
    left = begun(volume)
    path = left.path.with_suffix(".json")
    path.write_text(json.dumps(json.loads(path.read_text()) | wrong))

    with private_part(volume, "ab") as part:
        assert part.leftovers() == []
    left.delete()


def test_a_journal_without_its_part_is_of_no_use(volume: Path) -> None:
    left = begun(volume)
    left.path.unlink()

    with private_part(volume, "ab") as part:
        assert part.leftovers() == []
    left.delete()


@pytest.mark.parametrize("replaced", [False, True])
def test_a_part_that_somebody_deleted_is_noticed(volume: Path, *, replaced: bool) -> None:
    part = begun(volume)
    part.path.unlink()
    if replaced:
        part.path.write_bytes(b"another file")

    with pytest.raises(PartLostError):
        part.save([(0, 10)])
    with pytest.raises(PartLostError):
        part.seal()
    part.delete()


def refusing(number: int) -> Any:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return refuse


def written(part: Part) -> None:
    part.begin(100, ETAG)
    part.write(0, memoryview(b"0123456789"))
    part.save([(0, 10)])
    part.seal()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize("call", ["ftruncate", "pwrite", "fdatasync", "fsync", "close"])
def test_a_full_disk_is_told_as_such_wherever_it_shows(
    volume: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    part, real = Part(volume, "ab"), os.close
    handle = part._fd

    with monkeypatch.context() as patched:
        patched.setattr(os, call, refusing(number))
        with pytest.raises(VolumeFullError):
            written(part)

    if call == "close":
        real(handle)
    part.delete()
    assert names(volume) == []


def test_without_a_volume_there_is_no_part(tmp_path: Path) -> None:
    with pytest.raises(VolumeMissingError), private_part(tmp_path / "none", "ab"):
        pass

    assert not (tmp_path / "none").exists()


@given(st.text())
def test_a_key_can_be_made_of_any_source(source: str) -> None:
    key = partial.key_of(source)

    assert len(key) == 16
    assert int(key, 16) >= 0


def test_errors_of_the_disk_are_ours(volume: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = begun(volume)
    monkeypatch.setattr(os, "preadv", refusing(errno.EIO))

    with pytest.raises(WorkerError, match="Input/output error"):
        part.read(0, memoryview(bytearray(5)))
    part.delete()
