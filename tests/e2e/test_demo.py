import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.slow


def test_the_demo_draws_two_pictures_and_fetches_each_model_once() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "simulator.demo"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("timings ") == 2
    assert done.stdout.count("fetched in") == 3
    assert done.stdout.count(" cached\n") == 3
    assert len(re.findall(r"\n  1(\.\d+)? x ", done.stdout)) == 3
    assert (ROOT / "output" / "demo-2-0.png").read_bytes().startswith(b"\x89PNG")
