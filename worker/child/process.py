"""The WebUI child process: its output, its size, its end. Knows nothing of its API."""

import logging
import os
import shutil
import signal
import subprocess
import time
from collections import deque
from pathlib import Path
from threading import Lock, Thread
from typing import IO

from worker.log import logs, redact
from worker.log.spoken import Limit, Lines

log = logging.getLogger(__name__)

KEPT_LINES = 40
_READ_BYTES = 65536
LOOK_S = 0.05
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
# What a process printed last may still be on its way when its end is seen.
_LAST_WORDS_S = 1.0


class WebuiProcess:
    """A child of ours that serves A1111's API.

    Args:
        pid: process id; it must be a child of this process, so that its end is seen at once.
        output: what it prints, passed on to our log, limited by `worker.log.spoken`; None if it prints elsewhere.
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
        self._reader: Thread | None = None
        if output is not None:
            self._reader = Thread(
                target=self._pass_on, args=(output,), name="webui-log", daemon=True
            )
            self._reader.start()

    def exit_code(self) -> int | None:
        """Return the exit code, negative for a signal, or None while it runs.

        What it started and left behind ends with it: a helper of an extension, or a process of its own
        that holds the GPU's memory, which the next A1111 needs.
        """
        with self._lock:
            if self._code is None:
                try:
                    self._code = self._reaped()
                except ChildProcessError:
                    self._code = -1  # reaped by somebody else: ended, how is not known
                if self._child is not None:
                    self._child.returncode = self._code
            return self._code

    def _reaped(self) -> int | None:
        if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return None
        # Before its number is given back: from then on it may be that of strangers.
        self._signal(signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status)

    def wait(self) -> int:
        """Wait for its end and return the exit code."""
        while (code := self.exit_code()) is None:
            time.sleep(LOOK_S)
        return code

    def last_lines(self) -> str:
        """Return the end of its output, for a message about its end."""
        if self._reader is not None and self.exit_code() is not None:
            self._reader.join(_LAST_WORDS_S)
        return "\n".join(self._last)

    def rss_bytes(self) -> int | None:
        """Return the memory that it occupies, None once it has ended.

        Source: proc(5), /proc/pid/statm: the second number counts resident pages.
        """
        try:
            fields = Path(f"/proc/{self.pid}/statm").read_text().split()
            return int(fields[1]) * _PAGE_BYTES
        except (OSError, IndexError):
            return None

    def stop(self, grace_s: float) -> None:
        """End it and what it started: SIGTERM, then SIGKILL after `grace_s` seconds.

        Does nothing if it has ended.
        """
        for number, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 5.0)):
            if self.exit_code() is not None:
                return
            self._send(number)
            deadline = time.monotonic() + wait_s
            while self.exit_code() is None and time.monotonic() < deadline:
                time.sleep(LOOK_S)

    def _send(self, number: int) -> None:
        # Another thread may see its end meanwhile, after which the number means nobody, or another.
        with self._lock:
            if self._code is None:
                self._signal(number)

    def _signal(self, number: int) -> None:
        """Signal its group if it leads one; ours, in which another parent may have left it, never."""
        if os.getpgid(self.pid) == self.pid:
            os.killpg(self.pid, number)
        else:
            os.kill(self.pid, number)

    def _pass_on(self, output: IO[bytes]) -> None:
        lines, limit = Lines(), Limit()
        with output:
            # Not line by line: a bar that redraws itself ends no line until it is full.
            while data := os.read(output.fileno(), _READ_BYTES):
                for line in lines.feed(data):
                    self._take(line, limit)
            for line in lines.end():
                self._take(line, limit)
        _tell_left_out(limit)

    def _take(self, line: str, limit: Limit) -> None:
        # What is kept may be told to a caller whose prompt it is not.
        line = redact.text(line)
        self._last.append(line)
        if limit.passes(line):
            _tell_left_out(limit)
            log.info(f"webui: {line}", extra=logs.fields("webui"))


def _tell_left_out(limit: Limit) -> None:
    if count := limit.left_out():
        log.warning(f"webui: {count} lines left out", extra=logs.fields("webui", left_out=count))


def spawn(argv: list[str], cwd: Path) -> WebuiProcess:
    """Start `argv` as a child that dies with us, where the system can promise that.

    To be called from a thread that lasts as long as the child is to live: the kernel ends the child
    with the thread that made it. Source: prctl(2), PR_SET_PDEATHSIG.
    """
    if setpriv := shutil.which("setpriv"):
        argv = [setpriv, "--pdeathsig", "KILL", *argv]
    child = subprocess.Popen(
        argv,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        # What it starts ends with it; and Ctrl-C is for the worker, which ends its child when the job
        # has stopped.
        process_group=0,
    )
    return WebuiProcess(child.pid, child.stdout, child)
