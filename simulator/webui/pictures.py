"""Pictures in and out: base64, the three formats with their infotext, grids, files, sizes.

Source: A1111 1.10.1, modules/api/api.py, encode_pil_to_base64 and decode_base64_to_image, and
modules/images.py.
"""

import base64
import binascii
import io
import ipaddress
import math
import socket
import struct
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, PngImagePlugin

from simulator.webui.failure import HttpError, WebuiError
from simulator.webui.options import Options

_EXIF_IFD = 0x8769
_USER_COMMENT = 0x9286
_UNICODE = b"UNICODE\0"
_UNDEFINED, _LONG = 7, 4
_URL_TIMEOUT_S = 30
# Of Image.info, not texts that a user put there.
# Source: A1111 1.10.1, modules/images.py, IGNORED_INFO_KEYS.
_IGNORED = {
    "jfif", "jfif_version", "jfif_unit", "jfif_density", "dpi", "exif", "loop", "background",
    "timestamp", "duration", "progressive", "progression", "icc_profile", "chromaticity",
    "photoshop",
}  # fmt: skip


def decode(encoded: object, options: Options) -> Image.Image:
    """Return the picture in base64, in a data URL or behind an http(s) URL.

    Raises:
        HttpError: it is none, or the URL leads to this machine or its network.
        WebuiError: AttributeError when it is not text, IndexError for a data URL without a comma.
    """
    if not isinstance(encoded, str):
        name = type(encoded).__name__
        name = "NoneType" if encoded is None else name
        raise WebuiError("AttributeError", f"{name!r} object has no attribute 'startswith'")
    if encoded.startswith(("http://", "https://")):
        return _fetched(encoded, options)
    if encoded.startswith("data:image/"):
        try:
            encoded = encoded.split(";")[1].split(",")[1]
        except IndexError as error:
            raise WebuiError("IndexError", str(error)) from error
    try:
        # Not strict: what is not of the alphabet is passed over, line breaks and "-" alike.
        return _opened(base64.b64decode(encoded))
    except (binascii.Error, UnicodeError, ValueError, OSError, SyntaxError) as error:
        raise HttpError(500, "Invalid encoded image") from error


def _opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    turned = ImageOps.exif_transpose(image)
    if turned.mode in {"RGB", "P"} and isinstance(turned.info.get("transparency"), bytes):
        turned = turned.convert("RGBA")
    return turned


def _fetched(url: str, options: Options) -> Image.Image:
    if not options["api_enable_requests"]:
        raise HttpError(500, "Requests not allowed")
    if options["api_forbid_local_requests"] and not _is_global(url):
        raise HttpError(500, "Request to local resource not allowed")
    try:
        with urllib.request.urlopen(url, timeout=_URL_TIMEOUT_S) as answer:  # noqa: S310 - as A1111
            data = answer.read()
    except urllib.error.URLError as error:
        raise WebuiError("ConnectionError", str(error)) from error
    try:
        return _opened(data)
    except (ValueError, OSError, SyntaxError) as error:
        raise HttpError(500, "Invalid image url") from error


def _is_global(url: str) -> bool:
    """Return whether every address of the URL's host is a public one; a port makes it none."""
    try:
        _, _, addresses = socket.gethostbyname_ex(urllib.parse.urlparse(url).netloc)
    except (OSError, UnicodeError):
        return False
    return all(ipaddress.ip_address(address).is_global for address in addresses)


def encode(image: Image.Image, options: Options) -> str:
    """Return the picture as base64 in the format that the options name now.

    Raises:
        HttpError: the format is not png, jpg, jpeg or webp.
    """
    written = options["samples_format"]
    if not isinstance(written, str):
        name = type(written).__name__
        raise WebuiError("AttributeError", f"{name!r} object has no attribute 'lower'")
    data = as_bytes(image, written.lower(), int(options["jpeg_quality"]))
    return base64.b64encode(data).decode("ascii")


def as_bytes(image: Image.Image, written: str, quality: int) -> bytes:
    """Return the picture in a file format, its infotext in `parameters` or in EXIF.

    Raises:
        HttpError: see `encode`.
    """
    output = io.BytesIO()
    if written == "png":
        texts = PngImagePlugin.PngInfo()
        for key, value in image.info.items():
            if isinstance(key, str) and isinstance(value, str):
                texts.add_text(key, value)
        # Level 1 weighs a tenth more than the default and takes half the time.
        image.save(output, "PNG", pnginfo=texts, compress_level=1)
    elif written in {"jpg", "jpeg", "webp"}:
        if image.mode == "RGBA":
            image = image.convert("RGB")
        exif = _user_comment(str(image.info.get("parameters") or ""))
        image.save(output, "WEBP" if written == "webp" else "JPEG", exif=exif, quality=quality)
    else:
        raise HttpError(500, "Invalid image format")
    return output.getvalue()


def _user_comment(text: str) -> bytes:
    """Return EXIF with nothing but a user comment in UTF-16, big-endian, as piexif writes it."""
    comment = _UNICODE + text.encode("utf-16-be", "surrogatepass")
    # TIFF header; one directory with a pointer to the second one; the second with the comment.
    head = struct.pack(">2sHL", b"MM", 42, 8)
    first = struct.pack(">HHHLLL", 1, _EXIF_IFD, _LONG, 1, 26, 0)
    second = struct.pack(">HHHLLL", 1, _USER_COMMENT, _UNDEFINED, len(comment), 44, 0)
    return b"Exif\0\0" + head + first + second + comment


def read_info(image: Image.Image) -> tuple[str, dict[str, Any]]:
    """Return a picture's infotext ("" if it has none) and the other texts in it.

    Source: A1111 1.10.1, modules/images.py, read_info_from_image.
    """
    items = dict(image.info)
    infotext = items.pop("parameters", None)
    comment = image.getexif().get_ifd(_EXIF_IFD).get(_USER_COMMENT)
    if isinstance(comment, bytes) and "exif" in items:
        items["exif comment"] = infotext = _comment_text(comment)
    for key in _IGNORED:
        items.pop(key, None)
    texts: dict[str, Any] = {
        str(key): value for key, value in items.items() if isinstance(value, str | int | float)
    }
    return (infotext if isinstance(infotext, str) else ""), texts


def _comment_text(comment: bytes) -> str:
    if comment.startswith(_UNICODE):
        return comment[len(_UNICODE) :].decode("utf-16-be", "ignore")
    return comment[8:].decode("utf-8", "ignore")


def grid(
    images: list[Image.Image], options: Options, batch_size: int, rows: int | None = None
) -> Image.Image:
    """Return the pictures side by side.

    Source: A1111 1.10.1, modules/images.py, image_grid.
    """
    count = len(images)
    if rows is None:
        rows = _rows(count, options, batch_size)
    rows = max(1, min(rows, count))
    columns = math.ceil(count / rows)
    width = max(image.width for image in images)
    height = max(image.height for image in images)
    whole = Image.new("RGB", (columns * width, rows * height), options["grid_background_color"])
    for index, image in enumerate(images):
        whole.paste(image, (index % columns * width, index // columns * height))
    return whole


def _rows(count: int, options: Options, batch_size: int) -> int:
    wanted = int(options["n_rows"])
    if wanted > 0:
        return wanted
    if wanted == 0:
        return batch_size
    if options["grid_prevent_empty_spots"]:
        rows = math.isqrt(count)
        while count % rows:
            rows -= 1
        return rows
    return round(math.sqrt(count))


def resize(mode: int, image: Image.Image, width: int, height: int) -> Image.Image:
    """Return the picture at a size: 0 stretched, 1 cropped, otherwise with the rest filled.

    Source: A1111 1.10.1, modules/images.py, resize_image.
    """
    size = (width, height)
    if mode == 0:
        return image.resize(size, Image.Resampling.LANCZOS)
    wider = width / height > image.width / image.height
    if (mode == 1) == wider:
        inner = (width, max(1, image.height * width // image.width))
    else:
        inner = (max(1, image.width * height // image.height), height)
    scaled = image.resize(inner, Image.Resampling.LANCZOS)
    whole = image.resize(size, Image.Resampling.BOX) if mode != 1 else Image.new(image.mode, size)
    whole.paste(scaled, ((width - inner[0]) // 2, (height - inner[1]) // 2))
    return whole


def flattened(image: Image.Image, background: str) -> Image.Image:
    """Return the picture as RGB, what is transparent in it shown before `background`."""
    if image.mode == "RGBA":
        behind = Image.new("RGBA", image.size, background)
        behind.paste(image, mask=image)
        image = behind
    return image.convert("RGB")


def save(image: Image.Image, folder: Path, seed: int | None, options: Options) -> None:
    """Write the picture to `<folder>/<date>/`, numbered, as `save_images` asks."""
    target = folder / time.strftime("%Y-%m-%d")
    target.mkdir(parents=True, exist_ok=True)
    written = str(options["samples_format"] if seed is not None else options["grid_format"]).lower()
    number = sum(1 for _ in target.iterdir())
    name = f"{number:05}-{seed}" if seed is not None else f"grid-{number:04}"
    if written in {"png", "jpg", "jpeg", "webp"}:
        data = as_bytes(image, written, int(options["jpeg_quality"]))
        (target / f"{name}.{written}").write_bytes(data)
