"""RunPod entry point: wire the parts once, then turn each job into a result.

    python rp_handler.py                           the job in ./test_input.json
    python rp_handler.py --test_input '{"input": {"prompt": "a lighthouse"}}'
    python rp_handler.py --rp_serve_api            the SDK's local API on port 8000
    start.sh                                       in the container: A1111 first, then this

The first two are done here, without the SDK, whose local mode prints every picture as base64.
Without RUNPOD_* and A1111_WEBUI_* variables this is a developer's machine: the simulator stands in
for A1111, and every answer says so.
"""

import argparse
import asyncio
import logging
import os
import random
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread
from typing import Any

import rp_sdk
from model_cache.cache import ModelCache
from rp_jobs import Jobs, Run
from schemas.errors import BackendCrashedError, WorkerError
from schemas.settings import CacheSettings, JobSettings, Settings, SettingsError, WebuiSettings
from worker.child.client import WebuiClient
from worker.child.process import WebuiProcess, spawn
from worker.child.webui import State, Webui
from worker.local import gallery
from worker.local import saving as local
from worker.local.terminal import ProgressLine
from worker.log import logs, redact
from worker.machine import hardware, leaving, preflight, preload
from worker.run import Runner

log = logging.getLogger("rp_handler")

ROOT = Path(__file__).parent
DEMO_VOLUME = ROOT / ".demo" / "volume"
EX_CONFIG = 78  # sysexits.h: the configuration is wrong
STOP_GRACE_S = 10.0
ASK_S = 2.0


@dataclass(frozen=True)
class Child:
    """The A1111 that is ours: the process that runs, and how to make another."""

    first: WebuiProcess
    again: Callable[[], WebuiProcess]


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


def simulated(settings: Settings, links: Path) -> tuple[Settings, Child]:
    """Start the simulator in place of A1111, on a small folder of models of its own.

    Args:
        settings: those of the environment.
        links: an empty folder for the links to models, which lasts as long as the simulator.

    Raises:
        SettingsError: the models could not be written.
    """
    log.warning("No WebUI here: A1111 is SIMULATED. Pictures are drawn, not generated.")
    port = _free_port()
    cache = settings.cache
    if "volume" in cache.model_fields_set:
        cache = with_volume(settings).cache
    else:
        cache = cache.model_copy(update={"volume": DEMO_VOLUME})
        seed = spawn([sys.executable, "-m", "simulator", "models", str(cache.models)], ROOT)
        if (code := seed.wait()) != 0:
            raise SettingsError(f"The simulator could not write models to {cache.models} ({code}).")
    webui = settings.webui.model_copy(update={"port": port, "links": links})
    argv = [
        *(sys.executable, "-m", "simulator", "webui"),
        *("--port", str(port), "--models-dir", str(links)),
    ]

    def start() -> WebuiProcess:
        return spawn(argv, ROOT)

    return settings.model_copy(update={"cache": cache, "webui": webui}), Child(start(), start)


def _free_port() -> int:
    """Return a port that nobody has, and that no connection is given either while A1111 boots.

    Source: Linux, ip-sysctl, ip_local_port_range: connections get 32768 and up.
    """
    while True:
        port = random.randrange(20000, 32000)  # noqa: S311 - hides nothing
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def adopted(arguments: argparse.Namespace, settings: WebuiSettings) -> Child | None:
    """Return the A1111 that start.sh started before it became us, None if there is none."""
    if arguments.webui_pid is None:
        return None
    output = None if arguments.webui_log is None else os.fdopen(arguments.webui_log, "rb")

    def again() -> WebuiProcess:
        try:
            preflight.reconfigure(settings)
        except SettingsError as error:
            log.warning(f"A1111 is started with its own options: {error}")
        return spawn([str(ROOT / "start.sh"), "webui"], ROOT)

    return Child(WebuiProcess(arguments.webui_pid, output), again)


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


def watched(settings: Settings, child: Child | None, client: WebuiClient) -> Webui:
    """Return the WebUI that is kept alive from now on; whoever gets it must `stop` it."""

    def answers() -> bool:
        try:
            client.get("memory", timeout_s=ASK_S)
        except WorkerError:
            return False
        return True

    return Webui(
        child.first if child is not None else None,
        child.again if child is not None else None,
        answers,
        ready_timeout_s=settings.webui.ready_timeout_s,
        on_lost=rp_sdk.stop,
    )


def made(settings: Settings, cache: ModelCache, client: WebuiClient, webui: Webui) -> Runner:
    """Return the runner, with every model that is there shown to A1111.

    Raises:
        SettingsError: the folder of links cannot be written.
    """
    try:
        runner = Runner(
            cache, client, webui, settings, max_rss_bytes=_max_rss_bytes(settings.webui)
        )
        runner.show_models()
    except OSError as error:
        raise SettingsError(
            f"A1111_WEBUI_LINKS: {settings.webui.links}: {error.strerror}."
        ) from error
    return runner


def _max_rss_bytes(settings: WebuiSettings) -> int | None:
    if settings.max_rss_gb is not None:
        return int(settings.max_rss_gb * 1e9)
    return int(0.9 * hardware.memory_bytes()) or None


def assembled(settings: Settings, child: Child | None, stack: ExitStack) -> tuple[Webui, Runner]:
    """Return the WebUI and the runner with everything under way that `stack` is to end.

    Raises:
        SettingsError: see `opened` and `made`.
    """
    client = WebuiClient(f"http://127.0.0.1:{settings.webui.port}")
    with leaving.kept_whole():
        webui = watched(settings, child, client)
        stack.callback(webui.stop, STOP_GRACE_S)
        cache = opened(settings.cache, stack)
    runner = made(settings, cache, client, webui)
    runner.health.start()
    stack.callback(runner.health.stop)
    Thread(target=runner.check_storage, name="check-storage", daemon=True).start()
    return webui, runner


def wait_until_ready(runner: Runner, webui: Webui, settings: Settings, stopping: Event) -> None:
    """Return when the first job may come: with `eager` at once, else when A1111 answers.

    `stopping` ends a warm-up that is still at it: the interpreter would wait for its download.

    Raises:
        BackendError: A1111 ended, or did not answer in time.
    """
    if not settings.webui.eager:
        webui.ready(Event())
    if settings.webui.warm_up:
        # On a thread of its own in any case: see worker/machine/leaving.py.
        thread = Thread(target=runner.warm_up, args=(stopping,), name="warm-up", daemon=True)
        thread.start()
        if not settings.webui.eager:
            thread.join()


def main() -> int:
    """Start the worker and serve until the SDK ends; return the exit code."""
    # Until the SDK's loop has its own: what was started is to be ended.
    leaving.at_once()
    try:
        arguments, job = _arguments()
        with ExitStack() as stack:
            return _serve(arguments, job, stack)
    except BackendCrashedError as error:
        if error.details.get("exit_code") == EX_CONFIG:  # of A1111's preflight
            sys.stderr.write(f"The settings are wrong:\n{error}\n")
            return EX_CONFIG
        return 1
    except SettingsError as error:
        sys.stderr.write(f"The settings are wrong:\n{error}\n")
        return EX_CONFIG
    except WorkerError as error:
        if not error.refresh_worker:  # Of an A1111 that is lost the log speaks already.
            log.critical(error.as_response()["error"])
        return 1


def _serve(arguments: argparse.Namespace, job: dict[str, Any] | None, stack: ExitStack) -> int:
    """Build the parts, do `job` or what the SDK brings, and return the exit code."""
    environ = os.environ  # noqa: TID251 - the one reader
    alone = is_developers_machine(environ)
    settings = Settings.from_env(environ)
    redact.learn(environ, prompts=settings.log.prompts)
    logs.configure(settings.log.level, as_json="RUNPOD_ENDPOINT_ID" in environ)
    logs.take_uncaught()
    if job is None:
        rp_sdk.preload()
    child: Child | None
    if alone:
        links = stack.enter_context(TemporaryDirectory(prefix="a1111-links-"))
        settings, child = simulated(settings, Path(links))
    else:
        settings, child = with_volume(settings), adopted(arguments, settings.webui)
    webui, runner = assembled(settings, child, stack)
    stopping = Event()
    stack.callback(stopping.set)
    wait_until_ready(runner, webui, settings, stopping)
    if job is not None:
        answer = done(job, runner.run, settings.job)
        return local.told(answer, arguments.output or local.OUTPUT, environ)
    online = "RUNPOD_WEBHOOK_GET_JOB" in environ
    jobs = Jobs(
        runner.run,
        settings.job,
        online=online,
        on_lost=rp_sdk.stop,
        arrived=runner.access.line.joined if settings.job.prefetch else nullcontext,
    )
    rp_sdk.serve(
        jobs.handle,
        on_stop=jobs.drain,
        ready=lambda: settings.webui.eager or webui.state is not State.STARTING,
        concurrency=settings.job.at_once,
        # The SDK's /realtime knows no stream.
        chunk_bytes=settings.output.chunk_bytes if "RUNPOD_REALTIME_PORT" not in environ else None,
    )
    return 1 if webui.state is State.LOST else 0


def done(job: dict[str, Any], run: Run, limits: JobSettings) -> Any:
    """Return the answer to `job`, done here and now; on a terminal its progress is shown."""
    line = ProgressLine(sys.stderr)
    with line.above_log():
        return asyncio.run(
            leaving.unless_told(Jobs(line.watching(run), limits, online=False).handle(job))
        )


def _arguments() -> tuple[argparse.Namespace, dict[str, Any] | None]:
    """Return the arguments and the job of a local run, None if the SDK brings jobs; or end with 2.

    Source: runpod-python 1.12.0, serverless/__init__.py and worker.py: what wins over what.

    Raises:
        InvalidInputError: what is to be done in a local run is no job.
    """
    parser = _parser()
    arguments, rest = parser.parse_known_args()
    sys.argv[1:] = rest  # the SDK parses what is left
    environ = os.environ  # noqa: TID251 - the one reader
    serves = "--rp_serve_api" in rest or "RUNPOD_REALTIME_PORT" in environ
    if serves or (arguments.test_input is None and "RUNPOD_WEBHOOK_GET_JOB" in environ):
        if arguments.output is not None:
            parser.error("--output is of a local run")
        return arguments, None
    if rest:
        parser.error(f"not of a local run: {' '.join(rest)}")
    return arguments, local.given(arguments.test_input)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="RunPod worker around a headless AUTOMATIC1111 WebUI. On RunPod it takes jobs from"
        " the endpoint's queue; elsewhere it does one job and ends: 0 if it was done, else 1.",
        epilog="--rp_serve_api and the other flags that begin with --rp_ are those of the RunPod SDK.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--test_input",
        metavar="JSON",
        help=f"""the job, {{"input": {{"prompt": "…"}}}}; without it that of ./{local.INPUT}""",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help=f"folder for its pictures and {gallery.NAME}, which shows them all; {local.OUTPUT}/",
    )
    parser.add_argument(
        "--webui-pid", type=int, metavar="PID", help="A1111, a child of this process"
    )
    parser.add_argument("--webui-log", type=int, metavar="FD", help="descriptor of A1111's output")
    return parser


if __name__ == "__main__":
    sys.exit(main())
