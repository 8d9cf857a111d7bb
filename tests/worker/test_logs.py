import json
import logging

import pytest

from worker import logs

SIGNED = "https://host/file.safetensors?token=s3cr3t&X-Amz-Signature=abc"


@pytest.fixture
def _job() -> object:
    token = logs.job_id.set("job-1")
    yield
    logs.job_id.reset(token)


@pytest.mark.usefixtures("_job")
def test_a_json_line_has_the_shape_of_the_sdk(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("INFO", as_json=True)

    logging.getLogger("x").warning("hello")

    assert json.loads(capsys.readouterr().err) == {
        "requestId": "job-1",
        "level": "WARNING",
        "message": "hello",
    }


@pytest.mark.parametrize("as_json", [True, False])
def test_the_query_of_a_url_is_never_logged(
    capsys: pytest.CaptureFixture[str], *, as_json: bool
) -> None:
    logs.configure("INFO", as_json=as_json)

    logging.getLogger("x").info(f"fetching {SIGNED} now")

    line = capsys.readouterr().err
    assert "https://host/file.safetensors?" in line
    assert "s3cr3t" not in line
    assert "now" in line


def test_a_line_is_limited(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("INFO", as_json=False)

    logging.getLogger("x").info("x" * 100_000)

    assert len(capsys.readouterr().err) < 4100
