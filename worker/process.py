"""The WebUI child process: its output, its end, its first answer. Knows nothing of its API."""

import logging
import os
import shutil
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from threading import Lock, Thread
from typing import IO

from schemas.errors import BackendCrashedError, BackendNotReadyError

log = logging.getLogger(__name__)

KEPT_LINES = 40
LOOK_S = 0.05


class WebuiProcess:
    """A child of ours that serves A1111's API.

    Args:
        pid: process id; it must be a child of this process, so that its end is seen at once.
        output: what it prints, passed on line by line to our log; None if it prints elsewhere.
        child: the object that started it, if that is ours: it must not reap by itself.
    """

    def __init__(
        self,
        pid: int,
        output: IO[bytes] | None = None,
        child: subprocess.Popen[bytes] | None = None,
    ) -> None:
        self.pid = pid
        self._child = child
        self._lock = Lock()
        self._code: int | None = None
        self._last: deque[str] = deque(maxlen=KEPT_LINES)
        if output is not None:
            Thread(target=self._pass_on, args=(output,), name="webui-log", daemon=True).start()

    def exit_code(self) -> int | None:
        """Return the exit code, negative for a signal, or None while it runs."""
        with self._lock:
            if self._code is None:
                try:
                    pid, status = os.waitpid(self.pid, os.WNOHANG)
                except ChildProcessError:
                    self._code = -1  # reaped by somebody else: ended, how is not known
                else:
                    self._code = os.waitstatus_to_exitcode(status) if pid else None
                if self._child is not None:
                    self._child.returncode = self._code
            return self._code

    def wait(self) -> int:
        """Wait for its end and return the exit code."""
        while (code := self.exit_code()) is None:
            time.sleep(LOOK_S)
        return code

    def last_lines(self) -> str:
        """Return the end of its output, for a message about its end."""
        return "\n".join(self._last)

    def stop(self, grace_s: float) -> None:
        """End it: SIGTERM, then SIGKILL after `grace_s` seconds. Does nothing if it has ended."""
        for number, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 5.0)):
            if self.exit_code() is not None:
                return
            os.kill(self.pid, number)
            deadline = time.monotonic() + wait_s
            while self.exit_code() is None and time.monotonic() < deadline:
                time.sleep(LOOK_S)

    def _pass_on(self, output: IO[bytes]) -> None:
        with output:
            for raw in output:
                line = raw.decode(errors="replace").rstrip()
                if line:
                    self._last.append(line)
                    log.info(f"webui: {line}")


def spawn(argv: list[str], cwd: Path) -> WebuiProcess:
    """Start `argv` as a child that dies with us, where the system can promise that."""
    if setpriv := shutil.which("setpriv"):
        argv = [setpriv, "--pdeathsig", "KILL", *argv]
    child = subprocess.Popen(
        argv, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    return WebuiProcess(child.pid, child.stdout, child)


def wait_until_ready(
    process: WebuiProcess | None,
    answers: Callable[[], bool],
    *,
    timeout_s: float,
    interval_s: float = 0.25,
) -> None:
    """Return at the first answer of the WebUI.

    Args:
        process: the child to watch; None if the WebUI was started by somebody else.
        answers: asks a cheap route; True once it answers.
        timeout_s: seconds from now.
        interval_s: pause between two looks.

    Raises:
        BackendCrashedError: the child ended; its last lines are in the message.
        BackendNotReadyError: no answer in time.
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if process is not None and (code := process.exit_code()) is not None:
            raise BackendCrashedError(
                f"A1111 ended with code {code} while starting. {process.last_lines()}"
            )
        if answers():
            return
        time.sleep(interval_s)
    words = process.last_lines() if process is not None else ""
    raise BackendNotReadyError(f"A1111 did not answer within {timeout_s:g} s. {words}".strip())
