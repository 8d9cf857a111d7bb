"""What a request may tell ReActor, which puts the faces of one picture into those that are made.

    {"alwayson_scripts": {"reactor": {"args": ["<image>", true, "0", "0", "inswapper_128.onnx", …]}}}

Its arguments have places and no names. What it cannot work with it passes over: the picture is answered as
it was, with status 200.

Source: Gourieff/sd-webui-reactor, scripts/reactor_faceswap.py (ui, process, postprocess),
scripts/reactor_swapper.py (swap_face) and reactor_ui/, as its author has them in
Gourieff/sd-webui-reactor-force cd244cb; unverified against a live server.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

from schemas.errors import InvalidInputError, ModelNotFoundError, shown
from schemas.job import Generation, Txt2Img
from schemas.settings import JobSettings
from worker.extensions.arguments import Arguments, fitting, require_count, unfit
from worker.extensions.controlnet import three_channels
from worker.machine.helpers import require_upscaler
from worker.pictures import images

SCRIPT = "reactor"
IMAGE = 0
"""The place of the picture that the faces are taken from."""
NONE = "None"

_ENABLE, _MODEL, _RESTORER, UPSCALER, _SCALE = 1, 4, 5, 8, 9
_SOURCE_FACES, _TARGET_FACES, _SELECT_SOURCE, _FACE_MODEL = 2, 3, 22, 23
_FROM_FILE = 1
# In place of null, at which it fails in most places.
_DEFAULTS: tuple[Any, ...] = (
    *(None, False, "0", "0", "inswapper_128.onnx", NONE, 1, True, NONE, 1, 1, False, True),
    *(1, 0, 0, False, 0.5, True, False, "CPU", False, 0, NONE, "", None, False, False, 0.5, 0),
    "tab_single",
)
_Check = Callable[[Any, Mapping[str, Any], str], None]
_FACES = re.compile(r"\d{1,3}( ?, ?\d{1,3}){0,30}", re.ASCII)


def plain(arguments: Sequence[Any], field: str, max_pixels: int) -> list[Any]:
    """Return the arguments as ReActor reads them; that they may be given is looked at after.

    Null becomes a default, the picture base64 of an upright RGB image, and a path to the model, which
    the older workers' pages have, its name: ReActor looks in one folder. What is left out is filled in
    up to the choice of the source, for which A1111 would pass on a name that ReActor takes for no source.

    Args:
        arguments: what the caller sent, pictures by URL fetched.
        field: the path of the list in the request.
        max_pixels: of the picture, width x height.

    Raises:
        InvalidInputError: the picture is none, or has more pixels.
    """
    found = [
        default if value is None else value
        for value, default in zip(arguments, _DEFAULTS, strict=False)
    ]
    found += arguments[len(_DEFAULTS) :] or _DEFAULTS[len(found) : _SELECT_SOURCE + 1]
    if isinstance(found[IMAGE], str):
        picture, at = found[IMAGE], f"{field}[{IMAGE}]"
        found[IMAGE] = three_channels(picture, at, max_pixels)[0] if picture else None
    for place in (_SOURCE_FACES, _TARGET_FACES):
        if type(found[place]) is int:
            found[place] = str(found[place])
    if isinstance(found[_MODEL], str):
        found[_MODEL] = PureWindowsPath(found[_MODEL]).name
    return [_whole(value) for value in found]


def upscaler(arguments: Sequence[Any]) -> str | None:
    """Return the upscaler that is to be used, which ReActor would do without in silence.

    None if ReActor is off, or where no name is; that it may be named is for `require_permitted`.
    """
    name = arguments[UPSCALER] if len(arguments) > UPSCALER and arguments[_ENABLE] is True else None
    return name if isinstance(name, str) else None


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def require_permitted(
    given: Sequence[Any],
    told: Arguments,
    field: str,
    job: Generation,
    limits: JobSettings,
    links: Path,
) -> None:
    """Refuse what reaches files of the server, and what ReActor would do without in silence.

    Args:
        given: the arguments, as `plain` returned them.
        told: what A1111 tells of each.
        field: the path of the list in the request.
        job: the request, for the size of its pictures.
        limits: what one request may ask for.
        links: the folder of links, where helper weights are.

    Raises:
        InvalidInputError: an argument that is not taken.
        ModelNotFoundError: the weights that one names are not installed.
    """
    require_count(given, min(len(told), len(_DEFAULTS)), field)
    for place, (value, argument) in enumerate(zip(given, told, strict=False)):
        check: _Check = _CHECKS.get(place, _on_the_page)
        check(value, argument, f"{field}[{place}]")
    whole = [*given, *_DEFAULTS[len(given) :]]
    if not whole[_ENABLE]:
        return
    _require_source(whole, field)
    # Restorers are looked for as upscalers are.
    for place in (_RESTORER, UPSCALER):
        require_upscaler(f"{field}[{place}]", whole[place], links)
    if whole[UPSCALER] != NONE:
        _require_pixels(whole[_SCALE], f"{field}[{_SCALE}]", job, limits)


def _on_the_page(value: object, told: Mapping[str, Any], field: str) -> None:
    # Also where the page shows no label.
    fitting(value, {**told, "label": field}, field)


def _picture(value: object, _told: Mapping[str, Any], field: str) -> None:
    if value is None:
        return
    if not isinstance(value, str) or images.is_url(value):
        raise unfit(value, "an image: base64, a data URI or an https URL", field)


def _face_numbers(value: object, _told: Mapping[str, Any], field: str) -> None:
    if not isinstance(value, str) or not _FACES.fullmatch(value.strip()):
        raise unfit(value, 'numbers of faces, as in "0" or "0,2,1"', field)


def _model(value: object, told: Mapping[str, Any], field: str) -> None:
    if not told.get("choices"):
        raise ModelNotFoundError(
            "ReActor has no model here.",
            hint=f"Put `{_DEFAULTS[_MODEL]}` into models/insightface on the volume, for workers that"
            " start from then on.",
            field=field,
        )
    _on_the_page(value, told, field)


def _numbered(value: object, told: Mapping[str, Any], field: str) -> None:
    """Refuse what is no number of a choice: a page sends the number, never the name."""
    choices = told.get("choices") or ()
    if type(value) is not int or not 0 <= value < len(choices):
        wanted = ", ".join(f"{number} ({name})" for number, name in enumerate(choices))
        raise unfit(value, f"one of {wanted}", field)


def _source(value: object, told: Mapping[str, Any], field: str) -> None:
    _numbered(value, told, field)
    if value not in {0, _FROM_FILE}:
        raise InvalidInputError(
            f"`{field}` chooses a folder of the server.",
            hint="Send the picture, with 0 here; or name a face model, with 1.",
            field=field,
        )


def _only(wanted: object) -> _Check:
    """Return a check of what reaches files of the server unless it is at its default."""

    def check(value: object, _told: Mapping[str, Any], field: str) -> None:
        if value != wanted or isinstance(value, bool) != isinstance(wanted, bool):
            raise InvalidInputError(
                f"`{field}` cannot be {shown(value)}: it would reach files of the server.",
                hint=f"Leave it out, or send {json.dumps(wanted)}.",
                field=field,
            )

    return check


_CHECKS: Mapping[int, _Check] = {
    IMAGE: _picture,
    _SOURCE_FACES: _face_numbers,
    _TARGET_FACES: _face_numbers,
    _MODEL: _model,
    **dict.fromkeys((13, 14, 15), _numbered),
    _SELECT_SOURCE: _source,
    # It writes what was before, the source's folder, the files of several sources, and their tab.
    **{place: _only(_DEFAULTS[place]) for place in (16, 24, 25, 30)},
}


def _require_source(given: Sequence[Any], field: str) -> None:
    """Refuse faces that come from nowhere: the picture would be answered as it was."""
    if given[_SELECT_SOURCE] == _FROM_FILE:
        if given[_FACE_MODEL] == NONE:
            at = f"{field}[{_FACE_MODEL}]"
            raise InvalidInputError(f"`{at}` names no face model.", field=at)
    elif not given[IMAGE]:
        at = f"{field}[{IMAGE}]"
        raise InvalidInputError(f"`{at}` has no picture to take a face from.", field=at)
    sources, targets = (given[place].count(",") for place in (_SOURCE_FACES, _TARGET_FACES))
    if sources not in {0, targets}:
        at = f"{field}[{_SOURCE_FACES}]"
        raise InvalidInputError(
            f"`{at}` has {sources + 1} faces for {targets + 1}.",
            hint="Name one for all, or one for each.",
            field=at,
        )


def _require_pixels(scale: float, field: str, job: Generation, limits: JobSettings) -> None:
    pixels = job.final_pixels if isinstance(job, Txt2Img) else job.width * job.height
    if pixels * scale**2 > limits.max_input_pixels:
        raise InvalidInputError(
            f"The picture would have {pixels * scale**2:.0f} pixels; the limit is"
            f" {limits.max_input_pixels}.",
            hint="Ask for less upscaling.",
            field=field,
        )
