import json
import re
import resource
import tempfile
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import InvalidInputError
from tests.worker.local.test_keeper import generation, picture
from worker.local.saving import given, told

FAILURE = {
    "error": "INVALID_INPUT: `steps` is wrong.\nMend \x1b[2Jit.",
    "code": "INVALID_INPUT",
    "retryable": False,
    "details": {"field": "steps"},
}


def test_the_job_of_an_argument_has_an_id_of_its_own() -> None:
    first, second = (given('{"input": {"prompt": "x"}, "webhook": 1}') for _ in range(2))

    assert first["input"] == {"prompt": "x"}
    assert first["webhook"] == 1
    assert re.fullmatch(r"local-\d{8}-\d{6}-[0-9a-f]{4}", first["id"])
    assert first["id"] != second["id"]
    assert given('{"id": "mine", "input": {}}')["id"] == "mine"


def test_a_file_that_an_editor_marked_as_utf_8_is_a_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("test_input.json").write_text('{"input": {"prompt": "é"}}', encoding="utf-8-sig")

    assert given(None)["input"] == {"prompt": "é"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("{bad", "--test_input is not JSON: ", id="no JSON"),
        pytest.param("[" * 100_000, "--test_input is not JSON: ", id="too deep"),
        pytest.param("[1]", "--test_input must be a job: ", id="a list"),
        pytest.param('{"prompt": "x"}', "--test_input must be a job: ", id="no input"),
        pytest.param('{"input": null}', "--test_input must be a job: ", id="null"),
        pytest.param(None, r"There is no job: \./test_input\.json: No such file", id="no file"),
    ],
)
def test_what_is_no_job_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, words: str
) -> None:
    monkeypatch.chdir(tmp_path)

    with pytest.raises(InvalidInputError, match=words):
        given(text)


@pytest.mark.parametrize("content", [b"\xff\xfe{", b""])
def test_a_file_that_is_no_text_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("test_input.json").write_bytes(content)

    with pytest.raises(InvalidInputError, match=r"\./test_input\.json is not JSON: "):
        given(None)


def test_a_generation_is_a_table_and_never_base64(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = generation(
        "picture", "detect_map", timings={"total_s": 6.04}, warnings=["mind \x1b[2J the gap"]
    )

    assert told(answer, tmp_path / "o", {}) == 0

    out, err = capsys.readouterr()
    lines = re.sub(r"\d{8}-\d{6}", "TIME", out.replace(str(tmp_path), "")).splitlines()
    assert lines == [
        "what        size   seed  model          time   file",
        "picture     8 x 6  42    deliberate_v6  6.0 s  /o/TIME-42.png",
        "detect_map  8 x 6        deliberate_v6  6.0 s  /o/TIME-42-detect_map.png",
        "answer: /o/TIME-42.json",
    ]
    assert err == f"warning: mind \\x1b[2J the gap\ngallery: {tmp_path}/o/index.html\n"


def test_in_a_terminal_that_can_paths_are_links(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told(generation("picture"), tmp_path, {"FORCE_HYPERLINK": "1"}) == 0

    out, err = capsys.readouterr()
    links = re.findall(r"\x1b]8;;file://[^/]+(/\S+)\x1b\\(\S+)\x1b]8;;\x1b\\", out + err)
    assert [Path(path).suffix for path, _ in links] == [".png", ".json", ".html"]
    assert all(path == text and Path(path).is_file() for path, text in links)


@pytest.mark.parametrize("answer", [None, [], "text", True, {}, {"models": [{"name": "é"}]}])
def test_another_answer_is_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], answer: Any
) -> None:
    assert told(answer, tmp_path / "o", {}) == 0

    out, err = capsys.readouterr()
    assert json.loads(out) == answer
    assert err == ""
    assert not (tmp_path / "o").exists()


def test_pictures_of_another_answer_are_files_and_stdout_is_still_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told({"html_info": "<p>", "image": picture()}, tmp_path, {}) == 0

    out, err = capsys.readouterr()
    [file] = tmp_path.glob("*.png")
    assert json.loads(out) == {"html_info": "<p>", "image": file.name}
    assert f"picture  8 x 6  {file}\n" in err


def test_a_generation_that_sends_no_pictures_is_said_to_have_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told(generation(), tmp_path, {}) == 0

    assert capsys.readouterr().out.startswith("no pictures\nanswer: ")


def test_an_error_is_told_for_people_and_is_the_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told(FAILURE, tmp_path / "o", {}) == 1

    out, err = capsys.readouterr()
    assert out == ""
    assert "INVALID_INPUT: `steps` is wrong.\nMend \\x1b[2Jit.\n" in err
    assert '"field": "steps"' in err


def test_what_the_folder_does_not_take_is_kept_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    refuge = tmp_path / "tmp"
    refuge.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(refuge))
    (tmp_path / "output").write_text("a file where the folder should be")

    assert told(generation("picture"), tmp_path / "output", {}) == 1

    out, err = capsys.readouterr()
    [kept] = refuge.glob("*/*.png")
    assert f"{tmp_path}/output cannot be written: File exists." in err
    assert f"What was made is in {kept.parent} instead." in err
    assert str(kept) in out


def test_what_no_disk_takes_is_told_with_its_seeds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    answer = generation("picture")
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        code = told(answer, tmp_path / "output", {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert code == 1
    out, err = capsys.readouterr()
    assert "output cannot be written: File too large." in err
    assert "The pictures are lost" in err
    assert json.loads(out)["seeds"] == [42]
    assert answer["images"][0] not in out


def test_a_page_of_somebody_elses_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "index.html"
    page.write_text("<h1>mine</h1>")

    assert told(generation("picture"), tmp_path, {}) == 0

    assert page.read_text() == "<h1>mine</h1>"
    assert f"{page} is somebody else's." in capsys.readouterr().err


def test_a_page_that_cannot_be_written_costs_no_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "index.html").mkdir()

    assert told(generation("picture"), tmp_path, {}) == 0

    assert "The gallery was not written: Is a directory." in capsys.readouterr().err
    assert len(list(tmp_path.glob("*.png"))) == 1
    assert not list(tmp_path.glob(".*"))
