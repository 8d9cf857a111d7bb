"""The ways to fetch a file in Python, each to be measured in a process of its own.

    python -m benchmarks.fetchers WAY URL FOLDER SHA256 [--authority FILE]

says `ready`, waits for a line on stdin, fetches URL into FOLDER, and prints a line of JSON: where the file
is, how long that took, how much of a processor. What takes time once in the life of a worker,
such as importing libraries, comes before `ready`.
"""

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.file_server import REPOSITORY

CONNECTIONS = 16
"""That the store may use, and aria2: A1111_CACHE_CONNECTIONS as it is by default."""


@dataclass(frozen=True)
class Order:
    """What is to be fetched."""

    url: str
    folder: Path
    sha256: str
    authority: Path | None
    """A certificate to trust, of the host itself; None: the usual ones."""

    @property
    def name(self) -> str:
        """The file's name, with suffix."""
        return self.url.rpartition("/")[2]


Fetch = Callable[[], Path]
"""Fetches the file that was prepared for, and returns where it is."""


def store(order: Order) -> Fetch:
    """Prepare for the way of this project: all that a worker does for a model, proof included."""
    # Imported late, here and below: what one way needs must not count against another.
    import requests.adapters  # noqa: PLC0415

    from model_cache.cache import ModelCache  # noqa: PLC0415
    from schemas.model_ref import Kind, ModelRef  # noqa: PLC0415
    from schemas.settings import CacheSettings  # noqa: PLC0415

    if order.authority is not None:
        # The store listens to no environment in this. Source: requests 2.34, adapters.cert_verify.
        requests.adapters.DEFAULT_CA_BUNDLE_PATH = str(order.authority)
    settings = CacheSettings(volume=order.folder, allow_private_hosts=True, connections=CONNECTIONS)
    cache = ModelCache(settings)
    ref = ModelRef(kind=Kind.CHECKPOINT, url=order.url, hash=order.sha256)

    def fetch() -> Path:
        try:
            return cache.ensure(ref, cancelled=threading.Event()).model.path
        finally:
            cache.close()

    return fetch


def plain(order: Order, chunk_bytes: int) -> Fetch:
    """Prepare for one stream by `requests`, written as it comes; nobody looks at what it is.

    With 8 KiB it is how other workers do it. Source: ashleykleynhans/runpod-worker-a1111,
    rp_handler.py, download, as in the copy generativelabs/runpod-worker-a1111 at 0ceef9ea.
    """
    import requests  # noqa: PLC0415

    path = order.folder / order.name
    verify = str(order.authority) if order.authority is not None else True

    def fetch() -> Path:
        with requests.get(order.url, stream=True, timeout=60, verify=verify) as response:
            response.raise_for_status()
            with path.open("wb") as file:
                for chunk in response.iter_content(chunk_bytes):
                    file.write(chunk)
        return path

    return fetch


def hub(order: Order) -> Fetch:
    """Prepare for `huggingface_hub`, whose own host is played; it proves the size and no more."""
    if order.authority is not None:
        # Source: Python 3.11, ssl, SSLContext.set_default_verify_paths.
        os.environ["SSL_CERT_FILE"] = str(order.authority)  # noqa: TID251 - an entry point
    from huggingface_hub import hf_hub_download  # noqa: PLC0415

    endpoint = order.url.partition(f"/{REPOSITORY}/")[0]

    def fetch() -> Path:
        found = hf_hub_download(
            REPOSITORY, order.name, endpoint=endpoint, cache_dir=order.folder, token=False
        )
        return Path(found)

    return fetch


WAYS: dict[str, Callable[[Order], Fetch]] = {
    "store": store,
    "requests-8k": lambda order: plain(order, 8 << 10),
    "requests-1m": lambda order: plain(order, 1 << 20),
    "hub": hub,
}


def main() -> int:
    """Fetch when told to, and say how it went."""
    parser = argparse.ArgumentParser("python -m benchmarks.fetchers")
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("url")
    parser.add_argument("folder", type=Path)
    parser.add_argument("sha256")
    parser.add_argument("--authority", type=Path)
    options = parser.parse_args()
    order = Order(options.url, options.folder, options.sha256, options.authority)
    fetch = WAYS[options.way](order)
    print("ready", flush=True)
    sys.stdin.readline()
    started, cpu = time.perf_counter(), time.process_time()
    path = fetch()
    took_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu
    print(json.dumps({"path": str(path), "s": took_s, "cpu_s": cpu_s}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
