"""Hosts for workers, as their containers are on several machines.

Each has a loopback interface, a host name, process numbers from 1 on, and mounts of its own; the
clock is one for all. So two workers may have the same number and the same address, and are not on
the same machine for all that they can see. Namespaces of the kernel do that; who is not root has them
within a namespace of users.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

_OWN = ("--mount", "--net", "--uts", "--ipc", "--pid")
_NEEDED = ("unshare", "nsenter", "ip", "hostname", "mount", "bash")
# It lives as long as whoever started it, and takes in processes that lost their parent.
_FIRST = 'hostname "$1" && ip link set lo up && echo up && read -r _'


@dataclass(frozen=True)
class Host:
    """One that runs; with its first process end all others that live there."""

    name: str
    first: int
    """The number of its first process, as seen from here."""
    process: "subprocess.Popen[str]"

    @property
    def inside(self) -> tuple[str, ...]:
        """What a command begins with that runs there, in the folder where it was called."""
        users = () if os.geteuid() == 0 else ("--user", "--preserve-credentials")
        return ("nsenter", *users, *_OWN, "--target", str(self.first), "--wd=.")

    def run(self, *argv: object, env: dict[str, str] | None = None) -> None:
        """Run a command there to its end."""
        words = [str(word) for word in argv]
        subprocess.run([*self.inside, *words], env=env, check=True, stdout=subprocess.DEVNULL)

    def kill(self) -> None:
        """End it as a machine ends that loses power: all processes at once, mounts included."""
        self.process.kill()
        self.process.communicate()


@contextmanager
def running(name: str) -> Iterator[Host]:
    """Have one called `name`; skips the test where that cannot be."""
    users = [] if os.geteuid() == 0 else ["--map-root-user"]
    unshare = ["unshare", *users, *_OWN, "--fork", "--kill-child", "--mount-proc"]
    if (
        any(shutil.which(program) is None for program in _NEEDED)
        or subprocess.run([*unshare, "true"], check=False, capture_output=True).returncode
    ):
        pytest.skip("no right to have hosts of its own here")
    process = subprocess.Popen(
        [*unshare, "bash", "-c", _FIRST, "bash", name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        yield Host(name, child_of(process.pid), process)
    finally:
        process.kill()
        process.communicate()


def child_of(pid: int) -> int:
    """Return the one child of a process: of `nsenter` or `unshare`, the command they were given."""
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)
