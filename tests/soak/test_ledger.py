"""The ledger catches each lie that a soak could be told, and explains what has a reason."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest

from simulator import models
from tests.soak.ledger import (
    CANCELS_S,
    STOPPED,
    TAKES_S,
    UNTOLD_PIECE,
    Asked,
    End,
    Ledger,
    Struck,
    digest,
)
from tests.soak.plan import KINDS
from tests.soak.remains import remains

RIGHT = digest(["picture"])
PICTURE = Asked("txt2img", RIGHT)
BAD = Asked("bad field", None, frozenset({"INVALID_INPUT"}))
TAKEN = (10.0, "taken", "w1")
ANSWERED = (12.0, "accepted", "w1")
DONE = End("j", "COMPLETED", RIGHT, history=(TAKEN, ANSWERED, (12.0, "COMPLETED", "w1")))
CRASHED = End("j", "FAILED", code="BACKEND_CRASHED", error="it ended", history=(TAKEN, ANSWERED))
KILL = Struck("webui kill -9", 9.0, 11.0, frozenset({"BACKEND_CRASHED"}), "w1", most=1)
LOSS = Struck("worker kill -9", 11.0, 11.0, worker="w1", is_end=True)
GIVEN_UP = (20.0, "given up", "w1")
AGAIN = ((21.0, "taken", "w2"), (22.0, "accepted", "w2"))


def found(*ends: End, asked: Asked = PICTURE, struck: tuple[Struck, ...] = ()) -> list[str]:
    """Return what the ledger says of one job, `j`, without its id."""
    ledger = Ledger({"j": asked}, list(ends), list(struck))
    return [f"{finding.what}: {finding.text}" for finding in ledger.findings()]


def end(base: End = DONE, **changes: Any) -> End:
    return dataclasses.replace(base, **changes)


def test_a_right_answer_is_no_finding() -> None:
    assert found(DONE) == []


def test_a_bad_request_that_is_told_so_is_no_finding() -> None:
    assert found(end(CRASHED, code="INVALID_INPUT"), asked=BAD) == []


def test_a_lost_answer_is_found() -> None:
    assert found() == ["lost: txt2img: no answer"]


def test_two_ends_of_one_job_are_found() -> None:
    assert found(DONE, DONE) == ["duplicated: ['COMPLETED', 'COMPLETED']"]


@pytest.mark.parametrize(
    "late", ["after the job had ended", "from a worker that no longer holds the job", "accepted"]
)
def test_an_answer_that_was_sent_twice_is_found(late: str) -> None:
    twice = end(history=(*DONE.history, (13.0, late, "w1")))

    assert [text.partition(" too many")[0] for text in found(twice)] == [
        "duplicated: txt2img: 1 answers"
    ]


def test_a_second_answer_is_explained_by_a_lost_receipt_or_a_second_delivery() -> None:
    late = (13.0, "after the job had ended", "w1")
    lost = (12.0, "unacknowledged", "w1")
    other = (9.0, "taken", "w2")

    assert found(end(history=(TAKEN, ANSWERED, lost, late))) == []
    second = (13.0, "after the job had ended", "w2")
    assert found(end(history=(other, TAKEN, ANSWERED, second), duplicates=1)) == []


@pytest.mark.parametrize("worker", ["w1", "w2"])
def test_a_second_answer_is_not_explained_by_a_lost_take(worker: str) -> None:
    lost = (10.0, "unacknowledged", "w1")
    again = ((21.0, "taken", worker), (22.0, "accepted", worker))
    late = (23.0, "after the job had ended", worker)

    assert found(end(history=(TAKEN, lost, GIVEN_UP, *again))) == []
    twice = found(end(history=(TAKEN, lost, GIVEN_UP, *again, late)))
    assert [text.partition(" too many")[0] for text in twice] == ["duplicated: txt2img: 1 answers"]


def test_a_lost_receipt_of_a_piece_adds_no_answer() -> None:
    lost = (11.0, UNTOLD_PIECE, "w1")
    late = (13.0, "after the job had ended", "w1")

    assert found(end(history=(TAKEN, lost, ANSWERED))) == []
    assert len(found(end(history=(TAKEN, lost, ANSWERED, late)))) == 1


def test_a_job_that_comes_to_its_worker_again_has_one_answer() -> None:
    again = (11.0, "taken", "w1")
    late = (13.0, "after the job had ended", "w1")

    assert found(end(history=(TAKEN, again, ANSWERED), duplicates=1)) == []
    twice = found(end(history=(TAKEN, again, ANSWERED, late), duplicates=1))
    assert [text.partition(" too many")[0] for text in twice] == ["duplicated: txt2img: 1 answers"]


def test_a_job_that_comes_again_after_its_answer_has_another_one() -> None:
    elsewhere = (10.5, "taken", "w2")
    early = (11.0, "from a worker that no longer holds the job", "w1")
    again = (11.5, "taken", "w1")
    late = (13.0, "after the job had ended", "w2")

    history = (TAKEN, elsewhere, early, again, ANSWERED, late)
    assert found(end(history=history, duplicates=2)) == []


def test_a_form_that_is_not_the_workers_is_found() -> None:
    assert found(end(strange="a piece twice")) == ["wrong: txt2img: a piece twice"]


def test_a_wrong_picture_is_found() -> None:
    wrong = end(seen=digest(["another picture"]))

    assert found(wrong) == ["wrong: txt2img: another answer than the right one"]


def test_a_bad_request_that_is_answered_with_a_picture_is_found() -> None:
    assert found(DONE, asked=BAD) == ["wrong: bad field: it should have failed with INVALID_INPUT"]


def test_a_bad_request_that_is_told_something_else_is_found() -> None:
    assert found(CRASHED, asked=BAD) == ["wrong: bad field: BACKEND_CRASHED it ended"]


def test_an_error_without_a_fault_is_found() -> None:
    assert found(CRASHED) == ["wrong: txt2img: BACKEND_CRASHED it ended"]


def test_an_error_is_explained_by_the_fault_that_was_felt_where_the_job_was() -> None:
    assert found(CRASHED, struck=(KILL,)) == []


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"worker": "w2"}, id="at another worker"),
        pytest.param({"began": 30.0, "ended": 40.0}, id="later"),
        pytest.param({"began": 1.0, "ended": 2.0}, id="earlier"),
        pytest.param({"codes": frozenset({"BACKEND_STALLED"})}, id="of another kind"),
    ],
)
def test_an_error_is_not_explained_by_a_fault(changes: dict[str, Any]) -> None:
    struck = dataclasses.replace(KILL, **changes)

    assert found(CRASHED, struck=(struck,)) == ["wrong: txt2img: BACKEND_CRASHED it ended"]


def test_a_fault_that_costs_more_jobs_than_it_may_is_found() -> None:
    ends = [end(CRASHED, job=job) for job in "ab"]
    ledger = Ledger({"a": PICTURE, "b": PICTURE}, ends, [KILL])

    assert [str(finding) for finding in ledger.findings()] == [
        "wrong: w1: webui kill -9 cost 2 jobs"
    ]
    ledger.struck.append(dataclasses.replace(KILL, began=9.5))
    assert ledger.findings() == []


def test_a_job_that_a_living_worker_dropped_is_found() -> None:
    dropped = end(history=(TAKEN, GIVEN_UP, *AGAIN))

    assert found(dropped) == ["lost: txt2img: w1 dropped it at 20.0"]


def test_a_job_is_given_to_another_worker_when_the_first_one_is_killed() -> None:
    again = end(history=(TAKEN, GIVEN_UP, *AGAIN))

    assert found(again, struck=(LOSS,)) == []
    elsewhere = dataclasses.replace(LOSS, worker="w3")
    assert found(again, struck=(elsewhere,)) == ["lost: txt2img: w1 dropped it at 20.0"]


def test_a_job_that_never_reached_its_worker_is_given_to_another() -> None:
    lost = (10.1, "unacknowledged", "w1")

    assert found(end(history=(TAKEN, lost, GIVEN_UP, *AGAIN))) == []


def test_a_second_loss_is_not_explained_by_the_lost_take_before_it() -> None:
    lost = (10.1, "unacknowledged", "w1")
    history = (TAKEN, lost, GIVEN_UP, (21.0, "taken", "w1"), (60.0, "given up", "w1"))
    error = "job timed out after 1 retries"

    assert found(End("j", "FAILED", error=error, history=history)) == [
        "lost: txt2img: w1 dropped it at 60.0"
    ]


def test_the_platforms_own_error_needs_two_lost_workers() -> None:
    error = "job timed out after 1 retries"
    twice = (TAKEN, GIVEN_UP, (21.0, "taken", "w2"), (30.0, "given up", "w2"))
    losses = (LOSS, dataclasses.replace(LOSS, worker="w2", began=22.0))

    assert found(End("j", "FAILED", error=error, history=twice), struck=losses) == []
    assert found(End("j", "FAILED", error=error, history=(TAKEN,)), struck=losses) == [
        f"wrong: txt2img: FAILED {error}"
    ]


def test_a_job_that_timed_out_is_found() -> None:
    late = End("j", "TIMED_OUT", error="executionTimeout exceeded", history=(TAKEN,))

    assert found(late) == ["wrong: txt2img: TIMED_OUT executionTimeout exceeded"]


def test_a_cancel_is_right_if_it_was_asked_for_and_else_found() -> None:
    cancelled = End("j", "CANCELLED", history=(TAKEN,))
    asked = dataclasses.replace(PICTURE, is_cancelled=True)

    assert found(cancelled, asked=asked) == []
    assert found(cancelled) == ["wrong: txt2img: cancelled: False, CANCELLED"]
    assert found(DONE, asked=asked) == ["wrong: txt2img: cancelled: True, COMPLETED"]


def test_a_worker_that_ignores_a_cancel_is_found() -> None:
    asked = dataclasses.replace(PICTURE, is_cancelled=True)

    def answered(at: float) -> list[str]:
        history = (TAKEN, (11.0, "CANCELLED", "w1"), (at, "after the job had ended", "w1"))
        return found(End("j", "CANCELLED", history=history), asked=asked)

    assert answered(11.0 + CANCELS_S) == []
    assert answered(210.0) == ["wrong: txt2img: answered 199.0 s after its cancel"]


def test_a_worker_that_takes_a_job_when_it_is_told_to_stop_is_found() -> None:
    assert STOPPED in {kind.name for kind in KINDS}
    stopped = Struck(STOPPED, 10.0 - TAKES_S, 10.0, worker="w1")
    earlier = dataclasses.replace(stopped, began=stopped.began - 1.0)

    assert found(DONE, struck=(stopped, dataclasses.replace(earlier, worker="w2"))) == []
    assert found(DONE, struck=(earlier,)) == [
        "wrong: txt2img: taken 16.0 s after its worker was to stop"
    ]


def test_an_answer_to_what_nobody_asked_is_found() -> None:
    ledger = Ledger({}, [DONE])

    assert [str(finding) for finding in ledger.findings()] == ["wrong: j: nobody asked for it"]


def test_what_is_left_is_found() -> None:
    ledger = Ledger(left=[("worker0-0", "process 5 outlives it")])

    assert [str(f) for f in ledger.findings()] == ["left: worker0-0: process 5 outlives it"]


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """A volume with one whole model, whose host is the folder `hub` beside it."""
    for place in ("hub/Lora", "volume/models/loras"):
        models.write_lora(tmp_path / place / "soak_lora0.safetensors", seed="0")
    return tmp_path / "volume"


def left(volume: Path, last_kill: float = 0.0) -> list[str]:
    return [text.partition(":")[0] for _, text in remains(volume, volume.parent / "hub", last_kill)]


def test_a_volume_of_whole_models_has_no_remains(volume: Path) -> None:
    assert left(volume) == []


def test_a_corrupted_model_is_found(volume: Path) -> None:
    model = volume / "models" / "loras" / "soak_lora0.safetensors"
    data = bytearray(model.read_bytes())
    data[-1] ^= 1
    model.write_bytes(data)

    assert left(volume) == ["it has not the bytes of the model of its name", "it is not sound"]


def test_a_model_with_the_bytes_of_another_is_found(volume: Path) -> None:
    models.write_lora(volume.parent / "hub" / "Lora" / "soak_lora1.safetensors", seed="1")
    models.write_lora(volume / "models" / "loras" / "soak_lora0.safetensors", seed="1")

    assert left(volume) == ["it has not the bytes of the model of its name"]


@pytest.mark.parametrize("place", ["tmp/abc.def.part", "leases/abc.json"])
def test_a_leaked_file_is_found_unless_a_killed_worker_left_it(volume: Path, place: str) -> None:
    leaked = volume / "models" / ".worker" / place
    leaked.parent.mkdir(parents=True)
    leaked.write_bytes(b"{}")
    os.utime(leaked, (1000.0, 1000.0))

    assert left(volume, last_kill=999.0) == ["a temporary file, a lease or a record of use is left"]
    leaked.parent.mkdir(parents=True, exist_ok=True)
    leaked.write_bytes(b"{}")
    os.utime(leaked, (1000.0, 1000.0))
    assert left(volume, last_kill=1001.0) == []


def test_a_file_that_nobody_clears_is_found_whoever_left_it(volume: Path) -> None:
    leaked = volume / "models" / ".worker" / "tmp" / "kept"
    leaked.parent.mkdir(parents=True)
    leaked.write_bytes(b"")

    assert left(volume, last_kill=leaked.stat().st_mtime + 1) == ["it is not sound"]
