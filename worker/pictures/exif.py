"""The texts that a picture carries: what A1111 says of it, and how each format holds that.

PNG                 text chunks; `parameters` is the infotext
JPEG, WebP, AVIF    EXIF: UserComment is the infotext, as A1111 writes it; ImageDescription is the other
                    chunks, as JSON

Sources: A1111 1.10.1, modules/api/api.py encode_pil_to_base64, modules/images.py
save_image_with_geninfo and read_info_from_image; piexif 1.1.3, by which it writes and reads EXIF.
"""

import json
import struct
from collections.abc import Mapping

from PIL import Image
from PIL.PngImagePlugin import PngImageFile, PngInfo

INNER = 0x8769
"""Where in EXIF the comment is. Source: Exif 2.3, 4.6.3."""
COMMENT = 0x9286
"""The comment, A1111's infotext. Source: Exif 2.3, 4.6.5, UserComment."""
DESCRIPTION = 0x010E
"""The picture's title. Source: Exif 2.3, 4.6.4, ImageDescription."""

_INFOTEXT = "parameters"
# How a comment says what it is written in. Source: Exif 2.3, table 9.
_CODES = {b"UNICODE\0": "utf-16-be", b"ASCII\0\0\0": "ascii", b"JIS\0\0\0\0\0": "shift_jis"}
_MOST_KEY_CHARS = 79  # PNG (Third Edition), 11.3.3.1


def read(picture: Image.Image) -> dict[str, str]:
    """Return the texts that `picture` carries, by the names that they have in a PNG."""
    if isinstance(picture, PngImageFile):
        return {key: str(text) for key, text in picture.text.items()}
    exif = picture.getexif()
    texts = _others(exif.get(DESCRIPTION))
    held = exif.get_ifd(INNER).get(COMMENT)
    if isinstance(held, bytes) and (infotext := comment(held)):
        texts[_INFOTEXT] = infotext
    return texts


def comment(value: bytes) -> str:
    """Return the text of a UserComment as A1111 reads it; UTF-8 where it does not say its code."""
    code = _CODES.get(value[:8])
    return value[8:].decode(code, "replace") if code else value.decode("utf-8", "ignore")


def as_chunks(texts: Mapping[str, str]) -> PngInfo:
    """Return `texts` as a PNG has them: as A1111, in Latin-1 where that can say it, else in UTF-8."""
    chunks = PngInfo()
    for key, text in texts.items():
        if key.isascii() and key.isprintable() and 0 < len(key) <= _MOST_KEY_CHARS:
            chunks.add_text(key, text.encode("utf-8", "replace").decode())
    return chunks


def as_exif(texts: Mapping[str, str], most_bytes: int | None = None) -> tuple[bytes, bool]:
    """Return `texts` as EXIF, empty without any, and whether they are all in it.

    What is too long for `most_bytes` is left out whole, the infotext last: half of it would be read as
    another one. Where UTF-16 is too long, ASCII may do: A1111's reader knows it as well. A1111 itself
    answers 500 then.
    """
    if not texts:
        return b"", True
    others = {key: text for key, text in texts.items() if key != _INFOTEXT}
    infotext = texts.get(_INFOTEXT, "")
    comments = [b"UNICODE\0" + infotext.encode("utf-16-be", "replace")]
    if infotext.isascii():
        comments.append(b"ASCII\0\0\0" + infotext.encode())
    for held in (others, {}) if others else ({},):
        for text in comments:
            block = _block(text, held)
            if most_bytes is None or len(block) <= most_bytes:
                return block, held == others
    return b"", False


def _others(description: object) -> dict[str, str]:
    """Return the texts that `as_exif` put into a description; what others put there is not ours."""
    try:
        held = json.loads(description) if isinstance(description, str) else None
    except ValueError:
        held = None
    if not isinstance(held, dict):
        return {}
    return {key: text for key, text in held.items() if isinstance(text, str)}


def _block(user_comment: bytes, others: Mapping[str, str]) -> bytes:
    """Return EXIF with a UserComment, and with `others`, if any, as its ImageDescription.

    Pillow would write the comment as BYTE, by which A1111's reader fails; it has to be UNDEFINED.
    Source of the layout: TIFF 6.0, section 2.
    """
    about = json.dumps(others).encode() if others else b""
    if others:
        about += b"\0" if len(about) % 2 else b" \0"  # so that what follows begins at an even place
    inner_at = 8 + 2 + 12 * (2 if others else 1) + 4
    about_at = inner_at + 2 + 12 + 4
    comment_at = about_at + len(about)
    outer = struct.pack(">H", 1)
    if others:
        outer = struct.pack(">HHHLL", 2, DESCRIPTION, 2, len(about), about_at)
    outer += struct.pack(">HHLLL", INNER, 4, 1, inner_at, 0)
    inner = struct.pack(">HHHLLL", 1, COMMENT, 7, len(user_comment), comment_at, 0)
    return b"Exif\0\0MM\0*\0\0\0\x08" + outer + inner + about + user_comment
