"""A bucket that the pictures of jobs are uploaded to: several at a time, again if need be, in time."""

import contextlib
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import TypeVar
from urllib.parse import urlsplit

from model_cache.engine.answers import TryAgainError
from schemas.bucket import Destination, destination_of
from schemas.errors import (
    InvalidInputError,
    JobCancelledError,
    UploadFailedError,
    WorkerError,
)
from schemas.settings import CacheSettings, Settings
from worker.delivery.store import Store

log = logging.getLogger(__name__)
T = TypeVar("T")

PROBE = ".a1111-worker"
"""The object by which `Bucket.check` proves that it may write; every worker replaces it."""
_AT_ONCE = 4
# One connection carries 16 MB in a second or two; more than that is worth sending again in part.
# All parts but the last are of one size, as R2 wants it. Source: Cloudflare R2, "Multipart upload".
_PARTS_ABOVE_BYTES = 16 << 20
_PART_BYTES = 8 << 20
_WAITS_S = (0.3, 1.0, 3.0, 6.0)
_LONGEST_WAIT_S = 30.0
_TICK_S = 0.05
_CHECK_S = 30.0
_KEPT = 8


@dataclass(frozen=True)
class Upload:
    """One file for a bucket."""

    key: str
    """Its name there, below the bucket's prefix; an object of that name is replaced."""
    data: bytes = field(repr=False)
    content_type: str


@dataclass(frozen=True)
class How:
    """How a bucket is treated."""

    allow_private: bool
    timeout_s: float
    link_ttl_s: int
    waits_s: tuple[float, ...] = _WAITS_S


def bucket_of(settings: Settings, s3_config: object) -> "Bucket | None":
    """Return the bucket of a job's `s3Config`, or of the settings if that is None. Asks no host.

    The same bucket is returned for the same words, with its connections.

    Raises:
        InvalidInputError: `s3_config` names none, or one that this endpoint may not ask.
    """
    output = settings.output
    # The operator may name a store at a private address; a caller may not.
    allow_private = settings.cache.allow_private_hosts
    if s3_config is None:
        destination, allow_private = output.destination(), True
    elif isinstance(s3_config, Mapping):
        destination = destination_of(s3_config)
        _require_allowed(destination, settings.cache)
    else:
        raise InvalidInputError("`s3Config` must be a JSON object.", field="s3Config")
    if destination is None:
        return None
    return _kept(destination, How(allow_private, output.upload_timeout_s, output.link_ttl_s))


class Bucket:
    """One bucket. Safe to use from several threads.

    Args:
        destination: which it is.
        how: how it is treated.
    """

    def __init__(self, destination: Destination, how: How) -> None:
        self._destination = destination
        self._how = how
        # One for each delivery that runs, so that cutting one leaves the others alone.
        self._idle: list[Store] = []

    def put(self, files: Sequence[Upload], cancelled: threading.Event) -> list[str]:
        """Upload `files`, four at a time, and return a URL for each, in order.

        A key is that of one file for good: whoever uploads it again replaces it. What cannot be
        reached, answers 5xx or breaks off is tried again, within `A1111_OUTPUT_UPLOAD_TIMEOUT_S`. If
        one file fails, those that are there already stay; no URL is told.

        Args:
            files: each is seen whole or not at all.
            cancelled: ends the work when it is set, within a fraction of a second.

        Raises:
            UploadFailedError: the bucket could not be reached, or not in time.
            UploadRefusedError: it refuses; or it is a caller's and at a private address.
            JobCancelledError: `cancelled` was set.
        """
        with self._borrowed() as store:
            self._send_all(store, files, cancelled, self._how.timeout_s)
            return [store.link(self._key(file), self._how.link_ttl_s) for file in files]

    def check(self) -> None:
        """Prove that pictures can be uploaded: put a small object, `.a1111-worker`, and open its link.

        Asking for the bucket itself would need a right that uploading does not need, and would not
        prove the one that it does. A link that does not open is logged, not raised: the worker may
        stand where a public URL cannot be reached. Costs the first upload its client, 0.2 s.

        Raises:
            UploadFailedError, UploadRefusedError: see `put`.
        """
        probe = Upload(PROBE, b"An a1111-worker may write here.\n", "text/plain")
        with self._borrowed() as store:
            self._send_all(store, [probe], threading.Event(), min(_CHECK_S, self._how.timeout_s))
            url = store.link(self._key(probe), self._how.link_ttl_s)
            status = store.opens(url)
        if status != 200:
            log.warning(
                f"Uploads to the bucket {self._destination.address.bucket} succeed, but links to"
                f" {urlsplit(url).hostname} do not open from here"
                f" ({'unreachable' if status is None else status}). See docs/storage.md."
            )

    def _send_all(
        self, store: Store, files: Sequence[Upload], cancelled: threading.Event, timeout_s: float
    ) -> None:
        stopped = threading.Event()
        threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="upload")
        # Each with a copy, for no two threads may be in one, so that what is logged has the job's id.
        futures = [
            threads.submit(copy_context().run, self._send, store, file, stopped) for file in files
        ]
        try:
            _require_done(futures, cancelled, timeout_s)
        except BaseException:
            stopped.set()
            store.shut()
            raise
        finally:
            # Nothing reaches a thread that looks up a name: it is left alone, and ends by itself.
            threads.shutdown(wait=False, cancel_futures=True)

    def _send(self, store: Store, file: Upload, stopped: threading.Event) -> None:
        key = self._key(file)
        insist = partial(_insist, stopped=stopped, waits_s=self._how.waits_s)
        if len(file.data) <= _PARTS_ABOVE_BYTES:
            insist(partial(store.put, key, file.data, file.content_type))
            return
        upload = insist(partial(store.begin, key, file.content_type))
        try:
            tags: list[str] = []
            for start in range(0, len(file.data), _PART_BYTES):
                part = file.data[start : start + _PART_BYTES]
                tags.append(insist(partial(store.part, key, upload, len(tags) + 1, part)))
            insist(partial(store.complete, key, upload, tags))
        except BaseException:
            self._give_up(key, upload)
            raise

    def _give_up(self, key: str, upload: str) -> None:
        """Have the parts of an upload thrown away, over connections that nobody has cut."""
        try:
            with self._borrowed() as store:
                store.abort(key, upload)
        except (TryAgainError, WorkerError) as error:
            log.warning(
                f"Parts of {key} stay in the bucket until its own rules clear them: {error}"
            )

    def _key(self, file: Upload) -> str:
        prefix = self._destination.prefix
        return f"{prefix}/{file.key}" if prefix else file.key

    @contextlib.contextmanager
    def _borrowed(self) -> Iterator[Store]:
        try:
            store = self._idle.pop()
        except IndexError:
            store = Store(self._destination, allow_private=self._how.allow_private)
        try:
            yield store
        finally:
            if not store.is_shut:
                self._idle.append(store)


# With connections open, and so that a caller's keys meet a client that is there already.
_kept = lru_cache(_KEPT)(Bucket)


def _require_allowed(destination: Destination, cache: CacheSettings) -> None:
    """Raise unless this endpoint may ask the store that a caller names."""
    address = destination.address
    parts = urlsplit(address.endpoint or f"https://s3.{address.region}.amazonaws.com")
    if parts.scheme != "https" and not cache.allow_private_hosts:
        raise InvalidInputError(
            "`s3Config.endpointUrl` must begin with https://.", field="s3Config.endpointUrl"
        )
    named = str(parts.hostname)
    if cache.allowed_hosts and not any(
        named == allowed or named.endswith(f".{allowed}") for allowed in cache.allowed_hosts
    ):
        raise InvalidInputError(
            f"Pictures may not be uploaded to {named}.",
            hint=f"A1111_CACHE_ALLOWED_HOSTS allows: {', '.join(cache.allowed_hosts)}.",
            field="s3Config.endpointUrl",
        )


def _require_done(
    futures: Sequence[Future[None]], cancelled: threading.Event, timeout_s: float
) -> None:
    """Wait for all of `futures`, or raise why there is nothing to wait for any more."""
    deadline = time.monotonic() + timeout_s
    waiting = set(futures)
    while waiting:
        if cancelled.is_set():
            raise JobCancelledError("The job was cancelled while its pictures were uploaded.")
        if time.monotonic() > deadline:
            raise UploadFailedError(
                f"The pictures were not uploaded within {timeout_s:g} s.",
                hint="Try again later, or raise A1111_OUTPUT_UPLOAD_TIMEOUT_S.",
                limit_s=timeout_s,
            )
        done, waiting = wait(waiting, _TICK_S, FIRST_EXCEPTION)
        for future in done:
            future.result()


def _insist(once: Callable[[], T], *, stopped: threading.Event, waits_s: tuple[float, ...]) -> T:
    """Return what `once` returns, called again, after a wait, when it raises `TryAgainError`."""
    for wait_s in (*waits_s, None):
        if stopped.is_set():
            raise JobCancelledError("The pictures of the job are not wanted any more.")
        try:
            return once()
        except TryAgainError as failure:
            asked_s = failure.after_s or 0.0
            if wait_s is None or asked_s > _LONGEST_WAIT_S:
                raise failure.error from None
            # Not all at the same moment: many workers lose one store at once.
            stopped.wait(max(asked_s, wait_s * random.uniform(0.5, 1)))  # noqa: S311 - no secret
    raise AssertionError("the last try returns or raises")
