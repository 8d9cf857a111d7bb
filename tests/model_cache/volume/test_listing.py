import threading
import time
from pathlib import Path
from typing import Any

import pytest

from model_cache.volume import inventory, layout, manifests
from model_cache.volume.inventory import Files, Found
from model_cache.volume.listing import Listing
from schemas.model_ref import Kind
from simulator import models

SHA = "ab" * 32


def put(volume: Path, name: str) -> Path:
    path = layout.published_path(volume, Kind.LORA, name)
    models.write_lora(path, seed=name)
    return path


def names(listing: Listing) -> list[str]:
    return [model.name for model in listing.current.models(Kind.LORA)]


class Held:
    """A scan that waits where it has seen everything, until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen = threading.Event()
        self.go_on = threading.Event()
        self.count = 0
        self._scan = inventory.scan
        monkeypatch.setattr(inventory, "scan", self)

    def __call__(self, volume: Path, known: Files, **places: Any) -> dict[Path, Found]:
        self.count += 1
        files = self._scan(volume, known, **places)
        self.seen.set()
        assert self.go_on.wait(30)
        return files


class Queue:
    """A lock that says of each thread that it has come to it."""

    def __init__(self) -> None:
        self.come = threading.Semaphore(0)
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self.come.release()
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def test_a_look_at_everything_finds_what_came_and_what_went(volume: Path) -> None:
    gone = put(volume, "gone")
    listing = Listing(volume)
    gone.unlink()
    put(volume, "new")

    assert names(listing) == ["gone"]
    listing.refresh()
    assert names(listing) == ["new"]


def test_a_list_that_is_young_enough_is_not_made_again(volume: Path) -> None:
    listing = Listing(volume)
    put(volume, "new")

    assert listing.fresh(60).models(Kind.LORA) == ()
    assert len(listing.fresh(-1).models(Kind.LORA)) == 1


def test_nothing_is_named_anew_where_nothing_changed(volume: Path) -> None:
    put(volume, "x")
    path = layout.published_path(volume, Kind.LORA, "x")
    listing = Listing(volume)
    manifest = manifests.new(SHA, path.stat(), "", "sd1", "")
    listing.record(listing.current.files[path], manifest)
    before = listing.current

    listing.refresh()

    assert listing.current is before


def test_whoever_looks_something_up_does_not_wait_for_a_scan(
    volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(volume, "x")
    listing = Listing(volume)
    held = Held(monkeypatch)
    scanning = threading.Thread(target=listing.refresh)
    scanning.start()
    assert held.seen.wait(30)

    assert names(listing) == ["x"]
    assert listing.look_again(Kind.LORA, path) is not None
    assert held.count == 1
    assert scanning.is_alive()

    held.go_on.set()
    scanning.join()


def test_what_changes_while_a_scan_runs_is_not_lost_with_its_end(
    volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone, known = put(volume, "gone"), put(volume, "known")
    listing = Listing(volume)
    held = Held(monkeypatch)
    put(volume, "seen")  # or the scan would have nothing to tell
    scanning = threading.Thread(target=listing.refresh)
    scanning.start()
    assert held.seen.wait(30)

    listing.look_again(Kind.LORA, put(volume, "new"))
    gone.unlink()
    listing.forget(gone)
    found = listing.current.files[known]
    listing.record(found, manifests.new(SHA, found.status, "", "sd1", ""))
    held.go_on.set()
    scanning.join()

    assert names(listing) == ["known", "new", "seen"]
    assert len(listing.current.with_digest(Kind.LORA, SHA)) == 1


def test_threads_that_ask_at_once_share_one_look(
    volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing = Listing(volume)
    held, queue = Held(monkeypatch), Queue()
    monkeypatch.setattr(listing, "_scanning", queue)

    threads = [threading.Thread(target=listing.refresh) for _ in range(4)]
    threads[0].start()
    assert held.seen.wait(30)
    for thread in threads[1:]:
        thread.start()
    for _ in threads:
        assert queue.come.acquire(timeout=30)

    held.go_on.set()
    for thread in threads:
        thread.join()

    assert held.count == 1


def test_a_file_that_is_gone_is_taken_off_the_list_when_it_is_looked_at(volume: Path) -> None:
    path = put(volume, "x")
    listing = Listing(volume)
    path.unlink()

    assert listing.look_again(Kind.LORA, path) is None
    assert names(listing) == []


def test_the_digest_of_a_baked_file_stays_in_this_process(tmp_path: Path, volume: Path) -> None:
    """Another image may have other bytes there, of the same size and time."""
    path = tmp_path / "image/loras/x.safetensors"
    models.write_lora(path, seed="x")
    listing = Listing(volume, baked=tmp_path / "image")
    found = listing.current.files[path]

    listing.record(found, manifests.new(SHA, found.status, "", "sd1", ""))
    listing.refresh()

    assert len(listing.current.with_digest(Kind.LORA, SHA)) == 1
    assert Listing(volume, baked=tmp_path / "image").current.with_digest(Kind.LORA, SHA) == ()
    assert list(volume.rglob("*.json")) == []


def test_where_the_disk_refuses_a_manifest_this_process_knows(
    volume: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = put(volume, "x")
    listing = Listing(volume)
    layout.tmp_folder(volume).parent.mkdir(parents=True)
    layout.tmp_folder(volume).write_text("in the way")

    listing.record(listing.current.files[path], manifests.new(SHA, path.stat(), "", "sd1", ""))

    assert len(listing.current.with_digest(Kind.LORA, SHA)) == 1
    assert "The manifest of x.safetensors was not written" in caplog.text


def test_pickles_are_listed_where_they_are_allowed(volume: Path) -> None:
    path = volume / "models/upscalers/x.pth"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x")

    assert Listing(volume).current.models(Kind.UPSCALER) == ()
    allowed = Listing(volume, allow_pickle=[Kind.UPSCALER])
    assert [model.path for model in allowed.current.models(Kind.UPSCALER)] == [path]


@pytest.mark.slow
def test_one_change_costs_the_same_among_ten_and_among_thousands(volume: Path) -> None:
    """Not a multiple of what is there: that is what naming all of them anew would be."""
    folder = volume / "models/loras"
    folder.mkdir(parents=True)
    took: dict[int, float] = {}
    for count in (10, 3_000):
        for number in range(count):
            (folder / f"m{number}.safetensors").touch()
        listing = Listing(volume)
        took[count] = min(_seconds(listing, folder / "m3.safetensors") for _ in range(20))

    assert took[3_000] < 0.005 + 20 * took[10]


def _seconds(listing: Listing, path: Path) -> float:
    started = time.perf_counter()
    listing.look_again(Kind.LORA, path)
    return time.perf_counter() - started


def test_a_glance_sees_what_another_worker_published(volume: Path) -> None:
    known = put(volume, "known")
    listing = Listing(volume)
    path, orphan = put(volume, "new"), put(volume, "orphan")
    for at in (known, path, orphan):
        manifest = manifests.new(SHA, at.stat(), "https://h/new", "sd1", "")
        manifests.write(volume, layout.manifest_path(volume, Kind.LORA, at), manifest)
    orphan.unlink()

    listing.glance(Kind.LORA)

    assert names(listing) == ["known", "new"]
    assert [model.name for model in listing.current.with_digest(Kind.LORA, SHA)] == ["new"]


def test_what_another_worker_wrote_since_is_not_lost_by_a_change(volume: Path) -> None:
    path = put(volume, "x")
    listing, other = Listing(volume), Listing(volume)
    manifest = manifests.new(SHA, path.stat(), "", "sd1", "")
    listing.record(listing.current.files[path], manifest)
    other.refresh()
    stale = listing.current.files[path]
    other.amend(
        other.current.files[path], lambda known: manifests.with_sources(known, ["https://h/a"], 1.0)
    )

    listing.amend(stale, lambda known: manifests.with_sources(known, ["https://h/b"], 2.0))

    for one in (listing, Listing(volume)):
        told = one.current.files[path].manifest
        assert told is not None
        assert told.means == {"https://h/a": 1.0, "https://h/b": 2.0}


def test_a_file_without_a_manifest_gets_none_by_a_change(volume: Path) -> None:
    path = put(volume, "x")
    listing = Listing(volume)

    listing.amend(listing.current.files[path], lambda known: known)

    assert manifests.names(volume, Kind.LORA) == frozenset()


def test_what_is_seen_now_is_later_than_all_that_was_seen(volume: Path) -> None:
    path = put(volume, "x")
    listing = Listing(volume)
    ahead = time.time() + 3600
    manifest = manifests.new(SHA, path.stat(), "", "sd1", "")
    manifest = manifests.with_sources(manifest, ["https://h/a"], ahead)
    listing.record(listing.current.files[path], manifest)

    assert listing.now(Kind.LORA, ["https://h/b"]) < ahead < listing.now(Kind.LORA, ["https://h/a"])
