import threading
from contextvars import copy_context
from threading import Event
from typing import get_args

import pytest
from PIL import Image, ImageChops, ImageCms

from schemas.errors import BackendFailedError, JobCancelledError
from schemas.output import Format
from tests.worker.drawn import SMALL, noise, opened, png, same_pixels, saved
from worker.log import logs
from worker.pictures.encode import CONTENT_TYPES, SUFFIXES, Target, all_encoded, encoded, format_of

FORMATS: tuple[Format, ...] = get_args(Format)
LOSSLESS = Target("webp", lossless=True)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_picture_gets_the_format_that_is_asked_for(kind: Format) -> None:
    told: list[str] = []

    for source in FORMATS:
        data = encoded(saved(noise(), source), Target(kind), told.append)

        assert format_of(data) == kind
        assert opened(data).size == SMALL
        assert Image.MIME[kind.upper()] == CONTENT_TYPES[kind]
    assert Image.registered_extensions()["." + SUFFIXES[kind]] == kind.upper()
    assert told == []


@pytest.mark.parametrize("kind", FORMATS)
def test_what_is_so_already_keeps_its_bytes(kind: Format) -> None:
    data = saved(noise(), kind)

    assert encoded(data, Target(kind)) is data


@pytest.mark.parametrize("kind", ["jpeg", "webp", "avif"])
def test_a_quality_that_is_asked_for_changes_the_size(kind: Format) -> None:
    source = png(noise((64, 64)))
    sizes = [len(encoded(source, Target(kind, quality))) for quality in (20, 60, None, 95)]

    assert sizes == sorted(sizes)
    assert len(encoded(encoded(source, Target(kind, 95)), Target(kind, 20))) < sizes[1]


def test_a_quality_does_not_concern_png() -> None:
    data = png(noise())

    assert encoded(data, Target("png", quality=5, lossless=True)) is data


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1"])
def test_lossless_webp_has_every_pixel(mode: str) -> None:
    plain = noise(mode="RGB" if mode == "P" else "L" if mode == "1" else mode)
    source = plain.quantize(7) if mode == "P" else plain.convert(mode)
    told: list[str] = []

    data = encoded(png(source), LOSSLESS, told.append)

    kept = opened(data)
    assert same_pixels(kept, source.convert(kept.mode))
    assert (kept.mode == "RGBA") is source.has_transparency_data
    assert told == []


def test_lossless_webp_is_smaller_than_png() -> None:
    source = png(Image.linear_gradient("L").convert("RGB"))

    assert len(encoded(source, LOSSLESS)) < len(source)


@pytest.mark.parametrize("kind", ["webp", "avif"])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_transparency_is_kept_where_there_is_one(mode: str, kind: Format) -> None:
    picture = Image.new(mode, SMALL) if mode in {"RGBA", "LA"} else Image.new(mode, SMALL, 0)
    if mode in {"RGBA", "LA"}:
        source = png(picture)
    else:
        source = saved(picture, "PNG", transparency=0 if mode == "P" else (0, 0, 0))

    kept = opened(encoded(source, Target(kind)))

    assert kept.mode == "RGBA"
    assert kept.getchannel("A").getextrema() == (0, 0)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_a_jpeg_shows_the_colour_of_what_was_transparent_as_a1111_does(mode: str) -> None:
    told: list[str] = []
    if mode == "P":
        picture = Image.new("P", SMALL, 1)
        picture.putpalette(bytes(3) + b"\xc8" * 3)
        source = saved(picture, "PNG", transparency=b"\x80\0")
    else:
        source = png(Image.new(mode, SMALL, (200, 200, 200, 0) if mode == "RGBA" else (200, 0)))

    data = encoded(source, Target("jpeg"), told.append)

    assert set(opened(data).convert("RGB").get_flattened_data()) == {(200, 200, 200)}
    assert told == ["Image 0: its transparency is lost; JPEG has none."]


@pytest.mark.parametrize("kind", ["jpeg", "webp", "avif"])
def test_sixteen_bits_become_eight_as_a1111_does_it(kind: Format) -> None:
    told: list[str] = []
    values = (0, 32_768, 65_280, 65_535)
    row = b"".join(value.to_bytes(2, "little") * 16 for value in values)
    picture = Image.frombytes("I;16", (64, 16), row * 16)
    source = saved(picture, "PNG", transparency=0)

    kept = opened(encoded(source, Target(kind, quality=100), told.append)).convert("L")

    shown = [kept.getpixel((16 * index + 8, 8)) for index in range(4)]
    near = 0 if kind == "jpeg" else 1
    assert shown == pytest.approx([value * 255 // 65_535 for value in values], abs=near)
    assert told == ["Image 0: of its 16 bits per channel 8 are left."]


def test_sixteen_bits_stay_a_png_where_nothing_may_be_lost() -> None:
    told: list[str] = []
    source = png(Image.new("I;16", SMALL, 300))

    assert encoded(source, LOSSLESS, told.append) is source
    assert encoded(source, Target("png")) is source
    assert len(told) == 1
    assert told[0].endswith("It was left as it was, as png.")


def test_a_cmyk_jpeg_becomes_any_other() -> None:
    source = saved(Image.new("CMYK", SMALL, (0, 255, 255, 0)), "jpeg")

    for kind in ("png", "webp", "avif"):
        kept = opened(encoded(source, Target(kind)))
        assert kept.mode == "RGB"
        difference = ImageChops.difference(kept, opened(source).convert("RGB"))
        assert max(difference.tobytes()) <= 8


@pytest.mark.parametrize("kind", FORMATS)
def test_a_colour_profile_stays_where_it_is_true(kind: Format) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    held: Format = "webp" if kind == "png" else "png"
    in_colour = saved(noise(), held, icc_profile=profile)
    # A profile of gray tones describes no colours.
    in_gray = saved(noise(mode="L"), "png", icc_profile=profile)

    assert opened(encoded(in_colour, Target(kind))).info["icc_profile"] == profile
    assert ("icc_profile" in opened(encoded(in_gray, Target(kind))).info) is (kind != "webp")
    for picture in (noise(mode="RGBA"), noise().quantize(4)):
        source = saved(picture, "png", icc_profile=profile)
        assert opened(encoded(source, Target(kind))).info["icc_profile"] == profile


@pytest.mark.parametrize(
    ("kind", "most_px"), [("jpeg", 65_500), ("webp", 16_383), ("avif", 32_768)]
)
def test_a_picture_too_long_for_a_format_is_left_as_it_was(kind: Format, most_px: int) -> None:
    told: list[str] = []
    fits, too_long = (png(Image.new("L", size)) for size in ((most_px, 1), (1, most_px + 1)))

    assert opened(encoded(fits, Target(kind), told.append)).size == (most_px, 1)
    assert told == []
    assert encoded(too_long, Target(kind), told.append) is too_long
    assert f"{most_px + 1} pixels, and {kind} takes {most_px}" in told[0]


@pytest.mark.parametrize("kind", FORMATS)
def test_one_pixel_is_a_picture(kind: Format) -> None:
    assert opened(encoded(png(Image.new("RGB", (1, 1))), Target(kind))).size == (1, 1)


def test_what_moves_is_left_as_it_was() -> None:
    told: list[str] = []
    frames = [noise() for _ in range(3)]

    for kind, wanted in (("PNG", Target("webp")), ("WEBP", Target("png")), ("AVIF", LOSSLESS)):
        source = saved(frames[0], kind, save_all=True, append_images=frames[1:])
        assert encoded(source, wanted, told.append) is source
    assert len(told) == 3


BROKEN_ONES = [
    pytest.param(b"", id="nothing"),
    pytest.param(b"<html>", id="a page"),
    pytest.param(b"\x89PNG\r\n\x1a\nIEND\xaeB`\x82", id="no header"),
    *(pytest.param(saved(noise(), kind)[:-90], id=f"half a {kind}") for kind in FORMATS),
    pytest.param(png(noise()).replace(b"IDAT", b"IDAX"), id="no pixels"),
    pytest.param(
        b"".join(png(noise()).partition(b"IDAT")[:2]) + b"\xff" * 90 + png(noise())[-90:],
        id="wrong pixels",
    ),
]


@pytest.mark.parametrize("broken", BROKEN_ONES)
def test_a_broken_picture_is_an_error_that_says_which(broken: bytes) -> None:
    for target in (Target("jpeg"), LOSSLESS):
        with pytest.raises(BackendFailedError, match="Image 1 of") as caught:
            all_encoded([png(noise()), broken, png(noise())], target, Event())
        assert caught.value.details == {"image": 1}


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_a_picture_that_needs_no_change_is_looked_at_for_its_end(kind: Format) -> None:
    with pytest.raises(BackendFailedError):
        encoded(saved(noise(), kind)[:-5], Target(kind))


def test_other_pictures_have_no_format_of_ours() -> None:
    assert [format_of(saved(noise(), kind)) for kind in ("GIF", "BMP", "TIFF")] == [None] * 3
    assert format_of(b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41") is None
    assert format_of(b"\0\0\0\x20ftypmif1\0\0\0\0mif1avifmiaf") == "avif"
    assert format_of(b"RIFF\0\0\0\0WAVE") is None


def test_several_pictures_keep_their_order_and_what_is_told_of_them() -> None:
    told: list[str] = []
    pictures = [noise((8 + index, 8), "RGBA" if index % 3 else "RGB") for index in range(7)]

    found = all_encoded([png(each) for each in pictures], Target("jpeg"), Event(), told.append)

    assert [opened(data).size for data in found] == [each.size for each in pictures]
    assert told == ["Image 1, 2, 4, 5: its transparency is lost; JPEG has none."]
    assert all_encoded([], Target("jpeg"), Event()) == []


class Looked(Event):
    """Is set after a number of looks, and counts the threads that encode at each."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self.looks = looks
        self.threads = 0

    def is_set(self) -> bool:
        names = [thread.name for thread in threading.enumerate()]
        self.threads = max(self.threads, sum(name.startswith("encode") for name in names))
        self.looks -= 1
        return self.looks < 0


@pytest.mark.parametrize("looks", [0, 1, 4])
def test_a_job_that_is_cancelled_ends_between_two_pictures(looks: int) -> None:
    cancelled = Looked(looks)

    with pytest.raises(JobCancelledError):
        all_encoded([png(noise())] * 40, Target("webp"), cancelled)
    assert not [each for each in threading.enumerate() if each.name.startswith("encode")]


def test_whatever_is_logged_of_a_picture_has_the_id_of_its_job() -> None:
    noted: set[str] = set()

    class Noting(Event):
        def is_set(self) -> bool:
            assert threading.current_thread().name.startswith("encode")
            noted.add(logs.job_id.get())
            return False

    def job() -> None:
        logs.job_id.set("j-1")
        all_encoded([png(noise())] * 2, Target("jpeg"), Noting())

    copy_context().run(job)

    assert noted == {"j-1"}


def test_after_a_broken_picture_the_others_are_left_alone() -> None:
    looked = Looked(1000)

    with pytest.raises(BackendFailedError):
        all_encoded([b"broken", *[png(noise((128, 128)))] * 60], Target("avif"), looked)
    assert looked.looks > 1000 - 61


def test_pictures_that_need_much_memory_wait_for_each_other() -> None:
    looked = Looked(100)
    # 35 bytes a pixel while it is encoded: two of them are beyond what is free for all.
    large = png(Image.new("RGB", (1600, 1000)))

    all_encoded([large] * 4, LOSSLESS, looked)

    assert looked.threads == 1
