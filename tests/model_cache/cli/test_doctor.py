import errno
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from model_cache.__main__ import main
from model_cache.cache import ModelCache
from model_cache.cli import trials
from model_cache.cli.doctor import examine
from model_cache.cli.trials import Finding, Grade
from model_cache.sharing import lease, pins
from model_cache.sharing.lease import Lease
from model_cache.sharing.uses import Uses
from model_cache.volume import layout
from schemas.model_ref import Kind
from simulator import models
from tests.model_cache.conftest import Hub, settings_for, shelf_on, wait_until

TRIALS = [
    "exclusive names", "hard links", "rename", "delete while open", "clock", "files with holes",
    "small files", "write speed", "take-over",
]  # fmt: skip
SIZES = {"ample": 3, "short": 0.5}
LOOKS = ["models", "room", "pins", "aliases", "leftovers", "workers", "fetches"]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the trial that takes a second."""
    monkeypatch.setattr(trials, "_held_by_a_dead_process", lambda _: True)


def found_on(volume: Path, **settings: Any) -> dict[str, Finding]:
    """Examine a volume in no time."""
    findings = examine(settings_for(volume, **settings), speed_bytes=1 << 20, lease_ttl_s=0.5)
    return {finding.check: finding for finding in findings}


def in_folder(folder: Path) -> dict[str, Finding]:
    """Try out a folder in no time."""
    return {one.check: one for one in trials.run(folder, speed_bytes=1 << 20, lease_ttl_s=0.5)}


def lora(volume: Path, name: str) -> Path:
    path = volume / "models" / "loras" / f"{name}.safetensors"
    models.write_lora(path, seed=name)
    return path


@pytest.mark.slow
def test_a_good_disk_passes_every_trial_and_is_left_as_it_was(
    volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # How fast this one is, and how soon it is our turn, tells nothing of the trials.
    for name, limit in (
        ("_POOR_MB_S", 0),
        ("_POOR_SMALL_FILE_MS", 1e9),
        ("_POOR_SPARSE_S", 1e9),
        ("_TAKE_OVER_TRIES", 60),
    ):
        monkeypatch.setattr(trials, name, limit)

    found = found_on(volume)

    assert list(found) == ["mount", *TRIALS, *LOOKS]
    assert {found[name].grade for name in (*TRIALS, *LOOKS)} == {Grade.GOOD}
    assert [path for path in volume.rglob("*") if path.is_file()] == []
    assert list(layout.tmp_folder(volume).iterdir()) == []


@pytest.mark.slow
def test_a_lease_is_taken_over_from_a_process_that_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "_TAKE_OVER_TRIES", 60)
    started = time.monotonic()

    found = in_folder(tmp_path)["take-over"]

    assert found.grade is Grade.GOOD
    assert "of a killed process was free" in found.saw
    assert time.monotonic() - started > 0.5


@pytest.mark.usefixtures("quick")
def test_a_lease_that_does_not_become_free_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Lease, "try_acquire", lambda _: False)
    monkeypatch.setattr(trials, "_TAKE_OVER_TRIES", 1)

    found = in_folder(tmp_path)["take-over"]

    assert (found.grade, "not free after 0.5 s" in found.saw) == (Grade.POOR, True)


@pytest.mark.slow
def test_without_leases_models_may_be_fetched_twice(tmp_path: Path) -> None:
    place = layout.leases_folder(tmp_path)
    place.mkdir(parents=True)
    # A folder in the place of the one lease that is tried.
    holder = Lease(tmp_path, "doctor")
    assert holder.try_acquire()
    (name,) = (path.name for path in place.glob("*.lease"))
    holder.release()
    (place / name).mkdir()

    found = in_folder(tmp_path)["take-over"]

    assert found == Finding(
        "take-over",
        Grade.POOR,
        "No lease can be had.",
        "Workers that want one model each fetch it.",
    )


def refused(number: int) -> Any:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return refuse


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("function", "number", "check", "grade"),
    [
        ("link", errno.EPERM, "hard links", Grade.POOR),
        ("replace", errno.EIO, "rename", Grade.BAD),
        ("fsync", errno.EDQUOT, "write speed", Grade.BAD),
    ],
)
def test_what_a_disk_refuses_is_told_and_the_rest_still_tried(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    function: str,
    number: int,
    check: str,
    grade: Grade,
) -> None:
    monkeypatch.setattr(os, function, refused(number))

    found = in_folder(tmp_path)

    assert list(found) == TRIALS
    assert found[check].grade is grade
    assert os.strerror(number) in found[check].saw


@pytest.mark.usefixtures("quick")
def test_a_disk_that_does_otherwise_than_it_says_is_bad(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copied(self: Path, target: Path) -> None:
        shutil.copy(target, self)

    def emptied(self: Path, missing_ok: bool = False) -> None:  # noqa: FBT001, FBT002 - as pathlib has it
        del missing_ok
        os.truncate(self, 0)

    def in_place(self: Path, target: Path) -> None:
        target.write_bytes(self.read_bytes())

    monkeypatch.setattr(Path, "touch", lambda self, **_: self.write_bytes(b""))
    monkeypatch.setattr(Path, "hardlink_to", copied)
    monkeypatch.setattr(Path, "unlink", emptied)
    monkeypatch.setattr(Path, "replace", in_place)

    found = in_folder(tmp_path)

    bad = {name for name, finding in found.items() if finding.grade is Grade.BAD}
    assert bad >= {"exclusive names", "hard links", "rename", "delete while open"}


@pytest.mark.usefixtures("quick")
def test_a_slow_disk_and_a_wrong_clock_are_poor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, limit in (
        ("_POOR_MB_S", 1e9),
        ("_POOR_SMALL_FILE_MS", 0),
        ("_POOR_SPARSE_S", 0),
        ("_POOR_SKEW_S", 0),
    ):
        monkeypatch.setattr(trials, name, limit)

    found = in_folder(tmp_path)

    poor = {name for name, finding in found.items() if finding.grade is Grade.POOR}
    assert poor == {"clock", "files with holes", "small files", "write speed"}


def test_what_is_mounted_is_told() -> None:
    shared = Path("/dev/shm")
    if not shared.is_mount():
        shared = Path("/proc")

    assert trials.mount(shared).saw.endswith(f"mounted at {shared}.")
    assert trials.mount(shared).grade is Grade.GOOD
    assert trials.mount(Path("/")).grade is Grade.POOR
    assert "lost" in trials.mount(Path("/")).means


def test_a_volume_that_cannot_be_written_to_is_looked_through_all_the_same(
    volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lora(volume, "x")
    monkeypatch.setattr(tempfile, "mkdtemp", refused(errno.EROFS))

    found = found_on(volume)

    assert list(found) == ["mount", "writing", *LOOKS]
    assert found["writing"].grade is Grade.BAD
    assert found["models"].saw == "1 model, 1 without a known hash."


@pytest.fixture
def untried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look the volume through without trying it out."""
    monkeypatch.setattr(trials, "run", lambda *_, **__: iter(()))


@pytest.mark.usefixtures("untried")
def test_a_file_that_is_cut_off_or_was_replaced_is_bad(volume: Path) -> None:
    path = lora(volume, "replaced")
    cache = ModelCache(settings_for(volume))
    (model,) = cache.models(Kind.LORA)
    cache.adopt(model, cancelled=threading.Event())
    models.write_lora(path, seed="other", size_bytes=50_000)
    lora(volume, "empty").write_bytes(b"")

    found = found_on(volume)["models"]

    assert found.grade is Grade.BAD
    assert found.saw.endswith("since they were verified: lora empty, lora replaced.")


@pytest.mark.usefixtures("untried")
def test_the_budget_is_held_against_what_is_there(volume: Path) -> None:
    size_gb = lora(volume, "x").stat().st_size / 1e9

    room = {name: found_on(volume, budget_gb=size_gb * by)["room"] for name, by in SIZES.items()}

    assert {name: finding.grade for name, finding in room.items()} == {
        "ample": Grade.GOOD,
        "short": Grade.BAD,
    }
    assert "nothing can be fetched" in room["short"].means


@pytest.mark.usefixtures("untried")
def test_what_can_be_evicted_is_over_the_budget_for_a_while_only(
    model_hub: Hub, volume: Path
) -> None:
    models.write_lora(model_hub.root / "m.safetensors", seed="m")
    shelf = shelf_on(volume)
    path = shelf.ensure(url=f"{model_hub.url}/m.safetensors").model.path
    shelf.cache.close()

    found = found_on(volume, budget_gb=path.stat().st_size / 2e9)["room"]

    assert (found.grade, "`prune`" in found.means) == (Grade.POOR, True)


@pytest.mark.usefixtures("untried")
def test_pins_that_keep_nothing_are_told(volume: Path) -> None:
    lora(volume, "x")
    for name in ("x", "gone"):
        pins.pin(volume, Kind.LORA, name)

    found = found_on(volume)["pins"]

    assert found.grade is Grade.POOR
    assert found.saw == "2 models pinned. Not there: lora gone."


@pytest.mark.usefixtures("untried")
@pytest.mark.parametrize(
    ("text", "grade", "said"),
    [
        ('{"a": "x", "b": "https://h.example/x", "c": {"name": "x", "kind": "lora"}}', "good", "3"),
        ('{"a": "y"}', "poor", "'a' stands for 'y', which is not there"),
        ('{"a": {"name": "x", "kind": "vae"}}', "poor", "'a' stands for 'x', which is not there"),
        ('{"a": {"name": "x", "kind": "lorax"}}', "poor", "is for 'lorax', which is no kind"),
        ('{"a": {}}', "poor", "`a`: a model needs a name"),
        ('{"a": 1}', "poor", "`a`: "),
        ('{"a": "x"', "bad", "cannot be read"),
        ('["a"]', "bad", "does not hold an object"),
        ('{"a": "' + "x" * (1 << 20) + '"}', "bad", "does not hold an object"),
    ],
)
def test_every_alias_is_read(volume: Path, text: str, grade: str, said: str) -> None:
    lora(volume, "x")
    layout.aliases_path(volume).write_text(text)

    found = found_on(volume)["aliases"]

    assert found.grade == grade
    assert said in found.saw


@pytest.mark.usefixtures("untried")
def test_what_died_processes_left_is_counted(volume: Path) -> None:
    tmp = layout.tmp_folder(volume)
    tmp.mkdir(parents=True)
    for name, age_s in (("a.1.part", 0), ("b.1.part", 9000), ("b.1.json", 9000)):
        (tmp / name).write_bytes(b"x" * 5000)
        os.utime(tmp / name, (time.time() - age_s,) * 2)

    found = found_on(volume)["leftovers"]

    assert found.grade is Grade.POOR
    assert found.saw.startswith("2 temporary files (")
    assert "1 of them dead" in found.saw


def test_who_works_meanwhile_is_told(volume: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dead, alive = Uses(volume), Uses(volume)
    silent, busy = (
        Lease(volume, "1", beat_s=60),
        Lease(volume, "2", note="3f0c fetches", beat_s=0.1),
    )
    for user in (dead, alive):
        user.note(volume / "models" / "loras" / "x.safetensors")
    assert silent.try_acquire()
    assert busy.try_acquire()

    def beats() -> int:
        return max(claim.beat for claim in lease.claims(volume))

    def meanwhile(*_: object, **__: object) -> Iterator[Finding]:
        alive.beat()
        before = beats()
        wait_until(lambda: beats() > before)
        return iter(())

    monkeypatch.setattr(trials, "run", meanwhile)
    found = found_on(volume)
    silent.release()
    busy.release()

    assert found["workers"].saw.startswith("1 showed that they use models while we looked, 1 did")
    assert found["fetches"].saw == "3f0c fetches. 1 did not move while we looked."


@pytest.mark.usefixtures("untried")
def test_the_command_prints_every_finding_and_fails_if_one_is_bad(
    volume: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["doctor", "--volume", str(volume)]

    assert main(argv, {}) == 0
    said = capsys.readouterr().out
    layout.aliases_path(volume).write_text("{")
    assert main([*argv, "--json"], {}) == 1
    told = json.loads(capsys.readouterr().out)

    assert "good  pins: 0 models pinned.\n" in said
    assert said.splitlines()[-1].endswith(" 0 bad")
    assert max(map(len, said.splitlines())) <= 100
    assert [finding["check"] for finding in told] == ["mount", *LOOKS]
    assert told[4]["grade"] == "bad"
