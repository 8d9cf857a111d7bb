"""That the audit cannot be content by mistake."""

import json
from pathlib import Path

import pytest

from tests.security import audit

ROOT = Path(__file__).parents[2]


def finding(rule: str, line: int) -> dict[str, object]:
    return {"filename": "./worker/x.py", "test_id": rule, "line_range": [line]}


def test_the_audit_tells_what_nobody_has_answered() -> None:
    texts = {"worker/x.py": ["eval(x)  # noqa: S307 - why", "eval(y)"]}
    stale = len(audit.ACCEPTED)

    assert len(list(audit.unanswered([finding("B307", 1)], texts))) == stale
    problems = list(audit.unanswered([finding("B307", 1), finding("B307", 2)], texts))
    assert problems[-1] == "worker/x.py: B307 found 1 times, answered 0 times"
    assert len(problems) == stale + 1


def test_the_audit_finds_a_secret_that_the_baseline_does_not_have() -> None:
    known = json.loads((ROOT / audit.BASELINE).read_text())
    found = audit.scanned(["tests/model_cache/hosts/test_s3.py"], known)

    assert list(audit.strangers(found, known)) == []
    assert list(audit.strangers(found, {**known, "results": {}}))


@pytest.mark.parametrize(
    ("packages", "status", "words"),
    [
        pytest.param([{"name": "a", "version": "1", "vulns": []}], 0, "no known hole", id="fine"),
        pytest.param(
            [
                {
                    "name": "a",
                    "version": "1",
                    "vulns": [{"id": "CVE-1", "fix_versions": ["2"]}],
                },
                {"name": "b", "skip_reason": "not found"},
            ],
            1,
            "a 1: CVE-1, mended in 2",
            id="a hole",
        ),
        pytest.param([{"name": "a", "skip_reason": "offline"}], 3, "NOT KNOWN", id="not asked"),
        pytest.param([], 3, "NOT KNOWN", id="nothing"),
    ],
)
def test_the_audit_knows_a_good_answer_from_none(
    packages: list[dict[str, object]], status: int, words: str
) -> None:
    found, lines = audit.verdict(packages)

    assert found == status
    assert lines[0].startswith((words, f"packages: {words}"))


def test_what_was_found_is_not_hidden_by_what_is_not_known() -> None:
    assert audit.worst([audit.FINE, audit.FOUND, audit.UNKNOWN]) == audit.FOUND
    assert audit.worst([audit.FINE, audit.UNKNOWN, audit.FINE]) == audit.UNKNOWN
    assert audit.worst([audit.FINE]) == audit.FINE
