"""What this machine has: GPUs, memory, and what A1111's interpreter says of its packages.

Whatever cannot be found out is absent from the answer; nothing here fails, and nothing waits for
longer than a bound. Knows nothing of what A1111 is told because of it.
"""

import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ASK_S = 10.0
"""Longest that a short question may take; `nvidia-smi` takes seconds where the driver sleeps."""
IMPORT_S = 120.0
"""Longest that importing torch may take: tens of seconds, when it lies on the network volume."""
MIB = 1024 * 1024

# No `-c` text may name what it does not need: `import torch` costs seconds.
_HAS_XFORMERS = "import importlib.util; print(importlib.util.find_spec('xformers') is not None)"
_TORCH = """
import json, torch
there = torch.cuda.is_available()
print(json.dumps({
    "version": torch.__version__,
    "cuda": torch.version.cuda,
    "archs": torch.cuda.get_arch_list(),
    "capability": torch.cuda.get_device_capability() if there else None,
}))
"""


@dataclass(frozen=True)
class Gpu:
    """One GPU, as the driver sees it."""

    name: str
    memory_bytes: int
    driver: str


@dataclass(frozen=True)
class Torch:
    """The torch that A1111 imports."""

    version: str
    cuda: str | None
    """CUDA that it was built for; None for a build without."""
    archs: tuple[str, ...]
    """What its kernels were compiled for, as in `sm_86` and `compute_90`; empty without a GPU."""
    capability: tuple[int, int] | None
    """Compute capability of the GPU that it would use; None if it sees none."""

    @property
    def has_kernels(self) -> bool:
        """Whether its kernels run on its GPU, and not "no kernel image is available".

        Code for one capability runs on later ones of the same generation; PTX on all later ones.
        Source: CUDA C++ Programming Guide, 3.1.2 Binary Compatibility, 3.1.3 PTX Compatibility.
        """
        if self.capability is None:
            return False
        device = self.capability[0] * 10 + self.capability[1]
        for arch in self.archs:
            if found := re.match(r"(sm|compute)_(\d+)", arch):
                built = int(found[2])
                same = found[1] == "compute" or built // 10 == device // 10
                if built <= device and same:
                    return True
        return False


def gpus() -> tuple[Gpu, ...]:
    """Return the GPUs that the driver lends to this container, the first being A1111's."""
    asked = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version"]
    lines = _answer([*asked, "--format=csv,noheader,nounits"], ASK_S).splitlines()
    found = []
    for line in lines:
        name, memory, driver = [*line.rsplit(", ", 2), "", ""][:3]
        if memory.strip().isdecimal():
            found.append(Gpu(name.strip(), int(memory) * MIB, driver.strip()))
    return tuple(found)


def has_xformers(python: Path) -> bool:
    """Return whether the interpreter `python` finds xformers; it is not imported."""
    return _answer([str(python), "-c", _HAS_XFORMERS], ASK_S).strip() == "True"


def torch(python: Path) -> Torch | None:
    """Return the torch of the interpreter `python`, None if it does not import in time."""
    try:
        said = json.loads(_answer([str(python), "-c", _TORCH], IMPORT_S).splitlines()[-1])
        capability = said["capability"]
        return Torch(
            version=str(said["version"]),
            cuda=said["cuda"],
            archs=tuple(map(str, said["archs"])),
            capability=None if capability is None else (int(capability[0]), int(capability[1])),
        )
    except (IndexError, KeyError, TypeError, ValueError):
        return None


def memory_bytes(root: Path = Path("/")) -> int:
    """Return the memory that this container may use: the machine's, or its control group's limit.

    `root` is where `proc` and `sys` are mounted. 0 if not even the machine's can be read.

    Source: Linux, Documentation/admin-guide/cgroup-v1/memory.rst and cgroup-v2.rst.
    """
    meminfo = _text(root / "proc/meminfo")
    total = re.search(r"^MemTotal:\s+(\d+) kB", meminfo, re.MULTILINE)
    machine = int(total[1]) * 1024 if total else 0
    # A v1 group without a limit has one larger than any machine; a v2 group says `max`.
    limits = [int(text) for text in _limits(root) if text.isdecimal()]
    return min([machine, *limits]) if machine else min(limits, default=0)


def _limits(root: Path) -> Iterator[str]:
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, controllers, group = [*line.split(":", 2), "", ""][:3]
        groups = root / "sys/fs/cgroup"
        if number == "0":
            file, tops = "memory.max", [groups, groups / "unified"]
        elif "memory" in controllers.split(","):
            file, tops = "memory.limit_in_bytes", [groups / "memory"]
        else:
            continue
        # The path is the host's; what a container has mounted may be its own group at the top.
        below = Path(group.strip("/"))
        for top in tops:
            for folder in (below, *below.parents):
                yield _text(top / folder / file).strip()


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""


def _answer(argv: list[str], timeout_s: float) -> str:
    """Return what a program prints, or nothing if it is not there, fails or takes too long."""
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace") if done.returncode == 0 else ""
