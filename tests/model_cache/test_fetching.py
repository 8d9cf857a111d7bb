import contextlib
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from model_cache.engine.download import Allowance
from model_cache.models import Ensured, Origin
from model_cache.volume import layout, manifests, publish
from schemas.errors import DownloadBudgetExceededError, JobCancelledError, VolumeFullError
from schemas.model_ref import Kind, ModelRef
from simulator import models
from tests.model_cache.conftest import Hub, Shelf, shelf_on


def lora(hub: Hub, seed: str, place: str = "detail") -> str:
    """Put a LoRA on the host, and return its digest."""
    return models.write_lora(hub.root / f"{place}.safetensors", seed=seed)


def repository(hub: Hub, name: str, seed: str) -> str:
    """Put a LoRA into a Hugging Face repository, and return its digest."""
    folder = hub.root / "huggingface" / name
    folder.mkdir(parents=True, exist_ok=True)
    return models.write_lora(folder / "d.safetensors", seed=seed)


def refreshed(shelf: Shelf, **ref: str) -> Ensured:
    asked = ModelRef.model_validate({"kind": Kind.LORA, "refresh": True, **ref})
    return shelf.cache.ensure(asked, cancelled=threading.Event())


def test_what_one_worker_refreshed_is_new_for_all(model_hub: Hub, volume: Path) -> None:
    url = f"{model_hub.url}/detail.safetensors"
    old = lora(model_hub, "v1")
    one, other = shelf_on(volume), shelf_on(volume)
    assert [shelf.ensure(url=url).model.sha256 for shelf in (one, other)] == [old, old]

    new = lora(model_hub, "v2")
    assert refreshed(one, url=url).model.sha256 == new
    other.cache._listing.refresh()

    workers = (one, other, shelf_on(volume))
    assert [shelf.ensure(url=url).model.sha256 for shelf in workers] == [new] * 3


def test_a_worker_that_knows_the_old_state_undoes_no_refresh(model_hub: Hub, volume: Path) -> None:
    old = repository(model_hub, "org/one", "v1")
    repository(model_hub, "org/two", "v1")
    one = shelf_on(volume, hf_endpoint=model_hub.url)
    one.ensure(name="d", url="hf:org/one/d.safetensors")
    stale = shelf_on(volume, hf_endpoint=model_hub.url)
    new = repository(model_hub, "org/one", "v2")
    assert refreshed(one, name="d", url="hf:org/one/d.safetensors").model.sha256 == new

    # The same bytes as the old ones: writes what it knows of them.
    assert stale.ensure(name="d", url="hf:org/two/d.safetensors").model.sha256 == old

    fresh = shelf_on(volume, hf_endpoint=model_hub.url)
    assert fresh.ensure(url="hf:org/one/d.safetensors").model.sha256 == new
    assert fresh.ensure(url="hf:org/two/d.safetensors").model.sha256 == old


def test_a_source_that_has_its_old_file_again_means_that(model_hub: Hub, shelf: Shelf) -> None:
    url = f"{model_hub.url}/detail.safetensors"
    for seed in ("v1", "v2", "v1"):
        sha256 = lora(model_hub, seed)
        assert refreshed(shelf, url=url).model.sha256 == sha256
        assert shelf.ensure(url=url).model.sha256 == sha256

    assert shelf_on(shelf.volume).ensure(url=url).model.sha256 == sha256


def test_a_refresh_is_later_than_one_of_a_host_whose_clock_is_fast(
    model_hub: Hub, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{model_hub.url}/detail.safetensors"
    lora(model_hub, "v1")
    now = time.time()
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: now + 3600)
        shelf.ensure(url=url)
    new = lora(model_hub, "v2")

    assert refreshed(shelf_on(shelf.volume), url=url).model.sha256 == new

    assert shelf_on(shelf.volume).ensure(url=url).model.sha256 == new


def test_versions_that_were_replaced_can_be_evicted(model_hub: Hub, shelf: Shelf) -> None:
    url = f"{model_hub.url}/detail.safetensors"
    for seed in ("v1", "v2", "v3"):
        lora(model_hub, seed)
        refreshed(shelf, url=url)
    shelf.cache.close()

    later = shelf_on(shelf.volume)
    assert {model.origin for model in later.cache.models(Kind.LORA)} == {Origin.PUBLISHED}
    assert len(later.cache.prune(0)) == 3


def test_an_old_version_is_not_found_when_the_new_one_was_evicted(
    model_hub: Hub, shelf: Shelf
) -> None:
    url = f"{model_hub.url}/detail.safetensors"
    lora(model_hub, "v1")
    shelf.ensure(url=url)
    new = lora(model_hub, "v2")
    evicted = refreshed(shelf, url=url).model.path
    shelf.cache.close()
    evicted.unlink()

    assert shelf_on(shelf.volume).ensure(url=url).model.sha256 == new


@pytest.mark.slow
def test_a_refresh_that_many_workers_want_at_once_is_fetched_twice_at_most(
    model_hub: Hub, volume: Path
) -> None:
    url, sha256 = f"{model_hub.url}/detail.safetensors", lora(model_hub, "v1")
    # So long that all ask while the first is at it, on a busy machine as well.
    model_hub.spoil(delay_s=1.5, times=-1)
    shelves = [shelf_on(volume) for _ in range(5)]
    done: list[str | None] = []
    threads = [
        threading.Thread(
            target=lambda shelf=shelf: done.append(refreshed(shelf, url=url).model.sha256)
        )
        for shelf in shelves
    ]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert done == [sha256] * 5
    # One that began before the others were asked does not count for them; the next one does.
    assert len(model_hub.requests) == 2


def test_a_job_waits_for_another_threads_fetch_no_longer_than_it_may(
    model_hub: Hub, shelf: Shelf
) -> None:
    lora(model_hub, "v1")
    ref = ModelRef(kind=Kind.LORA, url=f"{model_hub.url}/detail.safetensors")
    model_hub.spoil(delay_s=60)
    over = threading.Event()

    def fetch() -> None:
        with contextlib.suppress(JobCancelledError):
            shelf.ensure(url=str(ref.url), cancelled=over)

    other = threading.Thread(target=fetch)
    other.start()
    while not model_hub.requests:
        time.sleep(0.01)
    started = time.monotonic()

    with pytest.raises(DownloadBudgetExceededError):
        shelf.cache.ensure(ref, cancelled=threading.Event(), allowance=Allowance(10**9, max_s=0.2))

    assert time.monotonic() - started < 30
    over.set()
    other.join()


@pytest.mark.parametrize("named", [True, False], ids=["after the name", "before the name"])
def test_a_worker_that_dies_while_it_publishes_leaves_what_can_be_evicted(
    model_hub: Hub, volume: Path, *, named: bool
) -> None:
    url = f"{model_hub.url}/detail.safetensors"
    sha256 = lora(model_hub, "v1")
    pid = os.fork()
    if not pid:
        place = publish.place

        def killed(part: Path, final: Path) -> bool:
            if named:
                place(part, final)
            os._exit(9)

        publish.place = killed
        shelf_on(volume).ensure(url=url)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9

    for lease in layout.leases_folder(volume).iterdir():
        lease.unlink()  # As others do after eight seconds.
    shelf = shelf_on(volume)
    before = len(model_hub.requests)
    done = shelf.ensure(url=url)

    assert (done.model.sha256, done.model.origin) == (sha256, Origin.PUBLISHED)
    assert done.cached is named
    assert (len(model_hub.requests) == before) is named
    shelf.cache.close()
    assert shelf_on(volume).cache.prune(0) == (done.model.path,)


def test_a_file_whose_manifest_another_worker_overwrote_gets_it_back(
    model_hub: Hub, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha256 = lora(model_hub, "v1")
    place = publish.place

    def overtaken(part: Path, final: Path) -> bool:
        named = place(part, final)
        if final.parent.name == "loras":
            at = layout.manifest_path(shelf.volume, Kind.LORA, final)
            mine = manifests.stored(at)
            assert mine is not None
            theirs = mine.model_copy(update={"sha256": "b" * 64, "mtime_ns": 1})
            manifests.write(shelf.volume, at, theirs)
        return named

    monkeypatch.setattr(publish, "place", overtaken)
    shelf.ensure(url=f"{model_hub.url}/detail.safetensors")

    [model] = shelf_on(shelf.volume).cache.models(Kind.LORA)
    assert (model.sha256, model.origin) == (sha256, Origin.PUBLISHED)


def test_a_full_disk_gets_room_for_as_long_as_more_comes(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetching, evicted_for = shelf.cache._fetching, []
    sizes = iter([10, 20, 20])

    def attempt(order: Any) -> Ensured:
        order.size_bytes = next(sizes)
        raise VolumeFullError("full")

    def evict_for(size_bytes: int) -> tuple[Path, ...]:
        evicted_for.append(size_bytes)
        return ()

    monkeypatch.setattr(fetching, "_attempt", attempt)
    monkeypatch.setattr(fetching._room, "evict_for", evict_for)

    with pytest.raises(VolumeFullError):
        shelf.ensure(url="http://127.0.0.1:1/x.safetensors")

    assert evicted_for == [10, 20]
