"""A real MooseFS with two mounts, which see each other's files as two hosts do.

The programs are those that `make moosefs` unpacked, or those on the PATH.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.chaos.hosts import Host
from tests.conftest import ROOT

UNPACKED = ROOT / ".moosefs" / "root"
_PROGRAMS = ("mfsmaster", "mfschunkserver", "mfsmount", "mfssetquota")
_NEEDED = ("unshare", "nsenter", "ip", "bash", "umount")
_UP_WITHIN_S = 60.0
SERVER = "10.9.9.1"  # As in moosefs.sh.


@dataclass(frozen=True)
class MooseFS:
    """One file system at two places."""

    one: Path
    other: Path
    pid: int
    environment: dict[str, str]

    def limit(self, folder: Path, size: int) -> None:
        """Let the files below `folder` take so many bytes, as the quota of a volume does."""
        subprocess.run(
            ["nsenter", f"--net=/proc/{self.pid}/ns/net", "mfssetquota", "-S", str(size), folder],
            env=self.environment,
            check=True,
            stdout=subprocess.DEVNULL,
        )

    def join(self, host: Host, number: int) -> None:
        """Let a host have its own mount at `one`, and see no other; `number` is its own, from 1."""
        net = f"10.9.{100 + number}"
        inside = f"--net=/proc/{self.pid}/ns/net"
        ends = f"host{number} type veth peer name eth0 netns {host.first}"
        for here in (
            f"link add {ends}",
            f"address add {net}.1/24 dev host{number}",
            f"link set host{number} up",
        ):
            subprocess.run(["nsenter", inside, "ip", *here.split()], check=True)
        for there in (
            f"address add {net}.2/24 dev eth0",
            "link set eth0 up",
            f"route add {SERVER} via {net}.1",
        ):
            host.run("ip", *there.split())
        host.run("umount", self.one, self.other)
        host.run("mfsmount", self.one, "-H", SERVER, env=self.environment)


@contextmanager
def running(folder: Path) -> Iterator[MooseFS]:
    """Have one below the empty `folder`; skips the test where that cannot be."""
    environment = _environment()
    path = environment["PATH"]
    if missing := [name for name in _PROGRAMS if shutil.which(name, path=path) is None]:
        pytest.skip(f"no MooseFS here: {missing[0]} was not found (make moosefs)")
    in_namespaces = ["unshare", "--net", "--pid", "--fork", "--kill-child"]
    if (
        not os.access("/dev/fuse", os.R_OK | os.W_OK)
        or any(shutil.which(name, path=path) is None for name in _NEEDED)
        or subprocess.run([*in_namespaces, "true"], check=False, capture_output=True).returncode
    ):
        pytest.skip("no right to mount a network file system here")
    script = Path(__file__).with_name("moosefs.sh")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*in_namespaces, "bash", script, folder], env=environment, stdout=log, stderr=log
        )
    try:
        _wait_for(process, folder)
        yield MooseFS(folder / "A", folder / "B", process.pid, environment)
    finally:
        for name in "AB":
            subprocess.run(["umount", "--lazy", folder / name], check=False, capture_output=True)
        process.kill()
        process.wait()


def _environment() -> dict[str, str]:
    """Return the environment of the programs; no other process gets their libraries."""
    libraries = [str(UNPACKED / place / "x86_64-linux-gnu") for place in ("lib", "usr/lib")]
    places = [str(UNPACKED / place) for place in ("usr/sbin", "usr/bin")]
    path = os.environ.get("PATH", os.defpath)  # noqa: TID251 - to start programs as we were
    own = {"PATH": os.pathsep.join([*places, path, "/usr/sbin", "/sbin"])}
    return own | {"LD_LIBRARY_PATH": os.pathsep.join(libraries)}


def _wait_for(process: "subprocess.Popen[bytes]", folder: Path) -> None:
    """Wait until both mounts are there, and take bytes."""
    deadline = time.monotonic() + _UP_WITHIN_S
    while not all((folder / name).is_mount() for name in "AB"):
        assert process.poll() is None, (folder / "log").read_text()
        assert time.monotonic() < deadline, (folder / "log").read_text()
        time.sleep(0.05)
    while True:
        try:
            (folder / "A" / "probe").write_bytes(b"x")
        except OSError:  # No chunkserver has registered yet.
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.05)
        else:
            return
