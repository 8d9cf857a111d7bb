"""Which faults strike, and when: the same for the same seed.

The kinds are dealt like cards: each once in an order of the seed, then all over again, one every few
seconds.
"""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

CRASHED = frozenset({"BACKEND_CRASHED"})
# What is told is the last of several failures, which may be of the fault that came after.
AWAY = frozenset({"SOURCE_UNAVAILABLE", "DOWNLOAD_INCOMPLETE", "SOURCE_QUOTA"})
TXT2IMG = "/sdapi/v1/txt2img"


@dataclass(frozen=True)
class Kind:
    """What can be broken, and what that may cost."""

    name: str
    at: str
    """`webui`, `worker`, `hub`, `queue` or `volume`."""
    what: Mapping[str, Any] = field(default_factory=dict)
    """For the part that is to break: the fields of its simulator's faults; or what is done to it."""
    lasts_s: float = 0.0
    """How long it is broken, in seconds."""
    codes: frozenset[str] = frozenset()
    """Errors that a job may be answered for it. Most faults are to be borne without any."""
    most: int | None = None
    """How many jobs one such fault may cost."""


def _webui(name: str, codes: frozenset[str], **fault: Any) -> Kind:
    return Kind(f"webui {name}", "webui", {"faults": [fault]}, 8.0, codes, 1)


def _hub(name: str, lasts_s: float = 3.0, **rule: Any) -> Kind:
    return Kind(f"hub {name}", "hub", rule, lasts_s)


def _queue(name: str, **fault: Any) -> Kind:
    return Kind(f"queue {name}", "queue", fault, 3.0)


KINDS: tuple[Kind, ...] = (
    Kind("webui kill -9", "webui", {"kill": True}, 5.0, CRASHED, 1),
    Kind("webui slow", "webui", {"step_ms": 40}, 4.0),
    _webui("out of memory", frozenset({"BACKEND_OUT_OF_MEMORY"}), kind="oom", when="sampling"),
    _webui("hang", frozenset({"BACKEND_STALLED"}), kind="hang", path=TXT2IMG),
    _webui("dies sampling", CRASHED, kind="die", when="sampling"),
    _webui("half an answer", CRASHED, kind="half", path=TXT2IMG),
    _webui("500", frozenset({"BACKEND_FAILED"}), kind="fail", path=TXT2IMG),
    Kind("worker kill -9", "worker", {"signal": 9}),
    Kind("worker SIGTERM", "worker", {"signal": 15}),
    # An input image is asked for three times within 2.5 s; a host under load is back later.
    Kind("hub kill -9", "hub", {"kill": True}, 0.5, AWAY, 1),
    Kind("hub away", "hub", {"kill": True}, 9.0, AWAY),
    _hub("429", status=429, retry_after="1", times=3),
    _hub("503", status=503, times=3),
    _hub("drop", drop=True, times=3),
    _hub("cut", cut=2000, times=3),
    _hub("slow", rate=100_000, times=4),
    _queue("result 500", route="job-done", status=500, times=2),
    _queue("result 429", route="job-done", status=429, times=1),
    _queue("result dropped", route="job-done", status=0, times=2),
    _queue("receipt lost", route="job-done", status=0, after=True, times=2),
    _queue("result slow", route="job-done", status=None, delay_s=1.0, times=3),
    _queue("piece 500", route="job-stream", status=500, times=2),
    _queue("piece dropped", route="job-stream", status=0, times=2),
    _queue("receipt of a piece lost", route="job-stream", status=0, after=True, times=2),
    _queue("take 500", route="job-take", status=500, times=2),
    _queue("take 429", route="job-take", status=429, times=1),
    _queue("take dropped", route="job-take", status=0, times=2),
    _queue("jobs lost on their way", route="job-take", status=0, after=True, times=1),
    _queue("duplicate delivery", route="job-take", twice=True, times=2),
    _queue("duplicate delivery to the same", route="job-take", twice=True, same=True, times=2),
    _queue("stop 500", route="job-stop", status=500, times=2),
    _queue("ping dropped", route="ping", status=0, times=1),
    Kind("disk full", "volume", {}, 3.0, frozenset({"VOLUME_FULL"})),
)


@dataclass(frozen=True)
class Strike:
    """A fault that is to come."""

    at_s: float
    kind: Kind
    slot: int
    """Which worker, by its number, or whose A1111."""


def strikes(
    seed: int, slots: int, every_s: float, kinds: tuple[Kind, ...] = KINDS
) -> Iterator[Strike]:
    """Yield faults without end, in the order of their times, one about every so many seconds."""
    chance = random.Random(f"{seed} faults")  # noqa: S311 - an order, no secret
    at_s = 0.0
    while True:
        for kind in chance.sample(kinds, len(kinds)):
            at_s += every_s * chance.uniform(0.5, 1.5)
            yield Strike(at_s, kind, chance.randrange(slots))
