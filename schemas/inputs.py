"""Every input of a job as JSON Schema, for whoever writes a client.

A schema says shapes, not all that may be refused: which fields exclude each other, or what a name may
hold. Some more than it says is taken: `null` for not given, and numbers in strings.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from schemas.commands import COMMANDS
from schemas.convenience import SYNONYMS, Hires
from schemas.errors import InvalidInputError, shown
from schemas.job import Img2Img, Job, Txt2Img
from schemas.routes import ROUTES

# What pydantic calls a limit that it cannot place, and JSON Schema's word for it.
_LIMITS = {
    "ge": "minimum",
    "gt": "exclusiveMinimum",
    "le": "maximum",
    "lt": "exclusiveMaximum",
}
_IMAGES = ("init_images", "int_images", "image")


def schemas(name: str | None = None) -> dict[str, dict[str, Any]]:
    """Return the JSON Schema of every input by name, or of the one called `name`.

    Raises:
        InvalidInputError: there is no input of that name.
    """
    if name is not None and name not in _INPUTS:
        raise InvalidInputError(
            f"There is no input {shown(name)}.",
            hint=f"There are: {', '.join(_INPUTS)}.",
            field="name",
        )
    chosen = _INPUTS if name is None else {name: _INPUTS[name]}
    return {called: tidied(describe()) for called, describe in chosen.items()}


def tidied(schema: Any) -> Any:
    """Return a schema of pydantic's with JSON Schema's words alone; no field is called as a limit."""
    if isinstance(schema, list):
        return [tidied(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {_LIMITS.get(word, word): tidied(part) for word, part in schema.items()}


def _generation(model: type[Job]) -> dict[str, Any]:
    """Return the schema of a generation with the other systems' spellings in it."""
    schema = model.model_json_schema()
    fields: dict[str, Any] = schema["properties"]
    for spelling, name in SYNONYMS.items():
        if name in fields:
            same = {word: part for word, part in fields[name].items() if word != "default"}
            fields[spelling] = {**same, "description": f"The same as `{name}`."}
    fields["scheduler_type"] = {"type": "string", "description": "The same as `scheduler`."}
    for spelling, kind in (("fileType", "string"), ("jpeg_quality", "integer")):
        fields[spelling] = {"type": kind, "description": "Without effect: pictures are PNG."}
    if model is Img2Img:
        fields["image"] = {"type": "string", "description": "One image, as `init_images`."}
        schema["required"].remove("init_images")
        schema["anyOf"] = [{"required": [field]} for field in _IMAGES]
    else:
        fields["hires"] = Hires.model_json_schema()
    others = ("api",) if model is Img2Img else ("api", *_IMAGES)
    schema["not"] = {"anyOf": [{"required": [field]} for field in others]}
    _leave_kinds_to_fields(schema["$defs"])
    return schema


def _leave_kinds_to_fields(definitions: dict[str, Any]) -> None:
    """Take `kind` out of references, as the field that holds one says it."""
    del definitions["Kind"]
    for name in ("ModelRef", "LoraRef"):
        reference = definitions[name]
        del reference["properties"]["kind"]
        reference.pop("required", None)
        reference["anyOf"] = [{"required": ["name"]}, {"required": ["url"]}]
    weights = definitions["LoraRef"]["properties"]
    weights["weight"] = {**weights["scale"], "description": "The same as `scale`."}


_INPUTS: Mapping[str, Callable[[], dict[str, Any]]] = {
    "txt2img": partial(_generation, Txt2Img),
    "img2img": partial(_generation, Img2Img),
    **{f"/v1/{name}": payload.model_json_schema for name, payload in COMMANDS.items()},
    **{route.path: route.payload.model_json_schema for route in ROUTES if route.payload},
}
