"""A worker as a process of its own: it ensures what it is told line by line, and says what it has.

    python -m tests.chaos.worker '{"volume": "…", …}'       the fields of `Order`
    < {"kind": "lora", "name": "x", "url": "…"}             the fields of a `ModelRef`
    > {"name": "x", "sha256": "…", "read": "…", …}          or {"code": "…", "error": "…"}

It says `{}` as soon as it listens, and ends when nothing more is to be read.
"""

import hashlib
import json
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from model_cache import asking, cache, fetching
from model_cache.cache import ModelCache
from model_cache.engine.limits import Limits
from model_cache.hosts.metadata import Asker
from model_cache.sharing import uses
from model_cache.sharing.lease import Lease
from model_cache.volume.registry import Registry
from schemas.errors import WorkerError
from schemas.model_ref import ModelRef
from schemas.settings import CacheSettings
from tests.chaos import syscalls
from tests.chaos.attributes import Attributes
from tests.chaos.syscalls import Fault


@dataclass(frozen=True)
class Pace:
    """How soon things happen that take seconds or minutes in a worker; nothing else differs."""

    ttl_s: float = 0.2
    """How long the holder of a lease may be silent. Short where every holder is dead."""
    keep_s: float = 600.0
    """How long a model is in use after it was named."""
    save_every_s: float = 0.05
    """How often a fetch notes what it has."""
    segment_bytes: int = 1 << 18
    pause_s: float = 0.005
    """Before the second try."""
    registry_every_s: float = 30.0

    def set(self, put: Callable[[Any, str, Any], None] = setattr) -> None:
        """Let what is made from now on go at this pace; `put` may be that of a `monkeypatch`."""

        def of(settings: CacheSettings) -> Limits:
            return replace(
                Limits.of(settings),
                save_every_s=self.save_every_s,
                segment_bytes=self.segment_bytes,
                pause_s=self.pause_s,
            )

        put(fetching, "Limits", SimpleNamespace(of=of))
        put(fetching, "Lease", partial(Lease, ttl_s=self.ttl_s, beat_s=self.ttl_s / 4))
        put(asking, "Asker", partial(Asker, waits_s=(self.pause_s, self.pause_s)))
        put(uses, "KEEP_S", self.keep_s)
        put(cache, "Registry", partial(Registry, every_s=self.registry_every_s))


@dataclass(frozen=True)
class Order:
    """What kind of worker it is."""

    volume: str
    settings: dict[str, Any] = field(default_factory=dict)
    pace: Pace = Pace()
    fault: Fault | None = None
    clock_ahead_s: float = 0.0
    """By how much this host's clock is wrong."""
    every_view: bool = False
    """Write the view of the volume after each model."""
    late_s: float = 0.0
    """For how long it may see old attributes of files that others change."""

    def as_json(self) -> str:
        """Return the argument of the process."""
        return json.dumps(asdict(self))


def main(text: str) -> None:
    """Work until the input ends."""
    fields = json.loads(text)
    fault = Fault(**fields["fault"]) if fields["fault"] else None
    order = Order(**{**fields, "pace": Pace(**fields["pace"]), "fault": fault})
    right = time.time
    time.time = lambda: right() + order.clock_ahead_s
    order.pace.set()
    settings = {"volume": order.volume, "allow_private_hosts": True, **order.settings}
    store = ModelCache(CacheSettings.model_validate(settings))
    store.start()
    if order.late_s:
        Attributes(Path(order.volume), order.late_s).install()
    if fault is not None:
        syscalls.install(fault, Path(order.volume))
    print("{}", flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(store, json.loads(line))), flush=True)
        if order.every_view:
            store.write_registry()
    store.close()


def answer(store: ModelCache, wish: dict[str, Any]) -> dict[str, Any]:
    """Return what came of one wish; `read` is the digest of what lies where the store says."""
    try:
        done = store.ensure(ModelRef.model_validate(wish), cancelled=threading.Event())
    except WorkerError as error:
        return {"code": error.code, "error": str(error)}
    with store.hold([done.model]), done.model.path.open("rb") as file:
        read = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "name": done.model.name,
        "sha256": done.model.sha256,
        "cached": done.cached,
        "bytes_fetched": done.bytes_fetched,
        "read": read,
    }


if __name__ == "__main__":
    main(sys.argv[1])
