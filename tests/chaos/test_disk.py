"""Disks that are full, over quota or read-only: one clear error at every stage, and no trace."""

import errno
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from model_cache.volume import layout
from schemas.errors import (
    VolumeBusyError,
    VolumeError,
    VolumeFullError,
    VolumeMissingError,
)
from schemas.model_ref import Kind
from simulator import models
from tests.chaos import syscalls
from tests.chaos.conftest import MIB, Chaos, Model, World
from tests.chaos.soundness import require_right_bytes, visible
from tests.chaos.syscalls import Fault
from tests.chaos.worker import Pace

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("pace")]

PAGE = os.sysconf("SC_PAGESIZE")


@pytest.fixture
def small(world: World) -> Iterator[World]:
    """A volume of 8 MiB on a file system of its own."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(world.volume)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("no right to mount a file system here")
    yield world
    subprocess.run(["umount", "--lazy", world.volume], check=True)


def remount(world: World, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", world.volume], check=True)


def fill(world: World, but_pages: int) -> None:
    """Leave so many pages free."""
    ballast = world.volume / "ballast"
    ballast.unlink(missing_ok=True)
    free = os.statvfs(world.volume).f_bfree - but_pages
    ballast.write_bytes(bytes(free * PAGE))


def refused(world: World, model: Model) -> VolumeError | None:
    """Ensure a model; return the error if the disk refuses, None if it is there."""
    shelf = world.shelf()
    try:
        done = shelf.ensure(name="x", url=model.url)
    except VolumeError as error:
        return error
    else:
        assert done.model.sha256 == model.sha256
        return None
    finally:
        shelf.cache.close()


def require_no_trace(world: World, model: Model) -> None:
    """Nothing is left that could not be swept, and the model can be had as soon as there is room."""
    require_right_bytes(world.volume, world.hub.root)
    assert list(layout.tmp_folder(world.volume).glob("*")) == []
    assert refused(world, model) is None
    world.require_sound()


def test_a_disk_with_too_few_pages_at_any_stage_gives_one_clear_error(
    small: World, chaos: Chaos
) -> None:
    size = MIB // 4
    model = small.model("m", size)
    stages = list(range(size // PAGE + 16))
    outcomes = []

    for pages in chaos.some("amounts of free room, in pages", stages, least=6):
        fill(small, pages)
        error = refused(small, model)

        assert error is None or type(error) is VolumeFullError
        outcomes.append(error is None)
        (small.volume / "ballast").unlink()
        require_no_trace(small, model)
        for path in visible(small.volume):
            path.unlink()
    assert outcomes[0] is False
    fill(small, stages[-1])
    assert refused(small, model) is None


def test_a_disk_with_too_few_inodes_at_any_stage_gives_one_clear_error(
    small: World, chaos: Chaos
) -> None:
    model = small.model("m", MIB // 4)
    outcomes = set()

    for more in chaos.some("amounts of free inodes", range(1, 24), least=5):
        used = os.statvfs(small.volume)
        remount(small, f"nr_inodes={used.f_files - used.f_ffree + more}")
        error = refused(small, model)

        assert error is None or type(error) is VolumeFullError
        outcomes.add(error is None)
        remount(small, "nr_inodes=1000000")
        require_no_trace(small, model)
        subprocess.run(["rm", "-r", small.volume / "models"], check=True)
    assert False in outcomes


# Where an error may show: on a network volume, whose quota is counted late, as late as at the end.
STAGES = {
    "mkdir": Fault("mkdir", "/tmp"),
    "ftruncate": Fault("ftruncate", ".part"),
    "the first bytes": Fault("pwrite", ".part"),
    "bytes in the middle": Fault("pwrite", ".part", skip=2),
    "fdatasync of a journal": Fault("fdatasync", ".part"),
    "fsync": Fault("fsync", ".part"),
    "close": Fault("close", ".part", after=True),
    "the manifest": Fault("replace", ".safetensors.json"),
    "the name": Fault("link", ".safetensors"),
}


ERRORS = {
    "EDQUOT": VolumeFullError,
    "ENOSPC": VolumeFullError,
    "EIO": VolumeMissingError,
    "ETIMEDOUT": VolumeBusyError,
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_refusal_at_any_stage_is_one_clear_error_and_leaves_nothing(
    world: World, chaos: Chaos, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    model = world.model("m", MIB)
    errors = ERRORS if stage != "the name" else dict.fromkeys(("EIO", "ETIMEDOUT"))
    for error in errors:
        expected = ERRORS[error]
        if stage == "fdatasync of a journal":
            world.spoil(rate=MIB)  # So that there is time for one.

        with monkeypatch.context() as patch:
            syscalls.install(replace(STAGES[stage], error=error), world.volume, patch.setattr)
            refusal = refused(world, model)

        assert type(refusal) is expected
        said = "no room" if expected is VolumeFullError else os.strerror(getattr(errno, error))
        assert said in str(refusal)
        assert visible(world.volume) == []
        world.mend()
        require_no_trace(world, model)
        subprocess.run(["rm", "-r", world.volume / "models"], check=True)
        chaos.tell("refusals of the disk at a stage", 1, 1)


LATER = {
    # A network volume may count a file twice that has two names; one that is moved has one.
    "the second name": Fault("link", ".safetensors"),
    "the new name in its folder": Fault("fsync", "loras"),
    "the view": Fault("replace", "cache_registry.json"),
    "a lease": Fault("link", ".lease"),
    "the beat of a lease": Fault("replace", ".lease"),
    "what is in use": Fault("replace", ".json", "/uses/"),
}


@pytest.mark.parametrize("what", LATER)
def test_a_refusal_of_what_only_others_need_costs_no_job_its_model(
    world: World, chaos: Chaos, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    model = world.model("m", MIB)
    fault = LATER[what]

    with monkeypatch.context() as patch:
        syscalls.install(replace(fault, error="EDQUOT"), world.volume, patch.setattr)
        assert refused(world, model) is None

    require_right_bytes(world.volume, world.hub.root)
    require_no_trace(world, model)
    chaos.tell("refusals of records at a stage", 1, 1)


def test_a_full_disk_is_made_room_on_once_and_the_model_fits_then(
    small: World, chaos: Chaos
) -> None:
    size = MIB
    shelf = small.shelf()
    olds = [small.model(f"old{number}", size) for number in range(3)]
    for old in olds:
        shelf.ensure(name=old.path.stem, url=old.url)
    shelf.cache.close()
    fill(small, 40)
    new = small.model("new", size)

    assert refused(small, new) is None

    left = {path.stem for path in visible(small.volume)}
    assert "x" in left
    assert "old0" not in left
    assert "old2" in left
    (small.volume / "ballast").unlink()
    small.require_sound()
    chaos.tell("full disks on which room was made", 1, 1)


def test_a_quota_that_stays_used_up_ends_in_an_error_with_the_figures(small: World) -> None:
    model = small.model("m", 12 * MIB)
    before = os.statvfs(small.volume).f_bfree

    error = refused(small, model)

    assert type(error) is VolumeFullError
    assert os.statvfs(small.volume).f_bfree >= before - 8
    assert error.details["free_bytes"] == model.size
    assert list(layout.tmp_folder(small.volume).glob("*")) == []
    small.require_sound()


def test_where_the_model_fits_and_its_manifest_does_not_there_is_neither(
    small: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    Pace(ttl_s=60.0, save_every_s=60.0).set(monkeypatch.setattr)
    model = small.model("m", MIB)
    layout.tmp_folder(small.volume).mkdir(parents=True)
    layout.leases_folder(small.volume).mkdir()
    (small.volume / "models/loras").mkdir()
    fill(small, MIB // PAGE + 1)  # One is for the lease.

    assert type(refused(small, model)) is VolumeFullError

    assert visible(small.volume) == []
    (small.volume / "ballast").unlink()
    require_no_trace(small, model)


def test_a_volume_that_is_read_only_serves_what_it_has(small: World) -> None:
    sha256 = models.write_lora(small.volume / "models/loras/here.safetensors", seed="m")
    same = small.model("m", 0)
    other = small.model("other", MIB)
    remount(small, "ro")
    shelf = small.shelf()

    assert shelf.ensure(name="here").cached
    hashed = shelf.ensure(name="here", hash=sha256)
    assert (hashed.model.sha256, hashed.cached) == (same.sha256, True)
    linked = shelf.ensure(name="x", url=same.url, hash=sha256)
    assert (linked.model.name, linked.warnings) == (
        "here",
        ("The lora is here as 'here'; that is used.",),
    )
    with pytest.raises(VolumeMissingError, match="Read-only file system"):
        shelf.ensure(name="x", url=other.url)
    assert [model.name for model in shelf.cache.models(Kind.LORA)] == ["here"]
    shelf.cache.close()
    remount(small, "rw")


def test_a_worker_killed_on_a_full_disk_leaves_no_more_than_the_next_one_clears(
    small: World, chaos: Chaos
) -> None:
    model = small.model("m", 4 * MIB)
    for number in chaos.times("kills on a full disk", 10, least=1):
        fill(small, 2 * MIB // PAGE)
        small.spoil(rate=2 * MIB)
        worker = small.worker(fault=Fault("unlink", ".part", skip=number % 2))
        worker.ask(name="x", url=model.url)
        worker.wait()
        small.mend()
        (small.volume / "ballast").unlink()

        assert refused(small, model) is None

        small.require_sound()
        for path in visible(small.volume):
            Path(path).unlink()
