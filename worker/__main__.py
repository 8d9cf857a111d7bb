"""Command line of the worker's own parts: `python -m worker preflight`, which start.sh runs first."""

import argparse
import os
import sys
from pathlib import Path

from schemas.settings import SettingsError
from worker.preflight import preflight

EX_CONFIG = 78  # sysexits.h: the configuration is wrong


def main(argv: list[str]) -> int:
    """Run the command that `argv` names; return the exit status."""
    arguments = _parser().parse_args(argv)
    environ = os.environ  # noqa: TID251 - the entry point reads it once
    try:
        for line in preflight(environ, arguments.webui_dir, arguments.data_dir):
            print(f"preflight: {line}")
    except SettingsError as error:
        sys.stderr.writelines(f"preflight: {line}\n" for line in str(error).splitlines())
        return EX_CONFIG
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m worker", allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    check = commands.add_parser(
        "preflight",
        help="check the settings and prepare what A1111 will read, before it starts",
        description="Check the settings and prepare what A1111 will read. Exit status 78: they are"
        " wrong, one line per problem on stderr.",
    )
    check.add_argument("--webui-dir", type=Path, required=True, help="where A1111's launch.py is")
    check.add_argument("--data-dir", type=Path, required=True, help="A1111's own --data-dir")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
