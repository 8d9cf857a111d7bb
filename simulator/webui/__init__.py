"""`python -m simulator webui`: AUTOMATIC1111's API, version 1.10.1, without a GPU or a model's work.

    python -m simulator webui --port 7861 --models-dir DIR [any flag of A1111's]

    DIR/Stable-diffusion/  Lora/  VAE/  embeddings/  styles.csv     read as A1111 reads them

It behaves as A1111 does with `--api --nowebui` and no extensions but the built-in ones: the same
routes, errors, silent fall-backs and state. The pictures are drawn, and have SIMULATED written in them.
`app.py` names the routes by which it is told to misbehave, `faults.py` how, and `starts.py` how one that is
started again is told. As A1111 it also takes flags from COMMANDLINE_ARGS. `--forge` makes it Forge, and
`--controlnet`, `--adetailer` and `--reactor` give it these extensions.
"""

import asyncio
import os
import signal
import sys
import tempfile
from pathlib import Path

from aiohttp import web

from simulator.loopback import announce
from simulator.webui import flags, starts
from simulator.webui.app import Server
from simulator.webui.failure import InvalidRequestError
from simulator.webui.program import Program

_WRONG_USAGE = 2
_PORT_TAKEN = 3


def main(argv: list[str]) -> int:
    """Serve until SIGTERM, which lets running jobs be answered first."""
    before = signal.getsignal(signal.SIGTERM)
    with tempfile.TemporaryDirectory(prefix="simulated-webui-") as scratch:
        # An entry point: the environment is read here and nowhere else.
        environment = os.environ  # noqa: TID251
        given = flags.parse(argv, environment, Path(scratch))
        try:
            program = Program(given)
            for order in starts.begin(given.starts):
                program.faults.set(order)
        except InvalidRequestError as error:
            print(*(entry["msg"] for entry in error.errors), file=sys.stderr)
            return _WRONG_USAGE
        program.faults.on_boot()
        number = asyncio.run(_serve(program))
    # A1111 ends by the signal itself; after SIGINT with 0.
    if number == signal.SIGTERM:
        signal.signal(signal.SIGTERM, before)
        os.kill(os.getpid(), signal.SIGTERM)
    return 0


async def _serve(program: Program) -> signal.Signals:
    given = program.flags
    server = Server(program)
    # A client that goes away does not stop its job.
    runner = web.AppRunner(
        server.application(), access_log=None, handler_cancellation=False, keepalive_timeout=30
    )
    await runner.setup()
    site = web.TCPSite(runner, given.host, given.port)
    try:
        await site.start()
    except OSError as error:
        print(error, file=sys.stderr)
        await runner.cleanup()
        sys.exit(_PORT_TAKEN)
    program.load_at_start()
    port = runner.addresses[0][1]
    given.shown["port"] = str(port)
    announce("webui", f"http://127.0.0.1:{port}")
    number = await _signalled()
    await site.stop()
    await server.idle.wait()
    await runner.cleanup()
    return number


async def _signalled() -> signal.Signals:
    """Return the first SIGTERM or SIGINT."""
    first: asyncio.Future[signal.Signals] = asyncio.get_running_loop().create_future()

    def came(number: signal.Signals) -> None:
        if not first.done():
            first.set_result(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, came, number)
    return await first
