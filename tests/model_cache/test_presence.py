import errno
import hashlib
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from model_cache.models import Ensured, Origin
from model_cache.volume import publish
from model_cache.weights import verify
from model_cache.weights.digests import Digests
from schemas.errors import ModelNotFoundError, VolumeError
from schemas.model_ref import Kind, ModelRef
from simulator import models
from tests.model_cache.conftest import Hub, Shelf, shelf_on
from tests.model_cache.hosts.test_hubcache import COMMIT


def put(volume: Path, name: str, folder: str = "loras", **how: Any) -> Path:
    path = volume / "models" / folder / f"{name}.safetensors"
    models.write_lora(path, seed=name, **how)
    return path


def test_a_file_that_is_put_back_after_a_moment_was_never_gone(
    volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(volume, "x")
    shelf = shelf_on(volume)
    # As by somebody who makes room and thinks again, once it was missed.
    aside = path.with_name("aside.evicted")
    path.rename(aside)
    stat = Path.stat
    missed: list[Path] = []

    def looked(self: Path, **how: Any) -> os.stat_result:
        try:
            return stat(self, **how)
        except FileNotFoundError:
            if self == path and not missed:
                missed.append(aside.rename(path))
            raise

    monkeypatch.setattr(Path, "stat", looked)

    assert shelf.ensure(name="x").model.path == path
    assert missed == [path]


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.ENOTCONN])
def test_a_disk_that_does_not_answer_is_no_proof_that_a_file_is_gone(
    volume: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    path = put(volume, "x")
    shelf = shelf_on(volume)
    stat = Path.stat

    def broken(self: Path, **how: Any) -> os.stat_result:
        if self == path:
            raise OSError(code, os.strerror(code))
        return stat(self, **how)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", broken)
        with pytest.raises(VolumeError):
            shelf.ensure(name="x")

    assert shelf.ensure(name="x").model.path == path


def test_learning_an_autov3_forgets_nothing_else(model_hub: Hub, shelf: Shelf) -> None:
    path = model_hub.root / "m.safetensors"
    models.write_vae(path, seed="m")
    (model_hub.root / "n.safetensors").write_bytes(path.read_bytes())
    urls = [f"{model_hub.url}/{name}.safetensors" for name in "mn"]
    for url in urls:
        done = shelf.ensure(Kind.VAE, name="m", url=url)
    before = shelf.cache._listing.current.files[done.model.path].manifest
    content = path.read_bytes()
    weights = content[8 + int.from_bytes(content[:8], "little") :]

    shelf.ensure(Kind.VAE, name="m", hash=hashlib.sha256(weights).hexdigest()[:12])

    after = shelf.cache._listing.current.files[done.model.path].manifest
    assert before is not None
    assert after is not None
    assert after.autov3
    assert after.model_copy(update={"autov3": ""}) == before
    asked = len(model_hub.requests)
    other = shelf_on(shelf.volume)
    assert all(other.ensure(Kind.VAE, name="m", url=url).cached for url in urls)
    assert len(model_hub.requests) == asked


def test_a_file_that_another_worker_hashed_meanwhile_is_not_hashed_again(
    volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha256 = hashlib.sha256(put(volume, "x").read_bytes()).hexdigest()
    shelves = [shelf_on(volume) for _ in range(4)]
    hashed: list[Path] = []
    read = verify.digests

    def slowly(path: Path, **how: Any) -> Digests:
        hashed.append(path)
        time.sleep(0.3)
        return read(path, **how)

    monkeypatch.setattr(verify, "digests", slowly)
    done: list[Ensured] = []
    threads = [
        threading.Thread(target=lambda at=at: done.append(at.ensure(name="x", hash=sha256)))
        for at in shelves
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [one.model.sha256 for one in done] == [sha256] * 4
    assert len(hashed) == 1


def test_the_platforms_cache_is_looked_into_once_until_the_next_look_at_everything(
    volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(volume, "x")
    (volume / "huggingface-cache/hub/models--org--repo/snapshots" / COMMIT).mkdir(parents=True)
    shelf = shelf_on(volume)
    shelf.ensure(name="x", url="hf:org/repo/y.safetensors")
    looked: list[Path] = []
    listed = os.listdir

    def listing(path: Any = ".") -> list[str]:
        looked.append(Path(path))
        return listed(path)

    monkeypatch.setattr(os, "listdir", listing)

    assert shelf.ensure(name="x", url="hf:org/repo/y.safetensors").model.name == "x"

    assert looked == []


def test_a_second_name_can_be_evicted_though_its_giver_died(
    model_hub: Hub, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    models.write_lora(model_hub.root / "x.safetensors", seed="x")
    url = f"{model_hub.url}/x.safetensors"
    shelf.ensure(url=url)
    second = publish.second_name

    def killed(existing: Path, final: Path) -> bool:
        second(existing, final)
        raise KeyboardInterrupt

    monkeypatch.setattr(publish, "second_name", killed)
    monkeypatch.setattr(
        "model_cache.volume.manifests.drop", lambda *_: True
    )  # It does not come to that.
    with pytest.raises(KeyboardInterrupt):
        shelf.ensure(name="y", url=url)
    shelf.cache.close()

    later = shelf_on(shelf.volume).cache
    assert {model.origin for model in later.models(Kind.LORA)} == {Origin.PUBLISHED}
    assert {model.name for model in later.models(Kind.LORA)} == {"x", "y"}


def test_what_is_present_is_told_and_nothing_is_fetched(model_hub: Hub, shelf: Shelf) -> None:
    models.write_lora(model_hub.root / "x.safetensors", seed="x")
    url = f"{model_hub.url}/x.safetensors"
    never = threading.Event()
    by_url = ModelRef(kind=Kind.LORA, url=url, refresh=True)

    for absent in (
        by_url,
        ModelRef(kind=Kind.LORA, name="x"),
        ModelRef(kind=Kind.LORA, name="o/r"),
    ):
        with pytest.raises(ModelNotFoundError):
            shelf.cache.present(absent, cancelled=never)
    assert model_hub.requests == []

    done = shelf.ensure(url=url)
    asked = len(model_hub.requests)
    for ref in (by_url, ModelRef(kind=Kind.LORA, name="x")):
        assert shelf.cache.present(ref, cancelled=never).model == done.model
    assert len(model_hub.requests) == asked


def test_what_a_source_key_means_is_learnt_from_the_manifest_at_the_next_scan(
    model_hub: Hub, volume: Path
) -> None:
    sha256 = models.write_lora(model_hub.root / "x.safetensors", seed="x")
    (model_hub.root / "y.safetensors").write_bytes((model_hub.root / "x.safetensors").read_bytes())
    one, other = shelf_on(volume), shelf_on(volume)
    one.ensure(name="x", url=f"{model_hub.url}/x.safetensors")
    other.cache._listing.refresh()
    one.ensure(name="x", url=f"{model_hub.url}/y.safetensors")
    asked = len(model_hub.requests)

    other.cache._listing.refresh()

    assert other.ensure(name="x", url=f"{model_hub.url}/y.safetensors").model.sha256 == sha256
    assert len(model_hub.requests) == asked
