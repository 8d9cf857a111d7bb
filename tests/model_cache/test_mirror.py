import threading

import pytest

from model_cache import mirror
from model_cache.engine.download import Allowance
from model_cache.mirror import Plan, Repository
from model_cache.turns import Errand
from schemas.errors import (
    InvalidInputError,
    JobCancelledError,
    ModelNotFoundError,
    SourceUnavailableError,
)
from schemas.model_ref import Kind
from tests.model_cache.conftest import Hub, settings_for, shelf_on


def put(hub: Hub, *paths: str) -> None:
    for path in paths:
        file = hub.root / "huggingface" / "org" / "repo" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")


def planned(
    hub: Hub,
    *,
    folder: str = "models",
    patterns: list[str] | None = None,
    cancelled: threading.Event | None = None,
    **settings: object,
) -> Plan:
    configured = settings_for(hub.root.parent / "volume", hf_endpoint=hub.url, **settings)
    errand = Errand(cancelled or threading.Event(), Allowance.of(configured))
    return mirror.plan(Repository("org/repo", "main", folder, patterns), configured, errand, {})


def test_folders_tell_the_kinds_and_what_is_no_model_is_left_out(model_hub: Hub) -> None:
    put(
        model_hub,
        "checkpoints/a.safetensors",
        "Lora/styles/b.safetensors",
        "docs/c.safetensors",
        "top.safetensors",
        "loras/old.pt",
        "loras/README.md",
        "loras/what?.safetensors",
    )
    plan = planned(model_hub)

    assert {path: (ref.kind, ref.url) for path, ref in plan.wanted.items()} == {
        "checkpoints/a.safetensors": (
            Kind.CHECKPOINT,
            "hf:org/repo/checkpoints/a.safetensors@main",
        ),
        "Lora/styles/b.safetensors": (Kind.LORA, "hf:org/repo/Lora/styles/b.safetensors@main"),
    }
    assert len(plan.commit) == 40
    said = {path: reason.split()[:4] for path, reason in plan.skipped.items()}
    assert said == {
        "docs/c.safetensors": ["`path`:", "'models/docs'", "is", "in"],
        "loras/old.pt": ["It", "is", "a", "pickle,"],
        "loras/what?.safetensors": ["'org/repo/loras/what'", "names", "no", "file"],
        "top.safetensors": ["It", "is", "in", "no"],
    }


def test_a_file_at_the_top_is_taken_where_a_pattern_asks_for_it(model_hub: Hub) -> None:
    put(model_hub, "top.safetensors", "other.safetensors", "deep/x.safetensors")

    plan = planned(model_hub, folder="loras", patterns=["top*", "deep/"])
    assert list(plan.wanted) == ["deep/x.safetensors", "top.safetensors"]
    assert planned(model_hub, folder="models", patterns=["top*"]).wanted == {}


def test_pickles_are_taken_of_the_kinds_that_are_allowed(model_hub: Hub) -> None:
    put(model_hub, "upscalers/4x.pth", "loras/x.pt")

    plan = planned(model_hub, allow_pickle=[Kind.UPSCALER])

    assert list(plan.wanted) == ["upscalers/4x.pth"]
    assert list(plan.skipped) == ["loras/x.pt"]


def test_a_plan_needs_a_folder_of_models_a_repository_and_a_job_that_lasts(model_hub: Hub) -> None:
    with pytest.raises(InvalidInputError, match="sync_path"):
        planned(model_hub, folder="/tmp")
    with pytest.raises(ModelNotFoundError, match="org/repo"):
        planned(model_hub)
    put(model_hub, "loras/x.safetensors")
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(JobCancelledError):
        planned(model_hub, cancelled=cancelled)


def test_patterns_that_fit_no_file_are_a_mistake_and_those_that_fit_no_model_are_not(
    model_hub: Hub,
) -> None:
    put(model_hub, "Lora/x.safetensors", "README.md")

    with pytest.raises(InvalidInputError, match="none of the 2 files") as refused:
        planned(model_hub, patterns=["lora/*"])
    assert refused.value.details["field"] == "allow_patterns"
    assert planned(model_hub, patterns=["*.md"]).wanted == {}


def test_an_answer_that_lists_no_files_is_no_empty_repository(model_hub: Hub) -> None:
    put(model_hub, "loras/x.safetensors")
    model_hub.spoil(json_error=True)

    with pytest.raises(SourceUnavailableError, match="which files there are"):
        planned(model_hub)


def test_people_see_which_alias_means_which_model(model_hub: Hub) -> None:
    volume = model_hub.root.parent / "volume"
    loras = volume / "models" / "loras"
    loras.mkdir(parents=True)
    (loras / "ink.safetensors").write_bytes(b"x")
    (volume / "models" / "aliases.json").write_text(
        '{"Ink": "ink", "there": {"kind": "vae", "url": "hf:org/x/y.safetensors"}, "none": "zzz",'
        ' "bad": 5}'
    )
    cache = shelf_on(volume).cache

    told = [(label, ref.kind, ref.label) for label, ref in cache.aliases()]
    assert told == [
        ("Ink", Kind.LORA, "ink"),
        ("none", Kind.CHECKPOINT, "zzz"),
        ("there", Kind.VAE, "hf:org/x/y.safetensors"),
    ]
    here = [cache.likely(ref) for _, ref in cache.aliases()]
    assert [model and model.name for model in here] == ["ink", None, None]
