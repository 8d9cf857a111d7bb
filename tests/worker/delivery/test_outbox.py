"""Pictures on the volume, where somebody else writes, too."""

from pathlib import Path
from threading import Event

import pytest

from schemas.errors import VolumeError
from worker.delivery.outbox import Outbox

FILES = [("team/job/0.png", b"first"), ("team/job/1.png", b"second")]


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    (tmp_path / "disk").mkdir()
    (tmp_path / "elsewhere" / "job").mkdir(parents=True)
    # Where the volume is mounted may be a link: that is the operator's.
    (tmp_path / "volume").symlink_to(tmp_path / "disk")
    return tmp_path / "volume"


def test_pictures_are_put_where_they_are_said_to_be(volume: Path) -> None:
    paths = Outbox(volume, "outputs/all").put(FILES, Event())

    assert paths == [volume / "outputs" / "all" / name for name, _ in FILES]
    assert [path.read_bytes() for path in paths] == [b"first", b"second"]
    assert sorted(path.name for path in paths[0].parent.iterdir()) == ["0.png", "1.png"]


@pytest.mark.parametrize("place", ["outputs", "outputs/team", "outputs/team/job"])
def test_no_link_on_the_volume_leads_a_picture_elsewhere(volume: Path, place: str) -> None:
    elsewhere = volume.parent / "elsewhere"
    (volume / place).parent.mkdir(parents=True, exist_ok=True)
    (volume / place).symlink_to(elsewhere, target_is_directory=True)

    with pytest.raises(VolumeError, match=f"`{place}` on the volume is no folder"):
        Outbox(volume, "outputs").put(FILES, Event())

    assert [path for path in elsewhere.rglob("*") if path.is_file()] == []


def test_a_link_in_the_place_of_a_picture_is_replaced(volume: Path) -> None:
    secret = volume.parent / "elsewhere" / "secret"
    secret.write_bytes(b"not to be written")
    (volume / "outputs/team/job").mkdir(parents=True)
    (volume / "outputs/team/job/0.png").symlink_to(secret)

    paths = Outbox(volume, "outputs").put(FILES, Event())

    assert secret.read_bytes() == b"not to be written"
    assert not paths[0].is_symlink()
    assert paths[0].read_bytes() == b"first"


def test_if_one_cannot_be_written_nothing_has_changed(volume: Path) -> None:
    (volume / "outputs/team/job/1.png").mkdir(parents=True)

    with pytest.raises(VolumeError):
        Outbox(volume, "outputs").put([FILES[1]], Event())

    assert [path for path in volume.rglob("*") if path.is_file()] == []
