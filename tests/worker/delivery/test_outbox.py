"""Pictures on the volume, where somebody else writes, too."""

from collections.abc import Callable
from pathlib import Path
from threading import Event

import pytest

from schemas.errors import JobCancelledError, VolumeError
from worker.delivery.outbox import Outbox

FILES = [("team/job/0.png", b"first"), ("team/job/1.png", b"second")]
# At the last look the first has its name.
LOOKS = 2 * len(FILES)


class Meanwhile(Event):
    """Asked whether the job was cancelled for the last time, does what somebody else might."""

    def __init__(self, work: Callable[["Meanwhile"], object]) -> None:
        super().__init__()
        self._work = work
        self._looks = 0

    def is_set(self) -> bool:
        self._looks += 1
        if self._looks == LOOKS:
            self._work(self)
        return super().is_set()


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


@pytest.fixture
def job(volume: Path) -> Path:
    """The folder of the job's pictures."""
    folder = volume / "outputs" / "team" / "job"
    folder.mkdir(parents=True)
    return folder


def test_a_folder_in_the_place_of_a_picture_keeps_all_of_them_away(volume: Path, job: Path) -> None:
    (job / "1.png").mkdir()

    with pytest.raises(VolumeError, match=r"has the name of a picture, `1\.png`"):
        Outbox(volume, "outputs").put(FILES, Event())

    assert [path for path in volume.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("older", [{}, {"0.png": b"older"}], ids=["no picture", "an older one"])
def test_if_one_cannot_be_published_what_was_there_before_is_there_again(
    volume: Path, job: Path, older: dict[str, bytes]
) -> None:
    for name, data in older.items():
        (job / name).write_bytes(data)

    def intrude(_event: Event) -> None:
        assert (job / "0.png").read_bytes() == b"first"
        (job / "1.png").mkdir()

    with pytest.raises(VolumeError):
        Outbox(volume, "outputs").put(FILES, Meanwhile(intrude))

    left = {path.name: path.read_bytes() for path in job.iterdir() if path.is_file()}
    assert left == older


def test_a_picture_that_another_worker_published_meanwhile_is_not_taken_back(
    volume: Path, job: Path
) -> None:
    def publish(_event: Event) -> None:
        Outbox(volume, "outputs").put([(FILES[0][0], b"another's")], Event())
        (job / "1.png").mkdir()

    with pytest.raises(VolumeError):
        Outbox(volume, "outputs").put(FILES, Meanwhile(publish))

    assert [path.name for path in job.iterdir() if path.is_file()] == ["0.png"]
    assert (job / "0.png").read_bytes() == b"another's"


def test_a_cancel_takes_back_what_was_published(volume: Path, job: Path) -> None:
    with pytest.raises(JobCancelledError):
        Outbox(volume, "outputs").put(FILES, Meanwhile(Event.set))

    assert list(job.iterdir()) == []


def test_a_job_that_is_done_twice_leaves_its_pictures_once(volume: Path, job: Path) -> None:
    again = [(name, data * 2) for name, data in FILES]
    for files in (FILES, again):
        Outbox(volume, "outputs").put(files, Event())

    found = {path.name: path.read_bytes() for path in job.iterdir()}
    assert found == {"0.png": b"firstfirst", "1.png": b"secondsecond"}
