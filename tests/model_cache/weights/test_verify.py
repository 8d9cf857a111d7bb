import hashlib
import threading
from pathlib import Path

import pytest

from model_cache.models import Progress
from model_cache.weights import verify
from schemas.errors import (
    JobCancelledError,
    ModelCorruptError,
    ModelIncompatibleError,
    ModelUnsafeError,
    VolumeMissingError,
)
from schemas.model_ref import HashForm, Kind
from simulator import models
from simulator.pickles import write_pickle
from tests.model_cache.conftest import safetensors


def test_a_digest_is_that_of_the_bytes(tmp_path: Path) -> None:
    content = hashlib.shake_256(b"x").digest(3_000_001)
    (tmp_path / "m").write_bytes(content)
    told: list[Progress] = []

    digest = verify.digest(tmp_path / "m", cancelled=threading.Event(), progress=told.append)

    assert digest == hashlib.sha256(content).hexdigest()
    assert told[-1] == Progress(3_000_001, 3_000_001)


def test_hashing_stops_when_the_job_is_cancelled(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(b"x")
    cancelled = threading.Event()
    cancelled.set()

    with pytest.raises(JobCancelledError):
        verify.digest(tmp_path / "m", cancelled=cancelled)


def test_hashing_a_file_that_is_gone_is_an_error_of_the_volume(tmp_path: Path) -> None:
    with pytest.raises(VolumeMissingError):
        verify.digest(tmp_path / "m", cancelled=threading.Event())


def test_a_model_of_another_kind_is_refused_with_its_own(tmp_path: Path) -> None:
    models.write_lora(tmp_path / "m", seed="m")

    with pytest.raises(ModelIncompatibleError, match="'detail' is a model of kind lora") as caught:
        verify.inspect(tmp_path / "m", Kind.CHECKPOINT, "detail")

    assert caught.value.details == {"found": "lora"}


def test_a_kind_that_nobody_knows_passes(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(safetensors({}))

    nature = verify.inspect(tmp_path / "m", Kind.HYPERNETWORK, "new")

    assert (nature.kind, nature.base) == (None, "unknown")


def test_both_digests_come_of_one_read(tmp_path: Path) -> None:
    sha256 = models.write_lora(tmp_path / "m", seed="m")

    digests = verify.digests(tmp_path / "m", autov3=True, cancelled=threading.Event())

    assert digests.sha256 == sha256
    assert len(digests.autov3) == 12
    assert digests.autov3 != sha256[:12]


SHA, AUTOV3 = "ab" * 32, "0123456789cd"


@pytest.mark.parametrize(
    ("expected", "form"),
    [
        pytest.param(SHA, HashForm.SHA256, id="SHA-256"),
        pytest.param(SHA[:10], HashForm.AUTOV2, id="AutoV2"),
        pytest.param(AUTOV3, HashForm.AUTOV3, id="AutoV3"),
        pytest.param(SHA[:12], HashForm.AUTOV3, id="what A1111 lists of a LoRA in a pickle"),
    ],
)
def test_a_hash_is_checked_in_its_form(expected: str, form: HashForm) -> None:
    assert verify.require_hash(expected, SHA, AUTOV3, "m") is form


@pytest.mark.parametrize("expected", ["cd" * 32, "cdcdcdcdcd", "cdcdcdcdcdcd", AUTOV3[:10]])
def test_another_hash_is_refused_with_both(expected: str) -> None:
    with pytest.raises(ModelCorruptError, match=f"not {expected}") as caught:
        verify.require_hash(expected, SHA, AUTOV3, "m")

    assert caught.value.details["expected"] == expected
    assert len(str(caught.value.details["actual"])) == len(expected)


def test_no_autov3_matches_only_the_start_of_the_sha256() -> None:
    assert not verify.matches(AUTOV3, SHA, "")
    assert verify.matches(SHA[:12], SHA, "")


@pytest.mark.parametrize("suffix", [".pth", ".part"])
def test_an_allowed_pickle_without_a_program_passes(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"m{suffix}"
    write_pickle(path, seed="m")

    nature = verify.inspect(path, Kind.UPSCALER, "m", allow_pickle=[Kind.UPSCALER])

    assert (nature.kind, nature.base, nature.pickle) == (None, "unknown", True)


def test_a_pickle_of_a_kind_that_is_not_allowed_is_refused(tmp_path: Path) -> None:
    write_pickle(tmp_path / "m.pt", seed="m")

    with pytest.raises(ModelUnsafeError, match="of kind lora only") as caught:
        verify.inspect(tmp_path / "m.pt", Kind.LORA, "m", allow_pickle=[Kind.UPSCALER])

    assert "A1111_CACHE_ALLOW_PICKLE" in caught.value.hint


def test_a_pickle_that_is_called_safetensors_is_refused_always(tmp_path: Path) -> None:
    write_pickle(tmp_path / "m.safetensors", seed="m")

    with pytest.raises(ModelUnsafeError, match=r"is called \.safetensors"):
        verify.inspect(tmp_path / "m.safetensors", Kind.LORA, "m", allow_pickle=list(Kind))


def test_a_safetensors_file_that_is_called_a_pickle_is_refused_with_its_right_name(
    tmp_path: Path,
) -> None:
    models.write_upscaler(tmp_path / "m.pth", seed="m")

    with pytest.raises(ModelCorruptError) as caught:
        verify.inspect(tmp_path / "m.pth", Kind.UPSCALER, "m", allow_pickle=[Kind.UPSCALER])

    assert caught.value.hint == "Rename it to m.safetensors."


def test_a_file_that_cannot_be_read_is_an_error_of_the_volume(tmp_path: Path) -> None:
    with pytest.raises(VolumeMissingError):
        verify.inspect(tmp_path / "m", Kind.LORA, "m")


def looked_at(content: bytes, kind: Kind, *allowed: Kind) -> list[int]:
    """Look at a file as it comes; return how many bytes were seen each time."""
    seen = [512]
    while more := verify.look(content[: seen[-1]], kind, "m", allow_pickle=allowed):
        seen.append(more)
    return seen


def test_a_header_is_judged_as_soon_as_it_is_there(tmp_path: Path) -> None:
    models.write_lora(tmp_path / "m", seed="m")
    content = (tmp_path / "m").read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")

    assert looked_at(content, Kind.LORA) == [512, end]
    with pytest.raises(ModelIncompatibleError, match="is a model of kind lora, not vae"):
        looked_at(content[:end], Kind.VAE)
    with pytest.raises(ModelCorruptError, match="not JSON"):
        looked_at(content[: end - 1] + b"?", Kind.LORA)


def test_a_header_that_cannot_be_is_refused_by_its_length() -> None:
    with pytest.raises(ModelCorruptError, match="longer than 100 MB"):
        looked_at(b"\xff" * 600, Kind.LORA)


def test_a_header_that_is_too_long_to_keep_in_memory_passes_for_now() -> None:
    length = (8 << 20) + 1

    assert looked_at(length.to_bytes(8, "little") + b"{" * 600, Kind.LORA) == [512]


def test_a_short_file_and_a_pickle_that_is_allowed_pass_for_now(tmp_path: Path) -> None:
    path = tmp_path / "m.pth"
    write_pickle(path, seed="m")

    assert looked_at(b"short", Kind.LORA) == [512]
    assert looked_at(path.read_bytes(), Kind.UPSCALER, Kind.UPSCALER) == [512]
    with pytest.raises(ModelUnsafeError):
        looked_at(path.read_bytes(), Kind.UPSCALER)
