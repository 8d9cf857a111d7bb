import base64
import io
import json
import re
import resource
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from worker.local import album
from worker.local.keeper import keep

NOW = datetime(2026, 11, 21, 18, 30, tzinfo=UTC)


def picture(kind: str = "PNG", size: tuple[int, int] = (8, 6)) -> str:
    file = io.BytesIO()
    Image.new("RGB", size, "teal").save(file, kind)
    return base64.b64encode(file.getvalue()).decode()


def generation(*kinds: str, images: list[str] | None = None, **changes: Any) -> dict[str, Any]:
    seeds = list(range(42, 42 + kinds.count("picture")))
    info = {
        "all_prompts": [f"a cat {seed}" for seed in seeds],
        "infotexts": [f"infotext {index}" for index in range(len(kinds))],
        "sd_model_name": "deliberate_v6",
    }
    return {
        "images": images or [picture() for _ in kinds],
        "image_kinds": list(kinds),
        "seed": 42,
        "seeds": seeds,
        "info": json.dumps(info),
        **changes,
    }


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_pictures_and_json_become_files_named_by_time_and_seed(tmp_path: Path) -> None:
    answer = generation("picture", "picture")

    run = keep(answer, tmp_path / "a" / "output", NOW)

    folder = tmp_path / "a" / "output"
    stem = "20261121-183000"
    assert names(folder) == [f"{stem}-42.json", f"{stem}-42.png", f"{stem}-43.png"]
    assert (folder / f"{stem}-42.png").read_bytes() == base64.b64decode(answer["images"][0])
    assert run.answer == {**answer, "images": [f"{stem}-42.png", f"{stem}-43.png"]}
    assert album.runs(folder) == [run]
    assert run.pictures[1] == album.Picture(
        place=f"{stem}-43.png",
        what="picture",
        width=8,
        height=6,
        bytes=len(base64.b64decode(answer["images"][1])),
        seed=43,
        model="deliberate_v6",
        prompt="a cat 43",
        infotext="infotext 1",
    )


def test_what_is_no_sample_has_no_seed_and_goes_with_its_sample(tmp_path: Path) -> None:
    kinds = ("grid", "picture", "mask", "picture", "mask", "detect_map")

    run = keep(generation(*kinds), tmp_path, NOW)

    assert [(each.what, each.seed, each.prompt, each.infotext) for each in run.pictures] == [
        ("grid", None, "a cat 42", "infotext 0"),
        ("picture", 42, "a cat 42", "infotext 1"),
        ("mask", None, "a cat 42", ""),
        ("picture", 43, "a cat 43", "infotext 2"),
        ("mask", None, "a cat 43", ""),
        ("detect_map", None, "a cat 43", ""),
    ]
    assert {each.place for each in run.pictures} >= {
        "20261121-183000-42-grid.png",
        "20261121-183000-42-mask-2.png",
        "20261121-183000-42-detect_map.png",
    }


@pytest.mark.parametrize(
    ("kind", "suffix"), [("PNG", "png"), ("JPEG", "jpg"), ("WEBP", "webp"), ("AVIF", "avif")]
)
def test_a_file_is_named_by_what_it_is(tmp_path: Path, kind: str, suffix: str) -> None:
    run = keep(generation("picture", images=[picture(kind)]), tmp_path, NOW)

    assert run.pictures[0].place == f"20261121-183000-42.{suffix}"


def test_a_file_that_is_there_is_never_overwritten_nor_is_a_link_followed(tmp_path: Path) -> None:
    (tmp_path / "20261121-183000-42.png").write_text("mine")
    (tmp_path / "20261121-183000-42-2.png").symlink_to(tmp_path / "elsewhere.png")

    run = keep(generation("picture"), tmp_path, NOW)

    assert run.pictures[0].place == "20261121-183000-42-3.png"
    assert (tmp_path / "20261121-183000-42.png").read_text() == "mine"
    assert not (tmp_path / "elsewhere.png").exists()


def test_runs_at_once_with_one_seed_keep_all_of_their_pictures(tmp_path: Path) -> None:
    answers = [generation("picture", images=[picture(size=(8, side))]) for side in range(1, 17)]
    threads = [threading.Thread(target=keep, args=(each, tmp_path, NOW)) for each in answers]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    found = album.runs(tmp_path)
    assert len(found) == 16
    for run in found:
        with Image.open(tmp_path / run.pictures[0].place) as kept:
            assert kept.height == run.pictures[0].height


def test_nothing_of_a_callers_becomes_a_path(tmp_path: Path) -> None:
    folder = tmp_path / "output"
    evil = {"id": "../../x", "image_kinds": ["../../etc", 7], "seed": "../42", "seeds": ["../1", 2]}
    answer = generation("picture", images=[picture(), picture()], **evil)

    keep({**answer, "../../key": {"../..": picture()}}, folder, NOW)

    assert names(tmp_path) == ["output"]
    assert all(re.fullmatch(r"20261121-183000(-\w+)*\.(png|json)", name) for name in names(folder))


def test_pictures_of_another_answer_are_files_too_however_deep(tmp_path: Path) -> None:
    answer = {
        "html_info": "<p>",
        "image": picture(),
        "more": [{"preview": f"data:image/jpeg;base64,{picture('JPEG')}"}],
    }

    run = keep(answer, tmp_path, NOW)

    assert run.answer == {
        "html_info": "<p>",
        "image": "20261121-183000.png",
        "more": [{"preview": "20261121-183000-preview.jpg"}],
    }
    assert [each.what for each in run.pictures] == ["picture", "preview"]
    assert run.file == "20261121-183000.json"


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(None, id="null"),
        pytest.param([{"name": "Euler", "hash": "ab" * 32}], id="a digest"),
        pytest.param("a" * 100, id="letters"),
        pytest.param("a" * 101, id="letters that are no base64"),
        pytest.param({"error": None, "image": ""}, id="an empty image"),
        pytest.param({"images": ["not base64!"]}, id="no picture"),
    ],
)
def test_an_answer_without_pictures_leaves_nothing_and_is_unchanged(
    tmp_path: Path, answer: Any
) -> None:
    run = keep(answer, tmp_path / "output", NOW)

    assert run.answer == answer
    assert run.file == ""
    assert not (tmp_path / "output").exists()


def test_what_was_to_be_a_picture_is_kept_though_it_is_none(tmp_path: Path) -> None:
    data = bytes(range(256))

    run = keep(generation("picture", images=[base64.b64encode(data).decode()]), tmp_path, NOW)

    assert (tmp_path / "20261121-183000-42.bin").read_bytes() == data
    assert run.pictures == ()


def test_pictures_elsewhere_are_named_and_not_fetched(tmp_path: Path) -> None:
    on_volume = tmp_path / "0.png"
    on_volume.write_bytes(base64.b64decode(picture(size=(30, 20))))
    url = "https://bucket.example/o/j/0.png?X-Amz-Signature=abc"

    run = keep(generation("picture", "picture", images=[url, str(on_volume)]), tmp_path / "o", NOW)

    assert [(each.place, each.seed, each.width) for each in run.pictures] == [
        (url, 42, None),
        (str(on_volume), 43, 30),
    ]
    assert names(tmp_path / "o") == ["20261121-183000-42.json"]


def test_pictures_that_a_call_left_elsewhere_are_of_the_run_too(tmp_path: Path) -> None:
    run = keep({"image": "/runpod-volume/outputs/job/0.webp"}, tmp_path, NOW)

    assert [path.name for path in tmp_path.iterdir()] == [run.file]
    assert album.runs(tmp_path)[0].pictures[0].place == "/runpod-volume/outputs/job/0.webp"


def test_half_a_character_does_not_cost_the_picture(tmp_path: Path) -> None:
    run = keep(generation("picture", warnings=["\ud83d ok 🦊"]), tmp_path, NOW)

    assert album.runs(tmp_path) == [run]


def test_a_disk_that_is_full_leaves_no_half_of_a_run(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    answer = generation("picture", "picture", images=[picture(), picture("BMP", (100, 100))])
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            keep(answer, tmp_path, NOW)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert names(tmp_path) == []
