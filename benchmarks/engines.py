"""What fetches files: this project's store and what others use; each run is a process to itself."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from resource import struct_rusage
from time import perf_counter

from benchmarks.fetchers import CONNECTIONS, Order

ROOT = Path(__file__).parent.parent
# No run of the sizes that are measured takes as long; what hangs is ended and fails the benchmark.
TIMEOUT_S = 600.0

OURS = "model_cache"
PEERS = "requests, 8 KiB"
CURL_AND_SHA = "curl, then sha256sum"
ARIA2 = f"aria2c -x{CONNECTIONS}, checksum"


@dataclass(frozen=True)
class Usage:
    """What one run took."""

    path: Path
    """What it made."""
    s: float
    cpu_s: float
    """Of all its processes and threads; in Python only while it fetched."""
    peak_rss_bytes: int
    """Of its largest process, from start to end."""


Run = Callable[[Order, Mapping[str, str]], Usage]


@dataclass(frozen=True)
class Engine:
    """One way to fetch a file."""

    name: str
    run: Run
    """Takes the environment besides the order; raises `RuntimeError` if the engine fails."""
    programs: tuple[str, ...] = ()
    """What must be installed for it."""
    one_stream: bool = True
    """Whether it asks for the file once, on one connection."""

    @property
    def is_here(self) -> bool:
        """Whether this machine has what it needs."""
        return all(map(shutil.which, self.programs))


def environment(base: Mapping[str, str]) -> dict[str, str]:
    """Return `base` with what keeps runs alike: the worker's memory settings, no proxy, no reports.

    malloc reads them when a process begins. Source: glibc 2.36, mallopt(3), "Environment variables".
    """
    memory = re.findall(r"\b(MALLOC_\w+)=(\d+)", (ROOT / "start.sh").read_text())
    return {
        **base,
        **dict(memory),
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }


class Fetcher:
    """A process that prepares for a fetch, and fetches when it is told to."""

    def __init__(self, way: str, order: Order, environ: Mapping[str, str]) -> None:
        """Start it; `way` is one of `fetchers.WAYS`. Whoever does this must `end` it."""
        self._way = way
        authority = [] if order.authority is None else ["--authority", str(order.authority)]
        argv = [way, order.url, str(order.folder), order.sha256, *authority]
        self._child = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.fetchers", *argv],
            cwd=ROOT,
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def prepare(self) -> None:
        """Wait until it is ready.

        Raises:
            RuntimeError: it failed; why is on stderr.
        """
        assert self._child.stdout is not None  # noqa: S101 - a pipe
        if self._child.stdout.readline() != b"ready\n":
            raise RuntimeError(f"The way {self._way!r} could not be prepared.")

    def go(self) -> None:
        """Let it fetch."""
        assert self._child.stdin is not None  # noqa: S101 - a pipe
        with self._child.stdin as stdin:
            stdin.write(b"go\n")

    def usage(self) -> Usage:
        """Wait for its end and return what it said.

        Raises:
            RuntimeError: it failed, or took too long; why is on stderr.
        """
        output, usage = _ended(self._child)
        if self._child.returncode != 0:
            raise RuntimeError(f"The way {self._way!r} failed with {self._child.returncode}.")
        told = json.loads(output)
        return Usage(Path(told["path"]), told["s"], told["cpu_s"], _peak_bytes(usage))

    def end(self) -> None:
        """Kill it if it lives, and close what is open."""
        with self._child:
            self._child.kill()


def in_python(way: str) -> Run:
    """Return how to run one of `fetchers.WAYS`."""

    def run(order: Order, environ: Mapping[str, str]) -> Usage:
        with contextlib.ExitStack() as stack:
            fetcher = Fetcher(way, order, environ)
            stack.callback(fetcher.end)
            fetcher.prepare()
            fetcher.go()
            return fetcher.usage()

    return run


def by_programs(argvs: Callable[[Order], Sequence[Sequence[str]]]) -> Run:
    """Return how to run programs one after the other, which make the file `order.name`."""

    def run(order: Order, environ: Mapping[str, str]) -> Usage:
        commands = argvs(order)
        began = perf_counter()
        usages = [_program(argv, environ) for argv in commands]
        return Usage(
            path=order.folder / order.name,
            s=perf_counter() - began,
            cpu_s=sum(usage.ru_utime + usage.ru_stime for usage in usages),
            peak_rss_bytes=max(map(_peak_bytes, usages)),
        )

    return run


def _program(argv: Sequence[str], environ: Mapping[str, str]) -> struct_rusage:
    with subprocess.Popen(
        argv,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as child:
        output, usage = _ended(child)
    if child.returncode != 0:
        said = output.decode(errors="replace")[-500:]
        raise RuntimeError(f"{argv[0]} failed with {child.returncode}: {said}")
    return usage


def _ended(child: subprocess.Popen[bytes]) -> tuple[bytes, struct_rusage]:
    """Wait for the end of a process and return its output and usage, as `subprocess` does not."""
    assert child.stdout is not None  # noqa: S101 - a pipe
    alarm = threading.Timer(TIMEOUT_S, child.kill)
    alarm.start()
    try:
        with child.stdout as stdout:
            output = stdout.read()
        _, status, usage = os.wait4(child.pid, 0)
    finally:
        alarm.cancel()
    child.returncode = os.waitstatus_to_exitcode(status)
    return output, usage


def _peak_bytes(usage: struct_rusage) -> int:
    """Return the peak of the resident memory, at least what the benchmark itself had by then.

    Linux counts what a process was before it became another program, so this module's own imports
    are few. Source: Linux, fs/exec.c, exec_mmap (setmax_mm_hiwater_rss); getrusage(2), in KiB.
    """
    return usage.ru_maxrss << 10


def _curl(order: Order) -> list[str]:
    authority = [] if order.authority is None else ["--cacert", str(order.authority)]
    target = str(order.folder / order.name)
    # -q, which must be first: nobody's own settings.
    return ["curl", "-q", "--silent", "--show-error", "--fail", *authority, "-o", target, order.url]


def _curl_and_sha(order: Order) -> list[list[str]]:
    sums = order.folder / "sums"
    sums.write_text(f"{order.sha256}  {order.folder / order.name}\n")
    return [_curl(order), ["sha256sum", "--check", "--status", str(sums)]]


def _aria2(order: Order) -> list[str]:
    authority = [] if order.authority is None else [f"--ca-certificate={order.authority}"]
    return [
        *("aria2c", "--no-conf", "--quiet", f"-x{CONNECTIONS}", f"-s{CONNECTIONS}", "-k1M"),
        # The quickest that it has on a local disk; a network volume may not know it.
        *("--file-allocation=falloc", f"--checksum=sha-256={order.sha256}", *authority),
        *("-d", str(order.folder), "-o", order.name, order.url),
    ]


ENGINES = (
    Engine(OURS, in_python("store"), one_stream=False),
    Engine(PEERS, in_python("requests-8k")),
    Engine("requests, 1 MiB", in_python("requests-1m")),
    Engine("curl", by_programs(lambda order: [_curl(order)]), ("curl",)),
    Engine(CURL_AND_SHA, by_programs(_curl_and_sha), ("curl", "sha256sum")),
    Engine(ARIA2, by_programs(lambda order: [_aria2(order)]), ("aria2c",), one_stream=False),
    Engine("huggingface_hub", in_python("hub")),
)
