"""docs/openapi.json and docs/postman.json: current, and true of the code."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from docs import publish
from schemas.answers import ANSWERS
from schemas.commands import COMMANDS
from schemas.envelope import GENERATIONS
from schemas.errors import InvalidInputError, WorkerError
from schemas.inputs import schemas
from schemas.request import Request, parse
from schemas.result import Failure
from schemas.routes import ROUTES
from schemas.settings import JobSettings

FILES = publish.files()
OPENAPI = json.loads((publish.DOCS / "openapi.json").read_text())
POSTMAN = json.loads((publish.DOCS / "postman.json").read_text())
COMPONENTS = OPENAPI["components"]["schemas"]
_JOB = OPENAPI["components"]["requestBodies"]["Job"]["content"]["application/json"]
SHOWN = {name: example["value"] for name, example in _JOB["examples"].items()}


def flaws(name: str, value: Any) -> list[str]:
    """Return what a component of the published schema says against a value."""
    validator = Draft202012Validator({**OPENAPI, "$ref": f"#/components/schemas/{name}"})
    return [error.message for error in validator.iter_errors(value)]


def references(value: Any) -> Iterator[str]:
    """Yield what a JSON value refers to, all the way down."""
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for part in value.values():
            yield from references(part)
    elif isinstance(value, list):
        for part in value:
            yield from references(part)


def requests(items: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every request of a collection by its name."""
    for item in items:
        if "item" in item:
            yield from requests(item["item"])
        else:
            yield item["name"], item["request"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_what_is_published_is_current(file: Path) -> None:
    assert file.read_text() == FILES[file], "run `make schema`"


def test_every_reference_leads_to_a_component() -> None:
    for reference in references(OPENAPI):
        place: Any = OPENAPI
        for part in reference.removeprefix("#/").split("/"):
            place = place[part]


def test_every_component_is_called_as_openapi_allows() -> None:
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", name) for name in COMPONENTS)


@pytest.mark.parametrize("name", COMPONENTS)
def test_every_component_is_json_schema(name: str) -> None:
    Draft202012Validator.check_schema(COMPONENTS[name])


def test_everything_that_can_be_asked_is_an_input() -> None:
    named = references(COMPONENTS["Input"])
    called = [COMPONENTS[name.rpartition("/")[2]].get("title") for name in named]

    assert sorted(called) == sorted(
        [
            *("Txt2Img", "Img2Img"),
            *(f"/sdapi/v1/{name}" for name in GENERATIONS),
            *(route.path for route in ROUTES),
            *(f"/v1/{name}" for name in COMMANDS),
        ]
    )


def test_every_command_has_an_answer() -> None:
    assert ANSWERS.keys() == COMMANDS.keys()


def test_a_failure_has_every_code_and_says_what_it_is() -> None:
    failure = COMPONENTS["Failure"]

    listed = re.findall(
        r"^\| `([A-Z_]+)` \|", (publish.DOCS / "errors.md").read_text(), re.MULTILINE
    )
    assert failure["properties"]["code"]["enum"] == sorted(listed)
    assert failure["properties"].keys() == Failure.__annotations__.keys()
    assert "later" in failure["properties"]["retryable"]["description"]


def test_no_limit_is_written_in_words_that_json_schema_does_not_know() -> None:
    assert COMPONENTS["txt2img"]["properties"]["steps"]["minimum"] == 1
    assert not {"ge", "gt", "le", "lt"} & COMPONENTS["txt2img"]["properties"]["steps"].keys()


@pytest.mark.parametrize("name", GENERATIONS)
def test_a_generation_has_the_spellings_of_other_systems(name: str) -> None:
    fields = schemas(name)[name]["properties"]

    spelled = {"model", "guidance_scale", "num_inference_steps", "scheduler_type", "fileType"}
    assert spelled <= fields.keys()
    assert fields["model"]["anyOf"] == fields["checkpoint"]["anyOf"]
    assert ("hires" in fields, "image" in fields) == (name == "txt2img", name == "img2img")


def test_a_model_of_a_job_needs_no_kind_and_one_to_prefetch_does() -> None:
    assert "kind" not in COMPONENTS["ModelRef"]["properties"]
    assert COMPONENTS["Wanted"]["required"] == ["kind"]


@pytest.mark.parametrize(("name", "request_"), list(requests(POSTMAN["item"])))
def test_every_request_of_the_collection_is_taken(name: str, request_: dict[str, Any]) -> None:
    url = request_["url"]["raw"]
    if "body" not in request_:
        assert url == f"{{{{base}}}}/{{{{endpoint_id}}}}/{name.lower()}/{{{{job_id}}}}"
        return
    assert url == "{{base}}/{{endpoint_id}}/runsync"
    assert isinstance(parse(json.loads(request_["body"]["raw"])["input"], JobSettings()), Request)


@pytest.mark.parametrize("example", SHOWN.values(), ids=SHOWN)
def test_every_example_is_right_by_the_schema(example: Any) -> None:
    assert flaws("Job", example) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"loras": [{"scale": 1}]},
        {"checkpoint": {"url": 1}},
        {"init_images": []},
        {"api": {"method": "GET", "endpoint": "/sdapi/v1/png-info"}},
        {"api": {"method": "POST", "endpoint": "/sdapi/v1/png-info"}, "payload": {}},
        {"api": {"method": "POST", "endpoint": "/sdapi/v1/server-kill"}},
        {"api": {"method": "POST", "endpoint": "/v1/prune"}, "payload": {"x": 1}},
    ],
)
def test_what_is_refused_is_wrong_by_the_schema(wrong: dict[str, Any]) -> None:
    assert flaws("Input", wrong)
    with pytest.raises(InvalidInputError):
        parse(wrong, JobSettings())


@pytest.mark.parametrize("kind", WorkerError.__subclasses__())
def test_a_failure_is_right_by_the_schema(kind: type[WorkerError]) -> None:
    for leaf in kind.__subclasses__() or [kind]:
        assert flaws("Failure", leaf("It failed.", hint="Try.", field="x").as_response()) == []


def test_every_example_of_the_pages_is_in_both() -> None:
    shown = [job for page in publish.PAGES for job in publish.examples(page)[1].values()]

    assert list(SHOWN.values()) == shown
    blocks = sum(
        (publish.DOCS / f"{page}.md").read_text().count('```json\n{"input"')
        for page in publish.PAGES
    )
    assert len(shown) == blocks > 25
