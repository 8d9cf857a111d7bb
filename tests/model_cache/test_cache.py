import hashlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from model_cache.cache import ModelCache
from model_cache.models import CachedModel, Ensured, Origin, Progress
from model_cache.volume import layout, manifests, publish
from model_cache.weights import verify
from model_cache.weights.digests import Digests
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
from tests.model_cache.conftest import (
    Hub,
    Shelf,
    safetensors,
    settings_for,
    shelf_on,
    wait_until,
)

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


def weights_of(path: Path) -> bytes:
    """What follows the header of a safetensors file."""
    content = path.read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :]


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
        base_by="shapes",
        alias="det",
        source=url,
        autov3=hashlib.sha256(weights_of(path)).hexdigest()[:12],
        origin=Origin.PUBLISHED,
    )
    assert (first.cached, first.bytes_fetched, first.warnings) == (False, path.stat().st_size, ())
    assert 0 < first.download_s < 10
    assert second == Ensured(first.model, cached=True, download_s=0.0, bytes_fetched=0)
    assert len(model_hub.requests) == 1


def test_only_the_model_its_manifest_and_the_view_are_left(shelf: Shelf, url: str) -> None:
    shelf.ensure(name="mine", url=f"{url}?token=secret")
    shelf.cache.close()

    everything = [path for path in shelf.volume.rglob("*") if path.is_file()]
    assert sorted(str(path.relative_to(shelf.models)) for path in everything) == [
        ".worker/manifests/lora/mine.safetensors.json",
        f".worker/uses/{shelf.cache.worker}.history.json",
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


def test_a_hit_is_one_stat_for_each_model_and_nothing_else(
    model_hub: Hub, volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"m{number}" for number in range(5)]
    for name in names:
        models.write_lora(model_hub.root / f"{name}.safetensors", seed=name)
    shelf = shelf_on(volume)
    urls = [f"{model_hub.url}/{name}.safetensors" for name in names]
    for url in urls:
        shelf.ensure(url=url)
    stats: list[Path] = []
    look = Path.stat

    def counted(path: Path, **how: Any) -> os.stat_result:
        stats.append(path)
        return look(path, **how)

    monkeypatch.setattr(Path, "stat", counted)

    started = time.monotonic()
    with watched() as events:
        hits = [shelf.ensure(url=url) for url in urls]
        hits += [shelf.ensure(name=name) for name in names]

    assert all(hit.cached for hit in hits)
    looks = aliases_of(stats, time.monotonic() - started)
    assert sorted(stats) == sorted([hit.model.path for hit in hits] + looks)
    assert events == []


def aliases_of(stats: list[Path], took_s: float) -> list[Path]:
    """The one look in a second at the file of aliases, as far as it fell into these."""
    looks = [path for path in stats if path.name == "aliases.json"]
    assert len(looks) <= 1 + took_s
    return looks


_watching: list[list[str]] = []


def _hear(event: str, args: tuple[object, ...]) -> None:
    for events in _watching:
        if event == "open" or event.startswith(("os.", "socket.", "fcntl.")):
            events.append(f"{event} {args[:1]}")


@cache
def _listen() -> None:
    sys.addaudithook(_hear)  # There is no way to remove it.


@contextmanager
def watched() -> Iterator[list[str]]:
    """Collect what is opened, listed, renamed, connected to in the meantime."""
    _listen()
    events: list[str] = []
    _watching.append(events)
    try:
        yield events
    finally:
        _watching.remove(events)


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
    model_hub.spoil(delay_s=60)
    over = threading.Event()

    def fetch() -> None:
        with suppress(JobCancelledError):
            shelf.ensure(name="mine", url=url, cancelled=over)

    first = threading.Thread(target=fetch)
    first.start()
    wait_until(lambda: bool(model_hub.requests))
    cancelled = threading.Event()
    cancelled.set()
    started = time.monotonic()

    with pytest.raises(JobCancelledError):
        shelf.ensure(name="mine", url=url, cancelled=cancelled)

    assert time.monotonic() - started < 30
    assert first.is_alive()
    over.set()
    first.join()


def test_two_models_are_fetched_side_by_side(model_hub: Hub, shelf: Shelf, url: str) -> None:
    models.write_lora(model_hub.root / "other.safetensors", seed="other")
    model_hub.spoil(delay_s=60, times=2)
    over = threading.Event()

    def fetch(where: str) -> None:
        with suppress(JobCancelledError):
            shelf.ensure(url=where, cancelled=over)

    threads = [
        threading.Thread(target=fetch, args=(where,))
        for where in (url, url.replace("detail", "other"))
    ]

    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: len(model_hub.requests) == 2)
    finally:
        over.set()
        for thread in threads:
            thread.join()


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

    done = shelf.ensure(name="x", url=url.replace("detail", "other"))
    again = shelf.ensure(name="x", url=url.replace("detail", "other"))

    assert done.model.name == f"x-{other[:8]}"
    assert done.warnings == (f"The lora is called 'x-{other[:8]}': another file has the name 'x'.",)
    assert (again.model, again.cached, again.warnings) == (done.model, True, done.warnings)
    assert shelf.ensure(name="x").model == kept
    assert len(model_hub.requests) == 2


def test_a_name_that_a_file_of_another_layout_has_is_not_taken_from_it(
    volume: Path, url: str, sha256: str
) -> None:
    theirs = volume / "models" / "Lora" / "x.safetensors"
    digest = models.write_lora(theirs, seed="theirs")
    shelf = shelf_on(volume)

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
    model_hub: Hub, shelf: Shelf, url: str
) -> None:
    mirror = model_hub.root / "mirror.safetensors"
    mirror.write_bytes((model_hub.root / "detail.safetensors").read_bytes())
    first = shelf.ensure(name="x", url=url)

    second = shelf.ensure(name="x", url=url.replace("detail", "mirror"))
    third = shelf.ensure(name="x", url=url.replace("detail", "mirror"))

    assert [done.model.name for done in (first, second, third)] == ["x", "x", "x"]
    assert [done.cached for done in (first, second, third)] == [False, False, True]
    assert second.warnings == third.warnings == ()
    assert len(model_hub.requests) == 2


def test_a_file_that_people_put_there_is_used_for_a_url_with_a_warning(
    model_hub: Hub, volume: Path, url: str
) -> None:
    path = volume / "models" / "loras" / "x.safetensors"
    models.write_lora(path, seed="theirs", metadata=METADATA)
    shelf = shelf_on(volume)

    done = shelf.ensure(name="x", url=url)

    assert (done.model.path, done.model.sha256, done.model.alias) == (path, None, "det")
    assert "no record of where it came from" in done.warnings[0]
    assert model_hub.requests == []


def test_a_file_that_people_put_there_is_hashed_once_for_all_workers(
    model_hub: Hub, volume: Path, url: str, sha256: str
) -> None:
    path = volume / "models" / "loras" / "sub" / "x.safetensors"
    models.write_lora(path, seed="detail", metadata=METADATA)
    shelf = shelf_on(volume)
    told: list[Progress] = []

    done = shelf.ensure(name="x", url=url, hash=sha256, progress=told.append)

    assert (done.model.path, done.model.sha256, done.warnings) == (path, sha256, ())
    assert (done.model.source, done.model.alias) == ("", "det")
    assert told[-1] == Progress(path.stat().st_size, path.stat().st_size)
    assert model_hub.requests == []
    told.clear()
    other = shelf_on(shelf.volume)
    assert other.ensure(name="x", hash=sha256, progress=told.append).model == done.model
    assert told == []


def test_two_threads_hash_one_file_once(
    volume: Path, url: str, sha256: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    models.write_lora(
        volume / "models" / "loras" / "x.safetensors", seed="detail", metadata=METADATA
    )
    shelf = shelf_on(volume)
    hashed: list[Path] = []

    read = verify.digests

    def slowly(path: Path, **how: Any) -> Digests:
        hashed.append(path)
        time.sleep(0.2)
        return read(path, **how)

    monkeypatch.setattr(verify, "digests", slowly)
    done: list[Ensured] = []
    threads = [
        threading.Thread(target=lambda: done.append(shelf.ensure(name="x", url=url, hash=sha256)))
        for _ in range(3)
    ]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [one.model.sha256 for one in done] == [sha256] * 3
    assert len(hashed) == 1


def test_a_damaged_file_that_people_put_there_is_no_hindrance_for_a_url(
    model_hub: Hub, volume: Path, url: str, sha256: str
) -> None:
    path = volume / "models" / "loras" / "x.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half an upload")
    shelf = shelf_on(volume)

    told = shelf.ensure(name="x", url=url, hash=sha256)
    untold = shelf.ensure(name="x", url=url)
    again = shelf.ensure(name="x", url=url, hash=sha256)

    assert told.model == untold.model == again.model
    assert told.model.name == f"x-{sha256[:8]}"
    assert len(model_hub.requests) == 1
    assert path.read_bytes() == b"half an upload"
    with pytest.raises(ModelCorruptError, match="'x' is not a whole safetensors file"):
        shelf.ensure(name="x")


def test_a_model_that_another_worker_published_is_found_before_anything_is_fetched(
    model_hub: Hub, shelf: Shelf, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = shelf_on(shelf.volume)
    shelf.ensure(name="x", url=url)
    monkeypatch.setattr("model_cache.presence.MISS_FRESH_S", 0)

    assert other.ensure(name="x", url=url).cached
    assert other.ensure(name="x").cached
    assert len(model_hub.requests) == 1


def test_a_name_that_was_added_since_is_found(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model_cache.presence.MISS_FRESH_S", 0)
    path = shelf.models / "Lora" / "new.safetensors"
    models.write_lora(path, seed="new")

    assert shelf.ensure(name="new").model.path == path


def test_a_name_that_is_asked_for_again_and_again_does_not_search_the_volume_each_time(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Longer than a busy machine may stop us for.
    monkeypatch.setattr("model_cache.presence.MISS_FRESH_S", 60)
    models.write_lora(shelf.models / "Lora" / "new.safetensors", seed="new")

    with pytest.raises(ModelNotFoundError):
        shelf.ensure(name="new")


# What changes behind our back.


def test_a_file_that_was_deleted_is_fetched_again(model_hub: Hub, shelf: Shelf, url: str) -> None:
    shelf.ensure(name="x", url=url).model.path.unlink()

    assert not shelf.ensure(name="x", url=url).cached
    assert len(model_hub.requests) == 2


def test_a_file_that_was_deleted_is_not_found_by_name(shelf: Shelf, url: str) -> None:
    shelf.ensure(name="x", url=url).model.path.unlink()

    with pytest.raises(ModelNotFoundError):
        shelf.ensure(name="x")


def test_a_file_that_was_replaced_is_no_longer_what_its_manifest_says(
    shelf: Shelf, url: str, sha256: str
) -> None:
    path = shelf.ensure(name="x", url=url).model.path
    digest = models.write_lora(path, seed="other", base="sdxl")

    done = shelf.ensure(name="x")

    assert (done.model.sha256, done.model.base, done.model.source) == (None, "sdxl", "")
    with pytest.raises(ModelCorruptError):
        shelf.ensure(name="x", hash=sha256)
    assert shelf.ensure(name="x", hash=digest).model.sha256 == digest


def test_a_file_that_was_only_touched_is_proved_again_by_its_digest(
    shelf: Shelf, url: str, sha256: str
) -> None:
    path = shelf.ensure(name="x", url=url).model.path
    os.utime(path)

    done = shelf.ensure(name="x", hash=sha256)

    assert (done.model.sha256, done.model.source) == (sha256, url)


def test_a_file_that_changes_at_every_look_ends_in_an_error(
    shelf: Shelf, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = shelf.ensure(name="x", url=url).model.path
    look_again = shelf.cache._listing.look_again

    def changing(kind: Kind, where: Path) -> CachedModel | None:
        found = look_again(kind, where)
        os.utime(path, ns=(0, time.monotonic_ns()))
        return found

    monkeypatch.setattr(shelf.cache._listing, "look_again", changing)
    os.utime(path)

    with pytest.raises(VolumeBusyError, match="changes again and again"):
        shelf.ensure(name="x")


# What must not come in.


@pytest.mark.parametrize(
    ("content", "error"),
    [
        pytest.param(b"PK\x03\x04 pickled", ModelUnsafeError, id="zip"),
        pytest.param(b"\x80\x04\x95pickled", ModelUnsafeError, id="pickle"),
        pytest.param(b"<!DOCTYPE html><html>Sign in</html>", ModelUnsafeError, id="page"),
        pytest.param(b'{"error": "Unauthorized"}', ModelUnsafeError, id="json"),
        pytest.param(b"", ModelCorruptError, id="nothing"),
        pytest.param(safetensors({"a": 1}), ModelCorruptError, id="bad header"),
        pytest.param(safetensors({}) + b"x", ModelCorruptError, id="a byte too many"),
    ],
)
def test_what_is_no_model_is_refused_and_leaves_nothing(
    model_hub: Hub, shelf: Shelf, content: bytes, error: type[WorkerError]
) -> None:
    (model_hub.root / "m.safetensors").write_bytes(content)

    with pytest.raises(error):
        shelf.ensure(name="x", url=f"{model_hub.url}/m.safetensors")

    assert shelf.files() == []


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        pytest.param({"flip": 20_000}, ModelCorruptError, id="wrong bytes"),
        pytest.param({"length": -5}, ModelCorruptError, id="a length that is too small"),
        pytest.param({"html": True}, ModelUnsafeError, id="a page"),
        pytest.param({"status": 404}, ModelNotFoundError, id="404"),
        pytest.param(
            {"no_range": True, "no_length": True, "cut": 20_000},
            ModelCorruptError,
            id="an unseen cut",
        ),
    ],
)
def test_a_fault_of_the_host_is_an_error_and_leaves_nothing(
    model_hub: Hub,
    shelf: Shelf,
    url: str,
    sha256: str,
    *,
    spoil: dict[str, Any],
    error: type[WorkerError],
) -> None:
    model_hub.spoil(times=-1, **spoil)

    with pytest.raises(error):
        shelf.ensure(name="x", url=url, hash=sha256)

    assert shelf.files() == []
    model_hub.site.faults.rules.clear()
    assert not shelf.ensure(name="x", url=url, hash=sha256).cached


def test_another_digest_is_told_with_both(shelf: Shelf, url: str, sha256: str) -> None:
    with pytest.raises(ModelCorruptError) as caught:
        shelf.ensure(name="x", url=url, hash="0" * 64)

    assert caught.value.details == {"expected": "0" * 64, "actual": sha256}
    assert shelf.files() == []


def test_a_model_of_another_kind_is_refused(shelf: Shelf, url: str) -> None:
    with pytest.raises(ModelIncompatibleError, match="kind lora, not checkpoint"):
        shelf.ensure(Kind.CHECKPOINT, name="x", url=url)

    assert shelf.files() == []


def test_a_model_that_shows_no_kind_is_taken_with_a_warning(model_hub: Hub, shelf: Shelf) -> None:
    (model_hub.root / "m.safetensors").write_bytes(safetensors({}))

    done = shelf.ensure(name="x", url=f"{model_hub.url}/m.safetensors")

    assert done.warnings == ("The file of 'x' does not show that it is a lora; it is used as one.",)


def test_a_cancelled_job_leaves_nothing(model_hub: Hub, shelf: Shelf, url: str) -> None:
    model_hub.spoil(stall=5000)
    cancelled = threading.Event()
    timer = threading.Timer(0.2, cancelled.set)
    timer.start()

    with pytest.raises(JobCancelledError):
        shelf.ensure(name="x", url=url, cancelled=cancelled)

    assert shelf.files() == []
    timer.join()


def test_a_private_host_is_refused_by_default(model_hub: Hub, volume: Path, url: str) -> None:
    strict = shelf_on(volume, allow_private_hosts=False)

    with pytest.raises(WorkerError, match="https"):
        strict.ensure(name="x", url=url)
    with pytest.raises(WorkerError, match="not at a public address"):
        strict.ensure(name="x", url=url.replace("http:", "https:"))

    assert model_hub.requests == []


# The list, the headers and the numbers.


def test_models_are_listed_by_name_and_kind(shelf: Shelf, url: str) -> None:
    shelf.ensure(name="b", url=url)
    shelf.ensure(name="a", url=url)

    assert [model.name for model in shelf.cache.models(Kind.LORA)] == ["a", "b"]
    assert shelf.cache.models(Kind.CHECKPOINT) == ()


def test_what_a_header_tells_is_listed_once_it_was_read(volume: Path) -> None:
    path = volume / "models" / "Lora" / "x.safetensors"
    models.write_lora(path, seed="x", base="sdxl", metadata=models.kohya_metadata("sdxl", "ali"))
    cache = ModelCache(settings_for(volume))
    (listed,) = cache.models(Kind.LORA)

    told = cache.inspected(listed)

    assert (listed.base, listed.alias) == ("unknown", "")
    assert (told.base, told.alias) == ("sdxl", "ali")
    assert cache.models(Kind.LORA) == (told,)


def test_a_header_is_read_once_for_each_state_of_a_file(volume: Path) -> None:
    path = volume / "models" / "loras" / "x.safetensors"
    models.write_lora(path, seed="x")
    shelf = shelf_on(volume)
    before = shelf.ensure(name="x").model
    status = path.stat()
    # The same size and time, other bytes: only who reads again can tell.
    path.write_bytes(b"\0" * status.st_size)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    assert shelf.ensure(name="x").model == before
    os.utime(path)
    with pytest.raises(ModelCorruptError):
        shelf.ensure(name="x")


@pytest.mark.parametrize(
    ("write", "error"),
    [
        (lambda path: path.write_bytes(b"\x80\x04\x95 pickled"), ModelUnsafeError),
        (lambda path: path.write_bytes(b"x"), ModelCorruptError),
        (lambda path: models.write_vae(path, seed="x"), ModelIncompatibleError),
    ],
)
def test_a_bad_file_is_listed_and_refused_when_it_is_wanted(
    volume: Path, write: Callable[[Path], object], error: type[WorkerError]
) -> None:
    path = volume / "models" / "loras" / "x.safetensors"
    path.parent.mkdir(parents=True)
    write(path)
    shelf = shelf_on(volume)
    (listed,) = shelf.cache.models(Kind.LORA)

    with pytest.raises(error):
        shelf.cache.inspected(listed)
    with pytest.raises(error):
        shelf.ensure(name="x")


def test_the_numbers_count_own_changes_at_once(shelf: Shelf, url: str) -> None:
    before = shelf.cache.info()
    size = shelf.ensure(name="x", url=url).model.size_bytes
    shelf.ensure(name="y", url=url)
    models.write_checkpoint(shelf.models / "checkpoints" / "c.safetensors", seed="c")

    after = shelf.cache.info()

    assert (before.checkpoints_cached, before.loras_cached, before.total_cache_size_mb) == (0, 0, 0)
    assert (after.checkpoints_cached, after.loras_cached) == (0, 2)
    assert after.total_cache_size_mb == round(size / 1e6, 1)


def test_the_numbers_follow_other_workers_after_a_while(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    models.write_checkpoint(shelf.models / "checkpoints" / "c.safetensors", seed="c")
    monkeypatch.setattr("model_cache.cache._FRESH_S", 0)

    assert shelf.cache.info().checkpoints_cached == 1


# Without a volume, and what was left behind.


def test_without_a_volume_everything_says_so_and_nothing_is_made(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "none", ModelCache(settings_for(tmp_path / "none")))

    assert shelf.cache.models(Kind.LORA) == ()
    with pytest.raises(VolumeMissingError):
        shelf.ensure(name="x")
    with pytest.raises(VolumeMissingError):
        shelf.ensure(name="x", url="http://127.0.0.1:1/x")
    assert not (tmp_path / "none").exists()


def test_leftovers_of_yesterday_are_cleared_soon_after_the_start(
    volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model_cache.cache._SOON_S", 0.1)
    left = layout.tmp_folder(volume) / "key.dead.part"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    os.utime(left, (0, 0))

    cache = ModelCache(settings_for(volume))
    assert left.exists()
    cache.start()
    try:
        wait_until(lambda: not left.exists())
    finally:
        cache.close()


def test_a_manifest_of_a_file_that_is_gone_does_no_harm(volume: Path, shelf: Shelf) -> None:
    path = shelf.models / "loras" / "x.safetensors"
    models.write_lora(path, seed="x")
    manifest = manifests.new("0" * 64, path.stat(), "https://h/x", "sd1", "")
    manifests.write(volume, layout.manifest_path(volume, Kind.LORA, path), manifest)
    path.unlink()

    cache = ModelCache(settings_for(volume))

    assert cache.models(Kind.LORA) == ()
    with pytest.raises(ModelNotFoundError):
        Shelf(volume, cache).ensure(name="x")


def repository(hub: Hub, name: str) -> str:
    """Put a LoRA into a Hugging Face repository, and return its digest."""
    folder = hub.root / "huggingface" / name
    folder.mkdir(parents=True)
    return models.write_lora(folder / "d.safetensors", seed=name)


def test_a_name_that_can_be_nothing_else_is_taken_for_a_repository_with_a_warning(
    model_hub: Hub, volume: Path
) -> None:
    sha256 = repository(model_hub, "org/repo")
    shelf = shelf_on(volume, hf_endpoint=model_hub.url)

    for cached in (False, True):
        done = shelf.ensure(name="org/repo")
        assert (done.model.sha256, done.cached) == (sha256, cached)
        assert any("was taken for the Hugging Face repository" in one for one in done.warnings)


def test_a_name_in_a_folder_of_the_volume_is_no_repository(model_hub: Hub, volume: Path) -> None:
    repository(model_hub, "org/repo")
    models.write_lora(volume / "models/Lora/org/other.safetensors", seed="other")
    shelf = shelf_on(volume, hf_endpoint=model_hub.url)

    with pytest.raises(ModelNotFoundError):
        shelf.ensure(name="org/repo")

    assert model_hub.requests == []


@pytest.mark.parametrize(
    ("endpoint", "how"),
    [("", {}), ("", {"status": 403}), ("https://hf.example", {"allowed_hosts": ("h.example",)})],
    ids=["no such repository", "no access", "the host is not allowed"],
)
def test_a_name_that_is_neither_here_nor_a_repository_is_a_name_that_is_not_here(
    model_hub: Hub, volume: Path, endpoint: str, how: dict[str, Any]
) -> None:
    if "status" in how:
        model_hub.spoil(times=-1, **how)
    allowed = {key: value for key, value in how.items() if key != "status"}
    shelf = shelf_on(volume, hf_endpoint=endpoint or model_hub.url, **allowed)

    with pytest.raises(ModelNotFoundError, match="There is no lora called 'org/repo'") as failed:
        shelf.ensure(name="org/repo")

    assert "repository of that name" in failed.value.hint
    assert bool(model_hub.requests) is not bool(endpoint)


def test_a_model_that_was_fetched_is_there_though_the_view_of_it_cannot_be_made(
    shelf: Shelf, url: str
) -> None:
    pins = layout.pins_folder(shelf.volume)
    pins.mkdir(parents=True)
    (pins / "lora").write_text("a file, and no folder")

    assert shelf.ensure(url=url).model.path.exists()
