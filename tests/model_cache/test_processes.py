"""Processes that are killed, that race, and whose disk is full: what others see afterwards."""

import errno
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from model_cache import layout
from schemas.errors import VolumeFullError, VolumeMissingError
from schemas.model_ref import Kind
from simulator import models
from tests.conftest import ROOT
from tests.model_cache.conftest import Hub, Shelf, shelf_on

SIZE = 4_000_000
# Arguments: volume, URL, name, and the step before which the process kills itself, or "none".
WORKER = """
import os, pathlib, signal, sys, threading
from model_cache import cache, manifests, publish, registry, verify
from schemas.model_ref import Kind, ModelRef
from schemas.settings import CacheSettings

volume, url, name, step = sys.argv[1:]
def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
steps = {
    "sealed": (os, "fsync"),
    "verified": (verify, "inspect"),
    "linked": (os, "link"),
    "manifest": (manifests, "write"),
    "manifest renamed": (pathlib.Path, "replace"),
    "view": (registry, "write"),
}
if step in steps:
    setattr(*steps[step], die)
settings = CacheSettings(volume=volume, allow_private_hosts=True)
done = cache.ModelCache(settings).ensure(
    ModelRef(kind=Kind.LORA, name=name, url=url), cancelled=threading.Event()
)
print(done.model.name, done.model.sha256)
"""


def worker(volume: Path, url: str, step: str = "none", name: str = "x") -> subprocess.Popen[str]:
    """Start a process that ensures the model `name` from `url`."""
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, volume, url, name, step],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def output(process: subprocess.Popen[str]) -> str:
    out, error = process.communicate(timeout=30)
    assert process.returncode == 0, error
    return out.strip()


@pytest.fixture
def sha256(model_hub: Hub) -> str:
    return models.write_lora(model_hub.root / "m.safetensors", seed="m", size_bytes=SIZE)


@pytest.fixture
def url(model_hub: Hub, sha256: str) -> str:
    assert sha256
    return f"{model_hub.url}/m.safetensors"


def require_nothing_half_written(hub: Hub, volume: Path) -> None:
    """Every file that a user can see is whole, and what is left over will be swept."""
    whole = (hub.root / "m.safetensors").read_bytes()
    shelf = shelf_on(volume)
    for model in shelf.cache.models(Kind.LORA):
        assert model.path.read_bytes() == whole
    left = list(layout.tmp_folder(volume).glob("*"))
    assert all(path.suffix == ".part" for path in left)
    for path in left:
        os.utime(path, (0, 0))
    shelf_on(volume)
    assert list(layout.tmp_folder(volume).glob("*")) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "is_visible"),
    [
        ("sealed", False),
        ("verified", False),
        ("linked", False),
        ("manifest", True),
        ("manifest renamed", True),
        ("view", True),
    ],
)
def test_a_worker_killed_at_a_step_leaves_all_of_a_file_or_nothing(
    model_hub: Hub, volume: Path, url: str, sha256: str, step: str, *, is_visible: bool
) -> None:
    process = worker(volume, url, step)
    process.communicate(timeout=30)
    assert process.returncode == -9

    require_nothing_half_written(model_hub, volume)

    assert (volume / "models" / "loras" / "x.safetensors").exists() is is_visible
    done = shelf_on(volume).ensure(name="x", url=url, hash=sha256)
    assert (done.model.name, done.model.sha256, done.cached) == ("x", sha256, is_visible)
    assert len(model_hub.requests) == (1 if is_visible else 2)


@pytest.mark.slow
def test_a_worker_killed_anywhere_in_a_fetch_leaves_nothing_to_be_seen(
    model_hub: Hub, volume: Path, url: str, sha256: str
) -> None:
    # 3 MB/s: a fetch takes 1.3 s, and the kills fall all over it.
    model_hub.spoil(rate=3_000_000, times=6)
    chance = random.Random(2)  # noqa: S311 - points in time, no secrets

    for number in range(6):
        process = worker(volume, url)
        while len(model_hub.requests) <= number and process.poll() is None:
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.8))
        process.kill()
        process.communicate()
        require_nothing_half_written(model_hub, volume)

    assert shelf_on(volume).ensure(name="x", url=url).model.sha256 == sha256


@pytest.mark.slow
def test_two_workers_that_fetch_the_same_end_up_with_one_file(
    model_hub: Hub, volume: Path, url: str, sha256: str
) -> None:
    model_hub.spoil(delay_s=1.5, times=2)

    outputs = [output(process) for process in [worker(volume, url), worker(volume, url)]]

    assert outputs == [f"x {sha256}"] * 2
    assert shelf_on(volume).files() == ["cache_registry.json", "loras/x.safetensors"]
    assert len(model_hub.requests) == 2


@pytest.mark.slow
def test_two_workers_that_fetch_different_bytes_for_one_name_both_get_theirs(
    model_hub: Hub, volume: Path, url: str, sha256: str
) -> None:
    other = models.write_lora(model_hub.root / "n.safetensors", seed="n", size_bytes=SIZE)
    model_hub.spoil(delay_s=1.5, times=2)

    processes = [worker(volume, url), worker(volume, url.replace("m.safe", "n.safe"))]
    outputs = [output(process).split() for process in processes]

    assert [digest for _, digest in outputs] == [sha256, other]
    names = [name for name, _ in outputs]
    assert sorted(names) in (["x", f"x-{other[:8]}"], ["x", f"x-{sha256[:8]}"])
    listed = shelf_on(volume).cache.models(Kind.LORA)
    assert {model.sha256 for model in listed} == {sha256, other}


# A disk of 1 MiB.


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A volume of 1 MiB on a file system of its own."""
    path = tmp_path / "small"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(path)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("no right to mount a file system here")
    yield path
    subprocess.run(["umount", "--lazy", path], check=True)


def small_model(hub: Hub, size: int) -> dict[str, Any]:
    sha256 = models.write_lora(hub.root / "small.safetensors", seed="s", size_bytes=size)
    return {"name": "s", "url": f"{hub.url}/small.safetensors", "hash": sha256}


def test_a_file_that_does_not_fit_is_an_error_and_leaves_the_room_as_it_was(
    model_hub: Hub, small: Path, url: str
) -> None:
    shelf = shelf_on(small)
    before = os.statvfs(small).f_bfree

    with pytest.raises(VolumeFullError, match="No space left"):
        shelf.ensure(name="x", url=url)

    assert shelf.files() == []
    assert os.statvfs(small).f_bfree >= before - 4
    assert shelf.ensure(**small_model(model_hub, 500_000)).model.size_bytes == 500_000


def test_where_the_model_fits_and_its_manifest_does_not_the_job_gets_it(
    model_hub: Hub, small: Path
) -> None:
    ref = small_model(model_hub, 500_000)
    shelf = shelf_on(small)
    layout.tmp_folder(small).mkdir(parents=True)
    (shelf.models / "loras").mkdir()
    (small / "ballast").write_bytes(bytes(os.statvfs(small).f_bfree * 4096 - 503_808))

    done = shelf.ensure(**ref)

    assert done.model.sha256 == ref["hash"]
    assert shelf.ensure(**ref).cached
    assert shelf.files() == ["loras/s.safetensors"]
    (small / "ballast").unlink()
    # Another worker knows nothing of its digest, and finds out.
    assert shelf_on(small).ensure(**ref).model.sha256 == ref["hash"]


def test_a_volume_that_is_read_only_serves_what_it_has(
    model_hub: Hub, small: Path, url: str
) -> None:
    models.write_lora(small / "models" / "loras" / "here.safetensors", seed="s")
    ref = small_model(model_hub, 0)
    subprocess.run(["mount", "-o", "remount,ro", small], check=True)
    shelf = shelf_on(small)

    assert shelf.ensure(name="here").cached
    hashed = shelf.ensure(name="here", hash=ref["hash"])
    assert (hashed.model.sha256, hashed.cached) == (ref["hash"], True)
    linked = shelf.ensure(**ref)
    assert (linked.model.name, linked.warnings) == (
        "here",
        ("The lora is here as 'here'; that is used.",),
    )
    with pytest.raises(VolumeMissingError, match="Read-only file system"):
        shelf.ensure(name="x", url=url)


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.ENOSPC, errno.EIO])
def test_a_refusal_that_shows_only_at_the_end_leaves_nothing(
    shelf: Shelf, url: str, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)

    with pytest.raises(
        VolumeMissingError if number == errno.EIO else VolumeFullError, match=os.strerror(number)
    ):
        shelf.ensure(name="x", url=url)

    assert shelf.files() == []
