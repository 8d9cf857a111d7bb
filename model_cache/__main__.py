"""`python -m model_cache`: look at a volume's models, fetch one, check all of them.

For people with the volume mounted: on a Pod, on a build machine, on a laptop. Settings come from the
environment, as for the worker. Exit status: 0 done, 1 failed, 2 wrong usage, 78 wrong settings,
130 interrupted.
"""

import argparse
import dataclasses
import json
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from model_cache import verify
from model_cache.cache import ModelCache
from model_cache.models import CachedModel, Progress
from schemas.errors import WorkerError
from schemas.model_ref import Kind, ModelRef
from schemas.settings import CacheSettings, Settings, SettingsError

_EX_CONFIG = 78
_INTERRUPTED = 130


class _Bar:
    """A progress bar on stderr; silent where that is no terminal."""

    def __init__(self, label: str) -> None:
        self._bar = tqdm(desc=label, unit="B", unit_scale=True, disable=None, file=sys.stderr)

    def __call__(self, progress: Progress) -> None:
        self._bar.total = progress.total_bytes
        # A transfer that starts again goes back; tqdm takes that only from `n` itself.
        self._bar.n = progress.done_bytes
        self._bar.refresh()

    def close(self) -> None:
        self._bar.close()


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run one command and return the exit status."""
    options = _parser().parse_args(argv)
    try:
        settings = Settings.from_env(environ).cache
        if options.volume is not None:
            settings = settings.model_copy(update={"volume": options.volume})
        return _run(options, settings)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return _EX_CONFIG
    except WorkerError as error:
        print(error.as_response()["error"], file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return _INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m model_cache", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    every = argparse.ArgumentParser(add_help=False)
    every.add_argument("--volume", type=Path, help="instead of A1111_CACHE_VOLUME")
    every.add_argument("--json", action="store_true", help="write JSON, for programs")
    kind = argparse.ArgumentParser(add_help=False)
    kind.add_argument("--kind", type=Kind, choices=list(Kind), help="only models of this kind")
    commands.add_parser("list", parents=[every, kind], help="show the models on the volume")
    commands.add_parser("info", parents=[every], help="count them")
    ensure = commands.add_parser("ensure", parents=[every], help="make one model present")
    ensure.add_argument("--kind", type=Kind, choices=list(Kind), required=True)
    ensure.add_argument("--name", help="what it is called, or shall be called")
    ensure.add_argument("--url", help="where to fetch it from if it is not there")
    ensure.add_argument("--hash", help="its SHA-256; anything else is refused")
    commands.add_parser(
        "verify", parents=[every, kind], help="hash every file again and compare with its manifest"
    )
    return parser


def _run(options: argparse.Namespace, settings: CacheSettings) -> int:
    match options.command:
        case "ensure":
            return _ensure(options, settings)
        case "verify":
            return _verify(options, ModelCache(settings))
        case "info":
            return _info(options, ModelCache(settings))
        case _:
            return _list(options, ModelCache(settings))


def _listed(options: argparse.Namespace, cache: ModelCache) -> list[CachedModel]:
    kinds = [options.kind] if options.kind else list(Kind)
    return [model for kind in kinds for model in cache.models(kind)]


def _list(options: argparse.Namespace, cache: ModelCache) -> int:
    models = _listed(options, cache)
    if options.json:
        print(json.dumps([_as_json(model) for model in models], indent=1))
        return 0
    width = max(len(name) for name in ("NAME", *(model.name for model in models)))
    print(f"{'KIND':12}  {'NAME':{width}}  {'MB':>9}  {'BASE':12}  SHA-256")
    for model in models:
        megabytes = f"{model.size_bytes / 1e6:.1f}"
        digest = (model.sha256 or "-")[:10]
        print(f"{model.kind:12}  {model.name:{width}}  {megabytes:>9}  {model.base:12}  {digest}")
    return 0


def _info(options: argparse.Namespace, cache: ModelCache) -> int:
    info = dataclasses.asdict(cache.info())
    if options.json:
        print(json.dumps(info))
        return 0
    for name, value in info.items():
        print(f"{name:22} {value}")
    return 0


def _ensure(options: argparse.Namespace, settings: CacheSettings) -> int:
    try:
        ref = ModelRef(kind=options.kind, name=options.name, url=options.url, hash=options.hash)
    except ValueError as error:
        print(f"Not a reference to a model: {error}", file=sys.stderr)
        return 2
    bar = _Bar(ref.label)
    try:
        done = ModelCache(settings).ensure(ref, cancelled=threading.Event(), progress=bar)
    finally:
        bar.close()
    for warning in done.warnings:
        print(warning, file=sys.stderr)
    if options.json:
        outcome = {"cached": done.cached, "download_s": round(done.download_s, 3)}
        print(json.dumps(_as_json(done.model) | outcome))
    else:
        print(done.model.path)
    return 0


def _verify(options: argparse.Namespace, cache: ModelCache) -> int:
    """Hash what has a manifest, read the header of the rest; 1 if anything is not as it was."""
    rows = []
    for model in _listed(options, cache):
        bar = _Bar(model.name)
        try:
            rows.append(
                {"kind": model.kind, "name": model.name, "state": _state(cache, model, bar)}
            )
        finally:
            bar.close()
    bad = [row for row in rows if row["state"].startswith("bad")]
    if options.json:
        print(json.dumps(rows, indent=1))
    else:
        for row in rows:
            print(f"{row['kind']:12}  {row['name']}: {row['state']}")
        print(f"{len(rows)} checked, {len(bad)} bad")
    return 1 if bad else 0


def _state(cache: ModelCache, model: CachedModel, bar: _Bar) -> str:
    try:
        if model.sha256 is None:
            cache.inspected(model)
            return "sound header, never hashed"
        actual = verify.digest(model.path, cancelled=threading.Event(), progress=bar)
    except WorkerError as error:
        return f"bad: {error}"
    return "good" if actual == model.sha256 else f"bad: its SHA-256 is {actual}"


def _as_json(model: CachedModel) -> dict[str, object]:
    return {**dataclasses.asdict(model), "path": str(model.path)}


if __name__ == "__main__":
    # The command line is an entry point: the one place here that reads the environment.
    sys.exit(main(sys.argv[1:], os.environ))  # noqa: TID251
