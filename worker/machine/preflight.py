"""What is decided before A1111 starts: are the settings right, what will A1111 find, how is it started.

Four things are prepared, all on the container's disk:

    <links>/Stable-diffusion/ Lora/ …     empty, for the worker's links (worker/child/links.py)
    <links>/data                          -> A1111's data folder
    <data>/config.json                    {"samples_save": false, …, whatever was there before}
    <data>/models/GFPGAN/ …               links to helper weights (worker/machine/helpers.py)
    <data>/extensions  styles.csv         -> those beside A1111, if the data folder is another one
    <command file>                        A1111's command line, each word ended by a NUL byte

A key that is in config.json already keeps its value. Knows nothing of the running A1111.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from schemas.settings import CacheSettings, Settings, SettingsError, WebuiSettings
from worker.child.links import FOLDERS
from worker.machine import hardware, helpers, webui_flags
from worker.machine.places import DATA, Places

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
    # What is kept loaded costs the container's memory, not the GPU's.
    "sd_checkpoints_keep_in_cpu": True,
    "sd_vae": "Automatic",
}
LIMIT = "sd_checkpoints_limit"

# How many checkpoints stay loaded: one, and another for every 8 GB beyond the first 32. Each but the
# one in use is in memory (SDXL: 6.9 GB), and loading another without mmap takes its file twice for a
# moment, as bytes and as tensors; the programs themselves take about 4 GB. Source: A1111 1.10.1,
# modules/sd_models.py, read_state_dict and reuse_model_from_already_loaded; the sizes are arithmetic.
_FIRST_BYTES = 32 * 10**9
_FURTHER_BYTES = 8 * 10**9
_MOST_LOADED = 4

# Flags that would undo what the rest relies on: flag -> why not.
REFUSED_FLAGS = {
    "--server-name": "A1111 listens on 127.0.0.1 only",
    "--listen": "A1111 listens on 127.0.0.1 only",
    "--share": "A1111 listens on 127.0.0.1 only",
    "--ngrok": "A1111 listens on 127.0.0.1 only",
    "--port": "A1111_WEBUI_PORT sets it",
    "--api-auth": "the worker sends no password to 127.0.0.1",
    "--subpath": "the worker knows A1111's own paths only",
    "--tls-keyfile": "the worker speaks plain HTTP to 127.0.0.1",
    "--data-dir": "WEBUI_DATA_DIR sets it",
    "--models-dir": "the worker links models into A1111_WEBUI_LINKS",
    "--ckpt-dir": "the worker links models into A1111_WEBUI_LINKS",
    "--lora-dir": "the worker links models into A1111_WEBUI_LINKS",
    "--vae-dir": "the worker links models into A1111_WEBUI_LINKS",
    "--embeddings-dir": "the worker links models into A1111_WEBUI_LINKS",
    "--vae-path": "the VAE of a job would be ignored",
    "--ui-settings-file": "config.json in WEBUI_DATA_DIR is what is prepared",
    "--freeze-settings": "A1111 would refuse the options of a job",
    "--disable-safe-unpickle": "a model file could run code",
}


def preflight(environ: Mapping[str, str], places: Places, command_file: Path) -> list[str]:
    """Prepare what A1111 will read, and its command line; return what was found, in lines.

    Args:
        environ: the process's environment.
        places: where things are.
        command_file: gets the command line; NUL bytes, as no word can hold one.

    Raises:
        SettingsError: one line per problem: a setting, a flag, A1111 or the volume that is not
            there, a config.json that A1111 could not live with.
    """
    settings = Settings.from_env(environ)
    problems = wrong_with(settings, environ, places)
    if problems:
        raise SettingsError("\n".join(problems))
    data_dir = places.local_data_dir(settings.cache.volume)
    argv = start_command(settings.webui, places, data_dir, environ)
    limit = checkpoints_kept(settings.webui, hardware.memory_bytes())
    try:
        _prepare_folders(settings.webui.links, places.webui_dir, data_dir)
        linked = helpers.link_helpers(
            data_dir / "models", helper_sources(settings.cache, places, data_dir)
        )
        config = _configure(
            data_dir / "config.json", limit, demanded=settings.webui.loaded_checkpoints is not None
        )
        _write(command_file, b"".join(os.fsencode(word) + b"\0" for word in argv))
    except OSError as error:
        raise SettingsError(f"{error.filename}: {error.strerror}.") from error
    return [
        f"webui   {settings.webui.kind} in {places.webui_dir}",
        f"volume  {volume_line(settings.cache)}",
        f"links   {settings.webui.links}",
        f"data    {data_line(places, data_dir)}",
        f"config  {config}",
        f"helpers {linked} links made; missing: {missing_helpers(settings.webui.links) or 'none'}",
        f"flags   {webui_flags.shown(argv)}",
    ]


def reconfigure(webui: WebuiSettings) -> str:
    """Merge our options into config.json again, before A1111 is started again; return what was done.

    A1111 writes the file when an option is set, and not at once: one that was killed meanwhile leaves
    half of it, and the next would start with options of its own.
    Source: A1111 1.10.1, modules/options.py, Options.save.

    Raises:
        SettingsError: an option in the file is of another type.
        OSError: it cannot be written.
    """
    limit = checkpoints_kept(webui, hardware.memory_bytes())
    file = webui.links / DATA / "config.json"
    return _configure(file, limit, demanded=webui.loaded_checkpoints is not None)


def wrong_with(settings: Settings, environ: Mapping[str, str], places: Places) -> list[str]:
    """Return what keeps A1111 from being started at all, a line each; touches nothing."""
    problems = [
        *_flag_problems("A1111_WEBUI_FLAGS", settings.webui.flags),
        # A1111 appends it to its command line. Source: A1111 1.10.1, modules/paths_internal.py.
        *_flag_problems("COMMANDLINE_ARGS", environ.get("COMMANDLINE_ARGS", "")),
    ]
    if not (places.webui_dir / "launch.py").is_file():
        problems.append(f"WEBUI_DIR: there is no A1111 in {places.webui_dir} (no launch.py).")
    if shutil.which(places.webui_python) is None:
        problems.append(f"WEBUI_PYTHON: there is no interpreter at {places.webui_python}.")
    if settings.cache.require_volume and not settings.cache.volume.is_dir():
        problems.append(f"A1111_CACHE_VOLUME: {settings.cache.volume} is not mounted.")
    return problems


def start_command(
    webui: WebuiSettings, places: Places, data_dir: Path, environ: Mapping[str, str]
) -> list[str]:
    """Return A1111's command line; asks the machine for no more than the settings leave open."""
    gpus = hardware.gpus() if webui.vram == "auto" and webui.kind == "a1111" else ()
    machine = webui_flags.Machine(
        vram_bytes=gpus[0].memory_bytes if gpus else None,
        xformers=webui.attention == "auto" and hardware.has_xformers(places.webui_python),
        controlnet=(places.extensions(data_dir) / "sd-webui-controlnet").is_dir(),
    )
    extra = environ.get("COMMANDLINE_ARGS", "")
    return webui_flags.command(webui, places.webui_python, data_dir, machine, extra)


def checkpoints_kept(webui: WebuiSettings, memory_bytes: int) -> int:
    """Return how many checkpoints A1111 is to keep loaded, in a container of that much memory."""
    if webui.loaded_checkpoints is not None:
        return webui.loaded_checkpoints
    further = (memory_bytes - _FIRST_BYTES) // _FURTHER_BYTES
    return max(1, min(1 + further, _MOST_LOADED))


def helper_sources(cache: CacheSettings, places: Places, data_dir: Path) -> list[Path]:
    """Return the folders that may hold helper weights, the nearest first."""
    beside = [places.webui_dir / "models"] if data_dir != places.webui_dir else []
    return [places.helpers_dir, *beside, *(cache.volume / home for home in helpers.HOMES)]


def missing_helpers(links: Path) -> str:
    """Return the names of the helpers that A1111 would have to do without."""
    return ", ".join(name for name in helpers.HELPERS if helpers.missing(name, links))


def volume_line(cache: CacheSettings) -> str:
    """Say what the volume is."""
    if not cache.volume.is_dir():
        return (
            f"none at {cache.volume}: models will be kept in {cache.local_root}, on this"
            " container's disk, and be fetched again by every new worker"
        )
    writable = "" if os.access(cache.volume, os.W_OK) else ", READ-ONLY: nothing can be fetched"
    models = "models in" if cache.models.is_dir() else "no models yet in"
    return f"{cache.volume}, {models} {cache.models}{writable}"


def data_line(places: Places, data_dir: Path) -> str:
    """Say where A1111 keeps its files."""
    if data_dir == places.data_dir:
        return str(data_dir)
    return f"{data_dir}, as {places.data_dir} is on the network volume"


def _flag_problems(variable: str, text: str) -> list[str]:
    # argparse takes the beginning of a flag for the flag; --api is one of its own.
    words = {word.partition("=")[0] for word in text.split()}
    flags = {word for word in words if word.startswith("--") and len(word) > 3} - {"--api"}
    return [
        f"{variable}: {flag} is not possible here: {reason}."
        for flag, reason in REFUSED_FLAGS.items()
        if any(flag.startswith(word) for word in flags)
    ]


def _prepare_folders(links: Path, webui_dir: Path, data_dir: Path) -> None:
    for folder in FOLDERS.values():
        (links / folder).mkdir(parents=True, exist_ok=True)
    data_dir.mkdir(parents=True, exist_ok=True)
    _point(links / DATA, data_dir)
    if data_dir != webui_dir:
        # A1111 looks for both in its data folder only, and nowhere else.
        # Source: A1111 1.10.1, modules/paths_internal.py, modules/shared_cmd_options.py.
        for name in ("extensions", "styles.csv"):
            if (webui_dir / name).exists():
                _point(data_dir / name, webui_dir / name)


def _point(link: Path, target: Path) -> None:
    """Make `link` lead to `target`, unless something else than a link is there."""
    if link.is_symlink() or not link.exists():
        # At no moment without it: the worker may look already.
        fresh = link.with_name(f".{link.name}.new")
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(target)
        fresh.replace(link)


def _configure(file: Path, limit: int, *, demanded: bool) -> str:
    """Merge our options into A1111's config.json and return what was done."""
    wanted = {**OPTIONS, LIMIT: limit}
    was_there = file.is_file()
    kept = _options_in(file)
    aside = (
        f", what was there is no JSON object: {file.name}.broken"
        if was_there != file.is_file()
        else ""
    )
    wrong = [
        f"{file}: `{key}` must be {type(value).__name__}, not {type(kept[key]).__name__}."
        for key, value in wanted.items()
        if key in kept and type(kept[key]) is not type(value)
    ]
    if wrong:
        raise SettingsError("\n".join(wrong))
    merged = {**wanted, **kept} | ({LIMIT: limit} if demanded else {})
    if merged != kept:
        _write(file, json.dumps(merged, indent=4).encode() + b"\n")
    own = [f"{key} is {json.dumps(kept[key])}" for key in wanted if merged[key] != wanted[key]]
    return f"{file}, {len(merged) - len(kept)} options added{aside}" + "".join(
        f", {words} as it was" for words in own
    )


def _write(file: Path, data: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_name(f".{file.name}.new")
    fresh.write_bytes(data)
    fresh.replace(file)


def _options_in(file: Path) -> dict[str, Any]:
    """Return what A1111's config.json says; one that it could not read itself is set aside."""
    try:
        options = json.loads(file.read_text())
    except FileNotFoundError:
        return {}
    except ValueError:  # of JSON or of UTF-8
        options = None
    if isinstance(options, dict):
        return options
    file.replace(file.with_name(f"{file.name}.broken"))
    return {}
