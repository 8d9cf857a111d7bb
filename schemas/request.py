"""From whatever JSON a caller sent to a typed request, or INVALID_INPUT.

Names first (synonyms, the envelope, an infotext), then sizes, types, and what cannot work.
"""

import difflib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from schemas import controlnet, convenience, infotext
from schemas.commands import COMMANDS, Command
from schemas.envelope import Envelope, opened, routed
from schemas.errors import SHOWN_CHARS, InvalidInputError, shown
from schemas.job import Img2Img, Job, Txt2Img
from schemas.model_ref import LoraRef
from schemas.routes import Call, Drawing, Options, Route
from schemas.settings import JobSettings

MAX_DEPTH = 32
MAX_VALUES = 100_000
MAX_UNKNOWN = 100

IMAGE_FIELDS = frozenset({"init_images", "mask", "latent_mask", "firstpass_image"})
FREE_FORM = frozenset({"alwayson_scripts", "script_args"})
Shape = TypeVar("Shape", bound=BaseModel)


@dataclass(frozen=True)
class Request:
    """A parsed job: what is asked for, and what the caller should know about how it was read."""

    job: Job | Command | Call
    warnings: tuple[str, ...]


def parse(value: object, limits: JobSettings) -> Request:
    """Return the typed request of a job's `input`.

    `null` counts as not given. Sizes are rounded down to a multiple of 8, as A1111 does to the
    picture (recorded from A1111 1.10.1: txt2img_width_not8).

    Raises:
        InvalidInputError: `details["field"]` is the path of the first field at fault, and
            `details["problems"]` holds them all.
    """
    if not isinstance(value, dict):
        raise InvalidInputError(
            f"`input` must be a JSON object, not {type(value).__name__}.",
            hint='Send {"input": {"prompt": "…"}}.',
            field="input",
        )
    _refuse_unspeakable(value)
    envelope = opened(value)
    if envelope is None:
        flat = {name: entry for name, entry in value.items() if name != "api"}
        return _generation(flat, limits)
    if envelope.generation is not None:
        return _generation(_enveloped(envelope), limits)
    if envelope.command is not None:
        payload = _shaped(COMMANDS[envelope.command], _with_query(envelope))
        return Request(Command(envelope.command, payload), ())
    route = routed(envelope, limits.extra_routes)
    return Request(_call(route, envelope), ())


def _generation(given: Mapping[str, Any], limits: JobSettings) -> Request:
    """Return the request for pictures that `given`, the fields of one, means."""
    try:
        fields, warnings = convenience.translated(given)
    except ValidationError as error:
        raise _invalid(error) from None
    fields, said = controlnet.taken(fields)
    warnings += said
    model = Img2Img if "init_images" in fields else Txt2Img
    _refuse_long_text(fields, limits.max_prompt_chars)
    if "infotext" in fields:
        fields, told = infotext.taken(fields, txt2img=model is Txt2Img)
        warnings += told
    warnings += _unknown_fields(fields, model)
    fields, rounded = _rounded_sizes(fields)
    try:
        job = model.model_validate(fields)
    except ValidationError as error:
        raise _invalid(error) from None
    job, needed = convenience.completed(job)
    _refuse_impossible(job, limits)
    return Request(job, (*warnings, *rounded, *needed))


def _enveloped(envelope: Envelope) -> dict[str, Any]:
    """Return the payload of an envelope for txt2img or img2img."""
    payload = envelope.payload
    if not isinstance(payload, dict):
        raise InvalidInputError("`payload` must be a JSON object.", field="payload")
    if envelope.query:
        raise InvalidInputError(
            f"{envelope.generation} takes a payload, not a query.", field="api.endpoint"
        )
    if (envelope.generation == "img2img") != convenience.names_image(payload):
        raise InvalidInputError(
            "img2img needs `init_images`, and txt2img takes none.", field="payload.init_images"
        )
    return payload


def _call(route: Route, envelope: Envelope) -> Call:
    """Return the call of `route` that an envelope means: its body, or the values of its query."""
    given = envelope.payload
    if route.method == "POST" and envelope.query:
        raise InvalidInputError(f"{route.path} takes a payload, not a query.", field="api.endpoint")
    if route.is_free and route.method == "POST":
        return Call(route, given)
    if not isinstance(given, dict | None):
        raise InvalidInputError("`payload` must be a JSON object.", field="payload")
    given = _with_query(envelope) or {}
    if route.is_free:
        return Call(route, given)
    if route.payload is not Options:  # To which a null says something.
        given = {name: entry for name, entry in given.items() if entry is not None}
    if route.payload is None:
        if given:
            raise InvalidInputError(f"{route.path} takes no payload.", field="payload")
        return Call(route, None)
    shaped = _shaped(route.payload, given)
    wanted = shaped.output if isinstance(shaped, Drawing) else None
    return Call(route, shaped.model_dump(exclude_unset=True, exclude={"output"}), wanted)


def _with_query(envelope: Envelope) -> Any:
    """Return the payload with the fields of the query, none of which may be in both."""
    given = envelope.payload
    if not envelope.query or not isinstance(given, dict | None):
        return given
    twice = sorted(envelope.query.keys() & (given or {}).keys())
    if twice:
        raise InvalidInputError(
            f"{shown(twice[0])} is in the query and in the payload.",
            field=twice[0][:SHOWN_CHARS] or "payload",
        )
    return {**envelope.query, **(given or {})}


def _shaped(shape: type[Shape], payload: Any) -> Shape:
    if payload is not None and not isinstance(payload, dict):
        raise InvalidInputError("`payload` must be a JSON object.", field="payload")
    try:
        return shape.model_validate({} if payload is None else payload)
    except ValidationError as error:
        raise _invalid(error) from None


def _unknown_fields(fields: Mapping[str, Any], model: type[Job]) -> list[str]:
    known = list(model.model_fields)
    unknown = [name for name in fields if name not in model.model_fields]
    if len(unknown) > MAX_UNKNOWN:
        raise InvalidInputError(
            f"{len(unknown)} fields are unknown, {shown(unknown[0])} among them.",
            field=unknown[0][:SHOWN_CHARS] or "input",
        )
    warnings = []
    for name in unknown:
        near = difflib.get_close_matches(name[:SHOWN_CHARS], known, n=1)
        offer = f"; did you mean `{near[0]}`?" if near else "."
        if name in Img2Img.model_fields:
            offer = "; it needs `init_images`."
        elif name in Txt2Img.model_fields:
            offer = "; it has no meaning beside `init_images`."
        warnings.append(f"Unknown field {shown(name)} was passed on to A1111 as it is{offer}")
    return warnings


def _rounded_sizes(fields: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    warnings = []
    rounded = dict(fields)
    for name in ("width", "height"):
        try:
            size = int(fields.get(name, 8))
        except (TypeError, ValueError, OverflowError):
            continue  # the type check that follows says it better
        if size > 0 and size % 8:
            rounded[name] = size - size % 8
            warnings.append(
                f"`{name}` {size} was rounded down to {rounded[name]}, a multiple of 8."
            )
            if not rounded[name]:
                raise InvalidInputError(f"`{name}` must be at least 8, not {size}.", field=name)
    return rounded, warnings


def _refuse_long_text(fields: Mapping[str, Any], limit: int) -> None:
    for name, entry in fields.items():
        if name in IMAGE_FIELDS or name in FREE_FORM:
            continue
        for path, text in _strings(entry, name):
            if len(text) > limit:
                raise InvalidInputError(
                    f"`{path}` has {len(text)} characters; the limit is {limit}.", field=path
                )


def _strings(value: Any, path: str) -> Iterator[tuple[str, str]]:
    return ((at, leaf) for at, leaf in _leaves(value, path) if isinstance(leaf, str))


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield every scalar and every key in `value` with its path; refuse what is nested too deep."""
    pending = [(path, value, 0)]
    seen = 0
    while pending:
        at, entry, depth = pending.pop()
        seen += 1
        if seen + len(pending) > MAX_VALUES:
            raise InvalidInputError(
                f"The request holds more than {MAX_VALUES} values.",
                field=_utf8(at[:SHOWN_CHARS]) or "input",
            )
        if depth > MAX_DEPTH:
            field = _utf8(at[:SHOWN_CHARS]) or "input"
            raise InvalidInputError(f"`{field}` is nested too deep.", field=field)
        if isinstance(entry, dict):
            for key, item in entry.items():
                name = str(key)[:SHOWN_CHARS]
                below = f"{at}.{name}" if at else name
                yield below, key
                pending.append((below, item, depth + 1))
        elif isinstance(entry, list):
            pending += [(f"{at}[{i}]", item, depth + 1) for i, item in enumerate(entry)]
        else:
            yield at, entry


def _refuse_unspeakable(value: dict[str, Any]) -> None:
    """Refuse what JSON cannot say and A1111 or the SDK would choke on later.

    Python's parser lets NaN and lone surrogates in; the SDK then loses a result that repeats one.
    Source: runpod-python 1.12.0, rp_http.py, lines 68-71.
    """
    for path, leaf in _leaves(value, ""):
        if isinstance(leaf, float) and not math.isfinite(leaf):
            field = _utf8(path) or "input"
            raise InvalidInputError(f"`{field}` is {leaf}; a number must be finite.", field=field)
        if isinstance(leaf, str) and not leaf.isascii() and not _is_utf8(leaf):
            field = _utf8(path) or "input"
            raise InvalidInputError(f"`{field}` holds half a character.", field=field)


def _utf8(text: str) -> str:
    return text.encode(errors="replace").decode()


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _invalid(error: ValidationError) -> InvalidInputError:
    problems = [
        {
            "field": _path(problem["loc"]) or "input",
            "message": problem["msg"].removeprefix("Value error, "),
        }
        for problem in error.errors(include_url=False, include_input=False, include_context=False)
    ]
    text = "; ".join(f"`{problem['field']}`: {problem['message']}" for problem in problems[:5])
    return InvalidInputError(f"{text}.", field=problems[0]["field"], problems=problems)


def _path(loc: tuple[int | str, ...]) -> str:
    # Pydantic adds the name of the union's member that it tried; callers know nothing of those.
    named = [
        part
        for part in loc
        if isinstance(part, int) or not part.startswith(("function-", "literal["))
    ]
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in named).lstrip(
        "."
    )


def _refuse_impossible(job: Job, limits: JobSettings) -> None:
    pixels = job.largest_pixels
    noise = job.seed_resize_from_w * job.seed_resize_from_h
    images = job.batch_size * job.n_iter
    refusals: list[tuple[bool, str, Callable[[], str]]] = [
        (
            pixels > limits.max_pixels,
            "width",
            lambda: f"{pixels} pixels, hires fix included, are more than {limits.max_pixels}.",
        ),
        (
            min(job.seed_resize_from_w, job.seed_resize_from_h) > 0 and noise > limits.max_pixels,
            "seed_resize_from_w",
            lambda: f"Noise for {noise} pixels is more than {limits.max_pixels}.",
        ),
        (
            images > limits.max_images,
            "batch_size",
            lambda: f"batch_size x n_iter is {images}; the limit is {limits.max_images}.",
        ),
        (
            job.steps > limits.max_steps,
            "steps",
            lambda: f"{job.steps} steps are more than {limits.max_steps}.",
        ),
        (
            isinstance(job, Img2Img) and len(job.init_images) > job.batch_size,
            "init_images",
            lambda: "More `init_images` than `batch_size`.",
        ),
        (
            isinstance(job, Txt2Img) and job.hr_second_pass_steps > limits.max_steps,
            "hr_second_pass_steps",
            lambda: f"The second pass has more than {limits.max_steps} steps.",
        ),
        (
            bool(small := _too_small(job)),
            small,
            lambda: "`firstphase_width` and `firstphase_height` must be at least 8, or both 0.",
        ),
        (
            job.disable_extra_networks and bool(job.loras),
            "disable_extra_networks",
            lambda: "`disable_extra_networks` would switch off the `loras` of this request.",
        ),
    ]
    problems = [
        {"field": field, "message": message()} for refused, field, message in refusals if refused
    ]
    if problems:
        text = " ".join(problem["message"] for problem in problems)
        raise InvalidInputError(text, field=problems[0]["field"], problems=problems)
    _refuse_twice(job.loras)


def _too_small(job: Job) -> str:
    """Return the side of the first pass that no picture can have; empty if both are right.

    Source: A1111 1.10.1, modules/processing.py, StableDiffusionProcessingTxt2Img: where one is given,
    both are the size of the picture, hires fix or not.
    """
    if not isinstance(job, Txt2Img):
        return ""
    sides = {
        "firstphase_width": job.firstphase_width,
        "firstphase_height": job.firstphase_height,
    }
    return next((name for name, side in sides.items() if any(sides.values()) and side < 8), "")


def _refuse_twice(loras: list[LoraRef]) -> None:
    seen: set[str] = set()
    for index, lora in enumerate(loras):
        key = lora.name or lora.url or ""
        if key in seen:
            raise InvalidInputError(
                f"`loras[{index}]` names {shown(lora.label)} a second time.",
                field=f"loras[{index}]",
            )
        seen.add(key)
