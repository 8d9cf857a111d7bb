"""The container without a container: start.sh, A1111 as the worker's child, nothing left behind."""

import os
import signal
from pathlib import Path

import pytest

from tests.e2e.container import has_ended, make_container, parent_of

pytestmark = pytest.mark.slow


def test_a_job_runs_through_start_sh_and_a1111_does_not_outlive_a_killed_worker(
    tmp_path: Path,
) -> None:
    with make_container(tmp_path, {"step_ms": 1}) as container:
        url = f"{container.hub.url}/Deliberate_v6.safetensors"
        job = container.done({"steps": 2, "checkpoint": {"name": "c", "url": url}})

        assert job["status"] == "COMPLETED", job
        assert container.journal()["jobs"] == 1
        assert parent_of(container.webui_pid) == container.worker.pid

        os.kill(container.worker.pid, signal.SIGKILL)
        pid = container.webui_pid
        container.until(lambda: has_ended(pid), "A1111 has ended", within_s=1)
        assert not container.is_listening()


def test_a_worker_whose_a1111_dies_while_booting_ends_with_its_last_words(tmp_path: Path) -> None:
    fault = {"kind": "die", "when": "booting", "exit_code": 3, "text": "no CUDA driver"}
    with make_container(tmp_path, {"starts": [{"boot_s": 0.2, "faults": [fault]}]}) as container:
        assert container.worker.wait(20) == 1

        assert "no CUDA driver" in container.log.read_text()
        assert len(container.webui_pids) == 1
