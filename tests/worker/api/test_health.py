"""What a worker says of itself, with a simulated A1111 behind it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from pydantic import SecretStr

from model_cache.cache import ModelCache
from schemas.settings import CacheSettings, Settings, WebuiSettings
from simulator import models as files
from tests.conftest import ROOT, Simulator, running
from tests.worker.keeping import kept
from worker.child import vitals
from worker.child.client import WebuiClient
from worker.run import Runner

pytestmark = pytest.mark.slow

ASKS = {"api": {"method": "GET", "endpoint": "/v1/health"}}


def ignore(_progress: dict[str, Any]) -> None:
    """Nobody looks."""


def ask(links: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "worker", "health", *flags],
        cwd=ROOT,
        env={"A1111_WEBUI_LINKS": str(links)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def webui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    links = tmp_path_factory.mktemp("links")
    with running("webui", "--models-dir", links, "--step-ms", 20) as started:
        yield started


def runner_on(folder: Path, webui: Simulator) -> Runner:
    settings = Settings(
        cache=CacheSettings(volume=folder, hf_token=SecretStr("secret-1"), budget_gb=2),
        webui=WebuiSettings(port=int(webui.url.rpartition(":")[2]), links=folder / "links"),
    )
    client = WebuiClient(webui.url)
    keeper = kept(client)
    keeper.ready(Event())
    return Runner(ModelCache(settings.cache), client, keeper, settings)


def test_a_job_that_asks_is_told_everything_and_no_secret(tmp_path: Path, webui: Simulator) -> None:
    files.write_lora(tmp_path / "models" / "loras" / "x.safetensors", seed="x")

    told = runner_on(tmp_path, webui).run({"id": "j", "input": ASKS}, Event(), ignore)

    assert told["status"] == "ready"
    assert told["webui"]["backend"] == "simulator"
    assert told["memory"]["ram"]["total"] > 0
    assert told["store"] | {"size_gb": 0} == {
        "volume": str(tmp_path),
        "mounted": True,
        "writable": True,
        "models": {"lora": 1},
        "size_gb": 0,
        "budget_gb": 2,
    }
    assert told["settings"]["A1111_CACHE_HF_TOKEN"] == "set"
    assert told["versions"]["runpod"] == "1.12.0"
    assert "secret-1" not in json.dumps(told)


def test_it_is_told_while_a_job_runs_which_one(tmp_path: Path, webui: Simulator) -> None:
    runner = runner_on(tmp_path, webui)

    with runner.health.running("job-7", ignore) as report:
        report({"stage": "sampling", "percent": 40})
        during = runner.run({"id": "j", "input": ASKS}, Event(), ignore)
    after = runner.run({"id": "j", "input": ASKS}, Event(), ignore)

    (job,) = during["jobs"]
    assert (job["id"], job["stage"], job["percent"]) == ("job-7", "sampling", 40)
    assert (after["jobs"], after["jobs_done"]) == ([], 1)


def test_the_file_is_there_as_long_as_the_worker_and_grows_old(
    tmp_path: Path, webui: Simulator
) -> None:
    runner, links = runner_on(tmp_path, webui), tmp_path / "links"
    assert vitals.written(links) is None

    runner.health.start()
    deadline = time.monotonic() + 10
    while (said := vitals.written(links)) is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)

    assert vitals.is_well(said)
    assert said["pid"] == os.getpid()
    asked = ask(links)
    assert asked.stdout.startswith("status   ready, up for ")
    assert "setting  A1111_CACHE_HF_TOKEN=set" in asked.stdout
    assert asked.returncode == 0
    assert json.loads(ask(links, "--json").stdout)["status"] == "ready"
    old = json.loads((links / "health.json").read_text())
    runner.health.stop()
    assert not vitals.is_well(vitals.written(links))
    none = ask(links)
    assert (none.stdout.partition(":")[0], none.returncode) == ("No worker", 1)

    (links / "health.json").write_text(json.dumps(old | {"written": time.time() - 60}))
    assert vitals.written(links) is None
    (links / "health.json").write_text("half a fi")
    assert vitals.written(links) is None
