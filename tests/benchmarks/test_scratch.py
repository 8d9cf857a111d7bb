from pathlib import Path

import pytest

from benchmarks.scratch import file_system_of, scratch

MOUNTS = """\
/dev/vda / ext4 rw 0 0
tmpfs /dev/shm tmpfs rw 0 0
tmpfs /mnt/with\\040space tmpfs rw 0 0
mfs#host /mnt/volume fuse.mfs rw 0 0
/dev/vdb /mnt/volume xfs rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        pytest.param("/home/a", "ext4", id="the root"),
        pytest.param("/dev/shm/a/b", "tmpfs", id="a mount below it"),
        pytest.param("/dev/shmoo", "ext4", id="a name that only begins alike"),
        pytest.param("/mnt/with space/a", "tmpfs", id="a place with a space"),
        pytest.param("/mnt/volume/models", "xfs", id="the last of two on one place"),
    ],
)
def test_the_file_system_is_that_of_the_nearest_mount(path: str, kind: str) -> None:
    assert file_system_of(Path(path), MOUNTS) == kind


def test_without_mounts_the_file_system_is_unknown() -> None:
    assert file_system_of(Path("/a"), "") == "unknown"


def test_a_scratch_folder_is_where_it_is_wanted_and_goes_with_all_in_it(tmp_path: Path) -> None:
    with scratch(1 << 60, tmp_path) as place:
        (place.path / "large").write_bytes(b"1")

        assert place.path.parent == tmp_path.resolve()
        assert place.file_system != "unknown"

    assert list(tmp_path.iterdir()) == []


def test_what_memory_has_no_room_for_goes_to_the_disk() -> None:
    with scratch(1 << 60) as place:
        assert not place.path.is_relative_to("/dev/shm")
