"""Models that are fetched while the worker starts, beside the WebUI's own start."""

import logging
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event

from model_cache.cache import ModelCache
from schemas import model_list
from schemas.errors import InvalidInputError, JobCancelledError, WorkerError
from schemas.model_ref import ModelRef
from schemas.settings import SettingsError

log = logging.getLogger(__name__)

_AT_ONCE = 4


def wanted(text: str) -> tuple[ModelRef, ...]:
    """Return the models that `A1111_CACHE_PRELOAD` names.

    Args:
        text: lines of `KIND REFERENCE`, also parted by `;`, or the absolute path of a file of such
            lines.

    Raises:
        SettingsError: a line is no reference, or there is no such file.
    """
    try:
        lines = Path(text).read_text() if text.startswith("/") else text.replace(";", "\n")
        return model_list.parse(lines)
    except OSError as error:
        raise SettingsError(f"A1111_CACHE_PRELOAD: {text}: {error.strerror}.") from error
    except (InvalidInputError, UnicodeDecodeError) as error:
        raise SettingsError(f"A1111_CACHE_PRELOAD: {error}") from error


class Preload:
    """Fetches a list of models in the background; what fails is logged, and left to the jobs."""

    def __init__(self, cache: ModelCache, refs: Sequence[ModelRef]) -> None:
        """Begin."""
        self._cache = cache
        self._cancelled = Event()
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="preload")
        self._work: list[Future[None]] = [self._threads.submit(self._fetch, ref) for ref in refs]

    def wait(self) -> None:
        """Wait until every model is there, or failed."""
        for work in self._work:
            work.result()

    def stop(self) -> None:
        """Leave what has not come; it is resumed by whoever wants it next."""
        self._cancelled.set()
        self._threads.shutdown(cancel_futures=True)

    def _fetch(self, ref: ModelRef) -> None:
        try:
            done = self._cache.ensure(ref, cancelled=self._cancelled)
        except JobCancelledError:
            log.info("The preload of %s was left when the worker ended.", ref.label)
        except WorkerError as error:
            log.warning("The preload of %s failed: %s: %s", ref.label, error.code, error)
        else:
            how = "was there" if done.cached else f"fetched in {done.download_s:.1f} s"
            log.info("Preload: the %s %s %s.", ref.kind, done.model.name, how)
