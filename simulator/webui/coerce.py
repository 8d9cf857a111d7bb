"""What pydantic 1 makes of a JSON value: A1111's coercions and the texts of its refusals.

The types are those of the OpenAPI schema. Knows nothing of what a field means.

Source: pydantic 1.10, pydantic/validators.py and errors.py; the texts were also recorded from
A1111 1.10.1 (txt2img_steps_str, txt2img_prompt_list, txt2img_styles_str, extras_batch_noname, …).
"""

import copy
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

from simulator.webui import catalogue
from simulator.webui.failure import InvalidRequestError, WebuiError

Schema = Mapping[str, Any]
Location = tuple[str | int, ...]

_TRUE = {"1", "on", "t", "true", "y", "yes"}
_FALSE = {"0", "off", "f", "false", "n", "no"}

# Fields that the two generation requests add to those of the processing classes. Only the latter are
# Optional; of the former, those with a default other than None refuse null.
# Source: A1111 1.10.1, modules/api/models.py, PydanticModelGenerator.
_PROCESSING = {"StableDiffusionProcessingTxt2Img", "StableDiffusionProcessingImg2Img"}
_ADDED = {
    "sampler_index",
    "include_init_images",
    "script_args",
    "send_images",
    "save_images",
    "alwayson_scripts",
}
# Typed `Any` there, though the schema calls them strings.
# Source: recorded from A1111 1.10.1: txt2img_firstpass_image.
_UNTYPED = {"firstpass_image", "latent_mask"}


class _RefusalError(Exception):
    """One value that does not fit, before it is known where in the body it is."""

    def __init__(self, message: str, kind: str, **context: object) -> None:
        super().__init__(message)
        self.entry: dict[str, Any] = {"msg": message, "type": kind}
        if context:
            self.entry["ctx"] = context


def model(title: str, body: object) -> dict[str, Any]:
    """Return the fields of the request model `title`, coerced, with defaults, in its order.

    Raises:
        InvalidRequestError: with every error of every field.
    """
    errors: list[dict[str, Any]] = []
    fields = _object(title, body, ("body",), errors)
    if errors:
        raise InvalidRequestError(errors)
    return fields


def mapping(body: object) -> dict[str, Any]:
    """Return a body that may be any JSON object.

    Raises:
        InvalidRequestError: it is not one.
    """
    if body is None:
        raise InvalidRequestError([_missing(("body",))])
    try:
        return _as_dict(body)
    except _RefusalError as refusal:
        raise InvalidRequestError([{"loc": ["body"], **refusal.entry}]) from refusal


def query_flag(name: str, text: str | None, *, default: bool) -> bool:
    """Return a boolean of the query string.

    Raises:
        InvalidRequestError: it is not one.
    """
    if text is None:
        return default
    try:
        return _boolean(text)
    except _RefusalError as refusal:
        raise InvalidRequestError([{"loc": ["query", name], **refusal.entry}]) from refusal


def option(schema: Schema, value: object) -> Any:
    """Return an option's value as GET /options shows it, or refuse it as `_RefusalError` text.

    Raises:
        ValueError: "message (type=kind)", the way pydantic prints it.
    """
    if value is None:
        return None
    try:
        return _typed(schema, value)
    except _RefusalError as refusal:
        raise ValueError(f"{refusal.entry['msg']} (type={refusal.entry['type']})") from refusal


def _missing(location: Location) -> dict[str, Any]:
    return {"loc": list(location), "msg": "field required", "type": "value_error.missing"}


def _object(
    title: str, value: object, location: Location, errors: list[dict[str, Any]]
) -> dict[str, Any]:
    if value is None:
        errors.append(_missing(location))
        return {}
    try:
        given = _as_dict(value)
    except _RefusalError as refusal:
        errors.append({"loc": list(location), **refusal.entry})
        return {}
    definition = catalogue.openapi()["components"]["schemas"][title]
    required = definition.get("required", ())
    fields: dict[str, Any] = {}
    for name, schema in definition["properties"].items():
        at = (*location, name)
        if name not in given:
            if name in required:
                errors.append(_missing(at))
            fields[name] = copy.deepcopy(schema.get("default"))
        else:
            fields[name] = _field(title, schema, given[name], at, errors)
    return fields


def _field(
    title: str,
    schema: Schema,
    value: object,
    location: Location,
    errors: list[dict[str, Any]],
) -> Any:
    name = str(location[-1])
    if value is None:
        if not _nullable(title, name, schema):
            errors.append(_not_null(location))
        return None
    if name in _UNTYPED:
        return value
    try:
        if schema.get("type") == "array":
            return _elements(schema, _list(value), location, errors)
        return _typed(schema, value)
    except _RefusalError as refusal:
        errors.append({"loc": list(location), **refusal.entry})
        return None


def _nullable(title: str, name: str, schema: Schema) -> bool:
    if title not in _PROCESSING:
        return "default" in schema and schema["default"] is None
    if title.endswith("Img2Img") and name == "denoising_strength":
        return False
    return name not in _ADDED


def _not_null(location: Location) -> dict[str, Any]:
    return {
        "loc": list(location),
        "msg": "none is not an allowed value",
        "type": "type_error.none.not_allowed",
    }


def _elements(
    schema: Schema, values: list[Any], location: Location, errors: list[dict[str, Any]]
) -> list[Any]:
    inner = schema.get("items", {})
    if "$ref" in inner:
        title = inner["$ref"].rsplit("/", 1)[1]
        return [
            _object(title, value, (*location, index), errors) for index, value in enumerate(values)
        ]
    if not inner:
        return values
    elements = []
    for index, value in enumerate(values):
        at = (*location, index)
        if value is None:
            errors.append(_not_null(at))
            continue
        try:
            elements.append(_typed(inner, value))
        except _RefusalError as refusal:
            errors.append({"loc": list(at), **refusal.entry})
    return elements


def _typed(schema: Schema, value: object) -> Any:
    convert = _CONVERTERS.get(schema.get("type", ""))
    if convert is None:
        return value
    if "enum" in schema:
        return _literal(schema["enum"], value)
    result = convert(value)
    if isinstance(result, int | float):
        _check_bounds(schema, result)
    return result


def _check_bounds(schema: Schema, value: float) -> None:
    if "maximum" in schema and not math.isfinite(value):
        raise _RefusalError(
            "ensure this value is a finite number", "value_error.number.not_finite_number"
        )
    for bound, holds, text, kind in _BOUNDS:
        if bound in schema and not holds(value, schema[bound]):
            limit = int(schema[bound])
            raise _RefusalError(
                f"ensure this value is {text} {limit}",
                f"value_error.number.not_{kind}",
                limit_value=limit,
            )


def _literal(permitted: list[Any], value: object) -> Any:
    # Literal compares by equality, so that 1.0 and true are the 1 of the list.
    for candidate in permitted:
        if candidate == value:
            return candidate
    listed = ", ".join(repr(candidate) for candidate in permitted)
    raise _RefusalError(
        f"unexpected value; permitted: {listed}",
        "value_error.const",
        given=value,
        permitted=permitted,
    )


def _integer(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str | float | bool):
        try:
            return int(value)
        except (ValueError, OverflowError) as error:
            raise _RefusalError("value is not a valid integer", "type_error.integer") from error
    raise _RefusalError("value is not a valid integer", "type_error.integer")


def _number(value: object) -> float:
    if isinstance(value, str | int | float):
        try:
            return float(value)
        except ValueError as error:
            raise _RefusalError("value is not a valid float", "type_error.float") from error
        except OverflowError as error:
            # pydantic catches TypeError and ValueError only, so this one becomes a 500.
            raise WebuiError("OverflowError", str(error)) from error
    raise _RefusalError("value is not a valid float", "type_error.float")


def _string(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return str(value)
    raise _RefusalError("str type expected", "type_error.str")


def _boolean(value: object) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float) and value in {0, 1}:
        return bool(value)
    if isinstance(value, str) and value.lower() in _TRUE | _FALSE:
        return value.lower() in _TRUE
    raise _RefusalError("value could not be parsed to a boolean", "type_error.bool")


def _list(value: object) -> list[Any]:
    if isinstance(value, list):
        return value
    raise _RefusalError("value is not a valid list", "type_error.list")


def _as_dict(value: object) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    if isinstance(value, list):
        # `dict(value)`, as pydantic tries: a list of pairs is a mapping, and so is an empty one.
        try:
            return dict(value)
        except (TypeError, ValueError) as error:
            raise _RefusalError("value is not a valid dict", "type_error.dict") from error
    raise _RefusalError("value is not a valid dict", "type_error.dict")


_CONVERTERS: dict[str, Callable[[object], Any]] = {
    "integer": _integer,
    "number": _number,
    "string": _string,
    "boolean": _boolean,
    "array": _list,
    "object": _as_dict,
}

_BOUNDS: tuple[tuple[str, Callable[[float, float], bool], str, str], ...] = (
    ("minimum", operator.ge, "greater than or equal to", "ge"),
    ("exclusiveMinimum", operator.gt, "greater than", "gt"),
    ("maximum", operator.le, "less than or equal to", "le"),
)
