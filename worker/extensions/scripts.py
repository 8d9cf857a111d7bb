"""Which of A1111's scripts a request may name, and with which arguments. Pure.

A script does what it likes with its arguments: `prompts from file` takes a folder to write to, `x/y/z
plot` sets options and loads checkpoints, and either makes any number of pictures of any size, all of it
behind every check of the request. So only scripts whose arguments can be judged are taken, and what they
ask for is held to what a request without a script may.

Source: A1111 1.10.1, scripts/*.py and extensions-builtin/*/scripts/*.py; what its /script-info answers
(recorded: get_script_info).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from schemas.errors import InvalidInputError, shown
from schemas.job import Generation
from schemas.settings import JobSettings
from worker.extensions import detailer, reactor
from worker.extensions.arguments import Arguments, fitting, require_count
from worker.machine.helpers import require_upscaler
from worker.pictures.images import size_px

SETTING = "A1111_JOB_SCRIPTS"
MATRIX, LOOPBACK, UPSCALE = "prompt matrix", "loopback", "sd upscale"
OUTPAINTING, SIMPLE_OUTPAINTING = "outpainting mk2", "poor man's outpainting"
ALWAYS_ON = frozenset({"soft inpainting"})
"""Of those that are always on: whose arguments change the picture, and nothing else."""
_UPSCALER = 2
"""Its place among the arguments of `UPSCALE`."""
UPSCALER_FIELD = f"script_args[{_UPSCALER}]"
_BY_INDEX = frozenset({(UPSCALE, _UPSCALER), (SIMPLE_OUTPAINTING, 2)})
"""Script and place of a choice that A1111 takes as its number in the list."""


def checked(
    job: Generation,
    offered: Mapping[str, Arguments],
    pictures: Sequence[str],
    limits: JobSettings,
    links: Path,
) -> dict[str, Any]:
    """Return the fields of `job` that change: the script's arguments, made complete.

    A1111 puts them in the midst of those of all scripts, so that one too many or too few moves what
    the others get. Source: A1111 1.10.1, modules/api/api.py, init_script_args.

    Args:
        job: the request; that there are such scripts was looked at before.
        offered: the arguments of each script of its tab, by its name in small letters.
        pictures: its init images, as base64 that can be read.
        limits: what one request may ask for.
        links: the folder of links, where helper weights are.

    Raises:
        InvalidInputError: a script that is not taken, or an argument that is not.
        ModelNotFoundError: an upscaler's weights are not installed.
    """
    for name in job.alwayson_scripts:
        _always_on(name, job, offered, limits, links)
    if not job.script_name:
        return {}
    script = job.script_name.lower()
    is_added = script in _added(limits)
    check = SELECTABLE.get(script)
    if script not in offered or not (is_added or check):
        raise _refused("script_name", job.script_name)
    arguments = _filled(job.script_args, offered[script])
    if check is None or is_added:
        return {"script_args": arguments}
    arguments = _fitted(script, arguments, offered[script])
    check(job, arguments, pictures, limits)
    if script == UPSCALE:
        name = offered[script][_UPSCALER]["choices"][arguments[_UPSCALER]]
        require_upscaler(UPSCALER_FIELD, name, links)
    return {"script_args": arguments}


def _added(limits: JobSettings) -> set[str]:
    return {name.lower() for name in limits.scripts}


def _refused(field: str, name: str) -> InvalidInputError:
    return InvalidInputError(
        f"The script {shown(name)} may not be given arguments here.",
        hint=f"{SETTING} adds scripts; what they are told is not looked at.",
        field=field,
    )


def _always_on(
    name: str, job: Generation, offered: Mapping[str, Arguments], limits: JobSettings, links: Path
) -> None:
    entry = job.alwayson_scripts[name]
    field = f"alwayson_scripts.{name[:80]}"
    arguments = entry.get("args", []) if isinstance(entry, dict) else None
    if not isinstance(arguments, list):
        raise InvalidInputError(f'`{field}` must be {{"args": […]}}.', field=field)
    script, field = name.lower(), f"{field}.args"
    if not arguments or script in _added(limits):
        return  # Without arguments it does what it does in every job.
    told = offered.get(script)
    if told is None:
        raise _refused(field.removesuffix(".args"), name)
    if script == detailer.SCRIPT:
        detailer.require_permitted(arguments, told, field, limits)
    elif script == reactor.SCRIPT:
        reactor.require_permitted(arguments, told, field, job, limits, links)
    elif script in ALWAYS_ON:
        require_count(arguments, len(told), field)
        for index, (value, argument) in enumerate(zip(arguments, told, strict=False)):
            fitting(value, argument, f"{field}[{index}]")
    else:
        raise _refused(field.removesuffix(".args"), name)


def pictures(entries: Mapping[str, Any]) -> dict[str, object]:
    """Return the pictures in `alwayson_scripts`, by their paths in the request."""
    return {
        f"alwayson_scripts.{name}.args[{reactor.IMAGE}]": arguments[reactor.IMAGE]
        for name, arguments in _given(entries, reactor.SCRIPT)
    }


def detectors(entries: Mapping[str, Any], limits: JobSettings) -> dict[str, str]:
    """Return the models that ADetailer is to look with, by their paths in the request.

    Args:
        entries: `alwayson_scripts`, which `checked` has passed.
        limits: which scripts get what they are sent.
    """
    return {
        f"alwayson_scripts.{name}.args[{index}].ad_model": model
        for name, arguments in _given(entries, detailer.SCRIPT)
        if name.lower() not in _added(limits)
        for index, model in detailer.models(arguments).items()
    }


def upscalers(job: Generation, limits: JobSettings) -> dict[str, str]:
    """Return the upscalers that the scripts of `job` name, by their paths in the request.

    Args:
        job: the request, with its scripts `respelled`.
        limits: which scripts get what they are sent.
    """
    found = {
        f"alwayson_scripts.{name}.args[{reactor.UPSCALER}]": reactor.upscaler(arguments)
        for name, arguments in _given(job.alwayson_scripts, reactor.SCRIPT)
        if name.lower() not in _added(limits)
    }
    if (job.script_name or "").lower() == UPSCALE and len(job.script_args) > _UPSCALER:
        found[UPSCALER_FIELD] = job.script_args[_UPSCALER]
    # SD upscale takes a number, too.
    return {field: name for field, name in found.items() if isinstance(name, str)}


def respelled(
    entries: Mapping[str, Any], found: Mapping[str, str], limits: JobSettings
) -> dict[str, Any]:
    """Return `alwayson_scripts` as the extensions read it, with the pictures that were fetched.

    Args:
        entries: what the caller sent.
        found: base64 by the paths that `pictures` names.
        limits: which scripts get what they are sent, and how large a picture may be.

    Raises:
        InvalidInputError: a picture is none, or has more pixels than an input may.
    """
    whole = dict(entries)
    for name, arguments in _given(entries, reactor.SCRIPT):
        at = f"alwayson_scripts.{name}.args"
        sent = [found.get(f"{at}[{reactor.IMAGE}]", arguments[reactor.IMAGE]), *arguments[1:]]
        is_added = name.lower() in _added(limits)
        taken = sent if is_added else reactor.plain(sent, at, limits.max_input_pixels)
        whole[name] = {**entries[name], "args": taken}
    for name, arguments in _given(entries, detailer.SCRIPT):
        if name.lower() not in _added(limits):
            whole[name] = {**entries[name], "args": detailer.plain(arguments)}
    return whole


def _given(entries: Mapping[str, Any], script: str) -> Iterator[tuple[str, list[Any]]]:
    """Yield the arguments of a script, if it has any; that they are a list is looked at later."""
    for name, entry in entries.items():
        if name.lower() == script and isinstance(entry, dict):
            arguments = entry.get("args")
            if isinstance(arguments, list) and arguments:
                yield name, arguments


def _filled(given: Sequence[Any], told: Arguments) -> list[Any]:
    require_count(given, len(told), "script_args")
    return [*given, *(argument.get("value") for argument in told[len(given) :])]


def _fitted(script: str, given: Sequence[Any], told: Arguments) -> list[Any]:
    return [
        fitting(value, argument, f"script_args[{index}]", by_index=(script, index) in _BY_INDEX)
        for index, (value, argument) in enumerate(zip(given, told, strict=True))
    ]


# What the arguments together ask for. Their places are those of A1111 1.10.1.


def _matrix(
    job: Generation, given: Sequence[Any], _pictures: Sequence[str], limits: JobSettings
) -> None:
    text = job.prompt if given[2] == "positive" else job.negative_prompt
    # Not 2 to the power of what a text of 50,000 characters holds.
    parts = min(text.count("|"), 64)
    _require_images(2**parts, limits, f"{parts} parts of the prompt make")


def _loopback(
    job: Generation, given: Sequence[Any], _pictures: Sequence[str], limits: JobSettings
) -> None:
    _require_images(given[0] * job.n_iter, limits, "loops x n_iter make")
    if given[3] != "None":
        raise InvalidInputError(
            "A caption for each loop would be words that nobody has looked at.",
            hint='Send "None", and ask `interrogate` for a caption.',
            field="script_args[3]",
        )


def _upscale(
    job: Generation, given: Sequence[Any], pictures: Sequence[str], limits: JobSettings
) -> None:
    _, overlap, upscaler, scale = given
    width, height = size_px(pictures[0])
    factor = scale if upscaler else 1.0  # The first of the list does nothing.
    size = int(width * factor), int(height * factor)
    _require_pixels(size, limits.max_input_pixels)
    _require_tiles(job, size, overlap, limits)


def _outpainting(
    _job: Generation, given: Sequence[Any], pictures: Sequence[str], limits: JobSettings
) -> None:
    # A pass is as high or as wide as the picture. Source: outpainting_mk_2.py, expand.
    _require_pixels(_expanded(pictures[0], given[1]), limits.max_pixels)


def _simple_outpainting(
    job: Generation, given: Sequence[Any], pictures: Sequence[str], limits: JobSettings
) -> None:
    size = _expanded(pictures[0], given[0])
    _require_pixels(size, limits.max_input_pixels)
    _require_tiles(job, size, given[0], limits)


def _expanded(picture: str, by: int) -> tuple[int, int]:
    """Return the size with `by` more on every side, in multiples of 64, as the scripts make it."""
    width, height = (math.ceil((side + 2 * by) / 64) * 64 for side in size_px(picture))
    return width, height


def _require_images(count: int, limits: JobSettings, what: str) -> None:
    if count > limits.max_images:
        raise InvalidInputError(
            f"{what} {count} pictures; the limit is {limits.max_images}.", field="script_args"
        )


def _require_pixels(size: tuple[int, int], limit: int) -> None:
    if size[0] * size[1] > limit:
        raise InvalidInputError(
            f"The picture would have {size[0]} x {size[1]} pixels; the limit is {limit}.",
            field="script_args",
        )


def _require_tiles(
    job: Generation, size: tuple[int, int], overlap: int, limits: JobSettings
) -> None:
    """Refuse tiles that are more work than all pictures of the largest request together.

    Source: A1111 1.10.1, modules/images.py, split_grid.
    """
    if overlap >= min(job.width, job.height):
        raise InvalidInputError(
            f"Tiles of {job.width} x {job.height} pixels cannot overlap by {overlap}.",
            field="script_args",
        )
    sides = zip(size, (job.width, job.height), strict=True)
    columns, rows = (max(1, math.ceil((side - overlap) / (tile - overlap))) for side, tile in sides)
    tiles = columns * rows * job.n_iter
    limit = limits.max_images * limits.max_pixels
    if tiles * job.width * job.height > limit:
        raise InvalidInputError(
            f"{tiles} tiles of {job.width} x {job.height} are more than {limit} pixels.",
            hint="Ask for larger tiles, less overlap, or a smaller picture.",
            field="script_args",
        )


_Check = Callable[[Generation, Sequence[Any], Sequence[str], JobSettings], None]
SELECTABLE: Mapping[str, _Check] = {
    MATRIX: _matrix,
    LOOPBACK: _loopback,
    UPSCALE: _upscale,
    OUTPAINTING: _outpainting,
    SIMPLE_OUTPAINTING: _simple_outpainting,
}
