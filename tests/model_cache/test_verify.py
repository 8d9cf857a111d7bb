import hashlib
import threading
from pathlib import Path

import pytest

from model_cache import verify
from model_cache.models import Progress
from schemas.errors import JobCancelledError, ModelIncompatibleError, VolumeMissingError
from schemas.model_ref import Kind
from simulator import models
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
