"""Processes that need not import what was imported before: forked by a process that did only that.

    nursery = Nursery("simulator.webui")
    process = nursery.start("simulator", "webui", "--port", "0")       as `python -m simulator webui …`

What they import is most of what simulators and small workers cost, half a second each. Each is a process
of its own all the same: whoever forks them has one thread, no socket but that to us, and runs nothing.

Between each and the process that forks stands one that waits for it, because only a parent is told how
a child ended; it tells that through a pipe.
"""

import atexit
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

ROOT = Path(__file__).parent.parent
# A process that is not traced here has tests of its own elsewhere; traced, it would be slow.
_TRACED = {"COVERAGE_PROCESS_CONFIG", "COVERAGE_PROCESS_START"}
_MOST_BYTES = 1 << 17


class Forked:
    """A process; what `subprocess.Popen` has by the same name does the same."""

    def __init__(self, stdin: TextIO, stdout: TextIO, life: TextIO) -> None:
        self.stdin, self.stdout = stdin, stdout
        self.returncode: int | None = None
        self._life, self._reading = life, threading.Lock()
        self.pid = int(life.readline())

    def poll(self) -> int | None:
        """Return how it ended, None while it runs: its exit status, or minus the signal's number."""
        return self._ended(within_s=0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and say how it ended.

        Raises:
            subprocess.TimeoutExpired: it still runs after `timeout` seconds.
        """
        code = self._ended(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
        return code

    def _ended(self, within_s: float | None) -> int | None:
        if self.returncode is None:
            select.select([self._life], [], [], within_s)
        with self._reading:
            if self.returncode is None and select.select([self._life], [], [], 0)[0]:
                self.returncode = int(self._life.readline())
            return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):  # It ended at this moment.
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self) -> None:
        """Close its input, read on to its end, and let go of its pipes."""
        with suppress(BrokenPipeError):  # What was written, and never read.
            self.stdin.close()
        if not self.stdout.closed:
            self.stdout.read()
        self.wait()
        self.stdout.close()
        self._life.close()


def _untraced() -> dict[str, str]:
    environment = os.environ.items()  # noqa: TID251 - a child's PATH
    return {name: text for name, text in environment if name not in _TRACED}


class Nursery:
    """Starts processes that find these modules imported. It begins with the first of them."""

    def __init__(self, *modules: str) -> None:
        self._modules = modules
        self._beginning = threading.Lock()
        self._channel: socket.socket | None = None

    def start(self, module: str, *argv: str, stderr: int = 2, **environment: str) -> Forked:
        """Start `python -m MODULE ARGV…` with pipes for its input and output, untraced, in the checkout.

        What it says on its stderr goes to the file of that number, which stays open here. `environment`
        is added to ours.
        """
        order = json.dumps(
            {"module": module, "argv": argv, "environment": {**_untraced(), **environment}}
        )
        (input_, stdin), (stdout, output), (life, told) = os.pipe(), os.pipe(), os.pipe()
        socket.send_fds(self._begun(), [order.encode()], [input_, output, stderr, told])
        for number in (input_, output, told):
            os.close(number)
        return Forked(open(stdin, "w"), open(stdout), open(life))  # noqa: PTH123 - numbers; closed by Forked

    def _begun(self) -> socket.socket:
        with self._beginning:
            if self._channel is None:
                self._channel, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                process = self._process(end)
                end.close()
                atexit.register(self._end, self._channel, process)
            return self._channel

    def _process(self, end: socket.socket) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [sys.executable, "-m", "benchmarks.forks", str(end.fileno()), *self._modules],
            cwd=ROOT,
            env=_untraced(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[end.fileno()],
        )

    @staticmethod
    def _end(channel: socket.socket, process: "subprocess.Popen[bytes]") -> None:
        channel.close()
        process.wait()


def main(channel: socket.socket, modules: list[str]) -> None:
    """Fork until the other end of `channel` is closed; run what was ordered in each new process."""
    for module in modules:
        importlib.import_module(module)
    # What a terminal sends to all is for those who are forked.
    signal.signal(signal.SIGCHLD, _reap)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        order, numbers, _, _ = socket.recv_fds(channel, _MOST_BYTES, 4)
        if not order:
            return
        if os.fork() == 0:
            channel.close()
            _wait_for_child(*numbers)
            _run(json.loads(order))
            return
        for number in numbers:
            os.close(number)


def _reap(*_: object) -> None:
    """Wait for those that waited, so that their time counts where the time of all is measured."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _wait_for_child(stdin: int, stdout: int, stderr: int, life: int) -> None:
    """Fork, and return in the new process; in the old one tell its number and its end, and end."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid == 0:
        os.close(life)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number, standard in ((stdin, 0), (stdout, 1), (stderr, 2)):
            os.dup2(number, standard)
            os.close(number)
        return
    for number in (stdin, stdout, stderr):
        os.close(number)
    with suppress(BrokenPipeError):  # Whoever started it was killed.
        os.write(life, f"{pid}\n".encode())
        _, status = os.waitpid(pid, 0)
        os.write(life, f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def _run(order: dict[str, Any]) -> None:
    os.environ.clear()  # noqa: TID251 - that of who ordered it
    os.environ.update(order["environment"])  # noqa: TID251 - the same
    sys.argv = [order["module"], *order["argv"]]
    runpy.run_module(order["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
