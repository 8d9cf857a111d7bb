"""docs/migrating.md: what it promises of each request is what the code does."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from schemas.job import Generation
from schemas.request import parse
from schemas.settings import JobSettings

PAGE = (Path(__file__).parent.parent / "docs" / "migrating.md").read_text()
ROWS = re.findall(r"^\| `(\{.*\})` \| `(\{.*\})` \|$", PAGE, re.MULTILINE)


def meant(given: Any) -> dict[str, Any]:
    """Return all that a request asks for."""
    job = parse(given, JobSettings()).job
    assert isinstance(job, Generation)
    return {"route": type(job).__name__, "sent": job.webui_fields(), "all": job.model_dump()}


@pytest.mark.parametrize(("sent", "taken"), ROWS, ids=[sent for sent, _ in ROWS])
def test_each_row_says_what_a_request_is_taken_for(sent: str, taken: str) -> None:
    assert meant(json.loads(sent)) == meant(json.loads(taken))


def test_every_row_of_json_is_run() -> None:
    assert len(ROWS) == sum(line.startswith("| `{") for line in PAGE.splitlines()) > 30
