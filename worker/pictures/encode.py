"""Pictures from one format into another, with the text that A1111 gave them. No I/O.

The GPU is paid by then, so no picture is lost: what a format cannot hold is told, or the picture stays
as it was. Whoever sends it on asks `format_of` what it has become.
"""

import io
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass
from threading import Event
from typing import Any

from PIL import Image

from schemas.errors import BackendFailedError, JobCancelledError
from schemas.output import Format
from worker.pictures import exif
from worker.pictures.images import BROKEN

CONTENT_TYPES: Mapping[Format, str] = {
    "png": "image/png",
    "jpeg": "image/jpeg",
    "webp": "image/webp",
    "avif": "image/avif",
}
SUFFIXES: Mapping[Format, str] = {"png": "png", "jpeg": "jpg", "webp": "webp", "avif": "avif"}
QUALITY = 80
"""Of lossy formats, where nothing else is asked. Source: A1111 1.10.1, option jpeg_quality, for all of them."""

_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"IEND\xaeB`\x82"
_JPEG_END = b"\xff\xd9"
_AVIF_BRANDS = (b"avif", b"avis")
# Where a PNG tells its bits per channel. Source: PNG (Third Edition), 11.2.1.
_PNG_DEPTH_AT = 24
# Longest side that each can be written and read with, measured with Pillow 13.0 (libjpeg-turbo 3.2,
# libwebp 1.6; libavif 1.4 writes up to 65,536 pixels, and reads 32,768).
_MOST_PX: Mapping[Format, int] = {"jpeg": 65_500, "webp": 16_383, "avif": 32_768}
# A JPEG's segment tells its length in 16 bits. Source: Pillow 13.0, JpegImagePlugin._save.
_MOST_JPEG_EXIF = 65_533
_GRAY = frozenset({"1", "L", "LA", "I;16"})
_RGB = frozenset({"RGB", "RGBA", "P"})
# What one pixel takes at the peak, decoded picture included; measured with 2048 x 2048.
_PEAK_BYTES_PER_PIXEL: Mapping[Format, int] = {"png": 6, "jpeg": 5, "webp": 11, "avif": 29}
_PEAK_LOSSLESS = 35
# What pictures may take without regard to how large they are: two of 1024 x 1024 in any format.
_FREE_BYTES = 80_000_000
_MOST_THREADS = 8

Warn = Callable[[str], None]
"""Takes what a caller should know."""


@dataclass(frozen=True)
class Target:
    """What a picture is to be.

    Args:
        format: one of ours.
        quality: 1 to 100, of what loses something; unset: `QUALITY`.
        lossless: of `webp`: every pixel as A1111 drew it.
    """

    format: Format
    quality: int | None = None
    lossless: bool = False


def format_of(data: bytes) -> Format | None:
    """Return the format of a picture by its first 32 bytes, None if it is none of ours."""
    if data.startswith(_PNG_START):
        return "png"
    if data.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "webp"
    # Major and compatible brands. Source: ISO 14496-12, 4.3; AVIF 1.1, section 6.
    if data[4:8] == b"ftyp" and any(data[at : at + 4] in _AVIF_BRANDS for at in range(8, 32, 4)):
        return "avif"
    return None


def encoded(image: bytes, target: Target, warn: Warn | None = None) -> bytes:
    """Return one picture as `target` says; the same bytes where nothing of it is to change.

    Args:
        image: a PNG, JPEG, WebP or AVIF.
        target: what it is to be.
        warn: told what the format could not hold.

    Raises:
        BackendFailedError: it cannot be read; `details` has `image`, which is 0.
    """
    return all_encoded([image], target, Event(), warn)[0]


def all_encoded(
    images: Sequence[bytes], target: Target, cancelled: Event, warn: Warn | None = None
) -> list[bytes]:
    """Return the pictures, in their order, as `target` says; those that are so already unchanged.

    Several at once, as the cores allow, and their memory: all of it together is no more than what the
    pictures take as base64, or 80 MB, or what a single one needs.

    Args:
        images: the pictures of one answer: PNG, JPEG, WebP or AVIF.
        target: what they are to be.
        cancelled: looked at before each picture.
        warn: told what the format could not hold, and of which pictures.

    Raises:
        BackendFailedError: one cannot be read; `details` has `image`, its index.
        JobCancelledError: `cancelled` was set.
    """
    if not images:
        return []
    cores = len(os.sched_getaffinity(0))
    lanes = max(1, min(len(images), cores, _MOST_THREADS, _room(images, target)))
    notes: dict[str, list[int]] = {}

    def one(index: int) -> bytes:
        if cancelled.is_set():
            raise JobCancelledError("The job was cancelled while its pictures were encoded.")
        work = _Work(index, target, threads=max(1, min(cores, _MOST_THREADS) // lanes))
        result = work.of(images[index])
        for note in work.notes:
            notes.setdefault(note, []).append(index)
        return result

    with ThreadPoolExecutor(lanes, thread_name_prefix="encode") as pool:
        # With the context, so that what Pillow warns of is logged with the job's id.
        futures = [pool.submit(copy_context().run, one, index) for index in range(len(images))]
        try:
            results = [future.result() for future in futures]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    if warn is not None:
        for which, note in sorted((sorted(which), note) for note, which in notes.items()):
            warn(f"Image {', '.join(map(str, which))}: {note}")
    return results


def _room(images: Sequence[bytes], target: Target) -> int:
    """Return how many of the pictures there is memory for at once; 0 and more."""
    is_lossless = target.lossless and target.format == "webp"
    per_pixel = _PEAK_LOSSLESS if is_lossless else _PEAK_BYTES_PER_PIXEL[target.format]
    largest = 1
    for image in images:
        # One that is broken is told when its turn comes.
        with suppress(*BROKEN), Image.open(io.BytesIO(image)) as picture:
            largest = max(largest, picture.width * picture.height * per_pixel)
    return max(_FREE_BYTES, sum(map(len, images)) * 4 // 3) // largest


class _Work:
    """One picture's way into another format, and what is to be told of it.

    Args:
        index: the picture's, in A1111's answer.
        target: what it is to be.
        threads: how many the encoder itself may use, where it can.
    """

    def __init__(self, index: int, target: Target, threads: int) -> None:
        self.notes: list[str] = []
        self._index = index
        self._target = target
        self._threads = threads

    def of(self, image: bytes) -> bytes:
        """Return `image` as it is to be.

        Raises:
            BackendFailedError: it cannot be read.
        """
        held = format_of(image)
        if held is None or _is_cut(image, held):
            raise self._broken()
        if held == self._target.format and not self._changes(held):
            return image
        try:
            with Image.open(io.BytesIO(image), formats=[held]) as picture:
                if reason := self._hindrance(picture, _depth(image, held)):
                    self.notes.append(f"{reason} It was left as it was, as {held}.")
                    return image
                texts = exif.read(picture)
                picture.load()
                pixels = self._converted(picture)
                profile = _profile(picture, pixels)
        except BROKEN as error:
            raise self._broken() from error
        if _depth(image, held) > 8:
            self.notes.append("of its 16 bits per channel 8 are left.")
        return self._written(pixels, texts, profile)

    def _changes(self, held: Format) -> bool:
        wanted = self._target.quality is not None or self._target.lossless
        return held != "png" and wanted

    def _broken(self) -> BackendFailedError:
        return BackendFailedError(
            f"Image {self._index} of A1111's answer cannot be read.",
            hint="Send the job again.",
            image=self._index,
        )

    def _hindrance(self, picture: Image.Image, depth: int) -> str:
        """Return why `picture` cannot become what it is to be, a sentence; empty if it can."""
        wanted = self._target.format
        if getattr(picture, "is_animated", False):
            return f"it moves, which is not kept in {wanted}."
        if self._target.lossless and wanted != "png" and depth > 8:
            return f"it has {depth} bits per channel, and a lossless {wanted} has 8."
        if (side := max(picture.size)) > _MOST_PX.get(wanted, side):
            return f"it has a side of {side} pixels, and {wanted} takes {_MOST_PX[wanted]}."
        return ""

    def _converted(self, picture: Image.Image) -> Image.Image:
        """Return `picture`, which is loaded, in a mode that the format can hold."""
        wanted = self._target.format
        pixels = picture
        if picture.mode.startswith("I;16"):
            # Pillow's own conversion makes everything above 255 white. Source of the factor, and that
            # fractions are cut off: A1111 1.10.1, modules/images.py, save_image_with_geninfo.
            pixels = picture.point(lambda value: value * (255 / 65535)).convert("L")
            pixels.info.pop("transparency", None)  # given in 16 bits
        is_gray = pixels.mode in _GRAY and wanted != "webp"
        mode = "L" if is_gray else "RGB"
        if pixels.has_transparency_data:
            if wanted == "jpeg":
                # A1111 drops it as well, so that what was transparent shows its colour.
                self.notes.append("its transparency is lost; JPEG has none.")
                pixels = pixels.convert("RGBA") if pixels.mode == "P" else pixels
            else:
                mode = "RGBA"
        return pixels if pixels.mode == mode else pixels.convert(mode)

    def _written(
        self, pixels: Image.Image, texts: Mapping[str, str], profile: bytes | None
    ) -> bytes:
        wanted = self._target.format
        options = self._options()
        if wanted == "png":
            options["pnginfo"] = exif.as_chunks(texts)
        else:
            most = _MOST_JPEG_EXIF if wanted == "jpeg" else None
            options["exif"], is_whole = exif.as_exif(texts, most)
            if not is_whole:
                self.notes.append(
                    "a JPEG cannot hold all of its text, so some is left out; WebP, AVIF and PNG can."
                )
        # None: else Pillow takes the one of the picture as it was.
        options["icc_profile"] = profile
        file = io.BytesIO()
        pixels.save(file, wanted.upper(), **options)
        return file.getvalue()

    def _options(self) -> dict[str, Any]:
        """Return how to encode, chosen by measurement: 1024 x 1024 pixels, one core, Pillow 13.0.

        JPEG: 4 ms. WebP, method 4: 95 ms; 2 takes 40, for 3 % more bytes and 0.5 to 1 dB less. WebP
        without loss, effort 0: 165 to 300 ms; Pillow's 80 takes 500 to 740 for 0.3 % less, and either
        is 8 to 24 % smaller than PNG. AVIF, speed 6: 300 to 740 ms; 8 takes a third, for up to 55 %
        more. PNG as A1111: 440 to 720 ms.
        """
        quality = self._target.quality or QUALITY
        match self._target.format:
            case "png":
                return {}
            case "jpeg":
                return {"quality": quality}
            case "webp" if self._target.lossless:
                # `exact` keeps the colours under what is transparent.
                return {"lossless": True, "exact": True, "quality": 0, "method": 4}
            case "webp":
                return {"quality": quality, "method": 4}
            case "avif":
                return {"quality": quality, "speed": 6, "max_threads": self._threads}


def _is_cut(image: bytes, held: Format) -> bool:
    """Return whether the end of `image` is missing, as far as can be told without decoding it."""
    match held:
        case "png":
            return _PNG_END not in image[-64:]
        case "jpeg":
            return _JPEG_END not in image[-64:]
        case "webp":
            return int.from_bytes(image[4:8], "little") + 8 > len(image)
        case "avif":
            return False


def _depth(image: bytes, held: Format) -> int:
    """Return the bits per channel that Pillow might cut: those of a PNG."""
    return image[_PNG_DEPTH_AT] if held == "png" else 8


def _profile(picture: Image.Image, pixels: Image.Image) -> bytes | None:
    """Return the colour profile of `picture` if it still describes `pixels`."""
    is_kept = pixels.mode == picture.mode or (picture.mode in _RGB and pixels.mode in _RGB)
    return picture.info.get("icc_profile") if is_kept else None
