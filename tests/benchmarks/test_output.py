import base64
import io
import json

import pytest
from PIL import Image

from benchmarks.output import (
    FORMATS,
    OURS,
    PLAIN,
    QUICK_SIZES,
    QUICK_WAYS,
    WAYS,
    Run,
    Size,
    aims_of,
    drawn,
    rows_of,
)
from benchmarks.plain_worker import encoded
from tests.benchmarks.quick import figures

SIZE = Size(2, 256)
RUNS = {
    PLAIN: [Run(0.10, 0.08, 4_000_000, 1_000_000, 1_000_100)],
    OURS: [Run(0.11, 0.07, 2_500_000, 1_000_000, 1_000_300)],
    "worker: webp": [Run(0.30, 0.40, 5_000_000, 1_000_000, 200_000)],
}


def test_each_way_has_a_row_beside_the_plain_way() -> None:
    rows = rows_of(SIZE, RUNS)

    assert [row["p50_ratio"] for row in rows] == [1.0, 1.1, 3.0]
    assert rows[1] == {
        "what": f"2 x 256, {OURS}",
        "runs": 1,
        "p50_ms": 110.0,
        "p99_ms": 110.0,
        "p50_ratio": 1.1,
        "cpu_p50_ms": 70,
        "answer_mb": 1.0,
        "result_mb": 1.0,
        "peak_mb": 2.5,
        "peak_ratio": 2.5,
    }


def test_the_aims_are_of_the_time_as_it_is_and_of_the_memory_of_every_way_of_ours() -> None:
    aims = [aim.as_json() for aim in aims_of(SIZE, RUNS)]

    assert [(aim["value"], aim["limit"], aim["holds"]) for aim in aims] == [
        (1.1, 1.2, True),
        (2.5, 3.0, True),
        (5.0, 3.0, False),
    ]


def test_every_format_is_made_by_us_and_by_pillow_alone() -> None:
    for kind in FORMATS:
        assert any(way.output and way.output.get("format") == kind for way in WAYS)
        assert any(way.format == kind for way in WAYS)


def test_the_pictures_weigh_what_real_ones_do() -> None:
    pictures = [base64.b64decode(image) for image in json.loads(b"[" + drawn(SIZE) + b"]")]

    assert len(pictures) == SIZE.images
    for picture in pictures:
        assert 1.2 < len(picture) / SIZE.side_px**2 < 1.8
        with Image.open(io.BytesIO(picture)) as opened:
            assert opened.info["parameters"].startswith("a lighthouse")


@pytest.mark.parametrize("kind", FORMATS)
def test_the_plain_handler_encodes_too(kind: str) -> None:
    [image] = json.loads(b"[" + drawn(Size(1, 32)) + b"]")

    with Image.open(io.BytesIO(base64.b64decode(encoded(image, kind, 80)))) as opened:
        assert opened.format == kind.upper()


@pytest.mark.slow
def test_a_quick_run_ends_with_figures_of_three_ways() -> None:
    told = figures("output")

    assert [row["what"] for row in told["rows"]] == [
        f"{QUICK_SIZES[0]}, {way.name}" for way in QUICK_WAYS
    ]
    assert all(row["p99_ms"] >= row["p50_ms"] > 0 for row in told["rows"])
    assert {aim["limit"] for aim in told["aims"]} == {1.2, 3}
