"""The pages say what the code does."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from schemas import errors
from schemas.commands import Command
from schemas.errors import WorkerError
from schemas.request import parse
from schemas.routes import ROUTES, Call, Route
from schemas.settings import JobSettings, Section, Settings

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "AGENTS.md",
    ROOT / "CHANGELOG.md",
    *(ROOT / "docs").rglob("*.md"),
]
CODES = sorted(
    {
        kind.code: kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, WorkerError) and "code" in vars(kind)
    }.items()
)
EXAMPLES = [
    example
    for page in ("api.md", "compatibility.md", "controlnet.md", "output.md", "streaming.md")
    for example in re.findall(r"```json\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)
]
ROUTES_PAGE = (ROOT / "docs" / "routes.md").read_text()


def settings_rows() -> list[str]:
    rows = []
    for name, section in Settings.model_fields.items():
        kind = section.annotation
        assert isinstance(kind, type)
        assert issubclass(kind, Section)
        for field, info in kind.model_fields.items():
            default = info.default
            if default is None or default in {"", ()}:
                default = "-"
            elif isinstance(default, tuple):
                default = ",".join(default)
            elif isinstance(default, bool):
                default = str(default).lower()
            rows.append(
                f"| `A1111_{name}_{field}`".upper() + f" | {default} | {info.description} |"
            )
    return rows


@pytest.mark.parametrize("row", settings_rows())
def test_every_setting_has_its_row(row: str) -> None:
    assert row in (ROOT / "docs" / "configuration.md").read_text().splitlines()


def test_the_table_of_errors_is_that_of_the_code() -> None:
    listed = re.findall(
        r"^\| `([A-Z_]+)` \| (yes|no) \|", (ROOT / "docs/errors.md").read_text(), re.MULTILINE
    )

    assert dict(listed) == {code: "yes" if kind.retryable else "no" for code, kind in CODES}
    assert len(listed) == len(CODES)


@pytest.mark.parametrize("code", [code for code, _ in CODES])
def test_the_tree_of_errors_draws_every_code(code: str) -> None:
    assert code in (errors.__doc__ or "")


@pytest.mark.parametrize("example", [text for text in EXAMPLES if text.startswith('{"input"')])
def test_every_request_in_the_pages_is_taken(example: str) -> None:
    request: dict[str, Any] = json.loads(example)

    job = parse(request["input"], JobSettings()).job
    assert isinstance(job, Command | Call) or job.webui_fields()


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_every_route_has_its_row(route: Route) -> None:
    needs = (route.brought_by or "-") + ("" if route.is_verified else ", unverified")
    row = (
        f"| {route.method} `{route.path}` | {route.answer} | {'yes' if route.in_turn else 'no'}"
        f" | {needs} |"
    )

    assert row in ROUTES_PAGE.splitlines()


def test_the_table_of_routes_has_no_other_row() -> None:
    assert len(re.findall(r"^\| (?:GET|POST) `", ROUTES_PAGE, re.MULTILINE)) == len(ROUTES)


@pytest.mark.parametrize("example", re.findall(r"```json\n(.*?)```", ROUTES_PAGE, re.DOTALL))
def test_every_request_in_the_page_of_routes_is_taken(example: str) -> None:
    assert isinstance(parse(json.loads(example)["input"], JobSettings()).job, Call)


def test_every_example_in_the_pages_is_json() -> None:
    assert len(EXAMPLES) >= 6
    for example in EXAMPLES:
        json.loads(example)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_to_a_file_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_every_make_target_in_the_readme_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))

    assert set(re.findall(r"make ([a-z-]+)", (ROOT / "README.md").read_text())) <= targets
