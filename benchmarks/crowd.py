"""Many workers that want one model at once: how often its bytes leave the host."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.engines import Fetcher, Usage
from benchmarks.fetchers import Order
from benchmarks.file_server import Hosted


@dataclass(frozen=True)
class Crowd:
    """What came of it."""

    usages: tuple[Usage, ...]
    """One for each worker."""
    served_bytes: int
    """Of the file, that the host sent; what was sent twice counts twice, and so does what was on its
    way to a connection whose work another one took over."""

    @property
    def slowest_s(self) -> float:
        """How long it took until all had the model."""
        return max(usage.s for usage in self.usages)


def crowded(order: Order, workers: int, host: Hosted, environ: Mapping[str, str]) -> Crowd:
    """Let `workers` processes want the file of `order` at once, on one volume.

    Raises:
        RuntimeError: a worker failed, or they did not all get the same file.
    """
    with contextlib.ExitStack() as stack:
        fetchers = [Fetcher("store", order, environ) for _ in range(workers)]
        for fetcher in fetchers:
            stack.callback(fetcher.end)
        for fetcher in fetchers:
            fetcher.prepare()
        before = host.served().body_bytes
        for fetcher in fetchers:
            fetcher.go()
        usages = tuple(fetcher.usage() for fetcher in fetchers)
    if len({usage.path for usage in usages}) != 1:
        raise RuntimeError("The workers do not share one file.")
    return Crowd(usages, host.served().body_bytes - before)
