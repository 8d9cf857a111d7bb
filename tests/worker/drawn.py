"""Pictures as A1111 answers them, and what is in them."""

import io
from collections.abc import Mapping

from PIL import Image
from PIL.PngImagePlugin import PngImageFile, PngInfo

SMALL = (16, 8)


def png(picture: Image.Image, chunks: Mapping[str, str] | None = None) -> bytes:
    """Return a picture as A1111 answers it."""
    info = PngInfo()
    for key, text in (chunks or {}).items():
        info.add_text(key, text)
    return saved(picture, "PNG", pnginfo=info)


def saved(picture: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def noise(size: tuple[int, int] = SMALL, mode: str = "RGB") -> Image.Image:
    bands = [Image.effect_noise(size, 90) for _ in Image.new(mode, (1, 1)).getbands()]
    return Image.merge(mode, bands)


def opened(data: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(data))
    picture.load()
    return picture


def chunks_of(data: bytes) -> dict[str, str]:
    picture = opened(data)
    assert isinstance(picture, PngImageFile)
    return dict(picture.text)


def same_pixels(one: Image.Image, other: Image.Image) -> bool:
    return one.mode == other.mode and one.tobytes() == other.tobytes()
