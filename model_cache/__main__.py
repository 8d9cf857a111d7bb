"""`python -m model_cache`: look after the models on a volume by hand.

For people with the volume mounted: on a Pod, on a build machine, on a laptop. Settings come from the
environment, as for the worker. Every command prints text for people, or with `--json` one JSON
document for programs; what else there is to say goes to stderr.

Exit status: 0 done, 1 something failed or is bad, 2 wrong usage, 78 wrong settings, 130 interrupted.
"""

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from model_cache.cli import checkup, compat, doctor, prune, pull, show
from model_cache.cli.console import Console
from model_cache.volume.disk import require_volume
from schemas.errors import InvalidInputError, WorkerError
from schemas.model_ref import Kind
from schemas.settings import CacheSettings, Settings, SettingsError

if TYPE_CHECKING:
    # argparse gives what `add_subparsers` returns no public name.
    Subparsers: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001

_PROGRAM = "python -m model_cache"
_FAILED = 1
_USAGE = 2
# Source: sysexits.h, EX_CONFIG.
_CONFIG = 78
# What a shell says of a program that SIGINT ended: 128 + 2.
_INTERRUPTED = 130

_EXAMPLES = f"""\
examples, on a Pod, where the volume is mounted at /workspace:
  export A1111_CACHE_VOLUME=/workspace
  {_PROGRAM} doctor
  {_PROGRAM} pull --kind lora civitai:version:456
  {_PROGRAM} list

{__doc__[__doc__.index("Exit status") :]}"""

Command: TypeAlias = Callable[[argparse.Namespace, CacheSettings, Console], int]


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run one command and return the exit status; wrong usage raises SystemExit, as argparse does."""
    options = _parser().parse_args(argv)
    console = Console(as_json=options.json)
    try:
        settings = Settings.from_env(environ).cache
        if options.volume is not None:
            settings = settings.model_copy(update={"volume": options.volume.absolute()})
        require_volume(settings.volume)
        run: Command = options.run
        return run(options, settings, console)
    except SettingsError as error:
        console.remark(str(error))
        return _CONFIG
    except WorkerError as error:
        response = error.as_response()
        console.remark(response["error"])
        console.answer(response)
        return _USAGE if isinstance(error, InvalidInputError) else _FAILED
    except KeyboardInterrupt:
        return _INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        _PROGRAM,
        description="Look after the models on a volume: see, fetch, check, keep and evict them.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_looking(commands)
    _add_pull(commands)
    _add_checking(commands)
    _add_keeping(commands)
    return parser


def _add_looking(commands: "Subparsers") -> None:
    each = _command(commands, "list", show.show_list, "show the models on the volume", _LIST)
    _kind(each)
    info = _command(
        commands, "info", show.show_info, "count the models, or tell all about some", _INFO
    )
    info.add_argument(
        "name", metavar="NAME", nargs="*", help="tell all that is known of this model"
    )
    _kind(info)
    fits = _command(
        commands, "compat", compat.show_report, "tell which LoRAs fit which checkpoints", _COMPAT
    )
    fits.add_argument(
        "--model", metavar="NAME", action="append", default=[], help="only this checkpoint"
    )
    fits.add_argument("--lora", metavar="NAME", action="append", default=[], help="only this LoRA")
    _command(commands, "doctor", doctor.doctor, "try the volume out and look it through", _DOCTOR)


def _add_pull(commands: "Subparsers") -> None:
    parser = _command(commands, "pull", pull.pull, "fetch models that are not there yet", _PULL)
    parser.add_argument("ref", metavar="REF", nargs="*", help="a URL, a reference or a name")
    _kind(parser, "what REF is; has to be given with it")
    parser.add_argument("--name", help="what the model shall be called; for one REF")
    parser.add_argument(
        "--hash", help="its SHA-256, AutoV2 or AutoV3: anything else is refused; for one REF"
    )
    parser.add_argument(
        "--refresh",
        action="store_true",
        help="ask the source again what a branch, or a page without a version, means today",
    )
    parser.add_argument(
        "-f",
        "--file",
        type=Path,
        action="append",
        default=[],
        help="a list of models, one a line: KIND REF [name=NAME] [hash=HASH]",
    )


def _add_checking(commands: "Subparsers") -> None:
    parser = _command(
        commands, "verify", checkup.check, "check that the files are what they were", _VERIFY
    )
    parser.add_argument("name", metavar="NAME", nargs="*", help="hash this model again")
    parser.add_argument("--all", action="store_true", help="hash every model again")
    _kind(parser)
    parser = _command(
        commands, "adopt", checkup.adopt, "take the hashes of files that people brought", _ADOPT
    )
    parser.add_argument("name", metavar="NAME", nargs="*", help="only this model")
    _kind(parser)


def _add_keeping(commands: "Subparsers") -> None:
    parser = _command(commands, "prune", prune.prune, "make room on the volume", _PRUNE)
    parser.add_argument(
        "--to",
        type=_gigabytes,
        metavar="GB",
        help="what all models may take, in GB (10^9 bytes); else A1111_CACHE_BUDGET_GB",
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would go")
    parser.add_argument(
        "--watch", action="store_true", help="find out first, in a minute, which workers have died"
    )
    for name, run, text, examples in (
        ("pin", show.pin, "never evict these models", _PIN),
        ("unpin", show.unpin, "let these models be evicted again", _UNPIN),
    ):
        parser = _command(commands, name, run, text, examples)
        parser.add_argument("name", metavar="NAME", nargs="+", help="of a model")
        _kind(parser)
    _command(commands, "registry", show.write_registry, "write cache_registry.json anew", _REGISTRY)


def _command(
    commands: "Subparsers", name: str, run: Command, text: str, more: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog=more,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    parser.add_argument(
        "--volume",
        type=Path,
        metavar="FOLDER",
        help="where the volume is mounted, instead of A1111_CACHE_VOLUME or /runpod-volume",
    )
    parser.set_defaults(run=run)
    return parser


def _kind(parser: argparse.ArgumentParser, text: str = "only models of this kind") -> None:
    parser.add_argument(
        "--kind", type=Kind, choices=list(Kind), metavar="KIND", help=f"{text}: {', '.join(Kind)}"
    )


def _gigabytes(text: str) -> float:
    size_gb = float(text)
    if not 0 <= size_gb < float("inf"):
        raise argparse.ArgumentTypeError("must be 0 or more")
    return size_gb


_LIST = f"""\
ORIGIN is `published` for what was fetched and may be evicted, `brought` for what people put there,
`baked` for what is in the image, `hub` for what is in the platform's Hugging Face cache.
SHA-256 is its first 10 digits; nothing stands there if nobody took it yet (see `adopt`).

example:
  {_PROGRAM} list --kind lora
"""
_INFO = f"""\
examples:
  {_PROGRAM} info
  {_PROGRAM} info detail_tweaker
"""
_COMPAT = f"""\
Told from headers alone. A LoRA of `unknown` base is used when a job asks for it; what is incompatible
fails the job, or is skipped, as A1111_JOB_ON_INCOMPATIBLE or the request says.
--model and --lora can be given several times.

examples:
  {_PROGRAM} compat
  {_PROGRAM} compat --model sd_xl_base_1.0 --lora detail_tweaker
"""
_DOCTOR = f"""\
Writes some 64 MiB into a folder of its own and removes it again; takes about twenty seconds.
`poor` costs time or room, `bad` is something that somebody has to mend (exit status 1).

example:
  {_PROGRAM} doctor --volume /workspace
"""
_PULL = f"""\
REF is what a request may say: an https:// URL, a page of Civitai or Hugging Face, `civitai:…`,
`hf:org/repo/file@revision`, `s3://bucket/key`, an AIR (`urn:air:…`), or an alias.
Tokens come from the environment: CIVITAI_TOKEN, HF_TOKEN, AWS_ACCESS_KEY_ID and so on.
What is there already is not fetched; one that fails does not stop the others. After an interruption
the same command goes on where it was.

examples:
  {_PROGRAM} pull --kind checkpoint hf:org/repo/model.safetensors
  {_PROGRAM} pull --kind lora --name detail 'https://civitai.com/models/123?modelVersionId=456'
  {_PROGRAM} pull -f models.txt
"""
_VERIFY = f"""\
Without NAME and --all: size, time and header of every file, which is quick. With them the files are
hashed, and the hashes compared with those that were taken when they came.
`unhashed` and `touched` files are used; a `bad` one has to be deleted, and is fetched again if it has
a source. The exit status is 1 if there is one.

examples:
  {_PROGRAM} verify
  {_PROGRAM} verify --all --kind checkpoint
"""
_ADOPT = f"""\
Files that people put on the volume are used as they are. Once their hashes are known, a request may
name them by hash, and no worker has to take it during a job.

examples:
  {_PROGRAM} adopt
  {_PROGRAM} adopt my_model
"""
_PRUNE = f"""\
Deletes what died fetches left behind, manifests without a file, and the models that were used
longest ago until the others fit. Never what people put there, what is pinned, or what a worker uses.

examples:
  {_PROGRAM} prune --to 50 --dry-run
  {_PROGRAM} prune --to 50
"""
_PIN = f"""\
A model that is not there yet can be pinned as well, with its --kind.

example:
  {_PROGRAM} pin sd_xl_base_1.0
"""
_UNPIN = f"""\
example:
  {_PROGRAM} unpin sd_xl_base_1.0
"""
_REGISTRY = f"""\
A list of all models for people and other programs; workers keep it up to date, and never read it.

example:
  {_PROGRAM} registry
"""


if __name__ == "__main__":
    try:
        # The command line is an entry point: the one place here that reads the environment.
        status = main(sys.argv[1:], os.environ)  # noqa: TID251
    except BrokenPipeError:
        # As in `list | head`. Source: Python documentation, signal, "Note on SIGPIPE".
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = _FAILED
    sys.exit(status)
