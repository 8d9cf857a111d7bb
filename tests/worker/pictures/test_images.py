import base64
import io
from typing import Any

import piexif
import pytest
from PIL import Image

from schemas.errors import InvalidInputError
from schemas.job import Img2Img
from schemas.settings import JobSettings
from tests.parsing import parse
from worker.pictures.images import checked, image, texts


def encoded(kind: str = "PNG", size: tuple[int, int] = (16, 8)) -> str:
    buffer = io.BytesIO()
    Image.effect_noise(size, 50).save(buffer, kind)
    return base64.b64encode(buffer.getvalue()).decode()


def damaged(text: str) -> str:
    """Return a picture with one bit turned in the middle of its file."""
    data = bytearray(base64.b64decode(text))
    data[len(data) // 2] ^= 1
    return base64.b64encode(data).decode()


PICTURE = encoded()


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(PICTURE, id="plain"),
        pytest.param("data:image/png;base64," + PICTURE, id="data URI"),
        pytest.param(
            "\n".join(PICTURE[i : i + 60] for i in range(0, len(PICTURE), 60)), id="lines"
        ),
        pytest.param(PICTURE.rstrip("="), id="no padding"),
    ],
)
def test_a_picture_becomes_plain_base64(text: str) -> None:
    assert image(text, "mask", 1000) == PICTURE


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "GIF", "BMP"])
def test_the_usual_formats_are_read(kind: str) -> None:
    assert image(encoded(kind), "mask", 1000)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("garbage", id="garbage"),
        pytest.param(base64.b64encode(b"<html>").decode(), id="a page"),
        pytest.param(PICTURE[: len(PICTURE) // 2], id="cut off"),
        pytest.param(damaged(encoded(size=(64, 64))), id="damaged"),
        pytest.param("data:image/png;base64", id="data URI without data"),
        pytest.param("https://host/x.png", id="URL"),
        pytest.param("HTTP://169.254.169.254/", id="private URL"),
        pytest.param("/etc/passwd", id="path"),
        pytest.param("ünïcode", id="not ASCII"),
    ],
)
def test_what_is_no_picture_is_refused_by_its_field(text: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        image(text, "init_images[0]", 1000)

    assert caught.value.details["field"] == "init_images[0]"


def test_a_picture_beyond_the_limit_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(InvalidInputError, match="20000 x 20000"):
        image(bomb(20_000, 20_000), "mask", 1_000_000)


def bomb(width: int, height: int) -> str:
    """A PNG of a few kilobytes that claims to be huge."""
    buffer = io.BytesIO()
    Image.new("1", (width, height)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def test_every_image_field_is_looked_at() -> None:
    fields: dict[str, Any] = {
        "init_images": [f"data:image/png;base64,{PICTURE}"],
        "mask": f" {PICTURE}",
        "latent_mask": PICTURE,
        "firstpass_image": PICTURE,
    }
    job = parse(fields, JobSettings()).job
    assert isinstance(job, Img2Img)

    assert checked(job, 1000) == {
        "init_images": [PICTURE],
        "mask": PICTURE,
        "latent_mask": PICTURE,
        "firstpass_image": PICTURE,
    }


@pytest.mark.parametrize(
    ("comment", "text"),
    [
        pytest.param(b"UNICODE\0" + "猫 😀".encode("utf-16-be"), "猫 😀", id="as A1111"),
        pytest.param(b"UNICODE\0\xd8\x3d\0a", "\ufffda", id="half a character"),
        pytest.param(b"ASCII\0\0\0a cat", "a cat", id="ASCII"),
        pytest.param(b"JIS\0\0\0\0\0" + "猫".encode("shift_jis"), "猫", id="JIS"),
        pytest.param("a café".encode(), "a café", id="no code"),
    ],
)
def test_a_comment_is_read_as_a1111_reads_it(comment: bytes, text: str) -> None:
    exif = piexif.dump({"Exif": {piexif.ExifIFD.UserComment: comment}})
    for kind in ("JPEG", "WEBP", "AVIF"):
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8)).save(buffer, kind, exif=exif)

        assert text in texts(base64.b64encode(buffer.getvalue()).decode())


def test_what_is_no_picture_has_no_texts() -> None:
    assert texts(PICTURE[:50]) == []
