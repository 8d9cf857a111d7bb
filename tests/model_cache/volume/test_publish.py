import errno
import os
from pathlib import Path

import pytest

from model_cache.volume import layout, publish
from schemas.errors import VolumeError, VolumeMissingError


def parts(volume: Path) -> list[Path]:
    return sorted(layout.tmp_folder(volume).iterdir())


def written(volume: Path, content: bytes, final: Path) -> bool:
    """Write and publish `content`; tell whether it got the name."""
    with publish.private_file(volume) as part:
        part.file.write(content)
        assert not final.exists() or final.read_bytes() != content
        part.seal()
        return publish.place(part.path, final)


def test_a_file_is_seen_when_it_is_whole(volume: Path) -> None:
    final = volume / "models" / "loras" / "m.safetensors"

    assert written(volume, b"weights", final)

    assert final.read_bytes() == b"weights"
    assert parts(volume) == []
    assert final.stat().st_nlink == 1


def test_a_name_that_is_taken_is_left_alone(volume: Path) -> None:
    final = volume / "m.safetensors"
    final.write_bytes(b"theirs")

    assert not written(volume, b"ours", final)

    assert final.read_bytes() == b"theirs"
    assert parts(volume) == []


def broken_off(volume: Path) -> None:
    with publish.private_file(volume) as part:
        part.file.write(b"half")
        raise InterruptedError


def test_a_failure_leaves_nothing(volume: Path) -> None:
    with pytest.raises(InterruptedError):
        broken_off(volume)

    assert parts(volume) == []


def test_two_private_files_never_meet(volume: Path) -> None:
    with publish.private_file(volume) as one, publish.private_file(volume) as other:
        assert one.path != other.path


def test_without_a_volume_there_is_no_private_file(tmp_path: Path) -> None:
    with (
        pytest.raises(VolumeMissingError, match="no folder"),
        publish.private_file(tmp_path / "none"),
    ):
        pass

    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_where_there_are_no_hard_links_a_rename_does_it(
    volume: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    final = volume / "m.safetensors"

    first, second = written(volume, b"first", final), written(volume, b"second", final)

    assert (first, second) == (True, False)
    assert final.read_bytes() == b"first"
    assert parts(volume) == []


def test_another_refusal_of_the_disk_is_an_error(
    volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "link", refuse)

    with pytest.raises(VolumeError, match="Input/output error"):
        written(volume, b"x", volume / "m.safetensors")

    assert parts(volume) == []


def test_a_second_name_shares_the_bytes(volume: Path) -> None:
    existing, final = volume / "a", volume / "folder" / "b"
    existing.write_bytes(b"weights")

    assert publish.second_name(existing, final)

    assert final.stat().st_ino == existing.stat().st_ino


def test_a_second_name_of_a_symbolic_link_is_one_of_the_file(volume: Path) -> None:
    (volume / "a").write_bytes(b"weights")
    (volume / "link").symlink_to("a")

    assert publish.second_name(volume / "link", volume / "b")

    assert not (volume / "b").is_symlink()


def test_a_second_name_that_is_taken_is_not_given(volume: Path) -> None:
    (volume / "a").write_bytes(b"a")
    (volume / "b").write_bytes(b"b")

    assert not publish.second_name(volume / "a", volume / "b")

    assert (volume / "b").read_bytes() == b"b"


def test_a_part_that_somebody_deleted_is_told_from_a_refusal_of_the_disk(volume: Path) -> None:
    with pytest.raises(publish.PartLostError):
        publish.place(volume / "gone.part", volume / "m.safetensors")

    assert not (volume / "m.safetensors").exists()
