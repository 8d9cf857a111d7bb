import threading
from pathlib import Path

import pytest

from model_cache import checking
from model_cache.checking import State
from model_cache.models import CachedModel, Origin, Progress
from schemas.errors import JobCancelledError
from schemas.model_ref import Kind
from simulator import models
from tests.model_cache.conftest import settings_for, shelf_on


def published(volume: Path) -> CachedModel:
    """Return a model whose hash was taken."""
    path = volume / "models" / "loras" / "ink.safetensors"
    models.write_lora(path, seed="ink")
    cache = shelf_on(volume).cache
    (model,) = cache.models(Kind.LORA)
    return cache.adopt(model, cancelled=threading.Event())


def test_a_file_is_read_whole_and_its_progress_told(volume: Path) -> None:
    model, told = published(volume), list[Progress]()

    result = checking.hash_again(
        settings_for(volume), model, cancelled=threading.Event(), progress=told.append
    )

    assert result.state is State.GOOD
    assert told[-1].done_bytes == model.size_bytes
    assert checking.bytes_to_hash(settings_for(volume), [model]) == model.size_bytes
    assert result.as_json()["state"] == "good"


def test_a_file_that_is_cut_off_or_gone_is_bad_by_both_checks(volume: Path) -> None:
    model, settings = published(volume), settings_for(volume)
    model.path.write_bytes(model.path.read_bytes()[:-1])
    cut = checking.look(settings, model)
    model.path.unlink()
    gone = checking.hash_again(settings, model, cancelled=threading.Event())

    assert (cut.state, gone.state) == (State.BAD, State.BAD)
    assert cut.said
    assert gone.said


def test_a_check_that_is_cancelled_calls_no_file_bad(volume: Path) -> None:
    cancelled = threading.Event()
    cancelled.set()

    with pytest.raises(JobCancelledError):
        checking.hash_again(settings_for(volume), published(volume), cancelled=cancelled)


def test_a_file_that_nobody_hashed_is_not_read(volume: Path) -> None:
    models.write_lora(volume / "models" / "loras" / "ink.safetensors", seed="ink")
    (model,) = shelf_on(volume).cache.models(Kind.LORA)

    result = checking.hash_again(settings_for(volume), model, cancelled=threading.Event())

    assert result.state is State.UNHASHED
    assert checking.bytes_to_hash(settings_for(volume), [model]) == 0


def test_a_file_of_the_image_is_compared_with_the_manifest_that_came_with_it(
    volume: Path, tmp_path: Path
) -> None:
    published(volume)
    empty = tmp_path / "empty"
    empty.mkdir()
    settings = settings_for(empty, baked=volume / "models")
    (model,) = shelf_on(empty, baked=volume / "models").cache.models(Kind.LORA)

    assert (model.origin, model.sha256 is None) == (Origin.BAKED, False)
    result = checking.hash_again(settings, model, cancelled=threading.Event())
    assert result.state is State.GOOD
