import json
import signal
import subprocess
import sys

import pytest
import requests


@pytest.mark.slow
def test_the_command_says_where_it_listens_and_ends_on_sigterm() -> None:
    command = [sys.executable, "-m", "simulator", "queue", "--print-env"]
    with subprocess.Popen(
        [*command, "--endpoint", "e1", "--api-key", "k1"],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        line = json.loads(process.stdout.readline())
        try:
            with requests.Session() as session:
                key = {"Authorization": "Bearer k1"}
                health = session.get(line["url"] + "/v2/e1/health", headers=key, timeout=5)
        finally:
            process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=10)

    assert line["simulator"] == "queue"
    assert health.json()["jobs"]["inQueue"] == 0
    assert out == ""
    assert "export RUNPOD_AI_API_KEY=k1" in err
    assert process.returncode == 0
