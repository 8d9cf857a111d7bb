import asyncio
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import pytest

import rp_handler
import rp_sdk
from rp_handler import is_developers_machine, with_volume
from rp_jobs import Jobs, Run
from schemas.errors import (
    BackendCrashedError,
    InvalidInputError,
    JobCancelledError,
    WorkerError,
)
from schemas.settings import CacheSettings, JobSettings, Settings, SettingsError

JOB = {"id": "j", "input": {}}


def jobs(run: Run, *, timeout_s: float = 60, drain_s: float = 60, **how: Any) -> Jobs:
    return Jobs(run, JobSettings(timeout_s=timeout_s, drain_s=drain_s), online=False, **how)


def handled(error: Exception) -> Any:
    def fail(_job: dict[str, Any], _cancelled: Event, _report: Callable[..., None]) -> Any:
        raise error

    return asyncio.run(jobs(fail).handle(JOB))


def until_cancelled(_job: dict[str, Any], cancelled: Event, _report: Callable[..., None]) -> Any:
    assert cancelled.wait(30)
    raise JobCancelledError("The job was cancelled.")


def test_a_mistake_in_the_request_is_an_answer_with_its_code() -> None:
    assert handled(InvalidInputError("`x` is wrong.", hint="Mend it.", field="x")) == {
        "error": "INVALID_INPUT: `x` is wrong. Mend it.",
        "code": "INVALID_INPUT",
        "retryable": False,
        "details": {"field": "x"},
    }


def test_no_error_asks_for_a_new_worker_by_itself() -> None:
    for error in (InvalidInputError("no."), BackendCrashedError("gone.")):
        assert "refresh_worker" not in handled(error)

    lost = BackendCrashedError("gone for good.")
    lost.refresh_worker = True
    assert handled(lost)["refresh_worker"] is True


def test_an_error_that_asks_for_a_new_worker_ends_this_one() -> None:
    lost: list[str] = []
    error = BackendCrashedError("gone for good.")

    def fail(_job: dict[str, Any], _cancelled: Event, _report: Callable[..., None]) -> Any:
        raise error

    asyncio.run(jobs(fail, on_lost=lambda: lost.append("asked")).handle(JOB))
    assert lost == []

    error.refresh_worker = True
    asyncio.run(jobs(fail, on_lost=lambda: lost.append("asked")).handle(JOB))
    assert lost == ["asked"]


def test_a_job_that_takes_too_long_is_told_so() -> None:
    answer = asyncio.run(jobs(until_cancelled, timeout_s=0.05).handle(JOB))

    assert answer["code"] == "JOB_TIMED_OUT"
    assert answer["error"].startswith("JOB_TIMED_OUT: The job took longer than 0.05 s.")


def test_a_job_that_outlives_the_drain_is_told_so_and_so_is_a_later_one() -> None:
    async def drained() -> list[dict[str, Any]]:
        running = jobs(until_cancelled, drain_s=0.05)
        first = asyncio.create_task(running.handle(JOB))
        await asyncio.sleep(0.01)
        running.drain()
        return [await first, await running.handle(JOB)]

    answers = asyncio.run(drained())

    assert [answer["code"] for answer in answers] == ["WORKER_STOPPED"] * 2
    assert all(answer["retryable"] for answer in answers)


def test_a_job_that_ends_within_the_drain_has_its_answer() -> None:
    def work(_job: dict[str, Any], cancelled: Event, _report: Callable[..., None]) -> Any:
        assert not cancelled.wait(0.1)
        return {"images": []}

    async def drained() -> Any:
        running = jobs(work, drain_s=60)
        task = asyncio.create_task(running.handle(JOB))
        await asyncio.sleep(0.01)
        running.drain()
        return await task

    assert asyncio.run(drained()) == {"images": []}


@pytest.mark.parametrize("answer", [None, [], [{"name": "Euler"}], "text", True, {}])
def test_whatever_json_a_job_answers_goes_on_unchanged(answer: Any) -> None:
    def answering(*_: object) -> Any:
        return answer

    assert asyncio.run(jobs(answering).handle(JOB)) == answer
    assert rp_handler.done(JOB, answering, JobSettings()) == answer


def test_a_bug_never_leaks_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    answer = handled(KeyError("/secret/path"))

    assert answer["error"].startswith("INTERNAL: ")
    assert "secret" not in json.dumps(answer)
    assert "/secret/path" in caplog.text


def test_a_job_that_would_end_the_process_is_answered_and_the_loop_goes_on() -> None:
    def leave(_job: dict[str, Any], _cancelled: Event, _report: Callable[..., None]) -> Any:
        raise SystemExit(3)

    async def twice() -> list[dict[str, Any]]:
        handle = rp_sdk._answering(jobs(leave).handle)
        return [await handle(JOB), await handle(JOB)]

    assert [answer["code"] for answer in asyncio.run(twice())] == ["INTERNAL"] * 2


def test_every_error_answer_is_json() -> None:
    kinds = [kind for kind in _leaves(WorkerError) if hasattr(kind, "code")]

    assert len(kinds) > 15
    for kind in kinds:
        json.dumps(handled(kind("It broke.", hint="Mend it.", size_bytes=1)), allow_nan=False)


def _leaves(kind: type[WorkerError]) -> list[type[WorkerError]]:
    return [kind, *(leaf for child in kind.__subclasses__() for leaf in _leaves(child))]


def test_a_cancelled_job_is_told_and_its_thread_is_waited_for() -> None:
    ended = Event()

    def work(_job: dict[str, Any], cancelled: Event, _report: Callable[..., None]) -> Any:
        assert cancelled.wait(30)
        time.sleep(0.1)  # A1111 takes a moment to stop
        ended.set()
        raise InvalidInputError("whatever comes of it is not told")

    async def cancel() -> None:
        task = asyncio.create_task(jobs(work).handle(JOB))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended.is_set()

    asyncio.run(cancel())


def test_a_second_cancel_frees_the_slot_no_sooner() -> None:
    ended = Event()

    def work(_job: dict[str, Any], cancelled: Event, _report: Callable[..., None]) -> Any:
        assert cancelled.wait(30)
        time.sleep(0.2)
        ended.set()
        raise JobCancelledError("The job was cancelled.")

    async def cancel_twice() -> None:
        task = asyncio.create_task(jobs(work).handle(JOB))
        for _ in range(2):
            await asyncio.sleep(0.05)
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended.is_set()

    asyncio.run(cancel_twice())


def test_jobs_do_not_block_the_loop() -> None:
    release = Event()

    def work(_job: dict[str, Any], _cancelled: Event, _report: Callable[..., None]) -> Any:
        assert release.wait(30)
        return {"images": []}

    async def both() -> Any:
        task = asyncio.create_task(jobs(work).handle(JOB))
        await asyncio.sleep(0.05)
        release.set()
        return await task

    assert asyncio.run(both()) == {"images": []}


TAKE = {"RUNPOD_WEBHOOK_GET_JOB": "http://127.0.0.1/"}


@pytest.mark.parametrize(
    ("arguments", "environ", "prompt"),
    [
        pytest.param([], {}, "of the file", id="on a laptop"),
        pytest.param([], TAKE, None, id="on RunPod"),
        pytest.param(["--test_input", '{"input": {"prompt": "x"}}'], {}, "x", id="an argument"),
        pytest.param(['--test_input={"input": {"prompt": "x"}}'], TAKE, "x", id="both"),
        pytest.param(["--rp_serve_api", "--rp_api_port", "1"], {}, None, id="the local API"),
        pytest.param([], {"RUNPOD_REALTIME_PORT": "1"}, None, id="realtime"),
    ],
)
def test_a_job_is_done_here_where_the_sdk_would_do_it_here(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    environ: dict[str, str],
    prompt: str | None,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("test_input.json").write_text('{"input": {"prompt": "of the file"}}')
    monkeypatch.setattr(sys, "argv", ["rp_handler.py", *arguments])
    for name, text in environ.items():
        monkeypatch.setenv(name, text)

    job = rp_handler._arguments()[1]

    assert (job and job["input"]["prompt"]) == prompt


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param(["--test_inptu", "{}"], "not of a local run: --test_inptu {}", id="a typo"),
        pytest.param(
            ["--rp_serve_api", "--output", "x"], "--output is of a local run", id="serves"
        ),
    ],
)
def test_an_argument_that_would_do_nothing_is_refused(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["rp_handler.py", *arguments])

    with pytest.raises(SystemExit, match="2"):
        rp_handler._arguments()

    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("environ", "simulated"),
    [
        pytest.param({"PATH": "/bin"}, True, id="a laptop"),
        pytest.param({"RUNPOD_POD_ID": "x"}, False, id="RunPod"),
        pytest.param({"A1111_WEBUI_PORT": "3000"}, False, id="a WebUI is named"),
        pytest.param({"A1111_LOG_LEVEL": "DEBUG"}, True, id="another setting"),
    ],
)
def test_the_simulator_stands_in_on_a_developers_machine_only(
    environ: dict[str, str], *, simulated: bool
) -> None:
    assert is_developers_machine(environ) is simulated


def test_the_image_without_a_simulator_is_no_developers_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rp_handler, "ROOT", tmp_path)

    assert not is_developers_machine({})


def test_without_a_volume_the_disk_is_used_unless_that_is_forbidden(tmp_path: Path) -> None:
    missing, disk = tmp_path / "missing", tmp_path / "disk"
    lax = Settings(cache=CacheSettings(volume=missing, local_root=disk))
    strict = Settings(cache=CacheSettings(volume=missing, local_root=disk, require_volume=True))

    assert with_volume(lax).cache.volume == disk
    assert disk.is_dir()
    with pytest.raises(SettingsError, match="not mounted"):
        with_volume(strict)


def test_a_place_that_cannot_be_made_is_named() -> None:
    cache = CacheSettings(volume=Path("/proc/no"), local_root=Path("/proc/no/where"))

    with pytest.raises(SettingsError, match="A1111_CACHE_LOCAL_ROOT: /proc/no/where: "):
        with_volume(Settings(cache=cache))


def test_a_mounted_volume_is_used(tmp_path: Path) -> None:
    settings = Settings(cache=CacheSettings(volume=tmp_path))

    assert with_volume(settings) is settings
