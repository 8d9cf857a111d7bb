"""Files of strangers on the volume, and what a stranger's words become in the log."""

import io
import json
import logging
import pickle
import struct
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.security.conftest import SMALL, Worker
from worker.log import logs

pytestmark = pytest.mark.slow


class Program:
    """What runs when a pickle of it is loaded."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., object], tuple[Path]]:
        return Path.touch, (self.canary,)


def as_torch(program: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/version", "3\n")
    return file.getvalue()


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors", ".pt", ".bin"])
@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "bare"])
def test_no_program_in_a_file_of_the_volume_runs_or_is_shown_to_a1111(
    worker: Worker, tmp_path: Path, suffix: str, *, is_zip: bool
) -> None:
    canary = tmp_path / "ran"
    program = pickle.dumps(Program(canary))
    name = f"evil_{suffix[1:]}_{is_zip}"
    for folder, field in (("checkpoints", "checkpoint"), ("loras", "loras"), ("vae", "vae")):
        path = worker.volume / "models" / folder / f"{name}{suffix}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(as_torch(program) if is_zip else program)
        value = [name] if field == "loras" else name
        worker.look_again()

        answer = worker.ask({**SMALL, field: value})

        # Pickles are looked at where their kind is allowed, as here VAEs are, and else not there.
        is_read = suffix == ".safetensors" or field == "vae"
        assert answer["code"] == ("MODEL_UNSAFE" if is_read else "MODEL_NOT_FOUND"), answer
        path.unlink()
    shown = [link.name for link in worker.links.rglob(f"{name}*") if link.suffix != ".safetensors"]
    assert not canary.exists()
    assert not shown
    # The proof that it would have run.
    pickle.loads(program)  # noqa: S301 - our own program
    assert canary.exists()


@pytest.mark.usefixtures("memory")
@pytest.mark.parametrize(
    "content",
    [
        pytest.param(struct.pack("<Q", 2**63) + b"{}", id="longer than any disk"),
        pytest.param(struct.pack("<Q", 99_999_999) + b"{", id="longer than the file"),
        pytest.param(struct.pack("<Q", 400_000) + b'{"a":' + b"[" * 399_995, id="nested"),
        pytest.param(
            struct.pack("<Q", 2000) + b'{"a":{"dtype":"F32","shape":['.ljust(2000, b"9"), id="huge"
        ),
    ],
)
def test_no_header_of_a_file_costs_more_than_the_file(worker: Worker, content: bytes) -> None:
    path = worker.volume / "models" / "checkpoints" / "bomb.safetensors"
    path.write_bytes(content)
    worker.look_again()
    start = time.process_time()

    answer = worker.ask({**SMALL, "checkpoint": "bomb"})

    path.unlink()
    assert answer["code"] == "MODEL_CORRUPT", answer
    assert time.process_time() - start < 2
    worker.require_well()


def test_what_others_wrote_on_the_volume_is_no_truth(worker: Worker) -> None:
    """Registry, aliases and manifests can be written by whoever mounts the volume."""
    models = worker.volume / "models"
    (models / "cache_registry.json").write_text('{"models": [{"path": "/etc/passwd"}]}')
    (models / "aliases.json").write_text('{"checkpoint": {"nice": "../../etc/passwd", "x": {}}}')
    manifests = models / ".worker" / "manifests" / "checkpoint"
    manifests.mkdir(parents=True, exist_ok=True)
    for name in ("a.json", "../../x.json", "c.json"):
        (manifests / name).write_text('{"path": "/etc/passwd", "sha256": "0", "size_bytes": -1}')
    try:
        worker.require_well()
        told = worker.ask({**SMALL, "checkpoint": "nice"})
        assert told["code"] in {"INVALID_INPUT", "MODEL_NOT_FOUND"}
        assert "root:" not in json.dumps(told)
    finally:
        (models / "aliases.json").unlink()


def test_a_file_of_the_volume_that_leads_elsewhere_is_read_as_a_model_or_not_at_all(
    worker: Worker, tmp_path: Path
) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("the operator's own words")
    link = worker.volume / "models" / "checkpoints" / "link.safetensors"
    link.symlink_to(secret)
    worker.look_again()

    answer = worker.ask({**SMALL, "checkpoint": "link"})

    link.unlink()
    assert answer["code"] == "MODEL_CORRUPT", answer
    assert "own words" not in json.dumps(answer)


@pytest.fixture
def _plain_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level


@pytest.mark.usefixtures("_plain_logging")
def test_the_words_of_a_caller_make_no_line_of_the_log(
    worker: Worker, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure("INFO", as_json=True)
    forged = 'x"}\n{"requestId": "other", "level": "INFO", "message": "all is well"}\r\n\x1b[2J'
    for fields in (
        {"sampler_name": forged},
        {"checkpoint": forged},
        {"prompt": f"<lora:{forged}:1>"},
        {"script_name": forged},
        {forged: 1},
        {"loras": [f"https://127.0.0.1/{forged}"]},
    ):
        worker.ask({**SMALL, **fields})

    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 5
    for line in lines:
        assert json.loads(line)["requestId"] != "other"
        assert "\x1b" not in line
