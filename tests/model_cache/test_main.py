import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from model_cache.__main__ import main
from simulator import models
from tests.conftest import ROOT
from tests.model_cache.conftest import Hub, shelf_on


@pytest.fixture
def environ(volume: Path) -> dict[str, str]:
    return {"A1111_CACHE_VOLUME": str(volume), "A1111_CACHE_ALLOW_PRIVATE_HOSTS": "1"}


@pytest.fixture
def sha256(model_hub: Hub) -> str:
    return models.write_lora(model_hub.root / "m.safetensors", seed="m")


def test_a_model_is_fetched_listed_and_counted(
    model_hub: Hub,
    volume: Path,
    environ: dict[str, str],
    sha256: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ref = ["--kind", "lora", "--url", f"{model_hub.url}/m.safetensors", "--hash", sha256]

    assert main(["ensure", *ref], environ) == 0
    path = capsys.readouterr().out.strip()
    assert main(["list"], environ) == 0
    table = capsys.readouterr().out
    assert main(["list", "--json", "--kind", "vae"], environ) == 0
    nothing = json.loads(capsys.readouterr().out)
    assert main(["info", "--json"], environ) == 0
    info = json.loads(capsys.readouterr().out)

    assert path == str(volume / "models" / "loras" / "m.safetensors")
    assert table.splitlines() == [
        "KIND          NAME         MB  BASE          SHA-256",
        f"lora          m           0.0  sd1           {sha256[:10]}",
    ]
    assert nothing == []
    assert info == {"checkpoints_cached": 0, "loras_cached": 1, "total_cache_size_mb": 0.0}


def test_what_was_done_can_be_read_by_a_program(
    model_hub: Hub, environ: dict[str, str], sha256: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ref = ["--kind", "lora", "--name", "x", "--url", f"{model_hub.url}/m.safetensors"]

    assert main(["ensure", "--json", *ref], environ) == 0

    done = json.loads(capsys.readouterr().out)
    assert (done["name"], done["sha256"], done["cached"]) == ("x", sha256, False)


def test_the_numbers_read_well(environ: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"], environ) == 0

    assert capsys.readouterr().out.splitlines()[1] == "loras_cached           0"


def test_warnings_go_to_stderr(volume: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models.write_lora(volume / "models" / "loras" / "x.safetensors", seed="x")
    ref = ["--kind", "lora", "--name", "x", "--url", "https://h/x"]

    assert main(["ensure", "--volume", str(volume), *ref], {}) == 0

    assert "no record of where it came from" in capsys.readouterr().err


def test_verifying_tells_the_good_from_the_bad(
    model_hub: Hub,
    volume: Path,
    environ: dict[str, str],
    sha256: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = volume / "models" / "loras"
    shelf = shelf_on(volume)
    for name in ("good", "rotten"):
        shelf.ensure(name=name, url=f"{model_hub.url}/m.safetensors?{name}", hash=sha256)
    models.write_lora(folder / "by_hand.safetensors", seed="h")
    (folder / "half.safetensors").write_bytes(b"half")
    assert main(["verify", "--json"], environ) == 1
    states = {row["name"]: row["state"] for row in json.loads(capsys.readouterr().out)}

    assert states == {
        "good": "good",
        "rotten": "good",
        "by_hand": "sound header, never hashed",
        "half": "bad: The file of 'half' is not a whole safetensors file: it has 4 bytes.",
    }


def test_bytes_that_rotted_on_the_disk_are_found(
    model_hub: Hub, volume: Path, environ: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    models.write_lora(model_hub.root / "m.safetensors", seed="m")
    path = shelf_on(volume).ensure(url=f"{model_hub.url}/m.safetensors").model.path
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"?")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    assert main(["verify"], environ) == 1

    assert "m: bad: its SHA-256 is" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "environ", "status", "said"),
    [
        (["ensure", "--kind", "lora", "--name", "x"], {}, 1, "VOLUME_MISSING"),
        (["ensure", "--kind", "lora", "--name", "../x"], {}, 2, "Not a reference"),
        (["list"], {"A1111_CACHE_STALL_S": "soon"}, 78, "A1111_CACHE_STALL_S"),
    ],
)
def test_a_failure_has_its_status(
    tmp_path: Path,
    argv: list[str],
    environ: dict[str, str],
    status: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([*argv, "--volume", str(tmp_path / "none")], environ) == status

    assert said in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("command", [[], ["list"], ["info"], ["ensure"], ["verify"]])
def test_every_command_explains_itself(command: list[str]) -> None:
    argv = [sys.executable, "-m", "model_cache", *command, "--help"]

    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True)

    assert done.stdout.startswith("usage: python -m model_cache")
