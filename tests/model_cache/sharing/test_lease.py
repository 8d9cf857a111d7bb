import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from model_cache.sharing import lease
from model_cache.sharing.age import DEAD_S
from model_cache.sharing.lease import Lease
from model_cache.volume import layout
from tests.conftest import ROOT

TTL_S = 1.0
BEAT_S = 0.2
# Arguments: volume, and how many seconds its clock is ahead. Acquires, says so, and holds until a
# line comes in; then says whether it learns that it lost the lease meanwhile.
HOLDER = """
import pathlib, sys, time
now = time.time
time.time = lambda: now() + float(sys.argv[2])
from model_cache.sharing.lease import Lease
held = Lease(pathlib.Path(sys.argv[1]), "k", note="holder", ttl_s=1.0, beat_s=0.2)
print(held.try_acquire(), flush=True)
sys.stdin.readline()
end = time.monotonic() + 30
while not held.lost and time.monotonic() < end:
    time.sleep(0.02)
print(held.lost, flush=True)
held.release()
"""
# Argument: volume. Waits for its turn, has it for 50 ms, and says from when to when. Takes the dead
# one for dead soon, and nobody who lives, however long a busy machine stops him.
CONTENDER = """
import pathlib, sys, time
from model_cache.sharing.lease import Lease
mine = Lease(pathlib.Path(sys.argv[1]), "k", ttl_s=1.0, beat_s=0.2)
while not mine.try_acquire():
    if mine.holder is not None and mine.holder.note != "dead":
        mine._ttl_s = 60.0
    time.sleep(0.02)
mine._ttl_s = 60.0
start = time.monotonic()
time.sleep(0.05)
end = time.monotonic()
mine.release()
print(start, end, mine.lost)
"""


def contender(volume: Path, key: str = "k", note: str = "") -> Lease:
    return Lease(volume, key, note=note, ttl_s=TTL_S, beat_s=BEAT_S)


def process(script: str, *args: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, args)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@contextmanager
def holder(volume: Path, clock_ahead_s: float = 0) -> Iterator[subprocess.Popen[str]]:
    """Run a process that holds the lease `k`."""
    with process(HOLDER, volume, clock_ahead_s) as held:
        assert held.stdout is not None
        assert held.stdout.readline() == "True\n"
        try:
            yield held
        finally:
            held.kill()


def seconds_until(acquired: Callable[[], bool], at_most_s: float) -> float:
    """Call a few times a second until it is true, and return how long that took."""
    start = time.monotonic()
    while not acquired():
        assert time.monotonic() - start < at_most_s
        time.sleep(0.02)
    return time.monotonic() - start


def leave_dead_claim(volume: Path, key: str = "k") -> None:
    """Leave what a holder leaves that was killed."""
    dead = contender(volume, key, note="dead")
    assert dead.try_acquire()
    assert dead._heart is not None
    dead._stop.set()
    dead._heart.join()


def left(volume: Path) -> list[str]:
    return sorted(path.name for path in layout.leases_folder(volume).iterdir())


def left_by_the_living(volume: Path) -> list[str]:
    """Leave out what a beat writes at this very moment."""
    return [name for name in left(volume) if not name.endswith(".tmp")]


def place_of(volume: Path) -> Path:
    """Return the one lease there is."""
    (place,) = layout.leases_folder(volume).glob("*.lease")
    return place


def test_one_of_two_has_it_and_the_other_learns_who(volume: Path) -> None:
    first, second = contender(volume, note="worker 1 fetches x"), contender(volume)

    assert first.try_acquire()
    assert not second.try_acquire()

    assert second.holder is not None
    assert second.holder.note == "worker 1 fetches x"
    assert first.holder is None
    assert [claim.note for claim in lease.claims(volume)] == ["worker 1 fetches x"]
    first.release()


def test_once_it_is_released_the_next_one_has_it_at_once(volume: Path) -> None:
    first, second = contender(volume), contender(volume)
    assert first.try_acquire()
    assert not second.try_acquire()

    first.release()

    assert second.try_acquire()
    second.release()
    assert left(volume) == []
    assert not first.lost


def test_whoever_has_it_has_it_when_asked_again(volume: Path) -> None:
    held = contender(volume)

    assert held.try_acquire()
    assert held.try_acquire()

    held.release()
    held.release()
    assert left(volume) == []


def test_leases_of_different_keys_do_not_meet(volume: Path) -> None:
    first, second = contender(volume, "a/../b"), contender(volume, "\udcff")

    assert first.try_acquire()
    assert second.try_acquire()

    first.release()
    second.release()


def test_the_defaults_let_a_successor_in_within_seconds() -> None:
    assert lease.BEAT_S * 3 < lease.TTL_S < 10


@pytest.mark.slow
def test_a_living_holder_keeps_it_whatever_its_clock_says(volume: Path) -> None:
    with holder(volume, clock_ahead_s=3600):
        # Patient enough for a machine on which the holder may have to wait for its turn.
        waiting = Lease(volume, "k", ttl_s=2.5, beat_s=BEAT_S)
        end = time.monotonic() + 3
        while time.monotonic() < end:
            assert not waiting.try_acquire()
            time.sleep(0.05)

        (claim,) = lease.claims(volume)
        assert claim.beat >= 5


@pytest.mark.slow
def test_a_killed_holder_is_followed_within_the_time_that_it_may_be_silent(volume: Path) -> None:
    with holder(volume) as held:
        waiting = contender(volume)
        assert not waiting.try_acquire()
        held.kill()

        seconds_until(waiting.try_acquire, 30)

    waiting.release()
    assert left(volume) == []


@pytest.mark.slow
def test_a_stopped_holder_loses_it_and_knows_when_it_wakes_up(volume: Path) -> None:
    with holder(volume) as held:
        waiting = contender(volume)
        assert not waiting.try_acquire()
        # Not in the midst of a beat, with which it would take the lease back when it wakes up.
        before = lease.claims(volume)[0].beat
        seconds_until(lambda: lease.claims(volume)[0].beat > before, 30)
        held.send_signal(signal.SIGSTOP)
        seconds_until(waiting.try_acquire, 30)
        held.send_signal(signal.SIGCONT)

        out, _ = held.communicate("wake up\n", timeout=60)

        assert out == "True\n"
        time.sleep(2 * BEAT_S)
        assert not waiting.lost
        assert len(left_by_the_living(volume)) == 1
        waiting.release()


@pytest.mark.slow
def test_eight_processes_take_turns_after_one_that_died(volume: Path) -> None:
    leave_dead_claim(volume)

    contenders = [process(CONTENDER, volume) for _ in range(8)]
    said = [contender.communicate(timeout=60)[0].split() for contender in contenders]

    turns = sorted((float(start), float(end)) for start, end, _ in said)
    assert [lost for _, _, lost in said] == ["False"] * 8
    assert all(end <= start for (_, end), (start, _) in pairwise(turns))
    assert left(volume) == []


@pytest.mark.slow
def test_of_many_who_see_a_holder_dead_at_once_one_follows(volume: Path) -> None:
    keys = [f"key {number}" for number in range(6)]
    for key in keys:
        leave_dead_claim(volume, key)
    contenders = [contender(volume, key) for key in keys for _ in range(8)]
    together = threading.Barrier(len(contenders))

    def contend(mine: Lease) -> bool:
        together.wait()
        mine.try_acquire()
        time.sleep(TTL_S / 2)
        mine.try_acquire()
        time.sleep(TTL_S / 2)
        together.wait()
        return mine.try_acquire()

    with ThreadPoolExecutor(len(contenders)) as threads:
        won = list(threads.map(contend, contenders))

    assert [sum(won[at : at + 8]) for at in range(0, len(won), 8)] == [1] * len(keys)
    assert len(left_by_the_living(volume)) == len(keys)
    for mine in contenders:
        mine.release()


def test_a_holder_is_not_followed_for_a_pause_of_the_one_who_watches(volume: Path) -> None:
    leave_dead_claim(volume)
    waiting = Lease(volume, "k", ttl_s=0.2, beat_s=0.02)
    assert not waiting.try_acquire()

    time.sleep(0.25)
    assert not waiting.try_acquire()
    time.sleep(0.25)

    assert waiting.try_acquire()
    waiting.release()


def test_a_follower_that_died_is_followed_as_well(volume: Path) -> None:
    leave_dead_claim(volume)
    (claim,) = lease.claims(volume)
    place = layout.leases_folder(volume) / left(volume)[0]
    place.with_suffix(f".{claim.token}.next").write_text("cut off")
    waiting = Lease(volume, "k", ttl_s=0.2, beat_s=0.02)

    seconds_until(waiting.try_acquire, 30)

    waiting.release()
    assert left(volume) == []


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff\x00", b'{"token": "../../x", "beat": 1, "note": ""}']
)
def test_a_damaged_claim_runs_out_like_any_other(volume: Path, content: bytes) -> None:
    leave_dead_claim(volume)
    (layout.leases_folder(volume) / left(volume)[0]).write_bytes(content)
    waiting = Lease(volume, "k", ttl_s=0.1, beat_s=0.02)

    seconds_until(waiting.try_acquire, 30)

    waiting.release()
    assert left(volume) == []


def test_without_hard_links_it_works_as_well(volume: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    leave_dead_claim(volume)
    first, second = (Lease(volume, "k", ttl_s=0.2, beat_s=0.02) for _ in range(2))
    seconds_until(first.try_acquire, 30)

    assert not second.try_acquire()
    first.release()
    assert second.try_acquire()
    second.release()
    assert left(volume) == []


def test_where_no_lease_can_be_written_it_is_everybodys_turn(
    volume: Path, caplog: pytest.LogCaptureFixture
) -> None:
    layout.leases_folder(volume).parent.mkdir(parents=True)
    layout.leases_folder(volume).write_text("a file")
    first, second = contender(volume), contender(volume)

    assert first.try_acquire()
    assert second.try_acquire()

    assert (first.lost, second.lost) == (True, True)
    assert len(caplog.messages) == 2
    assert "may be done twice" in caplog.messages[0]
    first.release()
    assert lease.claims(volume) == ()
    lease.sweep(volume)


def test_a_volume_that_is_not_mounted_is_not_made(tmp_path: Path) -> None:
    held = contender(tmp_path / "none")

    assert held.try_acquire()

    assert held.lost
    assert not (tmp_path / "none").exists()


def test_a_lease_that_somebody_deleted_is_lost(volume: Path) -> None:
    held = Lease(volume, "k", ttl_s=0.5, beat_s=0.02)
    assert held.try_acquire()

    place = place_of(volume)

    def deleted() -> bool:
        place.unlink(missing_ok=True)  # Again, if a beat was on its way.
        return held.lost

    seconds_until(deleted, 30)
    held.release()


def test_what_another_took_over_is_not_released(volume: Path) -> None:
    held = Lease(volume, "k", note="held", ttl_s=0.5, beat_s=0.02)
    assert held.try_acquire()
    place = place_of(volume)
    successor = {"version": 1, "token": "e" * 32, "beat": 0, "note": "successor"}
    for _ in range(100):
        place.write_text(json.dumps(successor))
        time.sleep(0.03)
        if held.lost:
            break

    held.release()

    assert [claim.note for claim in lease.claims(volume)] == ["successor"]


def test_a_beat_that_the_disk_refuses_is_made_up_for_or_told_by_a_link(
    volume: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    held = Lease(volume, "k", note="x", ttl_s=5, beat_s=0.02)
    assert held.try_acquire()
    with monkeypatch.context() as patch:
        write_text = Path.write_text

        def refuse_links(*_: object) -> None:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

        def refuse(path: Path, *args: str) -> int:
            if path.suffix == ".tmp":
                refuse_links()
            return write_text(path, *args)

        patch.setattr(Path, "write_text", refuse)
        with monkeypatch.context() as no_links:
            no_links.setattr(os, "symlink", refuse_links)
            seconds_until(lambda: bool(caplog.messages), 30)
            time.sleep(0.1)
        before = lease.claims(volume)[0].beat
        seconds_until(lambda: lease.claims(volume)[0].beat > before + 2, 30)
        assert not Lease(volume, "k", ttl_s=5).try_acquire()

    seconds_until(lambda: lease.claims(volume)[0].beat > 2, 30)
    assert not held.lost
    assert caplog.messages == ["The lease (x) cannot be kept: [Errno 122] Disk quota exceeded"]
    held.release()


def test_what_dead_workers_left_is_swept_and_what_lives_is_not(volume: Path) -> None:
    leave_dead_claim(volume, "dead")
    dead = left(volume)
    (layout.leases_folder(volume) / "x.tmp").touch()
    living = Lease(volume, "k", ttl_s=5, beat_s=0.02)
    assert living.try_acquire()

    lease.sweep(volume)
    assert {"x.tmp", *dead} <= set(left(volume))
    for name in ("x.tmp", *dead):
        two_hours_ago = time.time() - DEAD_S - 1
        os.utime(layout.leases_folder(volume) / name, (two_hours_ago, two_hours_ago))

    lease.sweep(volume)

    assert [claim.note for claim in lease.claims(volume)] == [""]
    assert "x.tmp" not in left(volume)
    living.release()
    lease.sweep(volume.parent / "none")
