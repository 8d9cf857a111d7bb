"""How the worker is: for a job that asks, for `python -m worker health`, for the container's HEALTHCHECK.

The worker writes what it alone knows into a file every few seconds; see worker/child/vitals.py.
"""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Event, Lock, Thread
from typing import Any

from model_cache.cache import ModelCache
from schemas.errors import WorkerError
from schemas.model_ref import Kind
from schemas.settings import Settings
from worker.child import vitals
from worker.child.client import WebuiClient
from worker.child.watch import Report
from worker.child.webui import Webui
from worker.machine import versions

log = logging.getLogger(__name__)

WRITE_EVERY_S = 2.0
_ASK_S = 2.0


class Health:
    """What one worker says of itself. Safe to use from several threads."""

    def __init__(
        self, settings: Settings, cache: ModelCache, client: WebuiClient, webui: Webui
    ) -> None:
        """Write nothing yet."""
        self._settings = settings
        self._cache = cache
        self._client = client
        self._webui = webui
        self._started = time.time()
        self._lock = Lock()
        self._jobs: dict[int, dict[str, Any]] = {}
        self._done = 0
        self._stopping = Event()
        self._writer: Thread | None = None

    def start(self) -> None:
        """Keep the file fresh until `stop`."""
        self._writer = Thread(target=self._keep_fresh, name="health", daemon=True)
        self._writer.start()

    def stop(self) -> None:
        """Remove the file: there is no worker any more."""
        self._stopping.set()
        if self._writer is not None:
            self._writer.join()
        vitals.file_in(self._settings.webui.links).unlink(missing_ok=True)

    @contextmanager
    def running(self, job_id: str, report: Report) -> Iterator[Report]:
        """Count a job as running inside; yield what to report its progress to."""
        job = {"id": job_id, "since": round(time.time(), 1), "stage": "preparing", "percent": 0}

        def noted(progress: dict[str, Any]) -> None:
            with self._lock:
                job.update(stage=progress.get("stage"), percent=progress.get("percent"))
            report(progress)

        with self._lock:
            self._jobs[id(job)] = job
        try:
            yield noted
        finally:
            with self._lock:
                self._done += 1
                del self._jobs[id(job)]

    def report(self) -> dict[str, Any]:
        """Return everything, with what A1111 says of the memory at this moment, in JSON values."""
        return self._known() | {"memory": memory(self._client), "store": self._store()}

    def _known(self) -> dict[str, Any]:
        """Return what needs nobody's answer."""
        with self._lock:
            jobs, done = [dict(job) for job in self._jobs.values()], self._done
        life, rss_bytes = self._webui.life, self._webui.rss_bytes
        return {
            "status": str(self._webui.state),
            "written": round(time.time(), 1),
            "up_s": round(time.time() - self._started, 1),
            "pid": os.getpid(),
            "webui": {
                "kind": self._settings.webui.kind,
                "backend": self._client.backend,
                "pid": life.process.pid if life.process is not None else None,
                "up_s": round(time.monotonic() - life.started, 1),
                "rss_bytes": rss_bytes,
                "restarts": list(self._webui.restarts),
            },
            "jobs": jobs,
            "jobs_done": done,
            "versions": {"worker": versions.WORKER, "runpod": versions.sdk()},
            "settings": self._settings.changed(),
        }

    def _store(self) -> dict[str, Any]:
        """Return what is on the volume, by the list in memory: at most a minute old."""
        cache = self._settings.cache
        models = {kind: self._cache.models(kind) for kind in Kind}
        return {
            "volume": str(cache.volume),
            "mounted": cache.volume.is_dir(),
            "writable": os.access(cache.volume, os.W_OK),
            "models": {str(kind): len(found) for kind, found in models.items() if found},
            "size_gb": round(self._cache.info().total_cache_size_mb / 1000, 3),
            "budget_gb": cache.budget_gb,
        }

    def _keep_fresh(self) -> None:
        refused = False
        while not self._stopping.is_set():
            try:
                vitals.write(vitals.file_in(self._settings.webui.links), self._known())
                refused = False
            except OSError as error:
                if not refused:
                    log.warning(f"The worker's health cannot be written: {error}")
                refused = True
            self._stopping.wait(WRITE_EVERY_S)


def memory(client: WebuiClient) -> dict[str, Any] | None:
    """Return what A1111 says of RAM and GPU, in bytes; None if it does not answer."""
    with suppress(WorkerError):
        said = client.get("memory", timeout_s=_ASK_S)
        return said if isinstance(said, dict) else None
    return None
