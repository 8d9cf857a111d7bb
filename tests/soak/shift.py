"""Jobs sent so many at once, and waited for, while the workers are looked after."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.soak.fleet import Fleet, Worn
from tests.soak.jobs import Jobs

_LOOK_S = 0.1
# A job may be given away after 6 s, be the victim of a hung A1111 besides, and wait for others.
_LAST_S = 60.0
_TELL_S = 60.0


@dataclass
class Shift:
    """All jobs of a soak, one after the other. Times are seconds since its begin."""

    jobs: Jobs
    fleet: Fleet
    at_once: int
    """How many jobs may not have ended."""
    sent: int = 0
    _began: float = field(default_factory=time.monotonic)
    _told_s: float = 0.0

    def work(
        self,
        count: int,
        until_s: float = float("inf"),
        look: Callable[[float], None] = lambda _: None,
    ) -> None:
        """Send so many jobs, fewer when time is up; `look` is called ten times a second."""
        first = self.sent
        while self.sent < first + count and (now_s := self._now_s) <= until_s:
            while self.sent < first + count and self.jobs.open < self.at_once:
                self.jobs.send(self.sent, now_s)
                self.sent += 1
            look(now_s)
            self._look()

    def finish(self) -> None:
        """Wait until every job has ended, for a minute at most."""
        end_s = self._now_s + _LAST_S
        while self.jobs.open and self._now_s < end_s:
            self._look()

    def calm(self, count: int) -> list[Worn]:
        """Do so many jobs with nothing broken; return what each worker's memory grew by after a tenth."""
        self.work(count // 10)
        self.finish()
        before = self.fleet.sizes()
        answered = self.jobs.answered.copy()
        self.work(count - count // 10)
        self.finish()
        after = self.fleet.sizes()
        return [
            Worn(name, self.jobs.answered[name] - answered[name], before[name], after[name])
            for name in before.keys() & after.keys()
        ]

    @property
    def _now_s(self) -> float:
        return time.monotonic() - self._began

    def _look(self) -> None:
        self.jobs.look(self._now_s)
        self.fleet.look()
        if self._now_s >= self._told_s + _TELL_S:
            self._told_s = self._now_s
            ended = self.jobs.statuses.total()
            print(f"{self._now_s / 60:.0f} min: {ended} of {self.sent} jobs ended", flush=True)
        time.sleep(_LOOK_S)
