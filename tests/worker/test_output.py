import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import BackendFailedError, OutputTooLargeError
from schemas.settings import OutputSettings
from worker.output import require_fitting, size_bytes

LIMITS = OutputSettings(max_run_bytes=1000, max_runsync_bytes=2000)


@given(st.lists(st.text()), st.dictionaries(st.text(), st.text() | st.integers()))
def test_the_measure_is_what_the_sdk_sends(images: list[str], rest: dict[str, Any]) -> None:
    quoted = json.dumps(images, ensure_ascii=False)
    if any(image.isascii() and json.dumps(image) != f'"{image}"' for image in images):
        return  # not base64
    result = {**rest, "images": images}
    sent = json.dumps({"output": result}, ensure_ascii=False).encode()

    assert size_bytes(result) >= len(quoted.encode())
    if all(image.isascii() for image in images):
        assert size_bytes(result) == len(sent)


def test_a_result_over_the_limit_is_refused_with_the_figures() -> None:
    with pytest.raises(OutputTooLargeError) as caught:
        require_fitting({"images": ["x" * 1500]}, "job-1", LIMITS)

    assert caught.value.details["limit_bytes"] == 1000
    assert caught.value.details["size_bytes"] > 1500


def test_a_runsync_job_may_be_larger() -> None:
    require_fitting({"images": ["x" * 1500]}, "sync-1", LIMITS)


@pytest.mark.parametrize("value", [float("nan"), b"bytes", "\ud800"])
def test_what_json_cannot_say_is_an_error_not_a_loss(value: object) -> None:
    with pytest.raises(BackendFailedError):
        require_fitting({"images": [], "parameters": {"x": value}}, "job-1", LIMITS)


@pytest.mark.parametrize("value", [None, "text", 5, [], [{"name": "Euler"}], {"image": "é"}])
def test_every_answer_of_a1111_is_measured_as_it_is_sent(value: Any) -> None:
    assert size_bytes(value) == len(json.dumps({"output": value}, ensure_ascii=False).encode())


def test_a_list_over_the_limit_is_refused() -> None:
    with pytest.raises(OutputTooLargeError):
        require_fitting(["x" * 1500], "job-1", LIMITS)
