import errno
import os
from pathlib import Path

import pytest

from model_cache.sharing import note


def refuse(*_: object) -> None:
    raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))


def test_a_note_is_a_file_that_says_its_text(tmp_path: Path) -> None:
    path = tmp_path / "note"

    note.write(path, '{"a": 1}')

    assert not path.is_symlink()
    assert note.read(path, 100) == ('{"a": 1}', path.stat().st_mtime_ns)
    assert note.read(path, 3)[0] == '{"a'


def test_where_no_byte_can_be_written_a_link_says_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "write_text", refuse)
    path, other = tmp_path / "note", tmp_path / "other"

    note.write(path, '{"a": "b/c"}')

    assert note.read(path, 100) == ('{"a": "b/c"}', path.lstat().st_mtime_ns)
    os.link(path, other)
    assert note.read(other, 100)[0] == '{"a": "b/c"}'


def test_what_is_too_long_for_a_link_is_refused_as_the_disk_refused_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "write_text", refuse)

    with pytest.raises(OSError, match="quota"):
        note.write(tmp_path / "note", "x" * 4096)

    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_not_full_but_broken_is_given_no_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Path, "write_text", broken)

    with pytest.raises(OSError, match="Input/output"):
        note.write(tmp_path / "note", "x")

    assert list(tmp_path.iterdir()) == []
