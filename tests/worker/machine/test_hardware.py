import sys
from pathlib import Path

import pytest

from worker.machine import hardware
from worker.machine.hardware import Gpu, Torch

GB = 10**9


def program(file: Path, text: str) -> Path:
    file.write_text(f"#!{sys.executable}\n{text}")
    file.chmod(0o755)
    return file


@pytest.mark.parametrize(
    ("printed", "found"),
    [
        pytest.param(
            "NVIDIA A40, 46068, 535.1\nNVIDIA A40, 46068, 535.1\n",
            (Gpu("NVIDIA A40", 46068 * 2**20, "535.1"),) * 2,
            id="two",
        ),
        pytest.param("A, B, 24564, 550.1\n", (Gpu("A, B", 24564 * 2**20, "550.1"),), id="comma"),
        pytest.param("No devices were found\n", (), id="none"),
        pytest.param("Tegra, [N/A], 540.2\n", (), id="no memory of its own"),
    ],
)
def test_gpus_are_what_the_driver_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, printed: str, found: tuple[Gpu, ...]
) -> None:
    program(tmp_path / "nvidia-smi", f"print({printed!r}, end='')")
    monkeypatch.setenv("PATH", str(tmp_path))

    assert hardware.gpus() == found


def test_a_driver_that_fails_is_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "nvidia-smi", "print('NVIDIA A40, 46068, 535.1'); raise SystemExit(9)")
    monkeypatch.setenv("PATH", str(tmp_path))

    assert hardware.gpus() == ()


@pytest.mark.parametrize(
    ("archs", "capability", "runs"),
    [
        pytest.param(("sm_80", "sm_86"), (8, 6), True, id="made for it"),
        pytest.param(("sm_80", "sm_86", "sm_90"), (8, 9), True, id="an earlier of its generation"),
        pytest.param(("sm_86",), (8, 0), False, id="a later of its generation"),
        pytest.param(("sm_50", "sm_90"), (12, 0), False, id="RTX 5090 with CUDA 12.1"),
        pytest.param(("sm_90", "sm_120"), (12, 0), True, id="RTX 5090 with CUDA 12.8"),
        pytest.param(("compute_90",), (12, 0), True, id="PTX"),
        pytest.param((), (8, 6), False, id="built for none"),
        pytest.param(("sm_86",), None, False, id="no GPU"),
    ],
)
def test_kernels_run_where_cuda_says_they_do(
    archs: tuple[str, ...], capability: tuple[int, int] | None, *, runs: bool
) -> None:
    assert Torch("2.1.2", "12.1", archs, capability).has_kernels is runs


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("raise SystemExit(1)", id="fails"),
        pytest.param("print('Traceback')", id="no JSON"),
        pytest.param("print('[]')", id="not an object"),
        pytest.param("pass", id="says nothing"),
    ],
)
def test_a_torch_that_does_not_import_is_absent(tmp_path: Path, text: str) -> None:
    assert hardware.torch(program(tmp_path / "python", text)) is None
    assert not hardware.has_xformers(tmp_path / "python")
    assert not hardware.has_xformers(tmp_path / "nowhere")


def groups(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


MACHINE = {"proc/meminfo": "MemTotal:       65536000 kB\nMemFree: 1 kB\n"}


@pytest.mark.parametrize(
    ("files", "memory"),
    [
        pytest.param({}, 65_536_000 * 1024, id="no groups"),
        pytest.param(
            {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"},
            65_536_000 * 1024,
            id="v2 without a limit",
        ),
        pytest.param(
            {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": f"{31 * GB}\n"},
            31 * GB,
            id="v2",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "0::/pod/worker\n",
                "sys/fs/cgroup/pod/memory.max": f"{8 * GB}\n",
                "sys/fs/cgroup/pod/worker/memory.max": "max\n",
            },
            8 * GB,
            id="v2, of the group above",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "9:cpu,memory:/docker/1f\n0::/x\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{16 * GB}\n",
            },
            16 * GB,
            id="v1, mounted at the top",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "9:memory:/\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            },
            65_536_000 * 1024,
            id="v1 without a limit",
        ),
        pytest.param({"proc/self/cgroup": "\nnonsense\n"}, 65_536_000 * 1024, id="nonsense"),
    ],
)
def test_the_memory_is_the_containers_and_not_the_machines(
    tmp_path: Path, files: dict[str, str], memory: int
) -> None:
    assert hardware.memory_bytes(groups(tmp_path, MACHINE | files)) == memory


def test_memory_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    assert hardware.memory_bytes(tmp_path) == 0


def test_this_machine_has_memory() -> None:
    assert hardware.memory_bytes() > GB // 10
