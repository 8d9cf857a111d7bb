"""The container without a container: start.sh, A1111 as the worker's child, nothing left behind."""

from pathlib import Path

import pytest

from tests.e2e.container import make_container

pytestmark = pytest.mark.slow


def test_a_worker_whose_a1111_dies_while_booting_ends_with_its_last_words(tmp_path: Path) -> None:
    fault = {"kind": "die", "when": "booting", "exit_code": 3, "text": "no CUDA driver"}
    with make_container(tmp_path, {"starts": [{"boot_s": 0.2, "faults": [fault]}]}) as container:
        assert container.worker.wait(30) == 1

        assert "no CUDA driver" in container.log.read_text()
        assert len(container.webui_pids) == 1
