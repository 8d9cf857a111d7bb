import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.worker.stores import KEY, SECRET, proxied, refusing
from worker.__main__ import main

# A1111's interpreter: the real one, with the packages that a test gave it.
PYTHON = f"""#!{sys.executable}
import os, sys
os.environ["PYTHONPATH"] = {{packages!r}}
os.execv({sys.executable!r}, [{sys.executable!r}, *sys.argv[1:]])
"""


class Machine:
    """A container's folders below `root`, without a GPU and without torch at first."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        for folder in ("webui", "volume", "bin", "packages"):
            (root / folder).mkdir()
        (root / "webui" / "launch.py").touch()
        self.program("python", PYTHON.format(packages=str(root / "packages")))
        monkeypatch.setenv("PATH", str(root / "bin"))
        monkeypatch.setenv("A1111_CACHE_VOLUME", str(root / "volume"))
        monkeypatch.setenv("A1111_CACHE_LOCAL_ROOT", str(root / "local"))
        monkeypatch.setenv("A1111_CACHE_BAKED", str(root / "baked"))
        monkeypatch.setenv("A1111_WEBUI_LINKS", str(root / "links"))

    def program(self, name: str, text: str) -> None:
        file = self.root / "bin" / name
        file.write_text(text)
        file.chmod(0o755)

    def gpu(self, line: str = "NVIDIA GeForce RTX 4090, 24564, 550.54.15") -> None:
        self.program("nvidia-smi", f"#!{sys.executable}\nprint({line!r})\n")

    def torch(self, capability: tuple[int, int] | None, archs: list[str], cuda: str | None) -> None:
        text = "from types import SimpleNamespace as N\n__version__ = '2.1.2'\n"
        text += (
            f"version = N(cuda={cuda!r})\ncuda = N(is_available=lambda: {capability is not None},"
        )
        text += f" get_arch_list=lambda: {archs}, get_device_capability=lambda: {capability})\n"
        (self.root / "packages" / "torch.py").write_text(text)

    def check(self, *more: str, data_dir: str = "data") -> int:
        there = {"webui-dir": "webui", "data-dir": data_dir, "cache-dir": "cache"}
        there |= {"helpers-dir": "helpers", "hf-home": "huggingface"}
        places = [f"--{flag}={self.root / place}" for flag, place in there.items()]
        return main(["check", *places, "--webui-python=python", *more])


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[[str], list[str]]:
    """Return what was printed of a subject, a text for each line."""

    def lines(subject: str) -> list[str]:
        printed = capsys.readouterr().out.splitlines()
        return [line[9:] for line in printed if line.split()[0] == subject]

    return lines


def test_a_sound_machine_is_fine(machine: Machine) -> None:
    machine.gpu()
    machine.torch((8, 9), ["sm_86"], "12.1")

    assert machine.check() == 0


def test_a_machine_without_a_gpu_says_so(
    machine: Machine, said: Callable[[str], list[str]]
) -> None:
    assert machine.check() == 1

    assert said("gpu") == ["PROBLEM: none: nvidia-smi is not here, or lists none"]


def test_a_machine_that_is_to_use_its_cpu_needs_no_gpu(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.torch(None, [], None)
    monkeypatch.setenv("A1111_WEBUI_FLAGS", "--use-cpu all --no-half")

    assert machine.check() == 0


def test_a_torch_that_does_not_import_is_a_problem(
    machine: Machine, said: Callable[[str], list[str]]
) -> None:
    machine.gpu()
    (machine.root / "packages" / "torch.py").write_text("raise ImportError")

    assert machine.check() == 1

    assert said("torch") == ["PROBLEM: does not import in A1111's interpreter"]


def test_a_gpu_that_torch_has_no_kernels_for_is_a_problem(
    machine: Machine, said: Callable[[str], list[str]]
) -> None:
    machine.gpu("NVIDIA GeForce RTX 5090, 32607, 570.86.10")
    machine.torch((12, 0), ["sm_80", "sm_86", "sm_90"], "12.1")

    assert machine.check() == 1

    torch = said("torch")
    assert torch[0] == "2.1.2, built for CUDA 12.1, kernels for sm_80 sm_86 sm_90"
    assert torch[1].startswith("PROBLEM: no kernel image for this GPU (sm_120)")
    assert "CUDA 12.8" in torch[1]


@pytest.mark.parametrize(
    ("cuda", "why"),
    [
        pytest.param("12.8", "is the driver older than its CUDA?", id="old driver"),
        pytest.param(None, "it was built without CUDA", id="for CPUs"),
    ],
)
def test_a_torch_that_cannot_use_the_gpu_is_a_problem(
    machine: Machine, said: Callable[[str], list[str]], cuda: str | None, why: str
) -> None:
    machine.gpu()
    machine.torch(None, [], cuda)

    assert machine.check() == 1

    assert said("torch")[-1] == f"PROBLEM: it cannot use the GPU: {why}"


def test_a_place_that_cannot_be_written_is_a_problem(
    machine: Machine, said: Callable[[str], list[str]]
) -> None:
    machine.gpu()
    machine.torch((8, 9), ["sm_86"], "12.1")

    assert machine.check(data_dir="webui/launch.py/data") == 1

    assert said("disk")[0].startswith("PROBLEM: ")


def test_without_a_volume_it_works_with_less(
    machine: Machine, said: Callable[[str], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.gpu()
    machine.torch((8, 9), ["sm_86"], "12.1")
    monkeypatch.setenv("A1111_CACHE_VOLUME", str(machine.root / "absent"))

    assert machine.check() == 0

    assert said("volume")[0].startswith("WARNING: none at")


def test_models_and_helpers_that_are_there_are_named(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    models = machine.root / "volume" / "models"
    (models / "torch_deepdanbooru").mkdir(parents=True)
    (models / "torch_deepdanbooru" / "model-resnet_custom_v3.pt").touch()
    (models / "checkpoints").mkdir()

    machine.check()

    printed = capsys.readouterr().out.splitlines()
    assert f"models   {models / 'checkpoints'}" in printed
    assert "helpers  deepdanbooru" in printed
    refused = [line for line in printed if "a request that needs one of these is refused" in line]
    assert "CodeFormer" in refused[0]
    assert "deepdanbooru" not in refused[0]


def test_an_a1111_that_is_not_there_is_a_problem(
    machine: Machine, said: Callable[[str], list[str]]
) -> None:
    (machine.root / "webui" / "launch.py").unlink()

    assert machine.check() == 1

    assert said("webui")[0].startswith("PROBLEM: WEBUI_DIR: there is no A1111")


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (refusing("NoSuchBucket", 404), "WARNING: pictures cannot be uploaded: "),
        ((200, b""), "pictures can be uploaded"),
    ],
)
def test_storage_is_tried_if_there_is_one(
    machine: Machine,
    said: Callable[[str], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    fault: tuple[int, bytes],
    told: str,
) -> None:
    machine.check()
    assert said("storage") == []
    with proxied("http://127.0.0.1:1") as store:
        store.faults += [fault]
        monkeypatch.setenv("BUCKET_ENDPOINT_URL", store.url)
        monkeypatch.setenv("BUCKET_NAME", "pictures")
        monkeypatch.setenv("BUCKET_ACCESS_KEY_ID", KEY)
        monkeypatch.setenv("BUCKET_SECRET_ACCESS_KEY", SECRET)

        machine.check()

    assert said("storage")[0].startswith(told)


def test_it_is_one_json_object_on_request(
    machine: Machine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert machine.check("--json") == 1
    found = json.loads(capsys.readouterr().out)
    monkeypatch.setenv("A1111_WEBUI_POTR", "1")
    assert machine.check("--json") == 78
    wrong = json.loads(capsys.readouterr().out)

    assert found["ok"] is False
    assert [f["level"] for f in found["findings"] if f["subject"] == "gpu"] == ["problem"]
    assert [finding["subject"] for finding in wrong["findings"]] == ["settings"]


def test_wrong_settings_are_named(
    machine: Machine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A1111_WEBUI_VRAM", "plenty")

    assert machine.check() == 78

    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("check: A1111_WEBUI_VRAM: ")
