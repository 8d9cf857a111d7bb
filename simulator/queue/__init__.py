"""`python -m simulator queue`: RunPod's job queue, from which the real SDK loop takes its jobs.

    /v2/<endpoint>/run, /runsync, /status/<id>, …     what clients call, with the API key
    /v2/<endpoint>/job-take/<worker>, …               what a worker's SDK calls
    /simulator/env?worker=<id>                        the variables that a worker's process needs
    /simulator/journal, /simulator/faults             what happened; what shall go wrong
    /simulator/ended?after=<n>                        what became of the jobs that ended, but the first n
    /simulator/reset-journal

Limits, timeouts and retention are the platform's; --time-scale lets its clocks run faster, all of them
together, so that times in answers and policies are of that clock, too.
"""

import argparse
import asyncio
import contextlib
import shlex
import sys
from collections.abc import AsyncIterator

from simulator.loopback import announce, listening, until_terminated
from simulator.queue.app import application
from simulator.queue.platform import Options, Platform
from simulator.queue.state import Limits


def main(argv: list[str]) -> int:
    """Serve until SIGTERM."""
    default, limits = Options(), Limits()
    parser = argparse.ArgumentParser(
        "python -m simulator queue",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--port", type=int, default=0)
    add("--endpoint", default=default.endpoint, help="the endpoint's id")
    add("--api-key", default=default.api_key, help="the key of clients and workers")
    add("--open", action="store_true", help="clients need no key")
    add("--time-scale", type=float, default=1.0, help="seconds of its clock in a real second")
    add("--execution-timeout-s", type=float, default=limits.execution_s)
    add("--hold-s", type=float, default=default.hold_s, help="how long a long poll stays open")
    add("--print-env", action="store_true", help="print a worker's variables to stderr")
    options = parser.parse_args(argv)
    platform_options = Options(
        endpoint=options.endpoint,
        api_key=options.api_key,
        open=options.open,
        time_scale=options.time_scale,
        hold_s=options.hold_s,
        limits=Limits(execution_s=options.execution_timeout_s),
    )
    asyncio.run(_serve(platform_options, options.port, print_env=options.print_env))
    return 0


@contextlib.asynccontextmanager
async def serving(platform: Platform, port: int = 0) -> AsyncIterator[str]:
    """Serve `platform` on a free or the given port while the context lasts; yield the base URL."""
    async with listening(application(platform), port) as url:
        yield url


async def _serve(options: Options, port: int, *, print_env: bool) -> None:
    platform = Platform(options)
    async with serving(platform, port) as url:
        announce("queue", url)
        if print_env:
            for name, value in platform.environment(url, "worker-1").items():
                print(f"export {name}={shlex.quote(value)}", file=sys.stderr)
        await until_terminated()
