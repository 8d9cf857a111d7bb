"""The upscalers that are listed: those that are built in, and the files in ESRGAN's folders.

They are looked for once, at the start: a file that came since is unknown until the next.

Source: A1111 1.10.1, modules/esrgan_model.py, modules/modelloader.py, load_upscalers.
"""

from pathlib import Path
from typing import Any

from simulator.webui import catalogue, folders

# Listed, with the address it would be fetched from, only where there is no file.
_STAND_IN = "ESRGAN_4x"
_FIRST = {"None", "Lanczos", "Nearest"}
_EXTENSIONS = {".pt", ".pth"}


def found(places: list[Path]) -> list[dict[str, Any]]:
    """Return what /upscalers answers, with the files in `places`."""
    built_in: list[dict[str, Any]] = catalogue.load("lists")["upscalers"]
    paths = {path for place in places for path in folders.walk(place, _EXTENSIONS)}
    if not paths:
        return built_in
    files = [
        {
            "name": path.stem,
            "model_name": _STAND_IN,
            "model_path": str(path),
            "model_url": None,
            "scale": 4.0,
        }
        for path in paths
    ]
    kept = [entry for entry in built_in if entry["name"] != _STAND_IN]
    # The order of A1111's sort: it knows the first three by their kind.
    return sorted(
        [*kept, *files],
        key=lambda entry: "" if entry["name"] in _FIRST else entry["name"].lower(),
    )
