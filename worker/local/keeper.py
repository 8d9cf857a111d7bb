"""The answer of a local run as files: its pictures, and its JSON beside them.

    20261121-183000-42.png    a picture, by the time and its seed; -2, -3 … where the name is taken
    20261121-183000-42.json   the run: when, its pictures, and the answer with files for pictures
    index.html                see `gallery`

Nothing is ever overwritten, whoever else writes there. Names are made of the worker's own words and
of numbers: nothing that a caller sent becomes part of one.
"""

import base64
import binascii
import io
import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from PIL import Image

from worker.local.album import Picture, Run, as_int, as_json, as_list, as_str
from worker.pictures.images import BROKEN, FORMATS

_SUFFIXES = {"JPEG": "jpg", "TIFF": "tif"}
_BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")
_SMALLEST_CHARS = 40  # A GIF of one pixel.
_LONG_CHARS = 4096
"""Base64 of this length is no word of A1111's, whatever it holds."""
_IMAGE_KEYS = frozenset({"image", "images"})
_MAX_WORD_CHARS = 20

_Where = tuple[str | int, ...]
"""The keys and indices that lead to a value of the answer."""


@dataclass(frozen=True)
class _Label:
    """What an answer says of one of its pictures."""

    what: str
    seed: int | None = None
    prompt: str = ""
    infotext: str = ""


def keep(answer: Any, folder: Path, now: datetime) -> Run:
    """Write the pictures of `answer`, JSON values, into `folder`, and then its JSON; return the run.

    An answer that is no generation's and has no picture leaves no file.

    Raises:
        OSError: a file could not be written; then none is left.
    """
    keeper = _Keeper(answer, folder, now)
    try:
        shown = keeper.replaced(answer, ())
        run = Run(now, tuple(keeper.pictures), shown)
        if not (keeper.written or keeper.pictures or is_generation(answer)):
            return run
        file = keeper.write(as_json(run), "json", keeper.seed)
    except OSError:
        for path in keeper.written:
            path.unlink(missing_ok=True)
        raise
    return Run(now, run.pictures, shown, file)


def is_generation(answer: Any) -> bool:
    """Return whether `answer` is a `schemas.result.Result`."""
    return isinstance(answer, dict) and "image_kinds" in answer


class _Keeper:
    """Takes the pictures out of one answer."""

    def __init__(self, answer: Any, folder: Path, now: datetime) -> None:
        self._folder = folder
        self._time = now.strftime("%Y%m%d-%H%M%S")
        facts = answer if isinstance(answer, dict) else {}
        self._labels = _labels(facts)
        self._model = as_str(_info(facts).get("sd_model_name"))
        self.seed = as_int(facts.get("seed"))
        self.pictures: list[Picture] = []
        self.written: list[Path] = []

    def replaced(self, value: Any, where: _Where) -> Any:
        """Return `value`, which is at `where` in the answer, with files for pictures."""
        if isinstance(value, dict):
            return {key: self.replaced(entry, (*where, key)) for key, entry in value.items()}
        if isinstance(value, list):
            return [self.replaced(entry, (*where, index)) for index, entry in enumerate(value)]
        return self._kept(value, where) if isinstance(value, str) else value

    def _kept(self, text: str, where: _Where) -> str:
        is_image = bool(where) and where[0] in _IMAGE_KEYS
        label = self._label(where)
        data = _decoded(text)
        if data is None:
            if is_image and text.startswith(("https://", "http://", "/")):
                self._note(text, label, _look(Path(text))[1])
            return text
        suffix, size = _look(io.BytesIO(data))
        if not suffix and not is_image and len(text) < _LONG_CHARS:
            return text
        seed = self.seed if label.seed is None else label.seed
        name = self.write(data, suffix or "bin", seed, label.what)
        if suffix:
            self._note(name, label, size, len(data))
        return name

    def _note(
        self, place: str, label: _Label, size: tuple[int, int] | None, count: int | None = None
    ) -> None:
        width, height = size or (None, None)
        self.pictures.append(
            Picture(
                place=place,
                width=width,
                height=height,
                bytes=count,
                model=self._model,
                **vars(label),
            )
        )

    def _label(self, where: _Where) -> _Label:
        match where:
            case ("images", int(index)) if index < len(self._labels):
                return self._labels[index]
        name = next((part for part in reversed(where) if isinstance(part, str)), "image")
        return _Label("picture" if name in _IMAGE_KEYS else name)

    def write(self, data: bytes, suffix: str, seed: int | None, what: str = "") -> str:
        """Write `data` to a file that was not there before; return its name."""
        self._folder.mkdir(parents=True, exist_ok=True)
        word = "" if what == "picture" else re.sub(r"[^a-z_]", "", what.lower())[:_MAX_WORD_CHARS]
        number = "" if seed is None else str(seed)[:_MAX_WORD_CHARS]
        stem = "-".join(part for part in (self._time, number, word) if part)
        for turn in itertools.count(1):
            path = self._folder / f"{stem}{'' if turn == 1 else f'-{turn}'}.{suffix}"
            try:
                file = path.open("xb")
            except FileExistsError:
                continue
            self.written.append(path)
            with file:
                file.write(data)
            break
        return path.name


def _decoded(text: str) -> bytes | None:
    """Return what `text` is the base64 of, with or without `data:` before it; None if of nothing."""
    if text[:5].lower() == "data:":
        text = text.partition(",")[2]
    if len(text) < _SMALLEST_CHARS or not _BASE64.fullmatch(text):
        return None
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        return None


def _look(source: io.BytesIO | Path) -> tuple[str, tuple[int, int] | None]:
    """Return the suffix and the size of a picture; an empty suffix and None if it is none."""
    try:
        with Image.open(source, formats=FORMATS) as picture:
            name = picture.format or ""
            return _SUFFIXES.get(name, name.lower()), picture.size
    except BROKEN:
        return "", None


def _labels(answer: Mapping[str, Any]) -> list[_Label]:
    """Return what a generation says of each of its images; nothing for another answer.

    A sample has a seed and a prompt, a sample or a grid has an infotext, and masks and maps have
    neither. Source: see `kinds`.
    """
    kinds, info = as_list(answer.get("image_kinds")), _info(answer)
    seeds, prompts = as_list(answer.get("seeds")), as_list(info.get("all_prompts"))
    infotexts = iter(as_list(info.get("infotexts")))
    # What a script draws need not be a sample each.
    samples = {"picture", "unknown"} if len(seeds) == len(kinds) else {"picture"}
    labels: list[_Label] = []
    sample = 0
    for kind in map(str, kinds):
        is_sample = kind in samples
        labels.append(
            _Label(
                what=kind,
                seed=as_int(_at(seeds, sample)) if is_sample else None,
                prompt=as_str(_at(prompts, sample if is_sample else max(sample - 1, 0))),
                infotext=as_str(next(infotexts, "")) if kind not in {"mask", "detect_map"} else "",
            )
        )
        sample += is_sample
    return labels


def _info(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        info = json.loads(as_str(answer.get("info")))
    except ValueError:
        return {}
    return info if isinstance(info, dict) else {}


def _at(values: list[Any], index: int) -> Any:
    return values[index] if index < len(values) else None
