import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PERMITTED, ROOT

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        pytest.param("it was a rainy day", 1, id="unlisted"),
        pytest.param(PERMITTED[0], 0, id="listed"),
    ],
)
def test_a_skip_for_a_reason_that_is_not_listed_fails_the_run(
    tmp_path: Path, reason: str, code: int
) -> None:
    file = tmp_path / "test_it.py"
    file.write_text(f"import pytest\n\ndef test_it() -> None:\n    pytest.skip({reason!r})\n")

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-c", "pyproject.toml", "-p", "tests.conftest", str(file)],
        cwd=ROOT,
        env={"PATH": os.defpath},  # not traced for coverage
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == code, done.stdout
    assert ("that tests/skips.txt does not list: " in done.stdout) is bool(code)
