"""`python -m worker validate`: what a request means, and what is wrong with it, without asking anybody."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.worker.calling import picture
from worker.__main__ import EX_CONFIG, main


@pytest.fixture
def said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Return a function that has a job read, and returns status and output."""

    def say(job: Any, *more: str) -> tuple[int, str]:
        file = tmp_path / "job.json"
        file.write_text(job if isinstance(job, str) else json.dumps(job))
        return main(["validate", str(file), *more]), capsys.readouterr().out

    return say


def test_a_request_is_shown_under_our_names_with_its_warnings(said: Any) -> None:
    status, text = said({"input": {"prompt": "a cat", "model": "night", "loras": ["ink:0.5"]}})

    assert status == 0
    assert text.splitlines() == [
        "POST /sdapi/v1/txt2img",
        '  prompt: "a cat"',
        '  checkpoint: {"kind": "checkpoint", "name": "night"}',
        '  loras: [{"kind": "lora", "name": "ink", "scale": 0.5}]',
        "warning: `model` was taken as `checkpoint`.",
    ]


@pytest.mark.parametrize(
    ("api", "payload", "shown"),
    [
        ("/sdapi/v1/samplers", None, "GET /sdapi/v1/samplers"),
        ("v1/prune", {"to_gb": 80}, "/v1/prune\n  to_gb: 80.0"),
        ("/sdapi/v1/img2img", {"init_images": [picture()]}, "POST /sdapi/v1/img2img"),
    ],
)
def test_a_call_is_shown_with_its_route(said: Any, api: str, payload: Any, shown: str) -> None:
    status, text = said({"input": {"api": {"endpoint": api}, "payload": payload}})

    assert status == 0
    assert text.startswith(shown)


@pytest.mark.parametrize(
    ("job", "fields"),
    [
        ({"input": {"steps": "x", "width": 0, "loras": [{}]}}, {"steps", "width", "loras[0]"}),
        ({"input": {"steps": 999, "batch_size": 99}}, {"steps", "batch_size"}),
        ({"input": {"init_images": ["abcd"], "mask": "eA=="}}, {"init_images[0]", "mask"}),
        ({"input": {"api": {"endpoint": "nothing"}}}, {"api.endpoint"}),
        ({"input": {"api": {"endpoint": "png-info"}, "payload": {"image": "eA=="}}}, {"image"}),
        ({"prompt": "a cat"}, {"input"}),
        ([], {"input"}),
        ("{", {"the file"}),
        ("[" * 100_000, {"the file"}),
    ],
)
def test_every_problem_is_told_with_its_field(said: Any, job: Any, fields: set[str]) -> None:
    status, text = said(job, "--json")
    told = json.loads(text)

    assert (status, told["valid"]) == (1, False)
    assert {problem["field"] for problem in told["problems"]} == fields

    lines = said(job)[1].splitlines()
    assert len(lines) == len(fields)
    assert all(any(field in line for line in lines) for field in fields)


def test_for_programs_it_is_one_object_with_everything(said: Any) -> None:
    status, text = said(
        {"input": {"prompt": "a" * 999, "tokens": {"civitai": "planted"}}}, "--json"
    )

    assert status == 0
    assert json.loads(text) == {
        "valid": True,
        "calls": "POST /sdapi/v1/txt2img",
        "means": {"prompt": "a" * 999, "tokens": {"civitai": "**********"}},
        "warnings": [],
    }


def test_for_people_a_long_value_is_cut(said: Any) -> None:
    _, text = said({"input": {"prompt": "a" * 999}})

    assert len(text) < 300
    assert "… and 801 characters" in text


def test_a_picture_by_url_is_left_alone(said: Any) -> None:
    assert said({"input": {"init_images": ["https://example.org/x.png"]}})[0] == 0


def test_the_limits_are_those_of_the_settings(
    said: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("A1111_JOB_MAX_STEPS", "10")
    assert said({"input": {"steps": 11}})[0] == 1

    monkeypatch.setenv("A1111_JOB_MAX_STEPS", "many")
    assert main(["validate", "-"]) == EX_CONFIG
    assert "A1111_JOB_MAX_STEPS" in capsys.readouterr().err


def test_a_file_that_is_not_there_is_said_and_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["validate", str(tmp_path / "none.json")]) == 1
    assert "none.json" in capsys.readouterr().err


@pytest.mark.slow
def test_the_request_of_make_run_is_read_from_standard_input() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "worker", "validate", "-"],
        cwd=ROOT,
        input=(ROOT / "test_input.json").read_text(),
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("POST /sdapi/v1/txt2img\n")
