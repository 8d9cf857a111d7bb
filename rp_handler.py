"""RunPod entry point: wire the parts once, then turn each job into a result.

    python rp_handler.py                           the job in ./test_input.json
    python rp_handler.py --test_input '{"input": {"prompt": "a lighthouse"}}'
    python rp_handler.py --rp_serve_api            the SDK's local API on port 8000
    start.sh                                       in the container: A1111 first, then this

All other flags are the SDK's own. Without RUNPOD_* and A1111_WEBUI_* variables this is a developer's
machine: the simulator stands in for A1111, and every answer says so.
"""

import argparse
import asyncio
import json
import logging
import os
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event
from typing import Any

import rp_sdk
from model_cache.cache import ModelCache
from schemas.errors import BackendError, InternalError, InvalidInputError, WorkerError
from schemas.result import Result
from schemas.settings import CacheSettings, Settings, SettingsError
from worker import local, logs, preload
from worker.client import WebuiClient
from worker.process import WebuiProcess, spawn, wait_until_ready
from worker.run import Runner

log = logging.getLogger("rp_handler")

ROOT = Path(__file__).parent
DEMO_VOLUME = ROOT / ".demo" / "volume"
OUTPUT = Path("output")
EX_CONFIG = 78  # sysexits.h: the configuration is wrong
STOP_GRACE_S = 10.0

Run = Callable[[rp_sdk.Job, Event, Callable[[dict[str, Any]], None]], Result]


def make_handler(run: Run, *, online: bool) -> rp_sdk.Handler:
    """Return the coroutine that the SDK calls; the only place that catches everything.

    It is async because only an async handler can be cancelled. A cancelled job's thread is waited
    for, so that the next job does not find A1111 still at work.
    Source: runpod-python 1.12.0, rp_scale.py cancels the task of a job that is to stop.
    """

    async def handler(job: rp_sdk.Job) -> dict[str, Any]:
        logs.job_id.set(str(job.get("id", "")))
        cancelled = Event()
        progress = rp_sdk.ProgressSender(job, online=online)
        work = asyncio.ensure_future(asyncio.to_thread(run, job, cancelled, progress.put))
        try:
            return dict(await asyncio.shield(work))
        except asyncio.CancelledError:
            cancelled.set()
            await asyncio.wait({work})
            log.info(f"cancelled: {work.exception()}")
            raise
        except WorkerError as error:
            log.warning(f"{error.code}: {error}")
            return error.as_response()
        except Exception:
            log.exception("a bug of this worker")
            return InternalError(
                "The worker failed unexpectedly.",
                hint=f"The log of job {job.get('id')} has the details.",
            ).as_response()
        finally:
            await progress.close()

    return handler


def saving(handler: rp_sdk.Handler) -> rp_sdk.Handler:
    """Return `handler` for a local test: the result goes to files, the SDK prints their paths."""

    async def save(job: rp_sdk.Job) -> dict[str, Any]:
        result = await handler(job)
        if "images" in result:
            files = local.save(result, OUTPUT, str(job["id"]))
            sys.stdout.write("".join(f"wrote {file}\n" for file in files))
            result["images"] = [str(file) for file in files[:-1]]
        return result

    return save


def is_developers_machine(environ: Mapping[str, str]) -> bool:
    """Return whether the simulator may stand in: nothing says RunPod, nothing names a WebUI."""
    named = any(name.startswith(("RUNPOD_", "A1111_WEBUI_")) for name in environ)
    return not named and (ROOT / "simulator").is_dir()


def with_volume(settings: Settings) -> Settings:
    """Return `settings` with a place for models that exists: the volume, or the container's disk.

    Raises:
        SettingsError: no volume is mounted, and a setting demands one.
    """
    cache = settings.cache
    if cache.volume.is_dir():
        return settings
    if cache.require_volume:
        raise SettingsError(f"A1111_CACHE_VOLUME: {cache.volume} is not mounted.")
    log.warning(
        f"No volume at {cache.volume}: models are kept in {cache.local_root}, on this machine's disk,"
        " and fetched again by every new worker."
    )
    try:
        cache.local_root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(
            f"A1111_CACHE_LOCAL_ROOT: {cache.local_root}: {error.strerror}."
        ) from error
    return settings.model_copy(
        update={"cache": cache.model_copy(update={"volume": cache.local_root})}
    )


def simulated(settings: Settings, links: Path) -> tuple[Settings, WebuiProcess]:
    """Start the simulator in place of A1111, on a small folder of models of its own.

    Args:
        settings: those of the environment.
        links: an empty folder for the links to models, which lasts as long as the simulator.

    Raises:
        SettingsError: the models could not be written.
    """
    log.warning("No WebUI here: A1111 is SIMULATED. Pictures are drawn, not generated.")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    cache = settings.cache
    if "volume" in cache.model_fields_set:
        cache = with_volume(settings).cache
    else:
        cache = cache.model_copy(update={"volume": DEMO_VOLUME})
        seed = spawn([sys.executable, "-m", "simulator", "models", str(cache.models)], ROOT)
        if (code := seed.wait()) != 0:
            raise SettingsError(f"The simulator could not write models to {cache.models} ({code}).")
    webui = settings.webui.model_copy(update={"port": port, "links": links})
    child = spawn(
        [
            sys.executable,
            "-m",
            "simulator",
            "webui",
            "--port",
            str(port),
            "--models-dir",
            str(links),
        ],
        ROOT,
    )
    return settings.model_copy(update={"cache": cache, "webui": webui}), child


def adopted(arguments: argparse.Namespace) -> WebuiProcess | None:
    """Return the A1111 that start.sh started before it became us, None if there is none."""
    if arguments.webui_pid is None:
        return None
    output = None if arguments.webui_log is None else os.fdopen(arguments.webui_log, "rb")
    return WebuiProcess(arguments.webui_pid, output)


def opened(settings: CacheSettings, stack: ExitStack) -> ModelCache:
    """Return the store of models, kept fresh until `stack` ends, with its preload under way.

    Raises:
        SettingsError: what is to be preloaded is no list of models.
    """
    wanted = preload.wanted(settings.preload)
    cache = ModelCache(settings)
    cache.start()
    stack.callback(cache.close)
    if wanted:
        stack.callback(preload.Preload(cache, wanted).stop)
    return cache


def started(settings: Settings, cache: ModelCache, child: WebuiProcess | None) -> Runner:
    """Return a runner whose WebUI answers.

    Raises:
        BackendError: the WebUI ended, or did not answer in time.
    """
    client = WebuiClient(f"http://127.0.0.1:{settings.webui.port}")
    try:
        runner = Runner(cache, client, settings)
        runner.show_models()
    except OSError as error:
        raise SettingsError(
            f"A1111_WEBUI_LINKS: {settings.webui.links}: {error.strerror}."
        ) from error

    def answers() -> bool:
        try:
            client.get("memory", timeout_s=5)
        except BackendError:
            return False
        return True

    wait_until_ready(child, answers, timeout_s=settings.webui.ready_timeout_s)
    return runner


def replacing(run: Run, child: WebuiProcess | None) -> Run:
    """Return `run` with errors that ask for a new worker once A1111 is gone: nothing here revives it."""

    def watched(
        job: rp_sdk.Job, cancelled: Event, report: Callable[[dict[str, Any]], None]
    ) -> Result:
        try:
            return run(job, cancelled, report)
        except BackendError as error:
            error.refresh_worker = child is not None and child.exit_code() is not None
            raise

    return watched


def main() -> int:
    """Start the worker and serve until the SDK ends; return the exit code."""
    environ = os.environ  # noqa: TID251 - the one reader
    arguments, rest = _parser().parse_known_args()
    sys.argv[1:] = rest  # the SDK parses what is left
    online = "RUNPOD_WEBHOOK_GET_JOB" in environ
    local_test = (
        not online and "--rp_serve_api" not in rest and "RUNPOD_REALTIME_PORT" not in environ
    )
    try:
        with ExitStack() as stack:
            _require_test_input(rest)
            settings = Settings.from_env(environ)
            logs.configure(settings.log.level, as_json="RUNPOD_ENDPOINT_ID" in environ)
            child: WebuiProcess | None
            if is_developers_machine(environ):
                links = stack.enter_context(TemporaryDirectory(prefix="a1111-links-"))
                settings, child = simulated(settings, Path(links))
            else:
                settings, child = with_volume(settings), adopted(arguments)
            if child is not None:
                stack.callback(child.stop, STOP_GRACE_S)
            runner = started(settings, opened(settings.cache, stack), child)
            handler = make_handler(replacing(runner.run, child), online=online)
            if local_test:
                # The SDK would bury the paths of the files under dumps of the result.
                environ.setdefault("RUNPOD_LOG_LEVEL", "WARN")
                handler = saving(handler)
            rp_sdk.serve(handler)
    except SettingsError as error:
        sys.stderr.write(f"The settings are wrong:\n{error}\n")
        return EX_CONFIG
    except WorkerError as error:
        log.critical(f"{error.code}: {error}")
        return 1
    return 0


def _require_test_input(arguments: list[str]) -> None:
    """Raise InvalidInputError if --test_input is no job; the SDK would show a traceback, or take another."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--test_input")
    text = parser.parse_known_args(arguments)[0].test_input
    if text is None:
        return
    try:
        job = json.loads(text)
    except ValueError as error:
        raise InvalidInputError(f"--test_input is not JSON: {error}.") from None
    if not isinstance(job, dict) or "input" not in job:
        raise InvalidInputError('--test_input must be a job: {"input": {…}}.')


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="RunPod worker around a headless AUTOMATIC1111 WebUI.",
        epilog="All other flags (--test_input, --rp_serve_api, …) are those of the RunPod SDK.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--webui-pid", type=int, metavar="PID", help="A1111, a child of this process"
    )
    parser.add_argument("--webui-log", type=int, metavar="FD", help="descriptor of A1111's output")
    return parser


if __name__ == "__main__":
    sys.exit(main())
