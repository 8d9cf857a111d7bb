"""`python -m benchmarks.download`: how fast a model comes, beside what others fetch it with.

One file, served from this machine, plain and by TLS, over three kinds of connections: as fast as it
goes, 20 MiB/s each, and from 50 ms away. The engines take turns, each run is a process of its own that
writes to the same file system, and what it wrote is hashed and compared every time (not counted).
Of ours everything counts that a worker does for a model: SHA-256, header, fsync, publishing.

Engines with one stream fetch an eighth where connections are slow, and the rest is taken to come
at the full speed of the connection: that is in their favour. At last, sixteen workers on one
volume want one model at once.
"""

import argparse
import contextlib
import hashlib
import itertools
import os
import random
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import file_server
from benchmarks.crowd import Crowd, crowded
from benchmarks.engines import ENGINES, Engine, environment
from benchmarks.fetchers import Order
from benchmarks.file_server import Hosted
from benchmarks.link import LINKS, MIB, THROTTLED, UNTHROTTLED, Link
from benchmarks.report import as_line, table
from benchmarks.scratch import scratch
from benchmarks.verdict import Model, Scene, Turn, aims_of, aims_of_crowd, rows_of
from simulator import models

PART = 8
"""Engines with one stream fetch so small a part of the file where connections are slow."""
WORKERS = 16
SIZE = "2GiB"
QUICK_SIZE, QUICK_WORKERS = "16MiB", 3
_UNITS = {"KiB": 1 << 10, "MiB": MIB, "GiB": 1 << 30}

SCENES = tuple(Scene(link, tls) for tls in (False, True) for link in LINKS.values())


@dataclass(frozen=True)
class Bench:
    """What all runs share."""

    host: Hosted
    certificate: Path | None
    whole: Model
    part: Model
    targets: Path
    """A folder for what is fetched."""
    environ: Mapping[str, str]

    def order(self, scene: Scene, model: Model, folder: Path) -> Order:
        """Return what to tell an engine."""
        url = self.host.file_url(scene.link, model.name, tls=scene.tls)
        return Order(url, folder, model.sha256, self.certificate if scene.tls else None)


def main() -> int:
    """Measure, print the tables and the line of JSON; 0 means that it ran."""
    options = _options()
    size, runs, workers = options.size, options.runs, options.workers
    scenes = [scene for scene in SCENES if options.only.lower() in str(scene).lower()]
    engines = [engine for engine in ENGINES if engine.is_here]
    for engine in ENGINES:
        if engine not in engines:
            print(f"not here, so not measured: {engine.name}")
    # The file, an eighth of it, what is made of one, and a copy that an engine may need.
    with scratch(size * 3 + size // PART, options.folder) as place:
        print(f"{size / MIB:g} MiB, runs: {runs}, written to {place.file_system}: {place.path}")
        environ = environment(os.environ)  # noqa: TID251 - an entry point
        with benched(place.path, size, environ, tls=any(scene.tls for scene in scenes)) as bench:
            turns = measured(bench, scenes, engines, runs)
            crowds = [crowd_of(bench, workers) for _ in range(runs)] if workers else []
    rows = rows_of(turns, size)
    aims = [*aims_of(turns, size), *aims_of_crowd(crowds, size // PART)]
    print(f"\n{table(rows)}\n")
    for crowd in crowds:
        print(
            f"{workers} workers, one model of {size / PART / MIB:g} MiB: all had it after "
            f"{crowd.slowest_s:.2f} s, {crowd.served_bytes} bytes of it were served"
        )
    for aim in aims:
        print(f"{aim.value:7.2f}, at most {aim.limit:g}: {aim.aim}")
    print(as_line("download", runs, rows, aims))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks.download", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--runs", type=_count, help="of each engine (default: 3)")
    parser.add_argument("--size", type=size_of, help=f"of the file (default: {SIZE})")
    parser.add_argument(
        "--only", default="", metavar="TEXT", help=f"of: {', '.join(map(str, SCENES))}"
    )
    parser.add_argument("--workers", type=int, help=f"0 leaves that out (default: {WORKERS})")
    parser.add_argument("--folder", type=Path, help="to write to (default: memory if it has room)")
    parser.add_argument("--quick", action="store_true", help="one small run, to see that it runs")
    options = parser.parse_args()
    if not any(options.only.lower() in str(scene).lower() for scene in SCENES):
        parser.error(f"--only {options.only!r} leaves nothing")
    quick = options.quick
    options.runs = options.runs or (1 if quick else 3)
    options.size = options.size or size_of(QUICK_SIZE if quick else SIZE)
    if options.workers is None:
        options.workers = QUICK_WORKERS if quick else WORKERS
    if options.workers < 0:
        parser.error("--workers must be 0 or more")
    return options


def _count(text: str) -> int:
    if (count := int(text)) < 1:
        raise ValueError("less than 1")
    return count


def size_of(text: str) -> int:
    """Return the bytes that a size as in `256MiB` is.

    Raises:
        ValueError: it is none, or less than what an eighth of can be a model.
    """
    match = re.fullmatch(r"(\d+)(KiB|MiB|GiB)", text)
    size = int(match[1]) * _UNITS[match[2]] if match else 0
    if size < PART * MIB:
        raise ValueError(f"not a size of {PART} MiB or more")
    return size


@contextlib.contextmanager
def benched(folder: Path, size: int, environ: Mapping[str, str], *, tls: bool) -> Iterator[Bench]:
    """Write the files and serve them until the end of the context."""
    files, targets = folder / "files", folder / "targets"
    files.mkdir()
    targets.mkdir()
    whole, part = (
        _written(files, name, of) for name, of in (("whole", size), ("part", size // PART))
    )
    certificate = file_server.self_signed(folder) if tls else None
    with file_server.hosted(files, certificate) as host:
        authority = certificate[0] if certificate else None
        yield Bench(host, authority, whole, part, targets, environ)


def _written(files: Path, stem: str, size: int) -> Model:
    name = f"{stem}.safetensors"
    sha256 = models.write_checkpoint(files / name, seed=stem, size_bytes=size)
    return Model(name, size, sha256)


def measured(
    bench: Bench, scenes: Sequence[Scene], engines: Sequence[Engine], runs: int
) -> dict[tuple[Scene, str], list[Turn]]:
    """Return `runs` runs of each engine in each scene, after one of each that does not count.

    Raises:
        RuntimeError: an engine failed, or what it brought is not what the host has.
    """
    order = random.Random(0)
    for engine in engines:
        turn_of(bench, scenes[0], engine, bench.part)
    turns: dict[tuple[Scene, str], list[Turn]] = {
        (scene, engine.name): [] for scene in scenes for engine in engines
    }
    for run, scene in itertools.product(range(runs), scenes):
        # In another order each time: what one leaves behind is shared out among all.
        for engine in order.sample(engines, len(engines)):
            slow = scene.link is not UNTHROTTLED
            turn = turn_of(
                bench, scene, engine, bench.part if slow and engine.one_stream else bench.whole
            )
            turns[scene, engine.name].append(turn)
            print(f"{run + 1}/{runs} {scene}, {engine.name}: {turn.s:.2f} s", file=sys.stderr)
    return turns


def turn_of(bench: Bench, scene: Scene, engine: Engine, model: Model) -> Turn:
    """Let an engine fetch a model, check what it brought, and delete it.

    Raises:
        RuntimeError: it failed, or what it brought is not what the host has.
    """
    folder = bench.targets / "one"
    folder.mkdir()
    try:
        before = bench.host.served().cpu_s
        usage = engine.run(bench.order(scene, model, folder), bench.environ)
        server_cpu_s = bench.host.served().cpu_s - before
        require(usage.path, model, engine.name)
    finally:
        shutil.rmtree(folder)
    s = scaled(usage.s, model.size_bytes, bench.whole.size_bytes, scene.link)
    return Turn(usage, model, s, server_cpu_s)


def require(path: Path, model: Model, engine: str) -> None:
    """Raise `RuntimeError` unless the bytes at `path` are those of `model`."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != model.sha256:
        raise RuntimeError(f"'{engine}' brought other bytes than the host has.")


def scaled(s: float, measured_bytes: int, whole_bytes: int, link: Link) -> float:
    """Return how long the whole file takes at least, of which the first bytes took `s` seconds.

    The rest comes at the full rate of one connection, whatever the engine makes of that.
    """
    return s + (whole_bytes - measured_bytes) / link.full_rate


def crowd_of(bench: Bench, workers: int) -> Crowd:
    """Let many workers want the small file at once, over slow connections, so that all must wait.

    Raises:
        RuntimeError: one failed, or what came is not what the host has.
    """
    folder = bench.targets / "shared"
    folder.mkdir()
    try:
        order = bench.order(Scene(THROTTLED, tls=False), bench.part, folder)
        crowd = crowded(order, workers, bench.host, bench.environ)
        require(crowd.usages[0].path, bench.part, f"{workers} workers")
    finally:
        shutil.rmtree(folder)
    return crowd


if __name__ == "__main__":
    sys.exit(main())
