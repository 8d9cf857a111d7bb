import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from worker.child.process import WebuiProcess, spawn
from worker.log import redact

FOREVER = "import time; print('hello', flush=True); time.sleep(60)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);" + FOREVER


def child(code: str) -> WebuiProcess:
    return spawn([sys.executable, "-c", code], Path.cwd())


def test_the_last_words_of_a_dead_child_are_kept() -> None:
    dying = child("print('no CUDA here'); raise SystemExit(3)")

    assert dying.wait() == 3
    assert dying.last_lines() == "no CUDA here"


NOISY = """
import sys
for step in range(0, 101, 10):
    sys.stdout.write(f'\\r{step:3}%|{"#" * (step // 10):10}| {step}/100')
print()
for number in range(2000):
    print('flood', number)
print('a red fox in the snow, https://host/x?token=1')
raise SystemExit(3)
"""


def test_its_output_is_tagged_limited_redacted_and_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with (
        caplog.at_level(logging.INFO),
        redact.knowing({"input": {"prompt": "a red fox in the snow"}}),
    ):
        noisy = child(NOISY)
        noisy.wait()
        kept = noisy.last_lines()

    redact.learn({})
    said = [record.getMessage() for record in caplog.records]
    assert kept.splitlines()[-2:] == ["flood 1999", "…, https://host/x?…"]
    assert said[0] == "webui: 100%|##########| 100/100"
    assert said[1] == "webui: flood 0"
    passed = [line for line in said if line.startswith("webui: flood")]
    left_out = [int(line.split()[1]) for line in said if line.endswith(" lines left out")]
    assert len(passed) < 1000
    assert len(said) - len(left_out) + sum(left_out) == 2002
    assert {record.__dict__["fields"]["event"] for record in caplog.records} == {"webui"}


def test_the_size_of_a_child_is_known_until_it_ends() -> None:
    living = child("held = b'x' * 50_000_000;" + FOREVER)
    while "hello" not in living.last_lines():
        time.sleep(0.01)

    size = living.rss_bytes()
    living.stop(1)

    assert size is not None
    assert 50e6 < size < 100e6
    assert living.rss_bytes() is None


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


# Starts another program that hears no SIGTERM, tells its number, and goes on as it was told.
STARTER = f"""
import subprocess, sys, time
helper = subprocess.Popen([sys.executable, "-c", {STUBBORN!r}], stdout=subprocess.PIPE)
helper.stdout.readline()
print(helper.pid, flush=True)
"""


def helper_of(starter: WebuiProcess) -> int:
    while not starter.last_lines():
        time.sleep(0.01)
    return int(starter.last_lines())


def require_ended(pid: int) -> None:
    """See that a process has ended, or is but waited for by nobody."""
    deadline = time.monotonic() + 30
    stat = Path(f"/proc/{pid}/stat")
    while stat.exists() and " Z " not in stat.read_text() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not stat.exists() or " Z " in stat.read_text()


def test_what_a_child_started_is_stopped_with_it() -> None:
    starter = child(STARTER + "time.sleep(60)")
    helper = helper_of(starter)

    starter.stop(30)

    assert starter.exit_code() == -15
    require_ended(helper)


def test_what_a_child_left_behind_ends_when_its_end_is_seen() -> None:
    starter = child(STARTER + "raise SystemExit(3)")
    helper = helper_of(starter)

    assert starter.wait() == 3
    require_ended(helper)


def test_of_a_child_that_leads_no_group_nothing_else_is_signalled() -> None:
    beside = subprocess.Popen([sys.executable, "-c", FOREVER], stdout=subprocess.PIPE)
    plain = subprocess.Popen([sys.executable, "-c", FOREVER], stdout=subprocess.PIPE)
    assert os.getpgid(plain.pid) == os.getpgid(0)
    assert beside.stdout is not None
    beside.stdout.readline()

    adopted = WebuiProcess(plain.pid, plain.stdout, plain)
    adopted.stop(30)

    assert adopted.exit_code() == -15
    assert beside.poll() is None
    beside.kill()
    beside.communicate()


@pytest.mark.slow
def test_a_child_dies_with_its_parent() -> None:
    program = (
        "import sys, time; from pathlib import Path; from worker.child.process import spawn\n"
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

    require_ended(pid)
