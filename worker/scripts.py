"""Which of A1111's scripts a request may name, and with which arguments. Pure.

A script does what it likes with its arguments: `prompts from file` takes a folder to write to, `x/y/z
plot` sets options and loads checkpoints, and either makes any number of pictures of any size, all of it
behind every check of the request. So only scripts whose arguments can be judged are taken, and what they
ask for is held to what a request without a script may.

Source: A1111 1.10.1, scripts/*.py and extensions-builtin/*/scripts/*.py; what its /script-info answers
(recorded: get_script_info).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from schemas.errors import InvalidInputError, shown
from schemas.job import Generation
from schemas.settings import JobSettings
from worker import detailer
from worker.helpers import require_upscaler
from worker.images import size_px

SETTING = "A1111_JOB_SCRIPTS"
MATRIX, LOOPBACK, UPSCALE = "prompt matrix", "loopback", "sd upscale"
OUTPAINTING, SIMPLE_OUTPAINTING = "outpainting mk2", "poor man's outpainting"
ALWAYS_ON = frozenset({"soft inpainting"})
"""Of those that are always on: whose arguments change the picture, and nothing else."""
_BY_INDEX = frozenset({(UPSCALE, 2), (SIMPLE_OUTPAINTING, 2)})
"""Script and place of a choice that A1111 takes as its number in the list."""

Arguments = Sequence[Mapping[str, Any]]
"""What A1111 tells of each argument: `label` and `value`, `minimum` and `maximum`, `choices`."""


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
    for name, entry in job.alwayson_scripts.items():
        _always_on(name, entry, offered, limits)
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
        upscaler = offered[script][2]["choices"][arguments[2]]
        require_upscaler("script_args[2]", upscaler, links)
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
    name: str, entry: object, offered: Mapping[str, Arguments], limits: JobSettings
) -> None:
    field = f"alwayson_scripts.{name[:80]}"
    arguments = entry.get("args", []) if isinstance(entry, dict) else None
    if not isinstance(arguments, list):
        raise InvalidInputError(f'`{field}` must be {{"args": […]}}.', field=field)
    script = name.lower()
    if not arguments or script in _added(limits):
        return  # Without arguments it does what it does in every job.
    if script == detailer.SCRIPT:
        detailer.require_permitted(arguments, f"{field}.args", limits)
    elif script in ALWAYS_ON and script in offered:
        _require_count(arguments, offered[script], f"{field}.args")
        for index, (value, told) in enumerate(zip(arguments, offered[script], strict=False)):
            _fitting(value, told, f"{field}.args[{index}]")
    else:
        raise _refused(field, name)


def _require_count(given: Sequence[object], told: Arguments, field: str) -> None:
    if len(given) > len(told):
        raise InvalidInputError(
            f"`{field}` has {len(given)} arguments; the script takes {len(told)}.", field=field
        )


def _filled(given: Sequence[Any], told: Arguments) -> list[Any]:
    _require_count(given, told, "script_args")
    return [*given, *(argument.get("value") for argument in told[len(given) :])]


def _fitted(script: str, given: Sequence[Any], told: Arguments) -> list[Any]:
    return [
        _fitting(value, argument, f"script_args[{index}]", by_index=(script, index) in _BY_INDEX)
        for index, (value, argument) in enumerate(zip(given, told, strict=True))
    ]


def _fitting(value: Any, told: Mapping[str, Any], field: str, *, by_index: bool = False) -> Any:
    """Return one argument as A1111 is to get it: of the type of its default, and in its range."""
    default, choices = told.get("value"), told.get("choices")
    if not told.get("label"):
        return default  # A text on the page, which nobody reads.
    if by_index and choices and type(value) is int and 0 <= value < len(choices):
        return value
    if choices is not None:
        several = isinstance(default, list)
        found = value if several and isinstance(value, list) else [value]
        if several != isinstance(value, list) or any(entry not in choices for entry in found):
            raise _unfit(value, f"one of {', '.join(map(str, choices[:40]))}", field)
        return choices.index(value) if by_index else value
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise _unfit(value, "true or false", field)
        return value
    return _number(value, told, field)


def _number(value: Any, told: Mapping[str, Any], field: str) -> float:
    """Return a number in its range. No script that is taken has an argument of free text."""
    least, most = told.get("minimum"), told.get("maximum")
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if least is None or most is None or not is_number or not least <= value <= most:
        raise _unfit(value, f"a number from {least} to {most}", field)
    # Of a slider that begins at 1, only its step tells whether it takes 1.5.
    whole = isinstance(told["value"], int) and float(told.get("step") or 1).is_integer()
    if whole and value != int(value):
        raise _unfit(value, "an integer", field)
    return int(value) if whole else float(value)


def _unfit(value: object, wanted: str, field: str) -> InvalidInputError:
    return InvalidInputError(f"`{field}` takes {wanted}, not {shown(value)}.", field=field)


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
