import subprocess
import sys
import time
from pathlib import Path

import pytest

from schemas.errors import BackendCrashedError, BackendNotReadyError
from worker.process import WebuiProcess, spawn, wait_until_ready

FOREVER = "import time; print('hello', flush=True); time.sleep(60)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);" + FOREVER


def child(code: str) -> WebuiProcess:
    return spawn([sys.executable, "-c", code], Path.cwd())


def test_a_dead_child_ends_the_wait_with_its_last_words() -> None:
    dying = child("print('no CUDA here'); raise SystemExit(3)")

    with pytest.raises(BackendCrashedError, match=r"code 3 while starting(.|\n)*no CUDA here"):
        wait_until_ready(dying, lambda: False, timeout_s=30, interval_s=0.05)


def test_a_silent_child_ends_the_wait_in_time() -> None:
    silent = child(FOREVER)
    try:
        with pytest.raises(BackendNotReadyError, match=r"within 0\.3 s"):
            wait_until_ready(silent, lambda: False, timeout_s=0.3, interval_s=0.05)
    finally:
        silent.stop(1)


def test_the_first_answer_ends_the_wait() -> None:
    answers = iter([False, True])

    wait_until_ready(None, lambda: next(answers), timeout_s=30, interval_s=0.01)


def test_a_child_that_ignores_sigterm_is_killed() -> None:
    stubborn = child(STUBBORN)
    while "hello" not in stubborn.last_lines():
        time.sleep(0.01)

    stubborn.stop(0.2)

    assert stubborn.exit_code() == -9


def test_stopping_a_child_that_has_ended_does_nothing() -> None:
    ended = child("raise SystemExit(5)")

    assert ended.wait() == 5
    ended.stop(1)
    assert ended.exit_code() == 5


@pytest.mark.slow
def test_a_child_dies_with_its_parent() -> None:
    program = (
        "import sys, time; from pathlib import Path; from worker.process import spawn\n"
        f"child = spawn([sys.executable, '-c', {FOREVER!r}], Path.cwd())\n"
        "print(child.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()

    deadline = time.monotonic() + 5
    stat = Path(f"/proc/{pid}/stat")
    while stat.exists() and " Z " not in stat.read_text() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not stat.exists() or " Z " in stat.read_text()
