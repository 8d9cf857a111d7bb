"""Writes docs/openapi.json and docs/postman.json from the models and the examples of the pages.

`make schema` runs it; a test holds both files current.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from schemas import openapi
from schemas.commands import COMMANDS
from schemas.routes import ROUTES

DOCS = Path(__file__).parent
PAGES = ("api", "routes", "commands", "controlnet", "compatibility")
# A picture of 64 x 64 pixels, for where the pages show only how one begins.
_IMAGE = (
    "iVBORw0KGgoAAAANSUhEUgAAAEAAAABAAQAAAACCEkxzAAAAF0lEQVR42mNg+A+FFDKoZAzDqHuGlHsA8wL/AYF093AA"
    "AAAASUVORK5CYII="
)
_POSTMAN = "https://schema.getpostman.com/json/collection/v2.1.0/collection.json"
_PART = re.compile(
    r"^#+ (?P<heading>[^\n]+)$|^```json\n(?P<job>\{\"input\".*?)```", re.MULTILINE | re.DOTALL
)

Examples = dict[str, Any]


def examples(page: str) -> tuple[str, Examples]:
    """Return the title of a page, and its jobs by the heading that each stands under."""
    title, heading, found = "", "", Examples()
    for part in _PART.finditer((DOCS / f"{page}.md").read_text()):
        if part["heading"]:
            heading = part["heading"]
            title = title or heading
        else:
            found[_unused(heading, found)] = json.loads(part["job"])
    return title, found


def files() -> dict[Path, str]:
    """Return what the two files have to hold."""
    pages = dict(map(examples, PAGES))
    every = {
        f"{title}: {name}": job for title, found in pages.items() for name, job in found.items()
    }
    made = {"openapi.json": openapi.document(every), "postman.json": _collection(pages)}
    return {
        DOCS / name: json.dumps(document, indent=1, ensure_ascii=False) + "\n"
        for name, document in made.items()
    }


def _unused(name: str, taken: Mapping[str, Any]) -> str:
    names = [name, *(f"{name} ({number})" for number in range(2, len(taken) + 2))]
    return next(each for each in names if each not in taken)


def _collection(pages: Mapping[str, Examples]) -> dict[str, Any]:
    shown = {_called(job) for found in pages.values() for job in found.values()}
    rest = {called: job for called, job in _calls() if called not in shown}
    folders = {**pages, "All other calls that need no payload": rest}
    return {
        "info": {
            "name": "a1111-worker",
            "description": "Set endpoint_id and api_key; put a picture of yours into image.",
            "schema": _POSTMAN,
        },
        "auth": {
            "type": "bearer",
            "bearer": [{"key": "token", "value": "{{api_key}}", "type": "string"}],
        },
        "variable": [
            {"key": "base", "value": openapi.BASE},
            {"key": "endpoint_id", "value": ""},
            {"key": "api_key", "value": ""},
            {"key": "job_id", "value": ""},
            {"key": "image", "value": _IMAGE},
        ],
        "item": [
            *(
                {"name": title, "item": [_posted(name, job) for name, job in found.items()]}
                for title, found in folders.items()
            ),
            {
                "name": "A job that runs",
                "item": [
                    {"name": "Status", "request": _request("GET", "status", "{{job_id}}")},
                    {"name": "Cancel", "request": _request("POST", "cancel", "{{job_id}}")},
                ],
            },
        ],
    }


def _calls() -> Iterator[tuple[str, Any]]:
    """Yield what can be called with nothing but its name."""
    for route in ROUTES:
        fields = route.payload.model_fields.values() if route.payload else ()
        if not any(field.is_required() for field in fields):
            job = {"input": {"api": {"method": route.method, "endpoint": route.path}}}
            yield _called(job), job
    for name, payload in COMMANDS.items():
        if not payload.model_fields:
            job = {"input": {"api": {"method": "GET", "endpoint": f"/v1/{name}"}}}
            yield _called(job), job


def _called(job: Any) -> str:
    api = job["input"].get("api", {"method": "", "endpoint": ""})
    return f"{api['method']} {api['endpoint'].partition('?')[0]}"


def _posted(name: str, job: Any) -> dict[str, Any]:
    text = json.dumps(job, indent=2, ensure_ascii=False).replace("iVBORw0KGgo…", "{{image}}")
    body = {"mode": "raw", "raw": text, "options": {"raw": {"language": "json"}}}
    return {"name": name, "request": {**_request("POST", "runsync"), "body": body}}


def _request(method: str, *path: str) -> dict[str, Any]:
    parts = ["{{endpoint_id}}", *path]
    url = {"raw": "/".join(["{{base}}", *parts]), "host": ["{{base}}"], "path": parts}
    headers = [{"key": "Content-Type", "value": "application/json"}] if method == "POST" else []
    return {"method": method, "header": headers, "url": url}


if __name__ == "__main__":
    for file, text in files().items():
        file.write_text(text)
