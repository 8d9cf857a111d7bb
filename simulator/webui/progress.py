"""What the running job tells the outside: the state that /progress shows, and the queue's lock.

Source: A1111 1.10.1, modules/shared_state.py, modules/fifo_lock.py and modules/api/api.py, progressapi.
"""

import collections
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from PIL import Image

# Draws the running job's picture as far as it is, at a quarter of its size.
Preview = Callable[[], Image.Image]


class FifoLock:
    """A lock that serves who waits in the order of arrival, unlike `threading.Lock`."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._held = False
        self._waiting: collections.deque[threading.Event] = collections.deque()

    def __enter__(self) -> None:
        with self._guard:
            if not self._held:
                self._held = True
                return
            turn = threading.Event()
            self._waiting.append(turn)
        turn.wait()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._guard:
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._held = False


class State:
    """The one running job. Interrupt and skip are flags that the job looks at between its steps."""

    def __init__(self) -> None:
        self.skipped = False
        self.interrupted = False
        self.stopping_generation = False
        self.job = ""
        self.job_no = 0
        self.job_count = 0
        self.job_timestamp = "0"
        self.sampling_step = 0
        self.sampling_steps = 0
        self.time_start = time.time()
        self.has_refined_job_count = False
        self.current_latent: Preview | None = None
        """None before the first step."""
        self.current_image: Image.Image | None = None
        self._shown_step = 0
        self._lock = threading.Lock()

    def begin(self, job: str) -> None:
        """Start a job; `sampling_steps` stays that of the last one until sampling begins."""
        with self._lock:
            self.sampling_step = 0
            self.time_start = time.time()
            self.job_count = -1
            self.has_refined_job_count = False
            self.job_no = 0
            self.job_timestamp = time.strftime("%Y%m%d%H%M%S")
            self.current_latent = None
            self.current_image = None
            self._shown_step = 0
            self.skipped = False
            self.interrupted = False
            self.stopping_generation = False
            self.job = job

    def end(self) -> None:
        """End the job; flags and numbers stay as they are until the next begins."""
        with self._lock:
            self.job = ""
            self.job_count = 0

    def next_job(self) -> None:
        """Count one batch (or one pass of it) as done."""
        with self._lock:
            self.job_no += 1
            self.sampling_step = 0
            self._shown_step = 0

    def shown(self) -> dict[str, Any]:
        """Return `state` of /progress."""
        return {
            "skipped": self.skipped,
            "interrupted": self.interrupted,
            "stopping_generation": self.stopping_generation,
            "job": self.job,
            "job_count": self.job_count,
            "job_timestamp": self.job_timestamp,
            "job_no": self.job_no,
            "sampling_step": self.sampling_step,
            "sampling_steps": self.sampling_steps,
        }

    def fraction(self) -> tuple[float, float]:
        """Return how much is done (0.01 to 1) and the seconds that are left at this pace."""
        with self._lock:
            jobs = self.job_count
            done = 0.01
            if jobs > 0:
                done += self.job_no / jobs
            if self.sampling_steps > 0 and jobs != 0:
                done += 1 / jobs * self.sampling_step / self.sampling_steps
        passed = time.time() - self.time_start
        left = passed / done - passed if done else 0.0
        return min(done, 1.0), left

    def preview(self, every_n_steps: int) -> Image.Image | None:
        """Return the preview, made anew when `every_n_steps` passed since the last one."""
        with self._lock:
            due = self.sampling_step - self._shown_step >= every_n_steps > 0
            if due and self.current_latent is not None:
                self.current_image = self.current_latent()
                self._shown_step = self.sampling_step
            return self.current_image
