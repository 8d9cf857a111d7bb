"""Every threat in docs/security.md names a test that there is, and every attack is named there."""

import ast
import re
from pathlib import Path

import pytest

from schemas.controlnet import SCRIPT
from worker.extensions import detailer, reactor, scripts

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text()
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)
ATTACKS = ("test_requests.py", "test_files.py")


def names_in(file: Path) -> set[str]:
    names = {
        node.name for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)
    }
    return {name for name in names if name.startswith("test_")}


@pytest.mark.parametrize(("file", "name"), NAMED, ids=[name for _, name in NAMED])
def test_the_test_that_a_threat_names_is_there(file: str, name: str) -> None:
    assert name in names_in(ROOT / file)


def test_every_threat_names_a_test() -> None:
    for part in ("What a request may try", "What a file may try"):
        rows = re.findall(
            r"^\|.*\|$", PAGE.partition(f"## {part}\n")[2].partition("\n## ")[0], re.MULTILINE
        )
        assert len(rows) > 5
        assert all("::test_" in row for row in rows[2:])


@pytest.mark.parametrize("file", ATTACKS)
def test_every_attack_is_in_the_model_of_threats(file: str) -> None:
    path = f"tests/security/{file}"

    assert names_in(ROOT / path) == {name for where, name in NAMED if where == path}


def test_the_table_of_scripts_is_that_of_the_code() -> None:
    table = PAGE.partition("| script | held to |\n|---|---|\n")[2].partition("\n\n")[0]
    listed = {
        name.lower()
        for row in table.splitlines()
        for name in re.findall("`(.+?)`", row.split("|")[1])
    }

    taken = {detailer.SCRIPT, reactor.SCRIPT, SCRIPT}
    assert listed == scripts.SELECTABLE.keys() | scripts.ALWAYS_ON | taken
