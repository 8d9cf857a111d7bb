import base64
import json

import piexif
import piexif.helper
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from schemas.output import Format
from tests.conftest import ROOT
from tests.worker.drawn import SMALL, chunks_of, noise, opened, png, same_pixels, saved
from worker.pictures.encode import Target, encoded, format_of
from worker.pictures.images import texts

RECORDINGS = ROOT.parent / "shared" / "webui" / "recordings"
INFOTEXT = (
    "a cat\nNegative prompt: dog\nSteps: 2, Sampler: Euler, Seed: 1, Size: 64x64, Version: v1.10.1"
)


def read_by_a1111(data: bytes) -> str:
    """Return the infotext in EXIF as A1111 reads it: Pillow opens the picture, piexif its EXIF.

    So it reads AVIF too, of which piexif alone knows nothing.
    """
    exif = piexif.load(opened(data).info["exif"])
    return str(piexif.helper.UserComment.load(exif["Exif"][piexif.ExifIFD.UserComment]))


def written_by_a1111(picture: Image.Image, kind: str, infotext: str) -> bytes:
    text = piexif.helper.UserComment.dump(infotext, encoding="unicode")
    exif = piexif.dump({"Exif": {piexif.ExifIFD.UserComment: text}})
    return saved(picture, kind, exif=exif, quality=80)


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_pixels_and_text_are_those_that_a1111_would_write(kind: Format) -> None:
    picture = noise((64, 64))

    ours = encoded(png(picture, {"parameters": INFOTEXT}), Target(kind))
    theirs = written_by_a1111(picture, kind, INFOTEXT)

    assert same_pixels(opened(ours), opened(theirs))
    assert piexif.load(ours)["Exif"] == piexif.load(theirs)["Exif"]


@pytest.mark.parametrize("kind", ["jpeg", "webp", "avif"])
@given(text=st.text(st.characters(codec="utf-8"), min_size=1, max_size=60))
@settings(max_examples=30)
@example("猫 𝄞 émoji 😀\nSteps: 2")
@example("a\0b\nSteps: 2")
@example("prompt, " * 10_000 + "ü")
def test_the_infotext_is_read_by_a1111_and_by_us_in_every_format(kind: Format, text: str) -> None:
    if kind == "jpeg":
        text = text[:20_000]

    data = encoded(png(noise(), {"parameters": text}), Target(kind, quality=30))

    assert read_by_a1111(data) == text
    assert text in texts(base64.b64encode(data).decode())
    assert chunks_of(encoded(data, Target("png"))) == {"parameters": text}


def test_a_text_in_latin_1_is_a_plain_chunk_and_any_other_one_of_utf_8() -> None:
    for text, chunk in (("café", b"tEXtparameters\0caf\xe9"), ("猫", b"iTXtparameters\0\0\0\0\0")):
        source = written_by_a1111(noise(), "jpeg", text)
        assert chunk in encoded(source, Target("png"))


def test_half_a_character_becomes_a_question_mark() -> None:
    exif = piexif.dump({"0th": {piexif.ImageIFD.ImageDescription: rb'{"extras": "a \ud83d b"}'}})

    data = encoded(saved(noise(), "jpeg", exif=exif), Target("png"))

    assert chunks_of(data) == {"extras": "a ? b"}
    # What A1111 writes for it by itself.
    cut = written_by_a1111(noise(), "webp", "a \ud83d b")
    assert chunks_of(encoded(cut, Target("png"))) == {"parameters": "a ? b"}


@pytest.mark.parametrize("kind", ["jpeg", "webp", "avif"])
def test_the_other_chunks_go_along_and_come_back(kind: Format) -> None:
    for rest in ({}, {"parameters": INFOTEXT}, {"parameters": "猫"}):
        chunks = {"postprocessing": "Postprocess upscaler: 猫", "extras": "é" * 7, **rest}

        data = encoded(png(noise(), chunks), Target(kind))
        again = encoded(data, Target("avif" if kind == "webp" else "webp"))

        assert read_by_a1111(data) == chunks.get("parameters", "")
        assert chunks_of(encoded(data, Target("png"))) == chunks
        assert chunks_of(encoded(again, Target("png"))) == chunks


@pytest.mark.parametrize(
    "description",
    [b"Holidays", b"[1, 2]", b'{"a": 1}', b'{"\\u732b": "no key of a PNG"}', b"{" * 20_000],
)
def test_a_description_that_is_not_ours_makes_no_chunk(description: bytes) -> None:
    exif = piexif.dump({"0th": {piexif.ImageIFD.ImageDescription: description}})

    assert chunks_of(encoded(saved(noise(), "jpeg", exif=exif), Target("png"))) == {}


def test_a_picture_without_text_gets_none() -> None:
    for kind in ("jpeg", "webp", "avif"):
        assert "exif" not in opened(encoded(png(noise()), Target(kind))).info


# A JPEG holds 65,533 bytes of EXIF, 58 of which are not text.
@pytest.mark.parametrize(
    ("chunks", "is_kept", "is_told"),
    [
        pytest.param({"parameters": "ü" * 32_737}, True, False, id="UTF-16"),
        pytest.param({"parameters": "ü" * 32_738}, False, True, id="UTF-16, too long"),
        pytest.param({"parameters": "x" * 65_475}, True, False, id="ASCII"),
        pytest.param({"parameters": "x" * 65_476}, False, True, id="ASCII, too long"),
        pytest.param({"parameters": "x", "other": "y" * 70_000}, True, True, id="another chunk"),
    ],
)
def test_a_text_too_long_for_a_jpeg_costs_the_text_and_not_the_picture(
    chunks: dict[str, str], *, is_kept: bool, is_told: bool
) -> None:
    told: list[str] = []

    data = encoded(png(noise(), chunks), Target("jpeg"), told.append)

    assert opened(data).size == SMALL
    assert ("exif" in opened(data).info) is is_kept
    if is_kept:
        assert read_by_a1111(data) == chunks["parameters"]
    assert [note.startswith("Image 0: a JPEG cannot hold all of its text") for note in told] == (
        [True] if is_told else []
    )


@pytest.mark.skipif(not RECORDINGS.is_dir(), reason="no recordings beside this checkout")
@pytest.mark.parametrize("name", ["txt2img_jpg", "txt2img_webp"])
def test_what_a1111_wrote_is_read_and_written_as_it_was(name: str) -> None:
    answer = json.loads((RECORDINGS / f"{name}.json").read_text())["response"]
    data = base64.b64decode(answer["images"][0])
    infotext = json.loads(answer["info"])["infotexts"][0]
    held = format_of(data)
    assert held is not None

    assert infotext in texts(answer["images"][0])
    as_png = encoded(data, Target("png"))
    assert chunks_of(as_png) == {"parameters": infotext}
    again = encoded(as_png, Target(held))
    assert piexif.load(again)["Exif"] == piexif.load(data)["Exif"]
    # The quality; none where a format has no such tables.
    tables = [getattr(opened(each), "quantization", None) for each in (again, data)]
    assert tables[0] == tables[1]
