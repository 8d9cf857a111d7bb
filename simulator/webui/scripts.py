"""The scripts that a request may name: the prompt matrix, and what becomes of all the others.

Source: A1111 1.10.1, modules/api/api.py, get_selectable_script and init_script_args, and
scripts/prompt_matrix.py.
"""

import math
import random
from collections.abc import Callable
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from simulator.webui import pictures
from simulator.webui.failure import HttpError, WebuiError
from simulator.webui.job import Job, Processed
from simulator.webui.options import Options
from simulator.webui.prepare import RANDOM_SEEDS

# Always on and without a control of its own, so that no list names it.
_UNLISTED = "comments"
_MATRIX = "prompt matrix"


def selectable(kind: str, info: list[dict[str, Any]]) -> list[str]:
    """Return the scripts that `script_name` may name for a request of this kind, in small letters."""
    return [
        entry["name"].lower()
        for entry in info
        if not entry["is_alwayson"] and entry["is_img2img"] == (kind == "img2img")
    ]


def check(
    kind: str,
    name: str | None,
    always_on: dict[str, Any] | None,
    listed: dict[str, list[str]],
    info: list[dict[str, Any]],
) -> None:
    """Refuse scripts that are not there, and selectable ones among those that are always on.

    Args:
        kind: txt2img or img2img.
        name: `script_name` of the request.
        always_on: its `alwayson_scripts`.
        listed: what /scripts answers.
        info: what /script-info answers.

    Raises:
        HttpError: 422.
    """
    if name and name.lower() not in selectable(kind, info):
        raise HttpError(422, f"Script '{name}' not found")
    known = {entry.lower() for entry in listed[kind]} | {_UNLISTED}
    for given in always_on or {}:
        if given == "":
            raise HttpError(422, f"always on script {given} not found")
        if given.lower() not in known:
            raise HttpError(422, f"Script '{given}' not found")
        if given.lower() in selectable(kind, info):
            text = "Cannot have a selectable script in the always on scripts params"
            raise HttpError(422, text)


def run(
    name: str | None,
    arguments: list[Any],
    job: Job,
    options: Options,
    process: Callable[[Job], Processed],
) -> Processed:
    """Run the job under the script `name`.

    Only the prompt matrix is simulated; under any other script the job runs as if there were none.

    Raises:
        WebuiError: what the script or the job raises.
    """
    if not name or name.lower() != _MATRIX:
        return process(job)
    defaults: list[Any] = [False, False, "positive", "comma", 0]
    at_start, different_seeds, which, delimiter, margin = [
        *arguments[: len(defaults)],
        *defaults[len(arguments) :],
    ]
    if which not in {"positive", "negative"}:
        raise WebuiError("ValueError", f"Unknown prompt type {which}")
    if delimiter not in {"comma", "space"}:
        raise WebuiError("ValueError", f"Unknown variations delimiter {delimiter}")
    prompt = job.prompt if which == "positive" else job.negative_prompt
    if not isinstance(prompt, str):
        raise WebuiError("AttributeError", "'NoneType' object has no attribute 'split'")
    first, *parts = prompt.split("|")
    combinations = _combinations(first, parts, at_start=bool(at_start))
    texts = [(", " if delimiter == "comma" else " ").join(words) for words in combinations]
    job.n_iter = math.ceil(len(texts) / (job.batch_size or 1))
    job.do_not_save_grid = True
    if which == "positive":
        job.prompt = texts
    else:
        job.negative_prompt = texts
    seed = (
        job.seed if isinstance(job.seed, int) and job.seed != -1 else random.randrange(RANDOM_SEEDS)
    )
    job.seed = [seed + (n if different_seeds else 0) for n in range(len(texts))]
    processed = process(job)
    rows = 1 << (len(parts) // 2)
    whole = pictures.grid(processed.images, options, job.batch_size or 1, rows)
    size = processed.images[0].size
    processed.images.insert(0, _annotated(whole, size, [first, *parts], int(margin)))
    processed.infotexts.insert(0, processed.infotexts[0])
    processed.index_of_first_image = 1
    return processed


def _combinations(first: str, parts: list[str], *, at_start: bool) -> list[list[str]]:
    found = []
    for chosen in range(2 ** len(parts)):
        words = [text.strip().strip(",") for n, text in enumerate(parts) if chosen & (1 << n)]
        found.append([*words, first] if at_start else [first, *words])
    return found


def _annotated(
    whole: Image.Image, size: tuple[int, int], parts: list[str], margin: int
) -> Image.Image:
    """Return the grid with the parts of the prompt at its sides, which each add a margin.

    Source: A1111 1.10.1, modules/images.py, draw_prompt_matrix and draw_grid_annotations.
    """
    width, height = size
    variable = parts[1:]
    columns = 1 << ((len(variable) + 1) // 2)
    rows = 1 << (len(variable) // 2)
    horizontal = variable[: (len(variable) + 1) // 2]
    vertical = variable[(len(variable) + 1) // 2 :]
    font = ImageFont.load_default(max(4, (width + height) // 25))
    left = width * 3 // 4 if vertical else 0
    line = max(4, (width + height) // 25) + 3
    top = line * len(horizontal) if horizontal else 0
    padded = (left + whole.width + margin * (columns - 1), top + whole.height + margin * (rows - 1))
    result = Image.new("RGB", padded, "white")
    for column in range(columns):
        for row in range(rows):
            box = (column * width, row * height, (column + 1) * width, (row + 1) * height)
            at = (left + column * (width + margin), top + row * (height + margin))
            result.paste(whole.crop(box), at)
    pen = ImageDraw.Draw(result)
    for n, text in enumerate(horizontal):
        for column in range(columns):
            colour = "black" if column & (1 << n) else "#999999"
            at = (left + column * (width + margin), n * line)
            pen.text(at, text.strip(), font=font, fill=colour)
    for n, text in enumerate(vertical):
        for row in range(rows):
            colour = "black" if row & (1 << n) else "#999999"
            pen.text(
                (0, top + row * (height + margin) + n * line), text.strip(), font=font, fill=colour
            )
    return result
