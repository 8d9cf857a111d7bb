import errno
import json
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_cache import cache
from model_cache.sharing import uses
from model_cache.sharing.age import DEAD_S
from model_cache.sharing.uses import ALIVE_S, BEAT_S, KEEP_S, Use, Uses
from model_cache.volume import layout
from schemas.errors import VolumeFullError
from tests.conftest import ROOT
from tests.model_cache.conftest import shelf_on

# Arguments: volume, how many seconds the clock is ahead, and the path in use. Shows that it lives
# ten times a second until it is killed.
WORKER = """
import pathlib, sys, time
now = time.time
time.time = lambda: now() + float(sys.argv[2])
from model_cache.sharing.uses import Uses
volume = pathlib.Path(sys.argv[1])
mine = Uses(volume)
mine.note(volume / sys.argv[3])
print("noted", flush=True)
while True:
    time.sleep(0.1)
    mine.beat()
"""
# Arguments: volume. Takes over histories and dies before the first one that it took is deleted.
FOLDER = """
import os, pathlib, signal, sys
from model_cache.sharing import uses
pathlib.Path.unlink = lambda path, **_: (
    path.name.endswith(".history.json") and os.kill(os.getpid(), signal.SIGKILL)
)
uses.Uses(pathlib.Path(sys.argv[1])).fold()
"""


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def pass_while(self, seconds: float, *watched: Uses) -> None:
        """Let seconds pass while workers look at each other every ten of them."""
        for _ in range(int(seconds / BEAT_S)):
            self.now += BEAT_S
            for worker in watched:
                worker.others_in_use()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def model(volume: Path) -> Path:
    return volume / "models" / "loras" / "x.safetensors"


def records(volume: Path) -> list[Path]:
    return sorted(layout.uses_folder(volume).glob("*"))


def shown(volume: Path) -> list[str]:
    """Return what the only worker there says to be in use."""
    (record,) = [path for path in records(volume) if not path.name.endswith(".history.json")]
    names: list[str] = json.loads(record.read_text())["in_use"]
    return names


def aged(volume: Path, age_s: float) -> None:
    """Make all records look as if they had been written so long ago."""
    then = time.time() - age_s
    for path in records(volume):
        os.utime(path, (then, then))


def refuse(*_: object) -> None:
    raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))


def test_others_know_of_a_use_before_the_file_is_looked_at(volume: Path, model: Path) -> None:
    Uses(volume).note(model)

    assert Uses(volume).others_in_use() == {model}
    assert shown(volume) == ["models/loras/x.safetensors"]


def test_a_worker_does_not_count_among_the_others(volume: Path, model: Path) -> None:
    mine = Uses(volume)
    mine.note(model)

    assert mine.in_use() == {model}
    assert mine.others_in_use() == frozenset()


def test_a_use_that_others_know_of_touches_no_disk(volume: Path, model: Path, clock: Clock) -> None:
    mine = Uses(volume, clock=clock)
    mine.note(model)
    (record,) = records(volume)
    record.unlink()

    clock.now += BEAT_S - 0.1
    mine.note(model)
    assert records(volume) == []
    clock.now += 0.1
    mine.note(model)

    assert records(volume) == [record]


def test_a_hit_pays_microseconds_for_it(volume: Path) -> None:
    mine = Uses(volume)
    models = [volume / "models" / "loras" / f"{number}.safetensors" for number in range(11)]
    for model in models:
        mine.note(model)

    took = []
    for _ in range(200):
        start = time.perf_counter()
        for model in models:
            mine.note(model)
        took.append((time.perf_counter() - start) / len(models))

    assert sorted(took)[100] < 100e-6


def test_a_model_is_in_use_for_ten_minutes_after_the_last_job_that_named_it(
    volume: Path, model: Path, clock: Clock
) -> None:
    mine = Uses(volume, clock=clock)
    mine.note(model)
    clock.now += KEEP_S - 1
    mine.beat()
    assert shown(volume) == ["models/loras/x.safetensors"]

    clock.now += 1
    mine.beat()

    assert mine.in_use() == frozenset()
    assert shown(volume) == []


def test_a_model_that_is_held_stays_in_use_for_as_long_as_that_takes(
    volume: Path, model: Path, clock: Clock
) -> None:
    mine = Uses(volume, clock=clock)
    other = model.with_name("y.safetensors")

    with mine.hold([model, other]), mine.hold([model]):
        assert shown(volume) == ["models/loras/x.safetensors", "models/loras/y.safetensors"]
        clock.now += 10 * KEEP_S
        mine.beat()
        assert mine.in_use() == {model, other}
        assert len(shown(volume)) == 2
    clock.now += KEEP_S - 1

    assert mine.in_use() == {model, other}
    clock.now += 1
    assert mine.in_use() == frozenset()
    assert mine.history() == {}


def test_a_worker_that_uses_nothing_writes_nothing(volume: Path, clock: Clock) -> None:
    mine = Uses(volume, clock=clock)

    mine.beat()
    clock.now += 100
    mine.beat()

    assert records(volume) == []


def test_a_living_worker_keeps_its_models_and_a_silent_one_loses_them(
    volume: Path, model: Path, clock: Clock
) -> None:
    theirs, ours = Uses(volume, clock=clock), Uses(volume, clock=clock)
    theirs.note(model)
    assert ours.others_in_use() == {model}
    for _ in range(20):
        clock.now += BEAT_S
        theirs.beat()
        assert ours.others_in_use() == {model}

    clock.pass_while(ALIVE_S - BEAT_S, ours)
    assert ours.others_in_use() == {model}
    clock.pass_while(BEAT_S, ours)

    assert ours.others_in_use() == frozenset()


def test_a_worker_that_nobody_watched_for_a_minute_counts_as_living(
    volume: Path, model: Path, clock: Clock
) -> None:
    Uses(volume).note(model)
    aged(volume, DEAD_S - 60)
    ours = Uses(volume, clock=clock)
    assert ours.others_in_use() == {model}

    clock.now += 3600

    assert ours.others_in_use() == {model}


@pytest.mark.parametrize("skew_s", [0, -3600, 3600, 360_000])
def test_a_worker_that_died_two_hours_ago_uses_nothing_at_the_first_look(
    volume: Path, model: Path, monkeypatch: pytest.MonkeyPatch, skew_s: float
) -> None:
    Uses(volume).note(model)
    aged(volume, DEAD_S + 60)
    Uses(volume).note(model.with_name("y.safetensors"))
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + skew_s)

    assert Uses(volume).others_in_use() == {model.with_name("y.safetensors")}

    assert len(records(volume)) == 1


def test_a_worker_that_wakes_up_while_its_record_is_deleted_keeps_it(
    volume: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = Uses(volume)
    theirs.note(model.with_name("y.safetensors"))
    aged(volume, DEAD_S + 60)
    rename = Path.rename

    def wake_up_first(path: Path, to: Path) -> None:
        theirs.announce([model])
        rename(path, to)

    monkeypatch.setattr(Path, "rename", wake_up_first)

    assert model in Uses(volume).others_in_use()
    assert len(records(volume)) == 1


def test_a_record_of_the_dead_that_cannot_be_deleted_counts_for_nothing(
    volume: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Uses(volume).note(model)
    aged(volume, DEAD_S + 60)
    monkeypatch.setattr(Path, "rename", refuse)

    assert Uses(volume).others_in_use() == frozenset()
    assert len(records(volume)) == 1


def wait_for_a_beat(volume: Path) -> None:
    (record,) = records(volume)
    seen, deadline = record.stat().st_mtime_ns, time.monotonic() + 30
    while record.stat().st_mtime_ns == seen:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_the_clock_of_another_worker_does_not_matter(volume: Path, model: Path) -> None:
    theirs = subprocess.Popen(
        [sys.executable, "-c", WORKER, volume, "-360000", "models/loras/x.safetensors"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert theirs.stdout is not None
        assert theirs.stdout.readline() == "noted\n"
        clock = Clock()
        ours = Uses(volume, clock=clock)
        for _ in range(10):
            clock.now += 15
            assert ours.others_in_use() == {model}
            wait_for_a_beat(volume)
    finally:
        theirs.kill()
        theirs.communicate()
    ours.others_in_use()
    clock.pass_while(ALIVE_S, ours)

    assert ours.others_in_use() == frozenset()


def test_a_use_noted_while_the_record_is_written_is_not_lost(
    volume: Path, model: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = Uses(volume, clock=clock)
    mine.note(model)
    clock.now += KEEP_S - BEAT_S / 2
    mine.beat()
    clock.now += BEAT_S / 2
    write_text = Path.write_text
    threads: list[threading.Thread] = []

    def note_meanwhile(path: Path, text: str) -> int:
        if not threads:
            # The model is being taken out of the record, which is ten minutes old.
            threads.append(threading.Thread(target=mine.note, args=(model,)))
            threads[0].start()
            time.sleep(0.05)
        return write_text(path, text)

    monkeypatch.setattr(Path, "write_text", note_meanwhile)
    mine.beat()
    threads[0].join()

    assert shown(volume) == ["models/loras/x.safetensors"]


def test_a_worker_that_ends_leaves_nothing_in_use_and_its_history(
    volume: Path, model: Path
) -> None:
    theirs, ours = Uses(volume), Uses(volume)
    theirs.note(model)
    theirs.note(model)
    ours.note(model)

    theirs.close()

    assert ours.others_in_use() == frozenset()
    assert theirs.in_use() == frozenset()
    assert ours.history()[model].count == 3
    assert Uses(volume).history()[model].count == 2


def test_the_history_is_written_once_a_minute(volume: Path, model: Path, clock: Clock) -> None:
    mine = Uses(volume, clock=clock)
    mine.note(model)
    mine.beat()
    assert Uses(volume).history() == {}

    clock.now += 60
    mine.beat()

    assert Uses(volume).history()[model].count == 1
    assert abs(Uses(volume).history()[model].last - time.time()) < 60


def ended_workers(volume: Path, *counts: int) -> None:
    """Leave the records of workers that ended two days ago, each of which used `x` that often."""
    for number, count in enumerate(counts):
        theirs = Uses(volume)
        theirs._history["models/loras/x.safetensors"] = Use(1000.0 + number, count)
        theirs._history_saved = False
        assert theirs._save_history()
        with theirs.hold([volume / "models/loras/x.safetensors"]):
            pass
    two_days_ago = time.time() - 2 * 24 * 3600
    for path in records(volume):
        os.utime(path, (two_days_ago, two_days_ago))


def test_the_records_of_workers_that_ended_are_folded_into_one(volume: Path, model: Path) -> None:
    ended_workers(volume, 3, 4, 5)
    layout.uses_folder(volume).joinpath("x.tmp").touch()
    os.utime(layout.uses_folder(volume) / "x.tmp", (0, 0))
    living = Uses(volume)
    living.note(model)
    living._save_history()
    ours = Uses(volume)

    ours.fold()
    ours.others_in_use()

    assert ours.history() == {model: Use(living.history()[model].last, 13)}
    mine, theirs = f"{ours.worker}.history.json", f"{living.worker}.history.json"
    assert {path.name for path in records(volume)} == {mine, theirs, f"{living.worker}.json"}


def test_records_that_are_young_by_their_time_stay(volume: Path, model: Path) -> None:
    theirs = Uses(volume)
    theirs.note(model)
    theirs._save_history()
    aged(volume, DEAD_S - 60)
    before = records(volume)

    Uses(volume).fold()

    assert records(volume) == before


def test_of_thousands_of_histories_some_are_folded_at_a_time(
    volume: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uses, "_MOST_FOLDED", 4)
    ended_workers(volume, *range(1, 11))
    Uses(volume).others_in_use()
    ours = Uses(volume)

    left = []
    for _ in range(3):
        ours.fold()
        left.append(len(records(volume)))

    # One of them is ours.
    assert left == [7, 3, 1]
    assert ours.history()[model].count == 55


def test_what_others_did_is_read_once_a_minute(volume: Path, model: Path, clock: Clock) -> None:
    ended_workers(volume, 3)
    ours = Uses(volume, clock=clock)
    assert ours.history()[model].count == 3
    ended_workers(volume, 4)

    clock.now += 59
    ours.note(model)
    assert ours.history()[model].count == 4
    clock.now += 1
    assert ours.history()[model].count == 8

    ours.fold()
    assert ours.history()[model].count == 8


def test_folding_leaves_time_for_the_other_chores(
    volume: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended_workers(volume, *range(1, 6))
    Uses(volume).others_in_use()
    rename = Path.rename

    def slowly(path: Path, to: Path) -> None:
        clock.now += 2
        rename(path, to)

    monkeypatch.setattr(Path, "rename", slowly)
    Uses(volume, clock=clock).fold()

    assert len(records(volume)) == 3


def test_a_store_makes_its_record_when_it_starts_and_clears_up_soon(
    volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_SOON_S", 0.1)
    ended_workers(volume, 3, 4)
    here = shelf_on(volume)

    here.cache.start()
    try:
        assert here.cache.worker in {path.stem for path in records(volume)}
        end = time.monotonic() + 30
        while len(records(volume)) > 2:
            assert time.monotonic() < end
            time.sleep(0.02)
    finally:
        here.cache.close()

    (history,) = records(volume)
    assert history.name == f"{here.cache.worker}.history.json"


def test_a_worker_that_uses_nothing_touches_its_files_now_and_then(
    volume: Path, model: Path, clock: Clock
) -> None:
    mine = Uses(volume, clock=clock)
    mine.note(model)
    mine._save_history()
    clock.now += KEEP_S
    mine.beat()
    aged(volume, DEAD_S + 60)

    clock.now += 590
    mine.beat()
    assert all(time.time() - path.stat().st_mtime > DEAD_S for path in records(volume))
    clock.now += 10
    mine.beat()

    assert len(records(volume)) == 2
    assert all(time.time() - path.stat().st_mtime < 60 for path in records(volume))


@pytest.mark.slow
def test_a_worker_killed_while_it_takes_over_a_history_loses_no_use(
    volume: Path, model: Path
) -> None:
    ended_workers(volume, 3, 4)
    for path in records(volume):
        if not path.name.endswith(".history.json"):
            path.unlink()

    killed = subprocess.run([sys.executable, "-c", FOLDER, volume], cwd=ROOT, check=False)

    assert killed.returncode == -9
    use = Uses(volume).history()[model]
    assert (use.last, use.count) == (1001.0, 14)
    for path in records(volume):
        os.utime(path, (0, 0))
    ours = Uses(volume)
    ours.fold()
    assert [path.name for path in records(volume)] == [f"{ours.worker}.history.json"]


def test_a_history_does_not_grow_for_ever(volume: Path) -> None:
    mine = Uses(volume)
    mine._history = {f"models/loras/{n}": Use(float(n), 1) for n in range(10_500)}
    mine.note(volume / "models/loras/x.safetensors")

    mine.close()

    history = Uses(volume).history()
    assert len(history) == 10_000
    assert min(use.last for use in history.values()) == 501.0


@settings(max_examples=60, deadline=None)
@given(
    st.binary(max_size=200)
    | st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["in_use", "used", "x"]), inner, max_size=3)
        ),
    ).map(lambda value: json.dumps(value).encode())
)
def test_a_damaged_record_says_nothing_and_stops_nobody(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    volume = tmp_path_factory.mktemp("v")
    good = Uses(volume)
    good.note(volume / "x")
    good._save_history()
    (layout.uses_folder(volume) / "bad.json").write_bytes(content)
    (layout.uses_folder(volume) / "bad.history.json").write_bytes(content)
    ours = Uses(volume)

    ours.fold()

    assert volume / "x" in ours.others_in_use()
    assert ours.history()[volume / "x"].count >= 1


def test_a_path_that_is_no_text_is_kept_as_it_is(volume: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(volume) + b"/models/loras/\xff.safetensors"))

    mine = Uses(volume)
    mine.note(odd)
    mine.close()
    theirs = Uses(volume)
    theirs.note(odd)

    assert Uses(volume).others_in_use() == {odd}
    assert list(Uses(volume).history()) == [odd]


def test_where_nothing_can_be_written_a_line_is_logged_and_the_job_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mine = Uses(tmp_path / "none")

    for number in range(3):
        mine.note(tmp_path / "none" / f"{number}")
    mine.beat()
    mine.fold()
    mine.close()

    assert len(caplog.messages) == 1
    assert "cannot see which models are in use here" in caplog.messages[0]
    assert mine.others_in_use() == frozenset()
    assert not (tmp_path / "none").exists()


def test_a_worker_on_a_full_volume_still_shows_that_it_lives(
    volume: Path, model: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, ours = Uses(volume, clock=clock), Uses(volume, clock=clock)
    theirs.note(model)

    monkeypatch.setattr(Path, "write_text", refuse)
    for _ in range(20):
        clock.now += BEAT_S
        theirs.beat()
        assert ours.others_in_use() == {model}


def test_on_a_volume_that_is_full_by_then_a_use_is_told_where_the_record_lies(
    volume: Path, model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    theirs = Uses(volume)
    theirs.begin()
    (before,) = [path.stat() for path in records(volume)]
    monkeypatch.setattr(Path, "write_text", refuse)

    theirs.note(model)
    theirs.require_heard()

    (after,) = [path.stat() for path in records(volume)]
    assert Uses(volume).others_in_use() == {model}
    assert (after.st_ino, after.st_size) == (before.st_ino, before.st_size)
    assert caplog.messages == []


def test_where_not_even_the_record_can_be_overwritten_a_link_says_what_is_in_use(
    volume: Path, model: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, ours = Uses(volume, clock=clock), Uses(volume, clock=clock)
    theirs.begin()
    (path,) = records(volume)
    with monkeypatch.context() as full:
        full.setattr(Path, "write_text", refuse)
        full.setattr(os, "pwrite", refuse)

        theirs.note(model)
        theirs.require_heard()

        assert path.is_symlink()
        for _ in range(20):
            clock.now += BEAT_S
            theirs.beat()
            assert ours.others_in_use() == {model}
        theirs.note(model.with_name("more.safetensors"))
    assert records(volume) == [path]
    assert ours.others_in_use() == {model, model.with_name("more.safetensors")}

    theirs.beat()
    assert not path.is_symlink()
    assert ours.others_in_use() == {model, model.with_name("more.safetensors")}


def test_the_link_of_a_worker_that_died_hours_ago_is_buried_as_records_are(
    volume: Path, model: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, ours = Uses(volume, clock=clock), Uses(volume, clock=clock)
    with monkeypatch.context() as full:
        full.setattr(Path, "write_text", refuse)
        theirs.note(model)
    (path,) = records(volume)
    left = path.with_suffix(".0.tmp")
    os.link(path, left)
    for link in (path, left):
        os.utime(link, (0, 0), follow_symlinks=False)

    assert ours.others_in_use() == frozenset()
    ours.fold()

    assert records(volume) == []
    assert not os.path.lexists(left)


def test_what_does_not_fit_into_the_record_of_a_full_volume_is_no_half_record(
    volume: Path, model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    theirs = Uses(volume)
    theirs.note(model)
    aged(volume, DEAD_S + 60)
    monkeypatch.setattr(Path, "write_text", refuse)

    theirs.announce(model.with_name(f"{number:0200}.safetensors") for number in range(100))

    assert Uses(volume).others_in_use() == {model}
    assert len(caplog.messages) == 1
    with pytest.raises(VolumeFullError):
        theirs.require_heard()


def test_a_record_that_was_moved_away_while_it_was_overwritten_was_not_heard(
    volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = Uses(volume)
    theirs.begin()
    (path,) = records(volume)
    pwrite = os.pwrite

    def moved_meanwhile(handle: int, data: bytes, offset: int) -> int:
        path.rename(path.with_suffix(".tmp"))
        return pwrite(handle, data, offset)

    monkeypatch.setattr(os, "pwrite", moved_meanwhile)
    monkeypatch.setattr(Path, "write_text", refuse)
    monkeypatch.setattr(os, "symlink", refuse)

    with pytest.raises(VolumeFullError):
        theirs.require_heard()


def test_a_record_that_is_read_while_it_is_overwritten_is_read_again(
    volume: Path, model: Path
) -> None:
    theirs = Uses(volume)
    theirs.note(model)
    (path,) = records(volume)
    whole = path.read_text()
    found: list[frozenset[Path]] = []

    # On a busy machine the thread may mend it too late, but not each time.
    while len(found) < 20 and frozenset({model}) not in found:
        path.write_text(whole[:40])
        mend = threading.Timer(0.002, path.write_text, (whole,))
        mend.start()
        try:
            found.append(Uses(volume).others_in_use())
        finally:
            mend.join()

    assert frozenset({model}) in found


def test_what_is_held_while_the_worker_closes_is_given_back_in_peace(volume: Path) -> None:
    """As by a warm-up that is cancelled when the worker ends."""
    uses = Uses(volume)

    with uses.hold([volume / "a"]):
        uses.close()
        assert uses.in_use() == frozenset()

    assert uses.in_use() == {volume / "a"}


def test_threads_that_note_and_hold_at_random_lose_nothing(volume: Path) -> None:
    mine = Uses(volume)
    models = [volume / str(number) for number in range(20)]

    def work(seed: int) -> None:
        chance = random.Random(seed)  # noqa: S311 - no secret
        for _ in range(50):
            model = chance.choice(models)
            with mine.hold([model]):
                mine.note(model)
                assert model in Uses(volume).others_in_use()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sum(use.count for use in mine.history().values()) == 200
    assert mine.in_use() == set(models)
    assert mine._held == {}


def test_files_that_are_announced_together_take_one_write(tmp_path: Path) -> None:
    uses = Uses(tmp_path)
    files = [tmp_path / "models" / "loras" / f"{number}.safetensors" for number in range(11)]

    uses.announce(files)
    shown = record(uses, tmp_path)
    for file in files:
        uses.note(file)

    assert shown["in_use"] == sorted(f"models/loras/{number}.safetensors" for number in range(11))
    assert record(uses, tmp_path) == shown


def record(uses: Uses, volume: Path) -> dict[str, Any]:
    """What others can read of what is in use."""
    text = (layout.uses_folder(volume) / f"{uses.worker}.json").read_text()
    content: dict[str, Any] = json.loads(text)
    return content
