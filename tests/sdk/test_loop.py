"""Parts of the loop by themselves: what a stop does, and a job that comes again."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
from runpod.serverless.modules.worker_state import JobsProgress

import rp_guards

NO_SESSION: Any = None
JOB: dict[str, Any] = {"id": "j", "input": {}}


class Loop(rp_guards.QueueLoop):
    """Takes what it is `given`, and runs it as the SDK's does; a job ends when it `may_end`."""

    def __init__(self) -> None:
        super().__init__({"ready": lambda: True})
        self.given: list[dict[str, Any]] = []
        self.begun: list[str] = []
        self.may_end = asyncio.Event()
        self.jobs_handler = self._do

    async def _poll(self, *_: object) -> list[dict[str, Any]]:
        return self.given

    async def _do(self, session: object, config: object, job: dict[str, Any]) -> None:
        del session, config
        self.begun.append(job["id"])
        try:
            await asyncio.sleep(60)
        finally:
            await self.may_end.wait()

    async def take(self, *jobs: dict[str, Any]) -> list[Any]:
        self.given = [dict(job) for job in jobs]
        taken = await self._take(NO_SESSION, 1) or []
        for job in taken:
            self.jobs_queue.put_nowait(job)
            self.job_progress.add(job)
        return taken

    def start(self) -> "asyncio.Task[None]":
        job = self.jobs_queue.get_nowait()
        task = asyncio.create_task(self.handle_job(NO_SESSION, job))
        self.jobs_tasks[job["id"]] = task
        return task


@pytest.fixture(autouse=True)
def _nothing_in_progress() -> Iterator[None]:
    yield
    JobsProgress().clear()


async def until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110 - `run` ends it
        await asyncio.sleep(0.01)


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 10))


def test_a_job_that_is_stopped_before_its_first_step_is_tidied_up() -> None:
    async def test() -> None:
        loop = Loop()
        loop.may_end.set()
        await loop.take(JOB)
        task = loop.start()

        assert await loop.stop_job("j")
        await asyncio.wait({task})

        assert (loop.begun, loop.job_progress.get_job_list()) == (["j"], None)

    run(test())


def test_a_job_that_comes_twice_in_one_answer_or_before_it_has_begun_is_taken_once() -> None:
    async def test() -> None:
        loop = Loop()

        assert await loop.take(JOB, JOB) == [JOB]
        assert await loop.take(JOB, JOB) == []

    run(test())


def test_what_comes_while_the_last_jobs_end_is_begun_at_once() -> None:
    async def test() -> None:
        loop = Loop()
        loop.may_end.set()
        loop.current_concurrency = 2
        loop.jobs_queue = asyncio.Queue(2)
        runs = asyncio.create_task(loop.run_jobs(NO_SESSION))
        await loop.take(JOB)
        loop._shutdown_event.set()
        await until(lambda: loop.begun == ["j"])
        await asyncio.sleep(0.2)  # The SDK's own looks for new jobs once in 0.1 s.

        late = {**JOB, "id": "late"}
        loop.jobs_queue.put_nowait(late)
        loop.job_progress.add(late)
        loop._takes_ended.set()
        await until(lambda: loop.begun == ["j", "late"])

        assert await loop.stop_job("late")
        assert await loop.stop_job("j")
        await runs

    run(test())


@pytest.mark.parametrize("stops_after", [0, 1])
def test_an_order_to_stop_is_also_for_what_waits_to_be_done_again(stops_after: int) -> None:
    async def test() -> None:
        loop = Loop()
        await loop.take(JOB)
        task = loop.start()
        await loop.stop_job("j")
        assert await loop.take(JOB) == []
        assert await loop.take(JOB) == []

        for _ in range(stops_after):
            await loop.stop_job("j")
        loop.may_end.set()
        await asyncio.wait({task})

        assert loop.jobs_queue.qsize() == 1 - stops_after
        assert loop.job_progress.get_job_list() == (None if stops_after else "j")

    run(test())
