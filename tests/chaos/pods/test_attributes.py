"""What a host sees late is what others changed, and nothing else."""

import os
from pathlib import Path

from tests.chaos.attributes import Attributes


def test_of_a_file_that_others_change_old_attributes_are_seen_and_of_another_file_its_own(
    tmp_path: Path,
) -> None:
    path, new = tmp_path / "x", tmp_path / "new"
    path.write_bytes(b"x")
    seen = Attributes(tmp_path, late_s=60)
    assert seen.stat(os.stat, path).st_size == 1

    path.write_bytes(b"long")
    assert seen.stat(os.stat, path).st_size == 1
    assert seen.late == 1

    new.write_bytes(b"longer")
    new.replace(path)
    assert seen.stat(os.stat, path).st_size == 6


def test_what_a_process_changes_itself_it_sees_at_once(tmp_path: Path) -> None:
    path, own = tmp_path / "x", tmp_path / "own"
    path.write_bytes(b"x")
    seen = Attributes(tmp_path, late_s=60)
    seen.stat(os.stat, path)

    os.utime(path, (1, 1))
    seen.hear("os.utime", (str(path), None, None, -1))
    assert seen.stat(os.stat, path).st_mtime == 1

    seen.hear("open", (str(own), "wb", os.O_WRONLY | os.O_CREAT))
    for text in (b"a", b"longer"):
        own.write_bytes(text)
        assert seen.stat(os.stat, own).st_size == len(text)
