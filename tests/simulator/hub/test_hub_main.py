import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from simulator import hub


@pytest.mark.slow
def test_the_command_says_where_it_listens_and_ends_on_sigterm(tmp_path: Path) -> None:
    (tmp_path / "m.bin").write_bytes(b"model")
    command = [sys.executable, "-m", "simulator", "hub", "--root", str(tmp_path), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = json.loads(process.stdout.readline())
        try:
            with requests.Session() as session:
                body = session.get(line["url"] + "/redirect/m.bin", timeout=30).content
        finally:
            process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=10)

    assert line["simulator"] == "hub"
    assert body == b"model"
    assert rest == ""
    assert process.returncode == 0


def test_a_root_that_is_no_folder_is_a_usage_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        hub.main(["--root", str(tmp_path / "missing")])

    assert "missing is not a folder" in capsys.readouterr().err
