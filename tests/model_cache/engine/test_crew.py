"""Fetches over several connections, against a host on real sockets."""

import hashlib
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from model_cache.engine import partial, transfer
from model_cache.engine.connections import Connections
from model_cache.engine.download import Allowance, Download
from model_cache.engine.limits import Limits, Watch
from model_cache.engine.partial import Part
from model_cache.engine.transfer import Fetched
from model_cache.volume import layout
from model_cache.volume.publish import PartLostError
from schemas.errors import (
    DownloadBudgetExceededError,
    DownloadIncompleteError,
    JobCancelledError,
    ModelCorruptError,
    ModelIncompatibleError,
    ModelUnsafeError,
    SourceUnavailableError,
    VolumeFullError,
    WorkerError,
)
from tests.model_cache.conftest import Hub

MIB = 1 << 20
SIZE = 5 * MIB + 12_345
BYTES = hashlib.shake_256(b"large").digest(SIZE)
SHA256 = hashlib.sha256(BYTES).hexdigest()
LIMITS = Limits(
    stall_s=5, allow_private_hosts=True, pause_s=0.01, segment_bytes=MIB // 4, save_every_s=0.1
)


@dataclass
class Fetcher:
    """Fetches to a volume, and knows what the part held at the end."""

    volume: Path
    url: str
    got: bytes = b""

    def __call__(self, **options: Any) -> Fetched:
        """Fetch with `LIMITS`, changed by `options`, which also are those of `Watch`."""
        fields = {name: options.pop(name) for name in ("size_bytes", "sha256") if name in options}
        download = Download(options.pop("url", self.url), "https://h/m", **fields)
        allowance = Allowance(options.pop("max_bytes", 10**9), options.pop("max_s", 20))
        limits = {name: options.pop(name) for name in vars(LIMITS) if name in options}
        watch = Watch(
            options.pop("cancelled", threading.Event()),
            allowance,
            options.pop("connections", Connections(8)),
            **options,
        )
        with partial.private_part(self.volume, "ab") as part:
            try:
                return transfer.fetch(download, part, replace(LIMITS, **limits), watch)
            finally:
                self.got = part.path.read_bytes() if part.path.exists() else b""

    def left(self) -> list[Path]:
        return sorted(layout.tmp_folder(self.volume).iterdir())


@pytest.fixture
def fetch(model_hub: Hub, volume: Path) -> Fetcher:
    (model_hub.root / "m").write_bytes(BYTES)
    return Fetcher(volume, f"{model_hub.url}/m")


def test_a_large_file_comes_whole_over_several_connections(fetch: Fetcher, model_hub: Hub) -> None:
    model_hub.spoil(rate=4 * MIB, times=-1)
    connections = Connections(8)
    most = 0

    def look(_: object) -> None:
        nonlocal most
        most = max(most, connections.count())

    fetched = fetch(connections=connections, progress=look)

    assert fetch.got == BYTES
    assert fetched.sha256 == SHA256
    assert most > 1
    assert connections.count() == 0
    assert fetch.left() == []


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param({"cut": 100_000, "times": 9}, id="drops"),
        pytest.param({"drop": True, "times": 4}, id="does not answer"),
        pytest.param({"short": 100_000, "times": 9}, id="gives less of a range"),
        pytest.param({"long": 100_000, "times": 9}, id="gives more of a range"),
        pytest.param({"shift": 1000}, id="gives another range"),
        pytest.param({"shift": 1000, "times": -1}, id="always gives another range"),
        pytest.param({"junk": 1000}, id="goes on after the end"),
        pytest.param({"junk": 1000, "times": 9}, id="often goes on after the end"),
        pytest.param({"no_range": True, "times": 2}, id="ignores ranges"),
        pytest.param({"no_range": True, "times": -1}, id="never gives ranges"),
        pytest.param({"no_range": True, "cut": 3 * MIB, "times": 2}, id="drops a stream"),
        pytest.param({"length": 50, "times": 3}, id="promises more than it gives"),
        pytest.param({"length": -50}, id="promises less than it gives"),
        pytest.param({"chunked": True, "times": -1}, id="says no length"),
        pytest.param({"no_length": True, "times": -1}, id="ends with the connection"),
        pytest.param({"no_length": True, "cut": 70_000, "times": 9}, id="ends early in silence"),
        pytest.param({"status": 500, "times": 3}, id="is broken"),
        pytest.param({"status": 416}, id="refuses a range"),
        pytest.param({"etag": "changing"}, id="has another etag"),
        pytest.param({"stall": 1000, "times": 2}, id="falls silent"),
    ],
)
@pytest.mark.parametrize("skip", [0, 3])
def test_whatever_goes_wrong_with_a_range_the_bytes_are_right(
    fetch: Fetcher, model_hub: Hub, fault: dict[str, Any], skip: int
) -> None:
    fault = dict(fault)
    times = fault.pop("times", 1)
    model_hub.spoil(times=times, **fault)
    model_hub.site.faults.rules[-1].skip = skip

    fetched = fetch(stall_s=0.5)

    assert fetch.got == BYTES
    assert fetched.sha256 == SHA256


def test_a_file_that_is_replaced_in_the_middle_is_never_mixed(
    fetch: Fetcher, model_hub: Hub
) -> None:
    model_hub.spoil(rate=4 * MIB, times=-1)
    other = BYTES[::-1]

    def replace_it(_: object) -> None:
        if (model_hub.root / "m").read_bytes() == BYTES:
            (model_hub.root / "m").write_bytes(other)

    fetched = fetch(progress=replace_it)

    assert fetch.got == other
    assert fetched.sha256 == hashlib.sha256(other).hexdigest()


def test_a_file_that_changes_all_the_time_is_an_error(fetch: Fetcher, model_hub: Hub) -> None:
    model_hub.spoil(etag="changing", times=-1)
    connections = Connections(4)
    held: list[int] = []

    def look(_: bytes) -> int:
        held.append(connections.count())
        return 0

    with pytest.raises(DownloadIncompleteError, match="ignores ranges, or has changed"):
        fetch(tries=3, connections=connections, look=look)

    assert held
    assert max(held) <= 4
    assert connections.count() == 0


def test_a_host_that_allows_few_connections_gets_few(fetch: Fetcher, model_hub: Hub) -> None:
    model_hub.spoil(busy_above=2, rate=8 * MIB, times=-1)

    fetch()

    refused = [request for request in model_hub.requests if request.status == 429]
    assert fetch.got == BYTES
    assert 1 <= len(refused) <= 6


def test_a_signed_link_that_expires_in_the_middle_is_asked_for_again(
    fetch: Fetcher, model_hub: Hub
) -> None:
    model_hub.site.links.ttl_s = 0.3
    model_hub.spoil(rate=4 * MIB, times=-1, host="cdn")

    fetch(url=fetch.url.replace("/m", "/redirect/m"), connections=Connections(2))

    walks = [request for request in model_hub.requests if request.host == "hub"]
    assert fetch.got == BYTES
    assert 2 <= len(walks) <= 12


def test_after_the_first_request_only_the_second_host_is_asked(
    fetch: Fetcher, model_hub: Hub
) -> None:
    fetch(url=fetch.url.replace("/m", "/redirect/m"))

    assert sum(request.host == "hub" for request in model_hub.requests) == 1


def test_a_silent_connection_is_not_waited_for(fetch: Fetcher, model_hub: Hub) -> None:
    model_hub.spoil(stall=1000)
    model_hub.site.faults.rules[-1].skip = 5
    started = time.monotonic()

    fetch(stall_s=15)

    assert fetch.got == BYTES
    assert time.monotonic() - started < 13


def test_a_cancelled_job_lets_go_of_many_silent_connections(fetch: Fetcher, model_hub: Hub) -> None:
    model_hub.spoil(stall=1000, times=-1)
    model_hub.site.faults.rules[-1].skip = 1
    cancelled = threading.Event()
    timer = threading.Timer(0.3, cancelled.set)
    timer.start()
    started = time.monotonic()

    with pytest.raises(JobCancelledError):
        fetch(cancelled=cancelled, stall_s=30)

    assert time.monotonic() - started < 15
    timer.join()


@pytest.mark.parametrize("declared", [{"size_bytes": SIZE - 1}, {"sha256": "0" * 64}])
def test_what_was_declared_must_be_what_comes(fetch: Fetcher, declared: dict[str, Any]) -> None:
    with pytest.raises(ModelCorruptError) as caught:
        fetch(**declared)

    assert caught.value.details["expected"] in declared.values()
    assert caught.value.details["actual"] in {SIZE, SHA256}
    assert fetch.left() == []


def test_a_wrong_size_is_noticed_before_a_byte_is_kept(fetch: Fetcher) -> None:
    with pytest.raises(ModelCorruptError):
        fetch(size_bytes=1)

    assert fetch.got == b""


def test_room_is_made_once_before_the_file_gets_its_size(fetch: Fetcher, model_hub: Hub) -> None:
    model_hub.spoil(etag="changing")
    asked: list[int] = []

    fetch(make_room=asked.append)

    assert asked == [SIZE]


def test_no_room_is_an_error_that_leaves_nothing(fetch: Fetcher) -> None:
    def refuse(size_bytes: int) -> None:
        raise VolumeFullError(f"{size_bytes} bytes do not fit.")

    with pytest.raises(VolumeFullError):
        fetch(make_room=refuse)

    assert fetch.got == b""
    assert fetch.left() == []


def test_the_weights_are_hashed_too_where_that_is_asked_for(fetch: Fetcher, model_hub: Hub) -> None:
    header = b'{"x": 1}'
    (model_hub.root / "m").write_bytes(len(header).to_bytes(8, "little") + header + BYTES)

    assert fetch(want_autov3=True).autov3 == SHA256[:12]


def broken_off(fetch: Fetcher, model_hub: Hub) -> int:
    """Leave a part behind; return how many bytes it has."""
    model_hub.spoil(drop=True, times=-1)
    model_hub.site.faults.rules[-1].skip = 9
    with pytest.raises(SourceUnavailableError, match="could not be reached"):
        fetch(tries=2)
    model_hub.site.faults.rules.clear()
    model_hub.site.journal.entries.clear()
    with partial.private_part(fetch.volume, "cd") as part:
        part.key = "ab"
        (left,) = part.leftovers()
    return left.done.total


def test_what_was_left_is_copied_and_only_the_rest_is_fetched(
    fetch: Fetcher, model_hub: Hub
) -> None:
    left = broken_off(fetch, model_hub)

    fetched = fetch()

    assert fetch.got == BYTES
    assert left >= MIB
    assert fetched.resumed_bytes == left
    assert fetched.received_bytes == SIZE - left
    assert fetch.left() == []


@pytest.mark.parametrize("error", [ModelCorruptError, ModelUnsafeError, ModelIncompatibleError])
def test_what_is_refused_by_what_was_left_is_fetched_without_it(
    fetch: Fetcher, model_hub: Hub, error: type[WorkerError]
) -> None:
    broken_off(fetch, model_hub)
    (left,) = layout.tmp_folder(fetch.volume).glob("*.part")
    with left.open("r+b") as file:
        file.write(b"\0" * 600)

    def look(start: bytes) -> int:
        if not BYTES.startswith(start):
            raise error("Damaged.")
        return 0

    fetched = fetch(look=look)

    assert fetch.got == BYTES
    assert fetched.resumed_bytes == 0


def test_what_was_left_does_not_count_against_the_allowance(fetch: Fetcher, model_hub: Hub) -> None:
    left = broken_off(fetch, model_hub)

    fetch(max_bytes=SIZE - left)

    assert fetch.got == BYTES


def test_what_was_left_of_another_version_is_not_used(fetch: Fetcher, model_hub: Hub) -> None:
    broken_off(fetch, model_hub)
    (model_hub.root / "m").write_bytes(BYTES[::-1])

    fetched = fetch()

    assert fetch.got == BYTES[::-1]
    assert fetched.resumed_bytes == 0


def test_what_was_left_and_is_damaged_is_dropped_where_the_digest_is_known(
    fetch: Fetcher, model_hub: Hub
) -> None:
    broken_off(fetch, model_hub)
    (part,) = (path for path in fetch.left() if path.suffix == ".part")
    with part.open("r+b") as file:
        file.write(b"wrong")

    fetched = fetch(sha256=SHA256)

    assert fetch.got == BYTES
    assert fetched.resumed_bytes == 0


def test_what_was_left_and_cannot_be_read_is_fetched(fetch: Fetcher, model_hub: Hub) -> None:
    broken_off(fetch, model_hub)
    (part,) = (path for path in fetch.left() if path.suffix == ".part")

    def lose(_: int) -> None:
        part.unlink()

    fetched = fetch(make_room=lose)

    assert fetch.got == BYTES
    assert (fetched.resumed_bytes, fetched.received_bytes) == (0, SIZE)


def test_what_was_left_and_answers_to_no_reader_is_not_waited_for(
    fetch: Fetcher, model_hub: Hub, tmp_path: Path
) -> None:
    broken_off(fetch, model_hub)
    (part,) = (path for path in fetch.left() if path.suffix == ".part")
    silent = tmp_path / "silent"

    def fall_silent(_: int) -> None:
        os.mkfifo(silent)  # Who opens it to read waits for somebody who writes.
        part.unlink()
        os.link(silent, part)

    at_last = threading.Timer(10, lambda: silent.open("wb").close())
    at_last.daemon = True
    at_last.start()
    started = time.monotonic()

    fetched = fetch(make_room=fall_silent)

    assert time.monotonic() - started < 9
    at_last.cancel()
    assert fetch.got == BYTES
    assert (fetched.resumed_bytes, fetched.received_bytes) == (0, SIZE)
    assert fetch.left() == []
    silent.open("wb").close()


def test_two_failures_leave_one_part_that_has_it_all(fetch: Fetcher, model_hub: Hub) -> None:
    first = broken_off(fetch, model_hub)

    second = broken_off(fetch, model_hub)

    assert second > first


def test_when_time_is_up_what_came_is_left(fetch: Fetcher, model_hub: Hub) -> None:
    model_hub.spoil(rate=MIB, times=-1)

    with pytest.raises(DownloadBudgetExceededError):
        fetch(max_s=0.6, connections=Connections(2))
    model_hub.site.faults.rules.clear()

    assert [path.suffix for path in fetch.left()] == [".json", ".part"]
    assert fetch().resumed_bytes > 0


def test_a_disk_that_gets_full_with_leftovers_is_tried_again_without_them(
    fetch: Fetcher, model_hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_off(fetch, model_hub)
    write, tries = Part.write, iter([True])

    def full_once(part: Part, offset: int, data: memoryview) -> None:
        if next(tries, False):
            raise VolumeFullError("Full.")
        write(part, offset, data)

    monkeypatch.setattr(Part, "write", full_once)

    fetched = fetch()

    assert fetch.got == BYTES
    assert fetched.resumed_bytes == 0


def test_a_part_that_is_deleted_while_it_is_written_is_a_signal_to_look_again(
    fetch: Fetcher, model_hub: Hub
) -> None:
    model_hub.spoil(rate=MIB, times=-1)

    def lose(_: object) -> None:
        for path in fetch.left():
            path.unlink()

    with pytest.raises(PartLostError):
        fetch(progress=lose)

    assert fetch.left() == []


# Fetches until it is killed. Arguments: the volume, the URL.
VICTIM = """
import sys, threading
from pathlib import Path
from model_cache.engine import partial, transfer
from model_cache.engine.connections import Connections
from model_cache.engine.download import Allowance, Download
from model_cache.engine.limits import Limits, Watch

limits = Limits(5, allow_private_hosts=True, segment_bytes=1 << 18, save_every_s=0.05)
watch = Watch(threading.Event(), Allowance(10**9, 60), Connections(4))
print("begin", flush=True)
with partial.private_part(Path(sys.argv[1]), "ab") as part:
    transfer.fetch(Download(sys.argv[2], "https://h/m"), part, limits, watch)
    print("done", flush=True)
"""


@pytest.mark.slow
def test_what_killed_workers_left_is_used_by_the_next_one(fetch: Fetcher, model_hub: Hub) -> None:
    model_hub.spoil(rate=MIB // 8, times=-1)
    killed = 0
    for number in range(4):
        command = [sys.executable, "-c", VICTIM, str(fetch.volume), fetch.url]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as victim:
            assert victim.stdout is not None
            assert victim.stdout.readline() == "begin\n"
            time.sleep(0.2 + 0.15 * number)
            victim.kill()
            killed += victim.stdout.read() == ""
    model_hub.site.faults.rules.clear()
    model_hub.site.journal.entries.clear()

    fetched = fetch()

    sent = sum(request.bytes_sent for request in model_hub.requests)
    print(f"killed {killed} fetches; {fetched.resumed_bytes} of {SIZE} bytes were there")
    assert fetch.got == BYTES
    assert fetched.sha256 == SHA256
    assert killed == 4
    assert fetched.resumed_bytes > 0
    assert sent <= SIZE - fetched.resumed_bytes + 4 * MIB
    assert fetch.left() == []


def test_models_of_one_job_share_its_connections(model_hub: Hub, tmp_path: Path) -> None:
    connections = Connections(4)
    fetchers = []
    for name in ("m", "n", "o"):
        (model_hub.root / name).write_bytes(BYTES)
        (tmp_path / name).mkdir()
        fetchers.append(Fetcher(tmp_path / name, f"{model_hub.url}/{name}"))
    threads = [
        threading.Thread(target=fetcher, kwargs={"connections": connections})
        for fetcher in fetchers
    ]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)

    assert [fetcher.got == BYTES for fetcher in fetchers] == [True] * 3
    assert connections.count() == 0
