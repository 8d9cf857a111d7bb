"""Log lines: always one object, never too long, whatever is said."""

import json
import logging
import operator
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.log import logs, redact
from worker.log.logs import MAX_CHARS

SIGNED = "https://host/file.safetensors?token=s3cr3t&X-Amz-Signature=abc"
log = logging.getLogger("x")


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    redact.learn({})


@pytest.fixture
def _job() -> Iterator[None]:
    token = logs.job_id.set("job-1")
    yield
    logs.job_id.reset(token)


def said(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """Return what was logged as JSON, each line found to be short enough."""
    lines = capsys.readouterr().err.splitlines(keepends=True)
    assert all(len(line) <= MAX_CHARS for line in lines)
    return [json.loads(line) for line in lines]


@pytest.mark.usefixtures("_job")
def test_a_json_line_has_the_shape_of_the_sdk_and_fields(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.configure("INFO", as_json=True)

    log.warning("hello")
    log.info("done", extra=logs.fields("job", images=2, level="nonsense", ratio=float("nan")))

    assert said(capsys) == [
        {"requestId": "job-1", "level": "WARN", "message": "hello"},
        {
            "requestId": "job-1",
            "level": "INFO",
            "message": "done",
            "event": "job",
            "images": 2,
            "ratio": "nan",
        },
    ]


@pytest.mark.usefixtures("_job")
def test_a_plain_line_names_level_and_job_and_has_no_colours_in_a_file(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.configure("INFO", as_json=False)

    log.warning("first\nsecond")

    assert capsys.readouterr().err == "WARN   | job-1 first\n       | second\n"


@pytest.mark.parametrize("as_json", [True, False])
def test_the_query_of_a_url_is_never_logged(
    capsys: pytest.CaptureFixture[str], *, as_json: bool
) -> None:
    logs.configure("INFO", as_json=as_json)

    log.info(f"fetching {SIGNED} now", extra=logs.fields("fetch", url=SIGNED))

    line = capsys.readouterr().err
    assert "https://host/file.safetensors?… now" in line
    assert "s3cr3t" not in line


def test_a_traceback_is_redacted_too(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("INFO", as_json=True)
    with redact.knowing({"input": {"tokens": {"civitai": "abcdef123456"}}}):
        try:
            int("no abcdef123456 here")
        except ValueError:
            log.exception("it failed")

    (line,) = said(capsys)
    assert line["message"].startswith("it failed\nTraceback")
    assert line["message"].endswith("base 10: 'no … here'")


def test_of_a_long_message_the_middle_goes(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("INFO", as_json=True)

    log.info("%s", "begin " + '"\n😀é' * 5000 + " end")

    (line,) = said(capsys)
    assert line["message"].startswith("begin ")
    assert line["message"].endswith(" end")
    assert "characters left out" in line["message"]
    assert len(json.dumps(line, ensure_ascii=False)) > MAX_CHARS - 200


def test_a_prompt_is_taken_out_of_a_message_that_is_cut_within_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.configure("INFO", as_json=True)
    prompt = " ".join(f"word-{number}" for number in range(3000))

    with redact.knowing({"input": {"prompt": prompt}}):
        log.info("%s", f"refused: {prompt} was too long")

    (line,) = said(capsys)
    assert line["message"] == "refused: … was too long"


def test_fields_that_are_too_long_go_and_the_message_stays(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.configure("INFO", as_json=True)

    log.info("hello", extra=logs.fields("job", models=["x" * 100] * 100, images=1))

    (line,) = said(capsys)
    assert (line["message"], line["images"], line["models"]) == ("hello", 1, "…")


def test_a_plain_line_is_limited(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("INFO", as_json=False)

    log.info("x\n" * 100_000)

    assert len(capsys.readouterr().err) <= MAX_CHARS


def test_what_the_sdk_holds_of_a_job_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("INFO", as_json=True)

    log.info("%s", f"Handler output: {{'images': ['{'iVBOR' * 1000}']}}", extra={"job": "j-2"})

    (line,) = said(capsys)
    assert line["requestId"] == "j-2"
    assert line["message"] == "Handler output: 5016 characters, not shown"


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)
characters = st.characters(exclude_categories=[])  # half ones, too


@settings(max_examples=30)
@given(
    message=st.text(characters)
    | st.builds(operator.mul, st.text('"\\\n😀\x00\ud800', min_size=1), st.just(4000)),
    fields=values,
)
def test_whatever_is_said_is_one_short_line_of_json(message: str, fields: Any) -> None:
    record = logging.LogRecord("x", 20, "", 0, "%s", (message,), None)
    record.__dict__["fields"] = {"event": "e", "value": fields}

    for ascii_only in (True, False):
        line = logs.json_lines(ascii_only=ascii_only).format(record)
        assert len(line.splitlines()) == 1
        assert len(line) < MAX_CHARS
        assert json.loads(line.encode())["event"] == "e"
    assert len(logs.plain_lines().format(record).encode()) > 0


UNCAUGHT = """
import threading, warnings
from worker.log import logs, redact
redact.learn({"TOKEN": "abcdef123456"})
logs.configure("INFO", as_json=True)
logs.take_uncaught()
def fail(): raise ValueError("in a thread abcdef123456")
thread = threading.Thread(target=fail); thread.start(); thread.join()
warnings.warn("careful abcdef123456")
raise ValueError("in the end abcdef123456")
"""


@pytest.mark.slow
def test_what_nobody_catches_is_logged_and_redacted() -> None:
    # An encoding that has no é must not spoil the JSON.
    done = subprocess.run(
        [sys.executable, "-c", UNCAUGHT],
        check=False,
        capture_output=True,
        text=True,
        env={"PYTHONIOENCODING": "ascii:backslashreplace", "PYTHONPATH": "."},
    )

    messages = [json.loads(line)["message"] for line in done.stderr.splitlines()]
    assert done.returncode == 1
    assert "abcdef123456" not in done.stderr
    assert "in a thread …" in messages[0]
    assert "careful …" in messages[1]
    assert "in the end …" in messages[2]
