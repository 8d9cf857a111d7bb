"""The line that each job ends with, whatever becomes of it."""

import asyncio
import contextlib
import io
import json
import logging
import re
from collections.abc import Callable, Iterator
from threading import Event
from typing import Any

import pytest

from rp_jobs import Jobs, Run
from schemas.errors import BackendCrashedError, InvalidInputError, JobCancelledError
from schemas.settings import JobSettings
from worker.log import logs, redact

Report = Callable[[dict[str, Any]], None]

RESULT: dict[str, Any] = {
    "images": ["iVBORw0KGgo="],
    "image_kinds": ["picture"],
    "output": {"format": "png", "lossless": True, "quality": None, "delivery": "base64"},
    "models": [
        {"kind": "checkpoint", "name": "deliberate", "sha256": "ab", "cached": False},
        {"kind": "lora", "name": "detail", "sha256": "cd", "cached": True},
    ],
    "timings": {"download_s": 2.0, "generate_s": 3.0, "load_s": 0.0, "total_s": 5.0},
}


class Ended:
    """What is said of one job."""

    def __init__(self, out: io.StringIO) -> None:
        self.out = out

    def after(self, run: Run, given: Any = None, **limits: Any) -> dict[str, Any]:
        """Return the summary of a job that `run` does."""
        jobs = Jobs(run, JobSettings(**limits), online=False)
        job = {"id": "job-7", "input": {"prompt": "a lighthouse"} if given is None else given}
        asyncio.run(jobs.handle(job))
        return self.said()

    def said(self) -> dict[str, Any]:
        lines = [json.loads(line) for line in self.out.getvalue().splitlines()]
        (line,) = [line for line in lines if line.get("event") == "job"]
        assert line["requestId"] == "job-7"
        found: dict[str, Any] = line
        return found


@pytest.fixture
def ended() -> Iterator[Ended]:
    handler = logging.StreamHandler(io.StringIO())
    handler.setFormatter(logs.json_lines())
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield Ended(handler.stream)
    root.removeHandler(handler)
    root.setLevel(level)
    redact.learn({})


def answering(answer: Any) -> Run:
    def run(_job: dict[str, Any], _ended: Event, report: Report) -> Any:
        report({"stage": "encoding", "percent": 0})
        return answer

    return run


def failing(error: BaseException) -> Run:
    def run(_job: dict[str, Any], _ended: Event, report: Report) -> Any:
        report({"stage": "fetching", "percent": 3})
        raise error

    return run


def until_ended(_job: dict[str, Any], ended: Event, report: Report) -> Any:
    report({"stage": "sampling", "percent": 3})
    assert ended.wait(30)
    raise JobCancelledError("The job was cancelled while it was being generated.")


def test_of_a_picture_it_tells_models_times_and_size(ended: Ended) -> None:
    line = ended.after(answering(RESULT), price_per_s=1000)

    assert line["level"] == "INFO"
    assert (line["kind"], line["outcome"], line["pictures"]) == ("txt2img", "done", 1)
    assert (line["delivery"], line["format"]) == ("base64", "png")
    assert line["timings"] == RESULT["timings"]
    assert line["models"] == [
        {"kind": "checkpoint", "name": "deliberate", "cached": False},
        {"kind": "lora", "name": "detail", "cached": True},
    ]
    body = json.dumps({"output": RESULT}, ensure_ascii=False)
    assert line["result_bytes"] == len(body)
    assert line["cost"] == pytest.approx(1000 * line["took_s"])
    assert line["message"].startswith("done: txt2img in 0.")
    assert line["message"].endswith(
        f"(download 2.0, generate 3.0); 1 picture as base64; {len(body)} bytes;"
        " deliberate (fetched), detail (cached)"
    )


@pytest.mark.parametrize(
    ("given", "kind", "endpoint"),
    [
        ({"prompt": "a", "init_images": ["x"]}, "img2img", None),
        ({"api": {"endpoint": "/sdapi/v1/img2img"}, "payload": {}}, "img2img", None),
        ({"api": {"endpoint": "txt2img/"}, "payload": {}}, "txt2img", None),
        ({"api": {"endpoint": "/sdapi/v1/samplers?a=b"}}, "call", "/sdapi/v1/samplers"),
        ({"api": {"endpoint": "v1/prefetch"}, "payload": {}}, "command", "/v1/prefetch"),
        ({"api": {"method": "GET"}}, "unknown", None),
        ([], "unknown", None),
    ],
)
def test_it_tells_what_was_asked_for(
    ended: Ended, given: Any, kind: str, endpoint: str | None
) -> None:
    line = ended.after(answering([{"name": "Euler"}]), given)

    assert (line["kind"], line.get("endpoint"), line["outcome"]) == (kind, endpoint, "done")
    assert line["result_bytes"] == len('{"output": [{"name": "Euler"}]}')


def test_of_a_failure_it_tells_code_words_and_stage(ended: Ended) -> None:
    line = ended.after(failing(BackendCrashedError("A1111's process ended.")))

    assert line["level"] == "WARN"
    assert (line["outcome"], line["code"], line["retryable"], line["stage"]) == (
        *("failed", "BACKEND_CRASHED", True),
        "fetching",
    )
    said = r"failed: BACKEND_CRASHED: A1111's process ended\. \(txt2img, \d+\.\d"
    assert re.match(said, line["message"])


def test_a_bug_has_its_line_too(ended: Ended) -> None:
    line = ended.after(failing(KeyError("x")))

    assert (line["outcome"], line["code"]) == ("failed", "INTERNAL")


def test_so_has_what_ends_a_thread(ended: Ended) -> None:
    with contextlib.suppress(SystemExit):
        ended.after(failing(SystemExit(3)))

    line = ended.said()
    assert (line["outcome"], line["code"]) == ("failed", "INTERNAL")


def test_an_answer_that_is_not_json_has_no_size(ended: Ended) -> None:
    assert ended.after(answering(float("nan")))["result_bytes"] is None


def test_a_job_that_takes_too_long_timed_out(ended: Ended) -> None:
    line = ended.after(until_ended, timeout_s=0.05)

    assert (line["outcome"], line["code"], line["stage"]) == (
        *("timed out", "JOB_TIMED_OUT"),
        "sampling",
    )


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (until_ended, "cancelled: The job was cancelled while it was being generated. ("),
        (
            lambda _job, over, *_: over.wait(30),
            "cancelled: The job was cancelled; it was done already. (",
        ),
    ],
)
def test_a_cancelled_job_is_told_once(ended: Ended, run: Run, words: str) -> None:
    async def cancelled() -> None:
        task = asyncio.create_task(
            Jobs(run, JobSettings(), online=False).handle({"id": "job-7", "input": {"prompt": ""}})
        )
        await asyncio.sleep(0.02)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())

    line = ended.said()
    assert (line["level"], line["outcome"]) == ("INFO", "cancelled")
    assert line["message"].startswith(words)


def test_a_job_that_the_worker_left_behind_was_stopped(ended: Ended) -> None:
    async def drained() -> None:
        jobs = Jobs(until_ended, JobSettings(drain_s=0), online=False)
        task = asyncio.create_task(jobs.handle({"id": "job-7", "input": {}}))
        await asyncio.sleep(0.02)
        jobs.drain()
        await task

    asyncio.run(drained())

    assert ended.said()["outcome"] == "stopped"


def test_neither_line_nor_answer_holds_a_token_and_the_line_no_prompt(ended: Ended) -> None:
    error = InvalidInputError("'a lighthouse' and abcdef123456.", field="x", seen="abcdef123456")
    jobs = Jobs(failing(error), JobSettings(), online=False)
    given = {"prompt": "a lighthouse", "tokens": {"civitai": "abcdef123456"}}

    answer = asyncio.run(jobs.handle({"id": "job-7", "input": given}))

    assert answer["error"] == "INVALID_INPUT: 'a lighthouse' and …."
    assert answer["details"] == {"field": "x", "seen": "…"}
    said = ended.out.getvalue()
    assert "INVALID_INPUT" in said
    assert "lighthouse" not in said
    assert "abcdef123456" not in said
