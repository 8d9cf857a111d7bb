"""How long a process takes that has just begun until it has a job's models, all on the volume.

    python -m benchmarks.first_hit VOLUME < references.json

prints a line of JSON. Importing libraries is not counted: what the volume costs is asked for.
"""

import argparse
import json
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from model_cache.cache import ModelCache
from schemas.model_ref import ModelRef
from schemas.settings import CacheSettings


def hit_s(cache: ModelCache, refs: Sequence[ModelRef]) -> float:
    """Return how many seconds it took to have all models of a job, which must be there.

    Raises:
        RuntimeError: one was not there.
    """
    never = threading.Event()
    started = time.perf_counter()
    cache.expect(refs)
    done = [cache.ensure(ref, cancelled=never) for ref in refs]
    took = time.perf_counter() - started
    for ref, ensured in zip(refs, done, strict=True):
        if not ensured.cached or ensured.model.name != ref.name or ensured.model.sha256 is None:
            raise RuntimeError(f"{ref.label} was not on the volume.")
    return took


def main() -> int:
    """Open the volume, have the models, and say how long both took."""
    parser = argparse.ArgumentParser("python -m benchmarks.first_hit")
    parser.add_argument("volume", type=Path)
    volume: Path = parser.parse_args().volume
    refs = [ModelRef.model_validate(fields) for fields in json.load(sys.stdin)]
    started = time.perf_counter()
    cache = ModelCache(CacheSettings(volume=volume, baked=volume / "none"))
    opened_s = time.perf_counter() - started
    took_s = hit_s(cache, refs)
    print(json.dumps({"opened_s": opened_s, "hit_s": took_s}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
