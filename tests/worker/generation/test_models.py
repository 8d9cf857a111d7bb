from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Timer

import pytest

from model_cache.cache import ModelCache
from model_cache.models import CachedModel
from schemas.errors import (
    InvalidInputError,
    JobCancelledError,
    ModelNotFoundError,
)
from schemas.job import Txt2Img
from schemas.model_ref import Kind, ModelRef
from schemas.settings import CacheSettings, JobSettings
from simulator import models as files
from tests.conftest import Simulator, running
from tests.parsing import parse
from worker.generation import models


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    folder = tmp_path / "volume" / "models"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture(scope="module")
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def cache(volume: Path) -> ModelCache:
    return ModelCache(CacheSettings(volume=volume.parent, allow_private_hosts=True))


def generation(value: dict[str, object]) -> Txt2Img:
    job = parse(value, JobSettings()).job
    assert isinstance(job, Txt2Img)
    return job


def fields_of(value: dict[str, object], default: ModelRef | None = None) -> dict[str, str | None]:
    job = generation(value)
    return {role.field: role.ref.name for role in models.roles(job, default)}


def test_every_model_of_a_job_has_its_field() -> None:
    assert fields_of(
        {
            "checkpoint": "c",
            "vae": "v.safetensors",
            "loras": ["a", "b"],
            "embeddings": ["e"],
            "refiner_checkpoint": "r",
            "hr_checkpoint_name": "h",
        }
    ) == {
        "checkpoint": "c",
        "vae": "v",
        "refiner_checkpoint": "r",
        "hr_checkpoint_name": "h",
        "loras[0]": "a",
        "loras[1]": "b",
        "embeddings[0]": "e",
    }


def test_overrides_of_checkpoint_and_vae_are_models_of_the_job() -> None:
    overrides = {"sd_model_checkpoint": "c.safetensors", "sd_vae": "Automatic"}

    assert fields_of({"override_settings": overrides}) == {
        "override_settings.sd_model_checkpoint": "c"
    }


def test_the_default_is_used_only_when_no_checkpoint_is_named() -> None:
    default = ModelRef(kind=Kind.CHECKPOINT, name="d")

    assert fields_of({}, default) == {"checkpoint": "d"}
    assert fields_of({"checkpoint": "c"}, default) == {"checkpoint": "c"}


def test_no_checkpoint_named_means_the_only_one(volume: Path) -> None:
    files.write_checkpoint(volume / "checkpoints" / "only.safetensors", seed="1")

    assert models.default_checkpoint(cache(volume), "").name == "only"


def test_the_only_one_may_have_the_suffix_in_its_name(
    volume: Path, threads: ThreadPoolExecutor
) -> None:
    files.write_checkpoint(volume / "checkpoints" / "x.safetensors.safetensors", seed="1")
    store = cache(volume)
    role = models.Role("checkpoint", models.default_checkpoint(store, ""))

    found = models.ensure_all(store.ensure, [role], threads, cancelled=Event(), report=print)

    assert found["checkpoint"].model.name == "x.safetensors"


def test_several_checkpoints_and_none_named_is_refused_with_their_names(volume: Path) -> None:
    for name in ("one", "two"):
        files.write_checkpoint(volume / "checkpoints" / f"{name}.safetensors", seed=name)

    with pytest.raises(InvalidInputError) as caught:
        models.default_checkpoint(cache(volume), "")
    assert "one, two" in caught.value.hint
    assert models.default_checkpoint(cache(volume), "two").name == "two"


def test_no_checkpoint_at_all_says_how_to_name_one(volume: Path) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        models.default_checkpoint(cache(volume), "")
    assert '"url"' in caught.value.hint


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Simulator]:
    for name in ("a", "b"):
        files.write_lora(tmp_path / "hub" / f"{name}.safetensors", seed=name, size_bytes=300_000)
    with running("hub", "--root", tmp_path / "hub") as simulator:
        yield simulator


def lora(field: str, url: str) -> models.Role:
    return models.Role(field, ModelRef(kind=Kind.LORA, name=field, url=url))


@pytest.mark.slow
def test_models_come_together_and_progress_is_told(
    volume: Path, hub: Simulator, threads: ThreadPoolExecutor
) -> None:
    told: list[dict[str, object]] = []
    wanted = [lora(name, f"{hub.url}/{name}.safetensors?fault-rate=150000") for name in "ab"]

    found = models.ensure_all(
        cache(volume).ensure, wanted, threads, cancelled=Event(), report=told.append
    )

    assert {field: ensured.cached for field, ensured in found.items()} == {"a": False, "b": False}
    assert told
    assert told[0]["stage"] == "fetching"
    assert told[-1]["total_bytes"] == 600_000


@pytest.mark.slow
def test_the_first_failure_stops_the_other_downloads(
    volume: Path, hub: Simulator, threads: ThreadPoolExecutor
) -> None:
    wanted = [
        lora("a", f"{hub.url}/a.safetensors?fault-rate=1000"),  # would take five minutes
        lora("b", f"{hub.url}/nope.safetensors"),
    ]

    with pytest.raises(ModelNotFoundError):
        models.ensure_all(cache(volume).ensure, wanted, threads, cancelled=Event(), report=print)

    assert list(volume.rglob("*.part")) == []


@pytest.mark.slow
def test_a_cancel_stops_a_download(
    volume: Path, hub: Simulator, threads: ThreadPoolExecutor
) -> None:
    cancelled = Event()
    timer = Timer(0.3, cancelled.set)
    timer.start()

    with pytest.raises(JobCancelledError):
        models.ensure_all(
            cache(volume).ensure,
            [lora("a", f"{hub.url}/a.safetensors?fault-rate=1000")],
            threads,
            cancelled=cancelled,
            report=print,
        )
    timer.join()

    assert list(volume.rglob("*.part")) == []


@pytest.mark.parametrize(
    ("vae", "override", "agree"),
    [
        ("None", "None", True),
        ("None", None, True),
        ("None", "v.safetensors", False),
        ("v", "None", False),
        ("v", "Automatic", False),
    ],
)
def test_a_vae_and_none_contradict_each_other(
    vae: str, override: str | None, *, agree: bool
) -> None:
    job = generation({"vae": vae, "override_settings": {"sd_vae": override}})

    if agree:
        models.require_agreement(job, {})
    else:
        with pytest.raises(InvalidInputError, match="contradict"):
            models.require_agreement(job, {})


@pytest.mark.parametrize("value", [{"a": 1}, [], 5])
def test_a_vae_that_is_no_name_is_refused(value: object) -> None:
    job = generation({"override_settings": {"sd_vae": value}})

    with pytest.raises(InvalidInputError):
        models.roles(job, None)


def test_the_automatic_vae_is_the_one_called_as_the_checkpoint(volume: Path) -> None:
    for name in ("a", "a_better_vae", "b.vae"):
        files.write_vae(volume / "vae" / f"{name}.safetensors", seed=name)
    store = cache(volume)

    def vae_for(name: str) -> str | None:
        checkpoint = CachedModel(Kind.CHECKPOINT, name, Path(name), None, 1, 1)
        ref = models.automatic_vae(store, checkpoint)
        return ref.name if ref else None

    assert [vae_for(name) for name in ("a", "b", "a_bet", "c")] == ["a", "b.vae", None, None]


def test_a_model_named_twice_must_be_one_file(volume: Path, threads: ThreadPoolExecutor) -> None:
    for name in ("one", "two"):
        files.write_checkpoint(volume / "checkpoints" / f"{name}.safetensors", seed=name)
    store = cache(volume)

    def agree(override: str) -> None:
        job = generation(
            {"checkpoint": "one", "override_settings": {"sd_model_checkpoint": override}}
        )
        found = models.ensure_all(
            store.ensure, models.roles(job, None), threads, cancelled=Event(), report=print
        )
        models.require_agreement(job, found)

    agree("one.safetensors")
    with pytest.raises(InvalidInputError, match="`two`"):
        agree("two")
