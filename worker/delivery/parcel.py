"""The pictures of one answer on their way: encoded, uploaded, or left on the volume."""

import base64
import binascii
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from schemas.errors import BackendFailedError
from schemas.output import Format
from schemas.result import Delivered, How
from worker.caller import Caller
from worker.delivery.bucket import Upload
from worker.delivery.wish import Way, Wish, is_lossy
from worker.pictures.encode import CONTENT_TYPES, SUFFIXES, Target, all_encoded, format_of

_QUALITY_STEP = 15
# Enough of a picture to tell its format; whole groups of base64.
_HEAD_CHARS = 64
# The end of every PNG. Source: PNG (Third Edition), 11.2.5; the CRC of an empty IEND.
_PNG_END = b"IEND\xaeB`\x82"
_TAIL_CHARS = 16


@dataclass(frozen=True)
class Sent:
    """What the pictures of an answer have become."""

    images: list[str]
    """Base64, URLs or paths, in A1111's order."""
    output: Delivered | None
    """None without pictures."""
    done: str = ""
    """What was done so that they arrive, as a sentence."""
    warnings: tuple[str, ...] = ()


class Parcel:
    """The pictures of one answer.

    Args:
        images: A1111's, as base64.
        wish: what is to become of them.
        caller: of whom.

    Raises:
        BackendFailedError: an image is none, or half of one.
    """

    def __init__(self, images: Sequence[str], wish: Wish, caller: Caller) -> None:
        self._formats = [_format_of(image, index) for index, image in enumerate(images)]
        self._originals = images
        self._wish = wish
        self._caller = caller
        self._asked: _Encoded | None = None
        self._ways: Mapping[Way, Callable[[], Iterator[Sent]]] = {
            "inline": self._inline,
            "upload": self._uploaded,
            "volume": self._on_volume,
            "lossless_webp": self._lossless_webp,
            "lossy": self._lossy,
        }

    def by(self, way: Way) -> Iterator[Sent]:
        """Yield what can be tried by `way`, the best first.

        Raises:
            UploadFailedError: the storage did not take them.
            VolumeError: nor did the volume.
            JobCancelledError: the job was cancelled.
        """
        return self._ways[way]()

    def _inline(self) -> Iterator[Sent]:
        target = self._wish.target
        if self._is_as_asked:
            yield Sent(list(self._originals), _delivered(target, "base64"))
        else:
            yield self._inside(target, self._in_format())

    def _lossless_webp(self) -> Iterator[Sent]:
        target = Target("webp", lossless=True)
        yield self._inside(target, self._encoded(target), "They are WebP, without loss.")

    def _lossy(self) -> Iterator[Sent]:
        wish = self._wish
        qualities = [*range(wish.quality, wish.min_quality, -_QUALITY_STEP), wish.min_quality]
        tried_already = is_lossy(wish.target)
        target = wish.target if tried_already else Target("webp")
        for quality in qualities[tried_already:]:
            target = replace(target, quality=quality)
            done = f"They are {target.format} of quality {quality}."
            yield self._inside(target, self._encoded(target), done)

    def _uploaded(self) -> Iterator[Sent]:
        bucket = self._wish.bucket
        if bucket is None:
            raise ValueError("nowhere to upload to")
        pictures = self._in_format()
        files = [
            Upload(f"{name}.{suffix}", data, content_type)
            for name, suffix, content_type, data in self._named(pictures)
        ]
        self._caller.report({"stage": "uploading", "percent": 0})
        urls = bucket.put(files, self._caller.cancelled)
        yield self._elsewhere(urls, "url", "They were uploaded.", pictures)

    def _on_volume(self) -> Iterator[Sent]:
        outbox = self._wish.outbox
        if outbox is None:
            raise ValueError("no volume to write to")
        pictures = self._in_format()
        paths = outbox.put(
            [(f"{name}.{suffix}", data) for name, suffix, _, data in self._named(pictures)],
            self._caller.cancelled,
        )
        yield self._elsewhere([*map(str, paths)], "volume", "They are on the volume.", pictures)

    def _inside(self, target: Target, pictures: "_Encoded", done: str = "") -> Sent:
        images = [base64.b64encode(picture).decode() for picture in pictures.files]
        return Sent(images, _delivered(target, "base64"), done, pictures.warnings)

    def _elsewhere(self, images: list[str], way: How, done: str, pictures: "_Encoded") -> Sent:
        self._caller.clock.lap("deliver_s")
        return Sent(images, _delivered(self._wish.target, way), done, pictures.warnings)

    @property
    def _is_as_asked(self) -> bool:
        target = self._wish.target
        return not is_lossy(target) and set(self._formats) == {target.format}

    def _named(self, pictures: "_Encoded") -> Iterator[tuple[str, str, str, bytes]]:
        """Yield name, suffix, content type and bytes of each; some cannot be what was asked for."""
        for index, data in enumerate(pictures.files, start=self._wish.first_index):
            held = format_of(data) or self._wish.target.format
            yield f"{self._wish.folder}/{index}", SUFFIXES[held], CONTENT_TYPES[held], data

    def _in_format(self) -> "_Encoded":
        if self._asked is None:
            is_there = self._is_as_asked
            self._asked = _Encoded(self._bytes()) if is_there else self._encoded(self._wish.target)
        return self._asked

    def _encoded(self, target: Target) -> "_Encoded":
        caller = self._caller
        # Until now it was tried to deliver them in another way, if anything.
        self._caller.clock.lap("deliver_s")
        caller.report({"stage": "encoding", "percent": 0})
        told: list[str] = []
        pictures = all_encoded(self._bytes(), target, caller.cancelled, told.append)
        self._caller.clock.lap("encode_s")
        return _Encoded(pictures, tuple(told))

    def _bytes(self) -> list[bytes]:
        return [base64.b64decode(image) for image in self._originals]


@dataclass(frozen=True)
class _Encoded:
    """Pictures as files, and what was lost on the way to them."""

    files: list[bytes]
    warnings: tuple[str, ...] = ()


def _delivered(target: Target, delivery: How) -> Delivered:
    return Delivered(
        format=target.format,
        lossless=target.lossless,
        quality=target.quality,
        delivery=delivery,
    )


def _format_of(image: object, index: int) -> Format:
    """Return the format of an image of A1111's, as base64, looking at its ends alone."""
    found = None
    if isinstance(image, str) and image.isascii():
        try:
            found = format_of(base64.b64decode(image[:_HEAD_CHARS], validate=True))
            end = base64.b64decode(image[-_TAIL_CHARS:], validate=True)
        except binascii.Error:
            found = None
        if found == "png" and not end.endswith(_PNG_END):
            found = None
    if found is None:
        raise BackendFailedError(
            f"Image {index} of A1111's answer is none, or only half of one.",
            hint="Send the job again.",
            image=index,
        )
    return found
