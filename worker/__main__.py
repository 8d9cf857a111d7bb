"""Command line of the worker's own parts: what start.sh runs before A1111, and by itself.

python -m worker preflight …     check the settings, prepare what A1111 will read
python -m worker check …         say what is here and what will not work
python -m worker health          say how the worker of this container is
python -m worker validate FILE   say what a request means, or what is wrong with it
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from schemas.settings import Settings, SettingsError
from worker.child import vitals
from worker.machine.places import Places
from worker.machine.preflight import preflight

STDIN = Path("-")
EX_CONFIG = 78  # sysexits.h: the configuration is wrong


def main(argv: list[str]) -> int:
    """Run the command that `argv` names; return the exit status."""
    arguments = _parser().parse_args(argv)
    environ = os.environ  # noqa: TID251 - the entry point reads it once
    run: Callable[[argparse.Namespace, Mapping[str, str]], int] = arguments.run
    try:
        return run(arguments, environ)
    except SettingsError as error:
        lines = str(error).splitlines()
        sys.stderr.writelines(f"{arguments.command}: {line}\n" for line in lines)
        return EX_CONFIG


def _preflight(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    for line in preflight(environ, _places(arguments), arguments.command_file):
        print(f"preflight: {line}")
    return 0


def _check(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from worker import survey  # noqa: PLC0415 - A1111's start waits for preflight, not for this

    found: list[survey.Finding] = []
    try:
        for finding in survey.survey(environ, _places(arguments)):
            found.append(finding)
            if not arguments.json:
                print(finding.as_line(), flush=True)
    except SettingsError as error:
        if arguments.json:
            print(survey.as_json(survey.wrong_settings(error)))
        raise
    if arguments.json:
        print(survey.as_json(found))
    return int(any(finding.level is survey.Level.PROBLEM for finding in found))


def _health(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    settings = Settings.from_env(environ)
    said = vitals.written(settings.webui.links)
    if arguments.json:
        print(json.dumps(said))
    elif said is None:
        print(f"No worker: {settings.webui.links} has no fresh {vitals.FILE}.")
    else:
        print("\n".join(vitals.lines(said)))
    return int(not vitals.is_well(said))


def _validate(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from worker.validate import judged  # noqa: PLC0415 - A1111's start waits for preflight

    limits = Settings.from_env(environ).job
    try:
        text = arguments.file.read_bytes() if arguments.file != STDIN else sys.stdin.buffer.read()
    except OSError as error:
        print(f"validate: {error}", file=sys.stderr)
        return 1
    verdict = judged(text, limits)
    print(verdict.as_json() if arguments.json else "\n".join(verdict.lines()))
    return int(bool(verdict.problems))


def _places(arguments: argparse.Namespace) -> Places:
    return Places(
        webui_dir=arguments.webui_dir.absolute(),
        webui_python=arguments.webui_python,
        data_dir=arguments.data_dir.absolute(),
        cache_dir=arguments.cache_dir.absolute(),
        helpers_dir=arguments.helpers_dir.absolute(),
        hf_home=arguments.hf_home.absolute(),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m worker", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    prepare = commands.add_parser(
        "preflight",
        help="check the settings and prepare what A1111 will read, before it starts",
        description="Check the settings and prepare what A1111 will read. Exit status 78: they are"
        " wrong, one line per problem on stderr.",
    )
    _add_places(prepare)
    prepare.add_argument(
        "--command-file",
        type=Path,
        required=True,
        metavar="FILE",
        help="gets A1111's command line, each word ended by a NUL byte",
    )
    prepare.set_defaults(run=_preflight)
    check = commands.add_parser(
        "check",
        help="say what is here and what will not work; changes nothing",
        description="Say what is here. Exit status 1: something will not work; 78: the settings"
        " are wrong.",
    )
    _add_places(check)
    check.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    check.set_defaults(run=_check)
    how = commands.add_parser(
        "health",
        help="say how the worker of this container is",
        description="Say what the running worker wrote last, a few seconds ago. Exit status 1:"
        " there is none, it hangs, or its A1111 cannot be started any more.",
    )
    how.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    how.set_defaults(run=_health)
    read = commands.add_parser(
        "validate",
        help="say what a request means, or what is wrong with it; asks nobody",
        description="Read a request as the worker would, within the limits of the settings: without"
        " a network, A1111 or models, whose names are therefore not looked at. Exit status 1: it"
        " would be refused.",
    )
    read.add_argument(
        "file", type=Path, metavar="FILE", help='JSON, {"input": {…}}; - for standard input'
    )
    read.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    read.set_defaults(run=_validate)
    return parser


def _add_places(command: argparse.ArgumentParser) -> None:
    for name, what in (
        ("--webui-dir", "where A1111's launch.py is"),
        ("--webui-python", "A1111's interpreter"),
        ("--data-dir", "A1111's data folder; one in --cache-dir if this is on the volume"),
        ("--cache-dir", "a folder on the container's disk"),
        ("--helpers-dir", "helper weights in the image; may be absent"),
        ("--hf-home", "a Hugging Face cache in the image; may be absent"),
    ):
        command.add_argument(name, type=Path, required=True, metavar="PATH", help=what)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
