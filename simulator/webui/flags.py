"""The command line: every flag of A1111 1.10.1, and those by which the simulator is told to misbehave.

A1111's flags are taken as A1111 takes them, so that the command line of a real start can be given;
those that mean nothing without a GPU are accepted and shown in /cmd-flags. An unknown one ends the
program with exit code 2.

Source: A1111 1.10.1, modules/cmd_args.py and extensions-builtin/Lora/preload.py.
"""

import argparse
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulator.webui import catalogue, extensions, forge
from simulator.webui.faults import SETTINGS
from simulator.webui.hashes import Places

# Where the program would be installed; paths below it move to the data folder.
HOME = "/stable-diffusion-webui"
DEFAULT_PORT = 7861

_ALIASES = {"lyco_dir_backcompat": ("--lyco-dir-backcompat", "--lyco-dir"), "f": ("-f",)}
_BELOW_MODELS = f"{HOME}/models"


@dataclass(frozen=True)
class Flags:
    """What the program was started with.

    `shown` is what /cmd-flags answers. Folders are as given or as A1111 derives them, not resolved.
    """

    shown: dict[str, Any]
    host: str
    port: int
    data_dir: Path
    models_dir: Path
    ckpt_dir: Path | None
    vae_dir: Path | None
    lora_dirs: tuple[Path, Path]
    embeddings_dir: Path
    hypernetwork_dir: Path
    ckpt: Path
    vae_path: Path | None
    styles_files: tuple[Path, ...]
    config_file: Path
    cache: Places
    credentials: dict[str, str] | None
    skip_load: bool
    no_hashing: bool
    no_prompt_history: bool
    server_stop: bool
    order: dict[str, Any]
    """What it is told from the start on, as POST /simulator/faults takes it."""
    starts: Path | None
    restartable: bool
    controlnet_dirs: tuple[Path, ...]
    """Where the extension looks for models; empty without it."""
    annotators_dir: Path | None
    extensions: tuple[str, ...]
    """Those of extensions.py that are there."""
    forge: bool
    text_encoder_dir: Path | None
    """Forge's."""


def parse(argv: list[str], environment: Mapping[str, str], scratch: Path) -> Flags:
    """Return the flags in `argv` and in COMMANDLINE_ARGS, which A1111 appends.

    Without --data-dir, what the program writes (config.json, hashes, outputs) goes to `scratch`.
    Exits with code 2 on an unknown flag, unless IGNORE_CMD_ARGS_ERRORS is set.
    """
    words = [*argv, *shlex.split(environment.get("COMMANDLINE_ARGS", ""))]
    parser = _parser()
    if "--forge" in words:
        forge.add_flags(parser)
    if "--controlnet" in words:
        _add_controlnet_flags(parser, is_forge="--forge" in words)
    if environment.get("IGNORE_CMD_ARGS_ERRORS"):
        given, _ = parser.parse_known_args(words)
    else:
        given = parser.parse_args(words)
    return _flags(given, scratch, environment)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m simulator webui", description=__doc__)
    for dest, schema in catalogue.load("flags").items():
        names = _ALIASES.get(dest, (f"--{dest.replace('_', '-')}",))
        default = None if _is_path(schema.get("default")) else schema.get("default")
        options: dict[str, Any] = {"dest": dest, "default": default, "help": argparse.SUPPRESS}
        match schema.get("type"):
            case "boolean":
                parser.add_argument(*names, action="store_true", **options)
            case "integer":
                parser.add_argument(*names, type=int, **options)
            case _ if dest == "port":
                parser.add_argument(*names, type=int, **options)
            case "array" if dest == "use_cpu":
                parser.add_argument(*names, nargs="+", **options)
            case "array":
                parser.add_argument(*names, action="append", **(options | {"default": None}))
            case _:
                parser.add_argument(*names, **options)
    _add_ours(parser.add_argument_group("the simulator's own"))
    return parser


def _add_ours(ours: argparse._ArgumentGroup) -> None:
    ours.add_argument("--forge", action="store_true", help="be Forge, see forge.py")
    ours.add_argument(
        "--controlnet", action="store_true", help="have the extension, see controlnet.py"
    )
    for name in extensions.NAMES:
        ours.add_argument(
            f"--{name}", action="store_true", help="list the extension's script, see extensions.py"
        )
    for name, meaning in SETTINGS.items():
        flag = f"--{name.replace('_', '-')}"
        ours.add_argument(flag, type=float, default=0, metavar="N", help=meaning)
    ours.add_argument(
        "--fault",
        type=json.loads,
        action="append",
        default=[],
        metavar="JSON",
        help="a fault from the start on, as POST /simulator/faults takes it",
    )
    ours.add_argument(
        "--starts", metavar="FILE", help="what each of several starts is told, see starts.py"
    )


def _add_controlnet_flags(parser: argparse.ArgumentParser, *, is_forge: bool) -> None:
    """Let `parser` take the extension's flags; Forge has the first one of its own.

    Source: sd-webui-controlnet, preload.py.
    """
    if not is_forge:
        parser.add_argument("--controlnet-dir", help=argparse.SUPPRESS)
    parser.add_argument("--controlnet-annotator-models-path", help=argparse.SUPPRESS)
    parser.add_argument("--no-half-controlnet", action="store_true", help=argparse.SUPPRESS)


def _controlnet_dirs(given: argparse.Namespace, models: Path) -> tuple[Path, ...]:
    if not given.controlnet:
        return ()
    named = _path(getattr(given, "controlnet_dir", None))
    return (models / "ControlNet", *([named] if named else []))


def _flags(given: argparse.Namespace, scratch: Path, environment: Mapping[str, str]) -> Flags:
    data = Path(given.data_dir) if given.data_dir else scratch
    models = Path(given.models_dir) if given.models_dir else data / "models"
    # A1111 looks for both in the data folder only; a lone --models-dir is a whole world here.
    beside = data if given.data_dir and not (models / "embeddings").is_dir() else models
    styles = [Path(name) for name in given.styles_file or ()]
    flags = Flags(
        shown={},
        # Without these two A1111 would listen on every interface; a simulator stays on loopback.
        host=given.server_name or "127.0.0.1",
        port=DEFAULT_PORT if given.port is None else given.port,
        data_dir=data,
        models_dir=models,
        ckpt_dir=_path(given.ckpt_dir),
        vae_dir=_path(given.vae_dir),
        lora_dirs=(
            _path(given.lora_dir) or models / "Lora",
            _path(given.lyco_dir_backcompat) or models / "LyCORIS",
        ),
        embeddings_dir=_path(given.embeddings_dir) or beside / "embeddings",
        hypernetwork_dir=_path(given.hypernetwork_dir) or models / "hypernetworks",
        ckpt=_path(given.ckpt) or data / "model.ckpt",
        vae_path=_path(given.vae_path),
        styles_files=tuple(styles) or (beside / "styles.csv",),
        config_file=_path(given.ui_settings_file) or data / "config.json",
        cache=Places(
            Path(environment.get("SD_WEBUI_CACHE_DIR", data / "cache")),
            Path(environment.get("SD_WEBUI_CACHE_FILE", data / "cache.json")),
        ),
        credentials=_credentials(given.api_auth),
        skip_load=given.skip_load_model_at_start,
        no_hashing=given.no_hashing,
        no_prompt_history=given.no_prompt_history,
        server_stop=given.api_server_stop,
        order={**{name: getattr(given, name) for name in SETTINGS}, "faults": given.fault},
        starts=_path(given.starts),
        restartable=bool(environment.get("SD_WEBUI_RESTART")),
        controlnet_dirs=_controlnet_dirs(given, models),
        annotators_dir=_path(getattr(given, "controlnet_annotator_models_path", None)),
        extensions=tuple(name for name in extensions.NAMES if getattr(given, name)),
        forge=given.forge,
        text_encoder_dir=_path(getattr(given, "text_encoder_dir", None)),
    )
    flags.shown.update(_shown(given, flags))
    return flags


def _shown(given: argparse.Namespace, flags: Flags) -> dict[str, Any]:
    """Return every flag of A1111's with its value, defaults below the program's home moved."""
    shown: dict[str, Any] = {}
    for dest, schema in catalogue.load("flags").items():
        value = getattr(given, dest)
        if value is None:
            value = _moved(schema.get("default"), flags)
        shown[dest] = value
    # The answer's model types it as a string, because its default is None.
    shown["port"] = None if given.port is None else str(given.port)
    shown["embeddings_dir"] = str(flags.embeddings_dir)
    shown["lora_dir"] = str(flags.lora_dirs[0])
    shown["styles_file"] = [str(path) for path in flags.styles_files]
    shown["gradio_allowed_path"] = [str(flags.data_dir)]
    return shown


def _moved(default: Any, flags: Flags) -> Any:
    if not _is_path(default):
        return default
    if default.startswith("./"):
        return str(flags.data_dir / default)
    if default.startswith(_BELOW_MODELS):
        return str(flags.models_dir) + default.removeprefix(_BELOW_MODELS)
    return str(flags.data_dir) + default.removeprefix(HOME)


def _is_path(default: object) -> bool:
    return isinstance(default, str) and default.startswith((HOME, "./"))


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None


def _credentials(text: str | None) -> dict[str, str] | None:
    """Return the users and passwords of --api-auth, `user:password` separated by commas."""
    if not text:
        return None
    return dict(pair.split(":") for pair in text.split(","))
