import contextlib
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from model_cache import layout, manifests, publish
from model_cache.cache import ModelCache
from model_cache.models import CachedModel, Ensured, Progress
from schemas.errors import (
    JobCancelledError,
    ModelCorruptError,
    ModelIncompatibleError,
    ModelNotFoundError,
    ModelUnsafeError,
    VolumeBusyError,
    VolumeMissingError,
    WorkerError,
)
from schemas.model_ref import Kind, ModelRef
from simulator import models
from tests.model_cache.conftest import Hub, Shelf, safetensors, settings_for


METADATA = models.kohya_metadata("sd1", "det")


@pytest.fixture
def sha256(model_hub: Hub) -> str:
    """Put a LoRA on the host."""
    return models.write_lora(
        model_hub.root / "detail.safetensors", seed="detail", metadata=METADATA
    )


@pytest.fixture
def url(model_hub: Hub, sha256: str) -> str:
    """Where that LoRA is."""
    assert sha256
    return f"{model_hub.url}/detail.safetensors"


def test_a_model_is_fetched_once_and_described(
    model_hub: Hub, shelf: Shelf, url: str, sha256: str
) -> None:
    first = shelf.ensure(name="mine", url=f"{url}?token=secret")
    second = shelf.ensure(name="mine", url=url)

    path = shelf.models / "loras" / "mine.safetensors"
    assert path.read_bytes() == (model_hub.root / "detail.safetensors").read_bytes()
    assert first.model == CachedModel(
        kind=Kind.LORA,
        name="mine",
        path=path,
        sha256=sha256,
        size_bytes=path.stat().st_size,
        mtime_ns=path.stat().st_mtime_ns,
        base="sd1",
        alias="det",
        source=url,
    )
    assert (first.cached, first.bytes_fetched, first.warnings) == (False, path.stat().st_size, ())
    assert 0 < first.download_s < 10
    assert second == Ensured(first.model, cached=True, download_s=0.0, bytes_fetched=0)
    assert len(model_hub.requests) == 1


def test_only_the_model_its_manifest_and_the_view_are_left(shelf: Shelf, url: str) -> None:
    shelf.ensure(name="mine", url=url)

    everything = [path for path in shelf.volume.rglob("*") if path.is_file()]
    assert sorted(str(path.relative_to(shelf.models)) for path in everything) == [
        ".worker/manifests/lora/mine.safetensors.json",
        "cache_registry.json",
        "loras/mine.safetensors",
    ]
    assert all(b"secret" not in path.read_bytes() for path in everything)


def test_another_process_finds_it_by_its_manifest(model_hub: Hub, shelf: Shelf, url: str) -> None:
    fetched = shelf.ensure(name="mine", url=url)

    other = ModelCache(settings_for(shelf.volume))

    found = other.ensure(ModelRef(kind=Kind.LORA, url=url), cancelled=threading.Event())
    assert (found.model, found.cached) == (fetched.model, True)
    assert len(model_hub.requests) == 1


@pytest.mark.parametrize(
    ("kind", "folder", "write"),
    [
        (Kind.CHECKPOINT, "checkpoints", models.write_checkpoint),
        (Kind.LORA, "loras", models.write_loha),
        (Kind.EMBEDDING, "embeddings", models.write_embedding),
        (Kind.VAE, "vae", models.write_vae),
        (Kind.CONTROLNET, "controlnet", models.write_controlnet),
        (Kind.UPSCALER, "upscalers", models.write_upscaler),
    ],
)
def test_every_kind_has_its_folder(
    model_hub: Hub, shelf: Shelf, kind: Kind, folder: str, write: Callable[..., str]
) -> None:
    digest = write(model_hub.root / "m.safetensors", seed="m")

    done = shelf.ensure(kind, url=f"{model_hub.url}/m.safetensors", hash=digest)

    assert done.model.path == shelf.models / folder / "m.safetensors"
    assert done.warnings == ()


def test_a_file_without_a_name_gets_the_hosts_made_plain(
    model_hub: Hub, shelf: Shelf, url: str
) -> None:
    model_hub.spoil(filename="../../Détail: v2.safetensors")

    done = shelf.ensure(url=url)

    assert done.model.path == shelf.models / "loras" / "Détail_ v2.safetensors"


def test_a_signed_url_that_was_renewed_means_the_same_file(
    model_hub: Hub, shelf: Shelf, url: str
) -> None:
    shelf.ensure(url=f"{url}?X-Amz-Signature=1&X-Amz-Date=1")

    assert shelf.ensure(url=f"{url}?X-Amz-Signature=2&X-Amz-Date=2").cached
    assert len(model_hub.requests) == 1


def test_two_threads_fetch_one_file_once(model_hub: Hub, shelf: Shelf, url: str) -> None:
    model_hub.spoil(delay_s=0.3)
    done: list[Ensured] = []
    threads = [
        threading.Thread(target=lambda: done.append(shelf.ensure(name="mine", url=url)))
        for _ in range(4)
    ]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(one.cached for one in done) == [False, True, True, True]
    assert len(model_hub.requests) == 1


def test_a_thread_that_waits_for_another_can_be_cancelled(
    model_hub: Hub, shelf: Shelf, url: str
) -> None:
    model_hub.spoil(delay_s=1)
    first = threading.Thread(target=lambda: shelf.ensure(name="mine", url=url))
    first.start()
    while not model_hub.requests:
        time.sleep(0.01)
    cancelled = threading.Event()
    cancelled.set()
    started = time.monotonic()

    with pytest.raises(JobCancelledError):
        shelf.ensure(name="mine", url=url, cancelled=cancelled)

    assert time.monotonic() - started < 0.5
    first.join()


def test_two_models_are_fetched_side_by_side(model_hub: Hub, shelf: Shelf, url: str) -> None:
    models.write_lora(model_hub.root / "other.safetensors", seed="other")
    model_hub.spoil(delay_s=0.4, times=2)
    started = time.monotonic()
    threads = [
        threading.Thread(target=lambda where=where: shelf.ensure(url=where))
        for where in (url, url.replace("detail", "other"))
    ]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert time.monotonic() - started < 0.75
    assert len(shelf.cache.models(Kind.LORA)) == 2


def test_progress_is_reported(shelf: Shelf, url: str) -> None:
    told: list[Progress] = []

    size = shelf.ensure(url=url, progress=told.append).model.size_bytes

    assert told[-1] == Progress(size, size)


# Which file a reference means.


def test_other_bytes_under_a_name_that_is_taken_are_published_beside_it(
    model_hub: Hub, shelf: Shelf, url: str
) -> None:
    other = models.write_lora(model_hub.root / "other.safetensors", seed="other")
    kept = shelf.ensure(name="x", url=url).model
    wanted = {"name": "x", "url": url.replace("detail", "other")}

    done = shelf.ensure(**wanted)
    again = shelf.ensure(**wanted)

    assert done.model.name == f"x-{other[:8]}"
    assert done.warnings == (f"The lora is called 'x-{other[:8]}': another file has the name 'x'.",)
    assert (again.model, again.cached, again.warnings) == (done.model, True, done.warnings)
    assert shelf.ensure(name="x").model == kept
    assert len(model_hub.requests) == 2


def test_a_name_that_a_file_of_another_layout_has_is_not_taken_from_it(
    shelf: Shelf, url: str, sha256: str
) -> None:
    theirs = shelf.models / "Lora" / "x.safetensors"
    digest = models.write_lora(theirs, seed="theirs")

    done = shelf.ensure(name="x", url=url, hash=sha256)

    assert done.model.name == f"x-{sha256[:8]}"
    assert shelf.ensure(name="x", hash=digest).model.path == theirs


def test_bytes_that_are_here_under_another_name_are_linked(
    model_hub: Hub, shelf: Shelf, url: str, sha256: str
) -> None:
    first = shelf.ensure(name="x", url=url)

    by_source = shelf.ensure(name="y", url=url)
    by_digest = shelf.ensure(name="z", url=f"{model_hub.url}/elsewhere", hash=sha256)
    by_name = shelf.ensure(name="w", hash=sha256)

    for done, name in ((by_source, "y"), (by_digest, "z"), (by_name, "w")):
        assert (done.model.name, done.cached, done.warnings) == (name, True, ())
        assert done.model.path.samefile(first.model.path)
        assert done.model == replace(first.model, name=name, path=done.model.path)
    assert len(model_hub.requests) == 1


def test_where_no_link_can_be_made_the_model_is_used_as_it_is_called(
    shelf: Shelf, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = shelf.ensure(name="x", url=url)
    monkeypatch.setattr(publish, "second_name", lambda *_: False)

    done = shelf.ensure(name="y", url=url)

    assert (done.model, done.cached) == (first.model, True)
    assert done.warnings == ("The lora is here as 'x'; that is used.",)


def test_the_same_bytes_from_two_sources_are_one_file_and_fetched_once_from_each(
    model_hub: Hub, shelf: Shelf, url: str, sha256: str
) -> None:
    mirror = model_hub.root / "mirror.safetensors"
    mirror.write_bytes((model_hub.root / "detail.safetensors").read_bytes())
    wanted = {"name": "x", "url": url.replace("detail", "mirror")}
    first = shelf.ensure(name="x", url=url)

    second = shelf.ensure(**wanted)
    third = shelf.ensure(**wanted)

    assert [done.model.name for done in (first, second, third)] == ["x", "x-" + sha256[:8], "x"]
    assert third.cached
    assert len(model_hub.requests) == 2
