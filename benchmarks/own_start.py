"""How long a worker takes from its start until it takes jobs, and its memory then; A1111 is up already."""

import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.containers import environment_of, get, running
from benchmarks.report import percentile
from benchmarks.simulators import ROOT, simulated

WORKER, PLAIN, IMPORT = "this worker", "a handler that does nothing", "`import runpod` alone"
KINDS = (WORKER, PLAIN, IMPORT)
TIMEOUT_S = 60.0
_LOOK_S = 0.05

_NOTHING = "import runpod; runpod.serverless.start({'handler': lambda job: {}})"
_IMPORT = """
import resource, runpod
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@dataclass(frozen=True)
class Start:
    """One start."""

    s: float
    """Until the first request for a job; of an import, until the process has ended."""
    rss_mib: float
    """Of the process itself; of an import, its most."""
    all_mib: float
    """With its children, what they share counted once."""


def measured(name: str, folder: Path) -> Start:
    """Return one start of a kind.

    Args:
        name: one of `KINDS`.
        folder: an empty one.

    Raises:
        RuntimeError: it did not come to its end.
    """
    if name == IMPORT:
        return imported()
    if name == PLAIN:
        return taking_jobs([sys.executable, "-c", _NOTHING], {})
    (folder / "volume").mkdir()
    with simulated("webui", "--models-dir", folder / "links") as webui_url:
        environ = {
            "A1111_CACHE_VOLUME": str(folder / "volume"),
            "A1111_WEBUI_LINKS": str(folder / "links"),
            "A1111_WEBUI_PORT": webui_url.rpartition(":")[2],
        }
        return taking_jobs([sys.executable, "-u", str(ROOT / "rp_handler.py")], environ)


def taking_jobs(argv: Sequence[str], environ: Mapping[str, str]) -> Start:
    """Return how long a worker took to ask for its first job.

    Raises:
        RuntimeError: it ended, or asked for none.
    """
    with simulated("queue", "--hold-s", 2) as queue_url:
        queue = environment_of(queue_url)
        # The queue's clock tells both moments: it writes down what anybody asks of it.
        get(f"{queue['RUNPOD_WEBHOOK_GET_JOB'].partition('/job-take/')[0]}/health", queue)
        with running(argv, {**queue, **environ}) as worker:
            taken = _first_take(queue_url, worker)
            rss = _kib(Path(f"/proc/{worker.pid}/status"), "VmRSS") / 1024
            shares = [_kib(file, "Pss") for file in _memory_of_all(worker.pid)]
            return Start(taken, rss, sum(shares) / 1024)


def _first_take(queue_url: str, worker: "subprocess.Popen[bytes]") -> float:
    deadline = time.monotonic() + TIMEOUT_S
    while worker.poll() is None and time.monotonic() < deadline:
        requests = get(f"{queue_url}/simulator/journal")["requests"]
        for request in requests:
            if request["route"].startswith("job-take"):
                return float(request["t"] - requests[0]["t"])
        time.sleep(_LOOK_S)
    raise RuntimeError("A worker did not ask for a job.")


def _memory_of_all(group: int) -> Iterator[Path]:
    """Yield the files that tell the memory of each process of a group."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(") ")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[2]) == group:
            yield stat.with_name("smaps_rollup")


def _kib(file: Path, name: str) -> int:
    return next(
        int(line.split()[1])
        for line in file.read_text().splitlines()
        if line.startswith(f"{name}:")
    )


def imported() -> Start:
    """Return how long a process takes that does nothing but import the SDK."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", _IMPORT], capture_output=True, check=True)
    took, rss = time.perf_counter() - started, int(done.stdout) / 1024
    return Start(took, rss, rss)


def rows_of(starts: Mapping[str, Sequence[Start]]) -> list[dict[str, object]]:
    """Return a row for each kind of start; time and memory by the median."""
    return [
        {
            "what": f"start of {name}",
            "runs": len(taken),
            "s": round(percentile([start.s for start in taken], 50), 2),
            "min_s": round(min(start.s for start in taken), 2),
            "max_s": round(max(start.s for start in taken), 2),
            "rss_mib": round(percentile([start.rss_mib for start in taken], 50), 1),
            "all_mib": round(percentile([start.all_mib for start in taken], 50), 1),
        }
        for name, taken in starts.items()
    ]
