"""Workers on several hosts, and hosts that die."""

import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from model_cache.volume import layout
from tests.chaos.conftest import MIB, Chaos, World, wait_until
from tests.chaos.pods.conftest import Volumes, two_hosts
from tests.chaos.worker import Pace

pytestmark = pytest.mark.slow


def numbers(pid: int) -> list[int]:
    """Return the numbers of a process: as seen from here, then from the namespaces it is in."""
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("NSpid:"))
    return [int(word) for word in line.split()[1:]]


def test_a_host_that_dies_is_followed_by_another_within_seconds(
    world: World, volumes: Volumes, chaos: Chaos
) -> None:
    size = 4 * MIB
    pace = Pace(ttl_s=2.0, segment_bytes=size // 32)
    folder = layout.tmp_folder(world.volume)
    for number in chaos.times("hosts that died", 40, least=1):
        model = world.model(f"m{number}", size)
        # Two seconds for all of it: the first one dies before it has it.
        world.spoil(rate=size // 8)
        with two_hosts(world, volumes) as (doomed, heir):
            homes = iter([doomed.inside, heir.inside])
            first, second = replace(world, homes=homes).crew(2, pace=pace)
            assert numbers(first.pid)[-1] == numbers(second.pid)[-1]
            first.ask(url=model.url)
            world.wait_until_sent(model, size // 2)
            wait_until(lambda: any(folder.glob("*.json")))
            second.ask(url=model.url)
            doomed.kill()
            assert first.wait() == -signal.SIGKILL
            before, killed_at = world.sent(model), time.monotonic()
            world.mend()

            done = second.answer()

            took_s = time.monotonic() - killed_at
            heir.kill()
            assert second.wait() == -signal.SIGKILL
        assert (done.get("read"), done["cached"]) == (model.sha256, False), done
        assert took_s < 20
        assert world.sent(model) - before < size + (MIB if volumes.locks else 0)
    world.require_sound()
