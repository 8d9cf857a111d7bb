"""What is decided before A1111 starts: are the settings right, and what will A1111 find.

Two things are prepared. The folder of links gets its sub-folders (see worker/links.py), and
`config.json` in A1111's data folder gets the options below:

    {"disable_mmap_load_safetensors": true, "samples_save": false, …, whatever was there before}

A key that is there already keeps its value. Knows nothing of the running A1111.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from schemas.settings import CacheSettings, Settings, SettingsError
from worker.links import FOLDERS

# A value of the wrong type is taken at start and fails every later job, so the types are A1111's.
# Source: recorded from A1111 1.10.1: get_options, options_wrong_type, txt2img_after_wrong_type_option.
OPTIONS: Mapping[str, bool | int | str] = {
    # Reading a checkpoint by mmap over the network volume is tens of times slower than reading it
    # through. Source: A1111 issue 11216; Comfy-Org/ComfyUI issue 2288.
    "disable_mmap_load_safetensors": True,
    # Pictures travel in the answer; files beside A1111 would only fill the container's disk.
    "samples_save": False,
    "grid_save": False,
    "save_incomplete_images": False,
    "save_write_log_csv": False,
    # A1111 would fetch http(s) URLs in a request by itself; what a job may fetch is ours to judge.
    "api_enable_requests": False,
    # A second checkpoint kept in memory is a second checkpoint's worth of memory.
    "sd_checkpoints_limit": 1,
    "sd_vae": "Automatic",
}

# Flags that would undo what the rest relies on: flag -> why not.
REFUSED_FLAGS = {
    "--server-name": "A1111 listens on 127.0.0.1 only",
    "--listen": "A1111 listens on 127.0.0.1 only",
    "--share": "A1111 listens on 127.0.0.1 only",
    "--port": "A1111_WEBUI_PORT sets it",
    "--api-auth": "the worker sends no password to 127.0.0.1",
    "--subpath": "the worker knows A1111's own paths only",
    "--tls-keyfile": "the worker speaks plain HTTP to 127.0.0.1",
    "--data-dir": "WEBUI_DATA_DIR sets it",
    "--ckpt-dir": "the worker links models into A1111_WEBUI_LINKS",
    "--lora-dir": "the worker links models into A1111_WEBUI_LINKS",
    "--vae-dir": "the worker links models into A1111_WEBUI_LINKS",
    "--embeddings-dir": "the worker links models into A1111_WEBUI_LINKS",
    "--ui-settings-file": "config.json in WEBUI_DATA_DIR is what is prepared",
    "--freeze-settings": "A1111 would refuse the options of a job",
    "--disable-safe-unpickle": "a model file could run code",
}


def preflight(environ: Mapping[str, str], webui_dir: Path, data_dir: Path) -> list[str]:
    """Prepare the folder of links and A1111's config.json; return what was found, in lines.

    Args:
        environ: the process's environment.
        webui_dir: folder of A1111's launch.py.
        data_dir: what A1111 is given as --data-dir; it reads `config.json` there.

    Raises:
        SettingsError: one line per problem: a setting, a flag, A1111 or the volume that is not
            there, a config.json that A1111 could not live with.
    """
    settings = Settings.from_env(environ)
    problems = [
        *_flag_problems("A1111_WEBUI_FLAGS", settings.webui.flags),
        # A1111 appends it to its command line. Source: A1111 1.10.1, modules/paths_internal.py.
        *_flag_problems("COMMANDLINE_ARGS", environ.get("COMMANDLINE_ARGS", "")),
    ]
    if not (webui_dir / "launch.py").is_file():
        problems.append(f"WEBUI_DIR: there is no A1111 in {webui_dir} (no launch.py).")
    if settings.cache.require_volume and not settings.cache.volume.is_dir():
        problems.append(f"A1111_CACHE_VOLUME: {settings.cache.volume} is not mounted.")
    if problems:
        raise SettingsError("\n".join(problems))
    try:
        for folder in FOLDERS.values():
            (settings.webui.links / folder).mkdir(parents=True, exist_ok=True)
        config = _configure(data_dir / "config.json")
    except OSError as error:
        raise SettingsError(f"{error.filename}: {error.strerror}.") from error
    return [
        f"webui   {webui_dir}",
        f"volume  {_volume_line(settings.cache)}",
        f"links   {settings.webui.links}",
        f"config  {config}",
    ]


def _flag_problems(variable: str, text: str) -> list[str]:
    # argparse takes the beginning of a flag for the flag; --api is one of its own.
    words = {word.partition("=")[0] for word in text.split()}
    flags = {word for word in words if word.startswith("--") and len(word) > 3} - {"--api"}
    return [
        f"{variable}: {flag} is not possible here: {reason}."
        for flag, reason in REFUSED_FLAGS.items()
        if any(flag.startswith(word) for word in flags)
    ]


def _volume_line(cache: CacheSettings) -> str:
    if not cache.volume.is_dir():
        return (
            f"none at {cache.volume}: models will be kept in {cache.local_root}, on this"
            " container's disk, and be fetched again by every new worker"
        )
    writable = "" if os.access(cache.volume, os.W_OK) else ", READ-ONLY: nothing can be fetched"
    models = "models in" if cache.models.is_dir() else "no models yet in"
    return f"{cache.volume}, {models} {cache.models}{writable}"


def _configure(file: Path) -> str:
    """Merge OPTIONS into A1111's config.json and return what was done."""
    kept = _options_in(file)
    wrong = [
        f"{file}: `{key}` must be {type(value).__name__}, not {type(kept[key]).__name__}."
        for key, value in OPTIONS.items()
        if key in kept and type(kept[key]) is not type(value)
    ]
    if wrong:
        raise SettingsError("\n".join(wrong))
    merged = {**OPTIONS, **kept}
    if merged != kept:
        file.parent.mkdir(parents=True, exist_ok=True)
        fresh = file.with_name(f".{file.name}.new")
        fresh.write_text(json.dumps(merged, indent=4) + "\n")
        fresh.replace(file)
    own = [f"{key} is {json.dumps(kept[key])}" for key in OPTIONS if merged[key] != OPTIONS[key]]
    return f"{file}, {len(merged) - len(kept)} options added" + "".join(
        f", {words} as it was" for words in own
    )


def _options_in(file: Path) -> dict[str, Any]:
    try:
        options = json.loads(file.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:  # of JSON or of UTF-8
        raise SettingsError(f"{file}: this is not JSON; mend or remove it.") from error
    if not isinstance(options, dict):
        raise SettingsError(f"{file}: this is not a JSON object; mend or remove it.")
    return options
