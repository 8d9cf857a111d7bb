import time
from pathlib import Path

import pytest

from model_cache.sharing.age import DEAD_S, Ages
from model_cache.volume import layout, publish
from schemas.errors import VolumeFullError


@pytest.mark.parametrize("skew_s", [-3600, 0, 3600, 360_000])
def test_the_clock_of_this_host_does_not_matter(
    volume: Path, monkeypatch: pytest.MonkeyPatch, skew_s: float
) -> None:
    now = time.time
    young, old = now() - DEAD_S + 60, now() - DEAD_S - 60
    monkeypatch.setattr(time, "time", lambda: now() + skew_s)

    ages = Ages(volume)

    assert not ages.over(young, DEAD_S)
    assert ages.over(old, DEAD_S)
    assert list(layout.tmp_folder(volume).iterdir()) == []


def test_the_volume_is_asked_once_and_only_if_something_may_be_old(
    volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []
    private_file = publish.private_file

    def counted(on: Path) -> object:
        asked.append(on)
        return private_file(on)

    monkeypatch.setattr(publish, "private_file", counted)
    ages = Ages(volume)

    assert not ages.over(time.time() - 60, DEAD_S)
    assert asked == []
    assert ages.over(0.0, DEAD_S)
    assert not ages.over(time.time() - DEAD_S + 60, DEAD_S)
    assert asked == [volume]


def test_where_nothing_can_be_written_the_clock_of_this_host_has_to_do(
    volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Path) -> None:
        raise VolumeFullError("no room")

    monkeypatch.setattr(publish, "private_file", refuse)

    assert Ages(volume).over(time.time() - DEAD_S - 60, DEAD_S)
    assert not Ages(volume).over(time.time() - DEAD_S + 60, DEAD_S)
    assert list(volume.iterdir()) == []
