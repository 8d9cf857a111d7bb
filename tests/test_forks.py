"""What is forked behaves as what `subprocess.Popen` starts: `json.tool` stands for all."""

import signal
import subprocess
from collections.abc import Iterator

import pytest

from benchmarks.forks import Forked, Nursery

pytestmark = pytest.mark.slow

_NURSERY = Nursery("json")


@pytest.fixture
def process() -> Iterator[Forked]:
    process = _NURSERY.start("json.tool", "--compact")
    yield process
    process.kill()
    process.communicate()


def test_it_reads_its_input_to_the_end_and_says_how_it_ended(process: Forked) -> None:
    process.stdin.write('{"a": 1}')
    process.stdin.close()

    assert process.stdout.read() == '{"a":1}\n'
    assert process.wait(10) == process.poll() == 0


def test_a_program_that_fails_has_its_own_exit_status(process: Forked) -> None:
    process.stdin.write("{")

    process.communicate()

    assert process.returncode == 1


def test_what_is_killed_is_noticed_and_not_before(process: Forked) -> None:
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.01)

    process.kill()

    assert process.wait(10) == -signal.SIGKILL
    process.kill()
