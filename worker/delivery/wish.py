"""What is to become of the pictures of one job: its field `output`, its `s3Config` and the settings."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from schemas.errors import InvalidInputError
from schemas.output import Format, Output, Rung
from schemas.settings import OutputSettings, Settings
from worker.delivery.bucket import Bucket, bucket_of
from worker.delivery.outbox import Outbox
from worker.pictures.encode import Target

Way = Rung | Literal["inline"]
"""One way in which pictures can leave; inline: as base64, in the format that was asked for."""

_KEEP_BASE64 = frozenset({"lossless_webp", "lossy"})
_FIRST: Mapping[str, tuple[Way, ...]] = {
    "auto": ("inline",),
    "base64": ("inline",),
    "url": ("upload", "inline"),
    "volume": ("volume", "inline"),
}
_NOT_THERE = {
    "url": "A1111_OUTPUT_DELIVERY is `url`, and this endpoint has no storage.",
    "volume": "A1111_OUTPUT_DELIVERY is `volume`, and this endpoint has no network volume.",
}
_MAX_ID_CHARS = 128


@dataclass(frozen=True)
class Wish:
    """What is to become of the pictures of one job."""

    target: Target
    ways: tuple[Way, ...]
    """What is tried, in this order."""
    quality: int
    """With which pictures are encoded where something is lost, 1 to 100."""
    min_quality: int
    """The lowest to which that may sink."""
    folder: str
    """In front of the names of what is uploaded or written to the volume."""
    limit_bytes: int
    """Most that the whole answer may have."""
    bucket: Bucket | None
    outbox: Outbox | None
    asks_for_volume: bool = False
    """Whether the request itself names the volume."""
    first_index: int = 0
    """The number that the first picture gets in its name elsewhere."""
    warnings: tuple[str, ...] = ()
    """What of the settings cannot be followed."""


class Wishes:
    """Makes wishes. Asks no host.

    Args:
        settings: all of them.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.bucket = bucket_of(settings, None)
        cache = settings.cache
        # Without a network volume the store is on the container's disk, where nobody finds a file.
        is_shared = cache.volume != cache.local_root
        self._outbox = Outbox(cache.volume, settings.output.folder) if is_shared else None

    def of(self, output: Output, job: Mapping[str, Any]) -> Wish:
        """Return the wish of `job`, a job as RunPod gives it, with the field `output`.

        Raises:
            InvalidInputError: the pictures cannot go where it wants them, or its `s3Config` is none.
        """
        settings = self._settings.output
        config = job.get("s3Config")
        bucket = self.bucket if config is None else bucket_of(self._settings, config)
        job_id = str(job.get("id", ""))
        quality = output.quality or settings.quality
        target = _target(output, settings.format, quality)
        _require_way(output, bucket, self._outbox)
        cannot = {
            "upload": bucket is None,
            "volume": self._outbox is None,
            "lossy": not (output.allow_lossy or is_lossy(target)),
            "lossless_webp": target.format != "png",
        }
        ways = _wanted(output, settings)
        # Of the settings, for what the request itself wants is refused.
        cannot_first = cannot.get(ways[0], False)
        return Wish(
            target=target,
            ways=tuple(way for way in ways if not cannot.get(way, False)),
            quality=quality,
            min_quality=min(settings.min_quality, quality),
            folder="/".join(part for part in (output.prefix, _as_folder(job_id)) if part),
            limit_bytes=limit_bytes(job_id, settings),
            bucket=bucket,
            outbox=self._outbox,
            asks_for_volume=output.delivery == "volume" or "volume" in (output.ladder or ()),
            warnings=(_NOT_THERE[settings.delivery],) if cannot_first else (),
        )


def limit_bytes(job_id: str, settings: OutputSettings) -> int:
    """Return the most that RunPod carries as the answer to a job.

    Source: RunPod's limits, 10 MB for /run and 20 MB for /runsync, whose job ids begin with `sync-`.
    """
    is_sync = job_id.startswith("sync-")
    return settings.max_runsync_bytes if is_sync else settings.max_run_bytes


def is_lossy(target: Target) -> bool:
    """Return whether pictures lose something by `target`."""
    return not target.lossless


def _target(output: Output, usual: Format, quality: int) -> Target:
    wanted = output.format or usual
    if wanted == "png" or (wanted == "webp" and output.lossless):
        return Target(wanted, lossless=True)
    if output.lossless:
        raise InvalidInputError(
            f"`output.lossless` is of `webp` and `png`, and this endpoint's format is {wanted}.",
            hint="Send `output.format` besides.",
            field="output.lossless",
        )
    return Target(wanted, quality=quality)


def _require_way(output: Output, bucket: Bucket | None, outbox: Outbox | None) -> None:
    if output.delivery == "url" and bucket is None:
        raise InvalidInputError(
            "`output.delivery` is `url`, and this endpoint has no storage.",
            hint="Set BUCKET_ENDPOINT_URL and its keys, or send `s3Config` beside `input`.",
            field="output.delivery",
        )
    if output.delivery == "volume" and outbox is None:
        raise InvalidInputError(
            "`output.delivery` is `volume`, and this endpoint has no network volume.",
            hint="Attach one, or leave `output.delivery` out.",
            field="output.delivery",
        )


def _wanted(output: Output, settings: OutputSettings) -> list[Way]:
    rungs = settings.ladder if output.ladder is None else output.ladder
    delivery = output.delivery or settings.delivery
    if delivery == "base64":
        rungs = tuple(rung for rung in rungs if rung in _KEEP_BASE64)
    return list(dict.fromkeys([*_FIRST[delivery], *rungs]))


def _as_folder(job_id: str) -> str:
    """Return a job's id as the name of a folder; it is the platform's, and still no path."""
    return re.sub(r"[^\w-]", "_", job_id, flags=re.ASCII)[:_MAX_ID_CHARS]
