"""Who gets the next turn, with real threads; what a thread waits for is seen, not slept for."""

import asyncio
import contextvars
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event

import pytest

from schemas.errors import JobCancelledError
from worker.generation.line import Line

WITHIN_S = 10


class Turns:
    """Takes turns in threads, and writes down in which order they were had."""

    def __init__(self, line: Line, threads: ThreadPoolExecutor) -> None:
        self.line = line
        self.had: list[str] = []
        self._threads = threads

    def take(self, name: str, cancelled: Event | None = None) -> Future[None]:
        """Ask for a turn in a thread with a copy of this context, as a job does."""

        def turn() -> None:
            with self.line.turn(cancelled or Event()):
                self.had.append(name)

        return self._threads.submit(contextvars.copy_context().run, turn)


@pytest.fixture
def turns() -> Iterator[Turns]:
    with ThreadPoolExecutor() as threads:
        yield Turns(Line(), threads)


async def job(turns: Turns, name: str, ready: asyncio.Event) -> None:
    """Come, be made ready, and have a turn: as a job of a worker that prefetches."""
    with turns.line.joined():
        await ready.wait()
        await asyncio.wrap_future(turns.take(name))


def test_who_came_first_goes_first_though_others_are_ready_sooner(turns: Turns) -> None:
    async def scene() -> None:
        ready = {name: asyncio.Event() for name in "abc"}
        jobs = [asyncio.create_task(job(turns, name, ready[name])) for name in "abc"]
        for name in "cba":
            await asyncio.sleep(0)
            assert turns.had == []
            ready[name].set()
        await asyncio.gather(*jobs)

    asyncio.run(scene())

    assert turns.had == ["a", "b", "c"]


def test_a_job_that_ends_without_a_turn_holds_up_nobody(turns: Turns) -> None:
    async def scene() -> None:
        ready = asyncio.Event()
        first = asyncio.create_task(job(turns, "a", ready))
        await asyncio.sleep(0)
        later = asyncio.Event()
        later.set()
        second = asyncio.create_task(job(turns, "b", later))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait({first, second})

    asyncio.run(scene())

    assert turns.had == ["b"]


def test_a_job_that_needs_no_turn_lets_others_pass(turns: Turns) -> None:
    def reads(came: Event, done: Event) -> None:
        with turns.line.joined():
            turns.line.leave()
            came.set()
            assert done.wait(WITHIN_S)

    came, done = Event(), Event()
    reader = threading.Thread(target=contextvars.copy_context().run, args=(reads, came, done))
    reader.start()
    assert came.wait(WITHIN_S)

    turns.take("generation").result(WITHIN_S)

    done.set()
    reader.join()
    assert turns.had == ["generation"]


def test_whoever_has_left_and_wants_a_turn_after_all_comes_last(turns: Turns) -> None:
    with turns.line.joined():
        turns.line.leave()
        turns.line.leave()
        turns.take("again").result(WITHIN_S)

    assert turns.had == ["again"]


def test_a_turn_ends_the_stay_so_that_the_next_begins_while_pictures_are_delivered(
    turns: Turns,
) -> None:
    with turns.line.joined():
        turns.take("first").result(WITHIN_S)
        other = contextvars.Context().run(turns.take, "second")

        other.result(WITHIN_S)

    assert turns.had == ["first", "second"]


def test_whoever_waits_can_be_cancelled_and_the_next_moves_up(turns: Turns) -> None:
    cancelled = Event()
    with turns.line.turn(Event()):
        waiting = turns.take("cancelled", cancelled)
        cancelled.set()
        with pytest.raises(JobCancelledError):
            waiting.result(WITHIN_S)
        after = turns.take("after")
        assert turns.had == []

    after.result(WITHIN_S)
    assert turns.had == ["after"]


def test_whoever_stays_after_a_turn_has_the_next_before_those_who_came_later(turns: Turns) -> None:
    with turns.line.joined():
        with turns.line.turn(Event(), stays=True):
            later = contextvars.Context().run(turns.take, "later")
        turns.take("again").result(WITHIN_S)

    later.result(WITHIN_S)
    assert turns.had == ["again", "later"]


def test_whoever_had_no_place_before_a_turn_does_not_stay_after_it(turns: Turns) -> None:
    with turns.line.turn(Event(), stays=True):
        pass

    turns.take("next").result(WITHIN_S)
    assert turns.had == ["next"]


def test_a_job_that_is_cancelled_already_gets_no_turn(turns: Turns) -> None:
    cancelled = Event()
    cancelled.set()

    with pytest.raises(JobCancelledError):
        turns.take("cancelled", cancelled).result(WITHIN_S)

    turns.take("next").result(WITHIN_S)
    assert turns.had == ["next"]


def test_what_fails_in_its_turn_gives_it_back(turns: Turns) -> None:
    with pytest.raises(KeyError), turns.line.turn(Event()):
        raise KeyError

    def fail() -> None:
        raise KeyError

    with pytest.raises(KeyError):
        turns.line.when_free(fail)

    turns.take("next").result(WITHIN_S)
    assert turns.had == ["next"]


def test_what_is_done_when_nobody_is_at_it_is_left_otherwise(turns: Turns) -> None:
    done: list[str] = []
    turns.line.when_free(lambda: done.append("idle"))

    with turns.line.turn(Event()):
        turns.line.when_free(lambda: done.append("busy"))

    assert done == ["idle"]


def test_a_thread_can_tell_its_own_turn_from_that_of_another(turns: Turns) -> None:
    assert not turns.line.is_anothers()
    with turns.line.turn(Event()), ThreadPoolExecutor(1) as other:
        assert not turns.line.is_anothers()
        assert other.submit(turns.line.is_anothers).result(WITHIN_S)


def test_places_of_another_line_count_for_nothing(turns: Turns) -> None:
    with Line().joined(), turns.line.joined():
        turns.take("mine").result(WITHIN_S)

    assert turns.had == ["mine"]


def test_hundreds_of_threads_have_one_turn_each_and_never_two_at_once() -> None:
    line, at_once, seen = Line(), [0], []

    def turn(number: int) -> None:
        with line.turn(Event()):
            at_once[0] += 1
            seen.append((number, at_once[0]))
            at_once[0] -= 1

    with ThreadPoolExecutor(32) as threads:
        list(threads.map(turn, range(300)))

    assert sorted(number for number, _ in seen) == list(range(300))
    assert {count for _, count in seen} == {1}
