"""The faults of a plan, carried out: each begins when it is due, is felt for a while, and is mended."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import requests

from tests.soak.fleet import STEP_MS, Fleet
from tests.soak.ledger import Struck
from tests.soak.parts import Ballast, Hub, Queue
from tests.soak.plan import Strike

# Who tries again after one fault at a host, and then after the next, has tried for two.
_REST_S = 4.0


@dataclass
class Storm:
    """All faults of a soak. Times are seconds since its begin; those of `struck` are the queue's."""

    strikes: Iterator[Strike]
    fleet: Fleet
    hub: Hub
    queue: Queue
    ballast: Ballast | None
    struck: list[Struck] = field(default_factory=list)
    injected: Counter[str] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)
    """What found nothing to break, as an A1111 that was just being started."""
    _due: list[Strike] = field(default_factory=list)
    _active: list[tuple[float, Strike, Struck]] = field(default_factory=list)
    """With the time when each is to be mended."""
    _rests: dict[tuple[str, int], float] = field(default_factory=dict)
    """Until when each place is left alone."""
    _next: Strike | None = None

    def look(self, now_s: float) -> None:
        """Mend what has been broken for long enough, and break what is due."""
        for entry in [entry for entry in self._active if entry[0] <= now_s]:
            self._end(*entry)
        self._next = self._next or next(self.strikes)
        while self._next.at_s <= now_s:
            self._due.append(self._next)
            self._next = next(self.strikes)
        for strike in list(self._due):
            # Two at one place could add up to more than anyone bears.
            if self._rests.get(_place(strike), 0.0) <= now_s:
                self._due.remove(strike)
                self._begin(strike, now_s)

    def end(self) -> None:
        """Mend everything."""
        for entry in list(self._active):
            self._end(*entry)

    def _begin(self, strike: Strike, now_s: float) -> None:
        kind = strike.kind
        at_worker = kind.at in {"webui", "worker"}
        struck = Struck(
            kind.name,
            self.queue.now(),
            float("inf"),
            kind.codes,
            self.fleet.berths[strike.slot].name if at_worker else None,
            kind.most,
            is_end=kind.what.get("signal") == 9,
        )
        if self._strikes(strike):
            self.injected[kind.name] += 1
            self._active.append((now_s + kind.lasts_s, strike, struck))
            rest_s = _REST_S if kind.at == "hub" else 0.0
            self._rests[_place(strike)] = now_s + kind.lasts_s + rest_s
        else:
            self.missed[kind.name] += 1

    def _strikes(self, strike: Strike) -> bool:
        """Break something; return whether it was there to be broken."""
        what, slot = dict(strike.kind.what), strike.slot
        try:
            match strike.kind.at:
                case "webui" if "kill" in what:
                    return self.fleet.kill_webui(slot)
                case "webui":
                    return self.fleet.tell_webui(slot, **what)
                case "worker":
                    self.fleet.signal(slot, what["signal"])
                case "hub":
                    self._strike_hub(what)
                case "queue":
                    self.queue.spoil(**what)
                case _:
                    return self.ballast is not None and self.ballast.load()
        except requests.RequestException:
            return False
        return True

    def _strike_hub(self, what: dict[str, Any]) -> None:
        if "kill" in what:
            self.hub.kill()
        else:
            self.hub.spoil(**what)

    def _end(self, _until_s: float, strike: Strike, struck: Struck) -> None:
        self._active.remove((_until_s, strike, struck))
        match strike.kind.at:
            case "webui" if "kill" not in strike.kind.what:
                self.fleet.tell_webui(strike.slot, clear=True, step_ms=STEP_MS)
            case "hub" if "kill" in strike.kind.what:
                self.hub.revive()
            case "hub":
                self.hub.mend()
            case "queue":
                self.queue.mend()
            case "volume" if self.ballast is not None:
                self.ballast.drop()
        self.struck.append(replace(struck, ended=self.queue.now()))


def _place(strike: Strike) -> tuple[str, int]:
    at = strike.kind.at
    # A worker that is told to stop takes its A1111 along; the queue's mending mends all of it.
    return ("worker" if at == "webui" else at, strike.slot if at in {"webui", "worker"} else 0)
