"""The whole interface as OpenAPI 3.1: RunPod's four routes, what a job may ask, what it answers. Pure.

A job is one POST with `{"input": …}`; what it calls is said inside. So every input is a schema among the
components, each call named by its route, as in `post.sdapi.v1.png-info`, and `Input` is any of them.

Source of RunPod's part: runpod-python 1.12.0, endpoint/runner.py.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ConfigDict, TypeAdapter

from schemas.answers import ANSWERS
from schemas.commands import COMMANDS
from schemas.envelope import GENERATIONS
from schemas.errors import WorkerError
from schemas.inputs import schemas, tidied
from schemas.result import Failure, Progress, Result
from schemas.routes import PREFIX, ROUTES, Route

VERSION = "1.0.0"
"""Of the interface."""
BASE = "https://api.runpod.ai/v2"
_COMPONENTS = "#/components/schemas/"
_STATES = ["IN_QUEUE", "IN_PROGRESS", "COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"]

_Schema = dict[str, Any]


def document(examples: Mapping[str, Any]) -> dict[str, Any]:
    """Return the OpenAPI document, in JSON values.

    Args:
        examples: jobs (`{"input": …}`) by what they show.
    """
    shown = {_named(name): {"summary": name, "value": job} for name, job in examples.items()}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "a1111-worker",
            "version": VERSION,
            "summary": "A1111 as a RunPod serverless endpoint.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [
            {
                "url": f"{BASE}/{{endpoint_id}}",
                "variables": {"endpoint_id": {"default": "ENDPOINT_ID"}},
            }
        ],
        "security": [{"api_key": []}],
        "paths": _paths(),
        "components": {
            "schemas": components(),
            "requestBodies": {"Job": {"required": True, **_content("Job", examples=shown)}},
            "responses": {"Status": {"description": "How the job is.", **_content("Status")}},
            "securitySchemes": {"api_key": {"type": "http", "scheme": "bearer"}},
        },
    }


def components() -> dict[str, _Schema]:
    """Return every schema by its name."""
    found: dict[str, _Schema] = {}
    for name, schema in schemas().items():
        _add(found, _named(name), schema)
    calls = dict(_calls())
    found |= calls
    for shape in (Result, Progress, Failure):
        _add(found, "", _described(shape))
    found["Failure"]["properties"]["code"]["enum"] = sorted(_codes(WorkerError))
    for name, shape in ANSWERS.items():
        _add(found, _answer(name), _described(shape))
    answers = ["Result", "Progress", "Failure", *map(_answer, ANSWERS)]
    found["Input"] = {"anyOf": [_ref(name) for name in (*GENERATIONS, *calls)]}
    found["Output"] = {
        "description": "A call of one of A1111's routes answers whatever A1111 does.",
        "anyOf": [*map(_ref, answers), True],
    }
    found["Job"] = _object({"input": _ref("Input")}, "A job, as it is posted.")
    found["Status"] = _object(
        {
            "id": {"type": "string"},
            "status": {"enum": _STATES},
            "output": _ref("Output"),
            "error": {"type": "string", "description": "Of a job that failed: begins with a code."},
        },
        "How a job is, and once it is done, its answer.",
        required=["id", "status"],
    )
    return found


def _paths() -> dict[str, Any]:
    post: _Schema = {"requestBody": {"$ref": "#/components/requestBodies/Job"}}
    one: _Schema = {
        "parameters": [
            {"name": "job_id", "in": "path", "required": True, "schema": {"type": "string"}}
        ]
    }
    return {
        "/run": {"post": _operation("run", "Queue a job.") | post},
        "/runsync": {
            "post": _operation("runsync", "Queue a job, and wait 90 seconds for its answer.") | post
        },
        "/status/{job_id}": {"get": _operation("status", "How a job is, and its answer.") | one},
        "/cancel/{job_id}": {"post": _operation("cancel", "Stop a job wherever it is.") | one},
    }


def _operation(name: str, summary: str) -> dict[str, Any]:
    answer = {"$ref": "#/components/responses/Status"}
    return {"operationId": name, "summary": summary, "responses": {"200": answer}}


def _content(schema: str, **more: Any) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": _ref(schema), **more}}}


def _calls() -> Iterator[tuple[str, _Schema]]:
    """Yield the envelope of each thing that can be called, by its name."""
    for name in GENERATIONS:
        path = PREFIX + name
        called = _envelope(["POST"], path, _ref(name), f"{name}, as in the flat form.")
        called["required"].append("payload")
        yield f"post{_named(path, '.')}", called
    for route in ROUTES:
        payload = _ref(_named(route.path)) if route.payload else None
        called = _envelope([route.method], route.path, payload, _said(route))
        if route.payload and any(
            each.is_required() for each in route.payload.model_fields.values()
        ):
            called["required"].append("payload")
        yield f"{route.method.lower()}{_named(route.path, '.')}", called
    for name in COMMANDS:
        path = f"/v1/{name}"
        yield (
            f"call{_named(path, '.')}",
            _envelope(["GET", "POST"], path, _ref(_named(path)), f"Answers {_answer(name)}."),
        )


def _envelope(methods: list[str], path: str, payload: _Schema | None, said: str) -> _Schema:
    endpoint: _Schema = {"const": path}
    if payload is not None and "GET" in methods:
        endpoint = {"type": "string", "pattern": rf"^{path}(\?.*)?$"}  # with a query
    api = {"method": {"enum": methods}, "endpoint": endpoint}
    fields = {"api": _object(api, "", additionalProperties=False)}
    if payload is not None:
        fields["payload"] = payload
    return _object(fields, said, title=path, required=["api"], additionalProperties=False)


def _said(route: Route) -> str:
    needs = f" Needs {route.brought_by}." if route.brought_by else ""
    doubt = "" if route.is_verified else " Unverified against a live server."
    return f"Answers {route.answer}.{needs}{doubt}"


def _object(fields: Mapping[str, Any], said: str, **more: Any) -> _Schema:
    about = {"description": said} if said else {}
    return {
        "type": "object",
        **about,
        "properties": dict(fields),
        "required": list(fields),
        **more,
    }


def _ref(name: str) -> _Schema:
    return {"$ref": _COMPONENTS + name}


def _named(path: str, start: str = "") -> str:
    """Return `path` as a component may be called."""
    return start + re.sub(r"[^A-Za-z0-9_-]+", ".", path).strip(".")


def _answer(command: str) -> str:
    return f"answer{_named(command, '.v1.')}"


def _described(shape: Any) -> _Schema:
    """Return the schema of an answer; what its fields mean is said by the strings below them."""
    # A list, because pydantic takes no configuration for a TypedDict itself.
    adapter = TypeAdapter[Any](list[shape], config=ConfigDict(use_attribute_docstrings=True))
    schema = adapter.json_schema()
    return {**schema["items"], "$defs": schema.get("$defs", {})}


def _add(found: dict[str, _Schema], name: str, schema: _Schema) -> None:
    """Add `schema`, if it has a name of its own, and what it defines beside itself, by their names."""
    parts = schema.pop("$defs", {}) | ({name: schema} if name else {})
    for called, part in parts.items():
        placed = _placed(tidied(part))
        if found.setdefault(called, placed) != placed:
            raise ValueError(f"two schemas are called {called}")


def _placed(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_placed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {word: _placed(part) for word, part in schema.items()}
    if isinstance(moved.get("$ref"), str):
        moved["$ref"] = moved["$ref"].replace("#/$defs/", _COMPONENTS)
    return moved


def _codes(kind: type[WorkerError]) -> set[str]:
    own = {kind.code} if "code" in vars(kind) else set()
    return own.union(*map(_codes, kind.__subclasses__()))
