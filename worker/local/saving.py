"""One job on a developer's machine: where it comes from, and what a person gets of its answer."""

import json
import sys
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_hex
from typing import Any

from schemas.errors import InvalidInputError
from worker.local import gallery
from worker.local.album import Picture, Run, as_list
from worker.local.keeper import is_generation, keep
from worker.local.terminal import knows_links, link, plain, table, unbreakable

INPUT = Path("test_input.json")
OUTPUT = Path("output")
_HEADINGS = ("what", "size", "seed", "model", "time", "file")


def given(text: str | None) -> dict[str, Any]:
    """Return the job of `text`, the value of --test_input, or else of ./test_input.json.

    A job without an id gets one of its own, so that what it uploads replaces nothing.

    Raises:
        InvalidInputError: it is none, or there is none.
    """
    name = "--test_input" if text is not None else f"./{INPUT}"
    try:
        job = json.loads(INPUT.read_text(encoding="utf-8-sig") if text is None else text)
    except OSError as error:
        raise InvalidInputError(
            f"There is no job: {name}: {error.strerror}.",
            hint="""Give one: --test_input '{"input": {"prompt": "a lighthouse"}}'.""",
        ) from None
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"{name} is not JSON: {error}.") from None
    if not isinstance(job, dict) or job.get("input") is None:
        raise InvalidInputError(f'{name} must be a job: {{"input": {{…}}}}.')
    return {"id": f"local-{_now():%Y%m%d-%H%M%S}-{token_hex(2)}", **job}


def told(answer: Any, folder: Path, environ: Mapping[str, str]) -> int:
    """Keep `answer`, JSON values, in `folder`, and show it; return the exit code.

    A generation's pictures are a table on stdout; another answer is JSON there, with files for
    pictures, which are listed on stderr. What went wrong is on stderr too.

    Returns:
        0 for an answer that is kept and shown, 1 for an error.
    """
    for stream in (sys.stdout, sys.stderr):
        unbreakable(stream)
    if isinstance(answer, dict) and answer.get("error"):
        _say(f"\n{answer['error']}")
        if details := answer.get("details"):
            _say(json.dumps(details, indent=2, ensure_ascii=False))
        return 1
    code = 0
    try:
        run = keep(answer, folder, _now())
    except OSError as error:
        code = 1
        folder, run = _rescued(answer, folder, error)
    _show(run, folder, environ, is_generation=is_generation(answer))
    if run.file:
        _show_gallery(folder, environ)
    return code


def _rescued(answer: Any, folder: Path, error: OSError) -> tuple[Path, Run]:
    """Return where `answer`, which `folder` did not take, is kept instead: nowhere, at worst."""
    told = f"{folder} cannot be written: {error.strerror}."
    now = _now()
    try:
        refuge = Path(tempfile.mkdtemp(prefix="a1111-output-"))
        run = keep(answer, refuge, now)
    except OSError as again:
        _say(f"{told} Nor can the folder for temporary files: {again.strerror}.")
        _say("The pictures are lost; their seeds draw them again:")
        return folder, Run(now, (), _without_pictures(answer))
    _say(f"{told} What was made is in {refuge} instead.")
    return refuge, run


def _without_pictures(answer: Any) -> Any:
    if not isinstance(answer, dict):
        return answer
    return {key: entry for key, entry in answer.items() if key not in {"image", "images"}}


def _show(run: Run, folder: Path, environ: Mapping[str, str], *, is_generation: bool) -> None:
    """Show `run`, which is kept in `folder`."""
    if not (is_generation and run.file):
        sys.stdout.write(plain(json.dumps(run.answer, indent=2, ensure_ascii=False)) + "\n")
        sys.stdout.flush()
        if not run.pictures:
            return
    out = sys.stdout if is_generation else sys.stderr
    links = knows_links(out, environ)
    facts = run.answer if isinstance(run.answer, dict) else {}
    time = _time(facts.get("timings"))
    rows = [[*_cells(each), time, link(each.place, folder, links=links)] for each in run.pictures]
    out.write(table(_HEADINGS, rows) if rows else "no pictures\n")
    out.write(f"answer: {link(run.file, folder, links=links)}\n")
    out.flush()
    if is_generation:
        for warning in as_list(facts.get("warnings")):
            _say(f"warning: {warning}")


def _cells(picture: Picture) -> list[str]:
    size = f"{picture.width} x {picture.height}" if picture.width else ""
    seed = "" if picture.seed is None else str(picture.seed)
    return [picture.what, size, seed, picture.model]


def _time(timings: object) -> str:
    """Return how long the whole run took."""
    total_s = timings.get("total_s") if isinstance(timings, dict) else None
    return f"{total_s:.1f} s" if isinstance(total_s, int | float) else ""


def _show_gallery(folder: Path, environ: Mapping[str, str]) -> None:
    try:
        page = gallery.write(folder)
    except OSError as error:
        _say(f"The gallery was not written: {error.strerror}.")
        return
    if page is None:
        _say(f"The gallery was not written: {folder / gallery.NAME} is somebody else's.")
        return
    links = knows_links(sys.stderr, environ)
    sys.stderr.write(f"gallery: {link(page, folder, links=links)}\n")


def _say(text: str) -> None:
    sys.stderr.write(plain(text) + "\n")


def _now() -> datetime:
    return datetime.now(UTC).astimezone()
