"""The pictures: a landscape under a grainy sky, its colours from the prompt, with SIMULATED in it.

Every byte follows from a digest: the same digest gives the same picture, another digest another one
everywhere. The grain makes a PNG weigh what a real picture's does, about 1.8 bytes a pixel.
"""

import colorsys
import functools
import hashlib
import math
import random
from dataclasses import dataclass

from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

WORD = "SIMULATED"
_GRAIN = 13
_SHAPES_AT = 256
_ROOM_FOR_CAPTION = 192
# The font that Pillow brings has glyphs up to here.
_LAST_LATIN = "\u024f"


@dataclass(frozen=True)
class Scene:
    """What is drawn: a mood (colours and hills), a digest (the grain), and words to show."""

    mood: str
    digest: str
    caption: str


def paint(scene: Scene, size: tuple[int, int], *, clarity: float = 1.0) -> Image.Image:
    """Return the picture of `scene`, RGB, without words.

    `clarity` below 1 leaves noise in it, as an interrupted job does; 0 is nothing but noise.
    """
    picture = _shapes(scene, size)
    width, height = size
    noise = Image.frombytes("RGB", size, random.Random(scene.digest).randbytes(width * height * 3))
    if clarity < 1:
        picture = Image.blend(noise, picture, max(clarity, 0.0))
    grain = noise.point([value * _GRAIN // 256 for value in range(256)] * 3)
    return ImageChops.add(picture, grain, offset=-_GRAIN // 2)


def _shapes(scene: Scene, size: tuple[int, int]) -> Image.Image:
    """Return sky, sun and hills, drawn small and enlarged, which also softens them."""
    mood = random.Random(scene.mood)
    place = random.Random(scene.digest)
    width, height = size
    scale = min(1.0, _SHAPES_AT / max(size))
    small = (max(8, round(width * scale)), max(8, round(height * scale)))
    hue = mood.random()
    top = _colour(hue, 0.55, 0.45 + 0.3 * mood.random())
    horizon = _colour(hue + 0.08 + 0.1 * mood.random(), 0.35, 0.95)
    ramp = Image.linear_gradient("L").resize(small)
    picture = Image.composite(Image.new("RGB", small, horizon), Image.new("RGB", small, top), ramp)
    pen = ImageDraw.Draw(picture)
    _draw_sun(pen, small, place, _colour(hue + 0.12, 0.15, 1.0))
    layers = 4
    for layer in range(layers):
        depth = (layer + 1) / layers
        colour = _colour(hue + 0.35 + 0.05 * mood.random(), 0.25 + 0.4 * depth, 0.8 - 0.6 * depth)
        pen.polygon(_hills(small, place, 0.45 + 0.14 * layer), fill=colour)
    soft = picture.filter(ImageFilter.GaussianBlur(max(small) / 160))
    return soft.resize(size, Image.Resampling.BICUBIC)


def _draw_sun(
    pen: ImageDraw.ImageDraw,
    size: tuple[int, int],
    place: random.Random,
    colour: tuple[int, int, int],
) -> None:
    width, height = size
    radius = max(2.0, min(size) * (0.05 + 0.06 * place.random()))
    x = width * (0.15 + 0.7 * place.random())
    y = height * (0.15 + 0.25 * place.random())
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


def _hills(size: tuple[int, int], place: random.Random, level: float) -> list[tuple[float, float]]:
    """Return the outline of a range of hills whose crest lies at `level` of the height."""
    width, height = size
    waves = [(place.uniform(0.5, 3.5) * (n + 1), place.random(), 0.07 / (n + 1)) for n in range(4)]
    crest = []
    for step in range(65):
        x = step / 64
        rise = sum(
            depth * math.sin(2 * math.pi * (times * x + phase)) for times, phase, depth in waves
        )
        crest.append((x * width, (level + rise) * height))
    return [(0, height), *crest, (width, height)]


def _colour(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, saturation, min(value, 1.0))
    return round(red * 255), round(green * 255), round(blue * 255)


def sign(picture: Image.Image, caption: str) -> None:
    """Write SIMULATED into the picture, large enough to be read, and `caption` below it if it fits."""
    width, height = picture.size
    pen = ImageDraw.Draw(picture)
    word_size = max(6, min(width // (6 if width < _ROOM_FOR_CAPTION else 9), height // 3, 72))
    font = _font(word_size)
    box = pen.textbbox((0, 0), WORD, font=font)
    while box[2] > width and word_size > 4:
        word_size -= 1
        font = _font(word_size)
        box = pen.textbbox((0, 0), WORD, font=font)
    small = _font(max(9, word_size // 3))
    shown = (
        _fitting(pen, caption, small, width - 2 * word_size // 2)
        if width >= _ROOM_FOR_CAPTION
        else ""
    )
    bottom = height - (max(9, word_size // 3) * 2 if shown else 2)
    at = (max(0, (width - box[2]) // 2), max(0, bottom - box[3]))
    pen.text(
        at, WORD, font=font, fill="white", stroke_width=max(1, word_size // 24), stroke_fill="black"
    )
    if shown:
        under = (at[0], bottom + 1)
        pen.text(under, shown, font=small, fill="white", stroke_width=1, stroke_fill="black")


def _fitting(
    pen: ImageDraw.ImageDraw,
    text: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    width: int,
) -> str:
    """Return as much of the first line of `text` as `width` takes."""
    shown = (char if char.isprintable() and char <= _LAST_LATIN else " " for char in text[:120])
    line = " ".join("".join(shown).split())
    while line and pen.textlength(line, font=font) > width:
        line = line[:-1]
    return line


@functools.lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def digest(*parts: object) -> str:
    """Return a digest of what decides a picture's content."""
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass")).hexdigest()
