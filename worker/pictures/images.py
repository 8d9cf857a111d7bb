"""Input images: from what a caller sent to base64 that A1111 is sure to read.

A1111 answers 500 to what it cannot decode and fetches http URLs by itself
(recorded: img2img_garbage_b64, img2img_init_url_loopback); neither must reach it. What is given by
URL is fetched before, by `inputs`.
"""

import base64
import binascii
import io
from typing import Any

from PIL import Image

from schemas.errors import InvalidInputError
from schemas.job import Generation, Img2Img
from worker.pictures import exif

# Sizes are judged by `max_pixels` before any pixel is decoded, so Pillow's own warning is not needed.
Image.MAX_IMAGE_PIXELS = None

# What Pillow's readers raise for damaged files, each seen while reading mutated pictures.
BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    RuntimeError,
    TypeError,
    Image.DecompressionBombError,
)
SINGLE_FIELDS = ("mask", "latent_mask", "firstpass_image")
"""Of a request: each holds one image; `init_images` holds several."""
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")

_PREVIEW_SIDE_PX = 256
_PREVIEW_QUALITY = 60


def checked(job: Generation, max_pixels: int) -> dict[str, Any]:
    """Return the image fields of `job` as plain base64.

    Raises:
        InvalidInputError: a string that is no image, a broken one, or one of more pixels than
            `max_pixels` (width x height).
    """
    clean: dict[str, Any] = {}
    if isinstance(job, Img2Img):
        clean["init_images"] = [
            image(text, f"init_images[{index}]", max_pixels)
            for index, text in enumerate(job.init_images)
        ]
    for field in SINGLE_FIELDS:
        text = getattr(job, field, None)
        if text is not None and not isinstance(text, str):
            raise InvalidInputError(f"`{field}` must be an image as base64.", field=field)
        if text:
            clean[field] = image(text, field, max_pixels)
    return clean


def is_url(text: str) -> bool:
    """Return whether `text`, an image as a caller gave it, says where the image is."""
    return text.lstrip()[:8].lower().startswith(("http://", "https://"))


def image(text: str, field: str, max_pixels: int) -> str:
    """Return the base64 of one image given as base64, with or without line ends, or a data URI.

    Raises:
        InvalidInputError: it is no image, a broken one, or one of more than `max_pixels`.
    """
    if is_url(text):
        raise InvalidInputError(
            f"`{field}` is a URL, and none is fetched for it.",
            hint="Send the picture itself, as base64.",
            field=field,
        )
    if text[:5].lower() == "data:":
        text = text.partition(",")[2]
    try:
        data = base64.b64decode("".join(text.split()) + "===", validate=False)
    except (binascii.Error, ValueError):
        data = b""
    _require_picture(data, field, max_pixels)
    return base64.b64encode(data).decode()


def _require_picture(data: bytes, field: str, max_pixels: int) -> None:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            width, height = picture.size
            if width * height <= max_pixels:
                picture.load()
    except BROKEN as error:
        raise InvalidInputError(
            f"`{field}` is not an image that can be read.",
            hint="Send a PNG, JPEG or WebP: the file itself, as base64 or the https URL of it.",
            field=field,
        ) from error
    if width * height > max_pixels:
        raise InvalidInputError(
            f"`{field}` has {width} x {height} pixels; the limit is {max_pixels}.", field=field
        )


def size_px(picture: str) -> tuple[int, int]:
    """Return width and height of a picture that `image` returned."""
    with Image.open(io.BytesIO(base64.b64decode(picture)), formats=FORMATS) as opened:
        return opened.size


def texts(text: str) -> list[str]:
    """Return every text that a picture of ours, as base64, carries: chunks, comments, EXIF.

    What may be read in several ways is there in each: first as A1111 reads it.
    """
    found: list[str] = []
    try:
        with Image.open(io.BytesIO(base64.b64decode(text)), formats=FORMATS) as picture:
            picture.load()
            tags = picture.getexif()
            inner = tags.get_ifd(exif.INNER)
            held = [*picture.info.values(), *tags.values(), *inner.values()]
    except BROKEN:
        return found
    for value in held:
        if isinstance(value, str):
            found.append(value)
        elif isinstance(value, bytes):
            found.append(exif.comment(value))
            found += [value.decode(code, "ignore") for code in ("utf-8", "utf-16-be", "utf-16-le")]
    return found


def small_jpeg(text: str | None) -> str | None:
    """Return a picture of A1111's, as base64, as a small JPEG of at most 256 x 256 pixels.

    None without one, or if it cannot be read: a preview is worth no error.
    """
    if not text:
        return None
    try:
        with Image.open(io.BytesIO(base64.b64decode(text)), formats=FORMATS) as picture:
            picture.thumbnail((_PREVIEW_SIDE_PX, _PREVIEW_SIDE_PX))
            small = io.BytesIO()
            picture.convert("RGB").save(small, "JPEG", quality=_PREVIEW_QUALITY)
    except BROKEN:
        return None
    return base64.b64encode(small.getvalue()).decode()
