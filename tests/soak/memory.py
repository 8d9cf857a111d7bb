"""What a worker's path of a job keeps of its jobs: `python -m tests.soak.memory --jobs 5000 --seed 1`.

The mixed wishes of the soak go through the handler function, one after the other, in this process, with
the memory settings of start.sh. The last line is a JSON object: what was resident after a tenth of the
jobs and after all, in bytes, and how many files were open; `wrong` counts the answers that were no
better than the wish.
"""

import argparse
import asyncio
import contextlib
import gc
import json
import logging
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.overhead import run_as_in_the_container
from benchmarks.simulators import simulated, wired
from rp_jobs import Jobs
from rp_sdk import Handler
from schemas.settings import CacheSettings, Settings, WebuiSettings
from tests.soak.wishes import Oracle, Stock, Wish, Wishes

_PAGE = 4096


@dataclass
class Kept:
    """What is held at a moment."""

    jobs: int
    resident_bytes: int
    files: int

    @classmethod
    def now(cls, jobs: int) -> "Kept":
        """Measure this process, after the garbage is collected."""
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return cls(jobs, pages * _PAGE, len(list(Path("/proc/self/fd").iterdir())))


def main() -> int:
    """Run the jobs and print what was kept."""
    parser = argparse.ArgumentParser("python -m tests.soak.memory", description=__doc__)
    parser.add_argument("--jobs", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    run_as_in_the_container()
    logging.disable()
    with tempfile.TemporaryDirectory(prefix="a1111-soak-") as folder:
        early, late, wrong = asyncio.run(_measured(Path(folder), options.jobs, options.seed))
    print(json.dumps({"early": asdict(early), "late": asdict(late), "wrong": wrong}))
    return 0


async def _measured(folder: Path, jobs: int, seed: int) -> tuple[Kept, Kept, list[str]]:
    wrong: list[str] = []
    early = Kept.now(0)
    with _handler(folder, jobs) as (handle, stock, oracle):
        wishes = Wishes(seed, stock)
        for number in range(jobs):
            wish = wishes.wish(number)
            answer = await handle({"id": f"soak-{number}", "input": wish.value})
            if not _is_right(wish, answer, oracle):
                wrong.append(f"{number}: {wish.kind}: {str(answer)[:300]}")
            if number + 1 == jobs // 10:
                early = Kept.now(number + 1)
        return early, Kept.now(jobs), wrong


def _is_right(wish: Wish, answer: object, oracle: Oracle) -> bool:
    failed = isinstance(answer, dict) and "error" in answer
    if wish.right is None:
        return failed and isinstance(answer, dict) and answer["code"] in wish.codes
    return not failed and wish.view(answer) == wish.right(oracle)


@contextlib.contextmanager
def _handler(folder: Path, jobs: int) -> Iterator[tuple[Handler, Stock, Oracle]]:
    hub, volume, links = folder / "hub", folder / "volume", folder / "links"
    for place in (hub, volume, links):
        place.mkdir()
    with contextlib.ExitStack() as stack:
        hub_url = stack.enter_context(simulated("hub", "--root", hub))
        stock = Stock(hub_url, hub, jobs)
        stock.write()
        webui_url, oracle_url = (
            stack.enter_context(simulated("webui", "--models-dir", place, "--controlnet"))
            for place in (links, hub)
        )
        settings = Settings(
            cache=CacheSettings(volume=volume, allow_private_hosts=True),
            webui=WebuiSettings(port=int(webui_url.rpartition(":")[2]), links=links),
        )
        runner = stack.enter_context(wired(settings))
        handle = Jobs(runner.run, settings.job, online=False).handle
        yield handle, stock, Oracle(oracle_url)


if __name__ == "__main__":
    sys.exit(main())
