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
from rp_handler import is_developers_machine, make_handler, replacing, saving, with_volume
from schemas.errors import BackendCrashedError, InvalidInputError, WorkerError
from schemas.settings import CacheSettings, Settings, SettingsError
from worker.process import spawn

JOB = {"id": "j", "input": {}}


def handled(error: Exception) -> dict[str, Any]:
    def fail(_job: dict[str, Any], _cancelled: Event, _report: Callable[..., None]) -> Any:
        raise error

    return asyncio.run(make_handler(fail, online=False)(JOB))


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


@pytest.mark.parametrize("alive", [True, False])
def test_only_a_dead_a1111_asks_for_a_new_worker(*, alive: bool) -> None:
    child = spawn([sys.executable, "-c", "import time; time.sleep(60)"], Path.cwd())
    if not alive:
        child.stop(1)

    def fail(_job: dict[str, Any], _cancelled: Event, _report: Callable[..., None]) -> Any:
        raise BackendCrashedError("A1111 closed the connection.")

    answer = asyncio.run(make_handler(replacing(fail, child), online=False)(JOB))
    child.stop(1)

    assert answer.get("refresh_worker", False) is not alive


def test_a_bug_never_leaks_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    answer = handled(KeyError("/secret/path"))

    assert answer["error"].startswith("INTERNAL: ")
    assert "secret" not in json.dumps(answer)
    assert "/secret/path" in caplog.text


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
        assert cancelled.wait(5)
        time.sleep(0.1)  # A1111 takes a moment to stop
        ended.set()
        raise InvalidInputError("whatever comes of it is not told")

    async def cancel() -> None:
        task = asyncio.create_task(make_handler(work, online=False)(JOB))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended.is_set()

    asyncio.run(cancel())


def test_jobs_do_not_block_the_loop() -> None:
    release = Event()

    def work(_job: dict[str, Any], _cancelled: Event, _report: Callable[..., None]) -> Any:
        assert release.wait(5)
        return {"images": []}

    async def both() -> dict[str, Any]:
        task = asyncio.create_task(make_handler(work, online=False)(JOB))
        await asyncio.sleep(0.05)
        release.set()
        return await task

    assert asyncio.run(both()) == {"images": []}


def test_a_local_test_leaves_files_and_prints_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def work(_job: dict[str, Any], _cancelled: Event, _report: Callable[..., None]) -> Any:
        return {"images": ["iVBORw0KGgo="], "info": "{}"}

    answer = asyncio.run(saving(make_handler(work, online=False))(JOB))

    assert answer["images"] == ["output/j-0.png"]
    assert capsys.readouterr().out == "wrote output/j-0.png\nwrote output/j.json\n"
    assert json.loads((tmp_path / "output" / "j.json").read_text())["images"] == ["iVBORw0KGgo="]


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
