from typing import Any

import pytest

from schemas.commands import COMMANDS, Command
from schemas.errors import InvalidInputError
from schemas.inputs import schemas
from schemas.model_ref import Kind
from schemas.request import parse
from schemas.routes import ROUTES
from schemas.settings import JobSettings

URL = "https://example.org/x.safetensors"


def command(name: str, payload: Any = None) -> Any:
    """Return the payload of a command, as it is parsed out of the envelope."""
    value = {"api": {"method": "POST", "endpoint": f"/v1/{name}"}, "payload": payload}
    job = parse(value, JobSettings()).job
    assert isinstance(job, Command)
    assert job.name == name
    return job.payload


@pytest.mark.parametrize(
    ("name", "payload", "field"),
    [
        ("download", None, "kind"),
        ("download", [], "payload"),
        ("download", {"source_url": URL}, "download_path"),
        ("download", {"download_path": "loras/"}, "source_url"),
        ("download", {"source_url": URL, "download_path": "loras/", "kind": "lora"}, "kind"),
        ("download", {"source_url": "ftp://x/y", "download_path": "loras/"}, "source_url"),
        ("download", {"kind": "lora"}, "url"),
        ("download", {"kind": "lora", "url": URL, "ref": URL}, "url"),
        ("download", {"kind": "lara", "url": URL}, "kind"),
        ("download", {"kind": "lora", "url": URL, "hash": "12"}, "hash"),
        ("download", {"kind": "lora", "url": URL, "name": "../x"}, "name"),
        ("download", {"kind": "lora", "url": URL, "max_download_gb": 0}, "max_download_gb"),
        ("download", {"kind": "lora", "url": URL, "colour": "red"}, "colour"),
        ("sync", {"sync_path": "models"}, "repo_id"),
        ("sync", {"repo_id": "../x", "sync_path": "models"}, "repo_id"),
        ("sync", {"repo_id": "org/x", "sync_path": "models", "revision": ""}, "revision"),
        ("sync", {"repo_id": "org/x", "sync_path": "m", "allow_patterns": "*"}, "allow_patterns"),
        ("prefetch", {}, "models"),
        ("prefetch", {"models": []}, "models"),
        ("prefetch", {"models": ["lora"]}, "models[0]"),
        ("prefetch", {"models": ["lora a\nlora b"]}, "models[0]"),
        ("prefetch", {"models": [{"ref": "x"}]}, "models[0].kind"),
        ("prefetch", {"models": [5]}, "models[0]"),
        ("prefetch", {"models": [{"kind": "lora", "ref": "x", "name": "y"}]}, "models[0]"),
        ("models", {"kind": "loras"}, "kind"),
        ("verify", {"name": ""}, "name"),
        ("prune", {"to_gb": -1}, "to_gb"),
        ("prune", {"to_gb": 1e308}, "to_gb"),
        ("sync", {"repo_id": "org/x", "sync_path": "models", "revision": "a b"}, "revision"),
        ("civitai", {}, "url"),
        ("civitai", {"url": URL, "hash": "0" * 64}, "url"),
        ("civitai", {"tokens": {"elsewhere": "x"}, "url": URL}, "tokens.elsewhere.[key]"),
        ("compatibility", {"lora": []}, "lora"),
        ("compatibility", {"model": ["a", ""]}, "model[1]"),
        ("health", {"x": 1}, "x"),
    ],
)
def test_a_refusal_names_the_field(name: str, payload: Any, field: str) -> None:
    with pytest.raises(InvalidInputError) as refused:
        command(name, payload)

    assert str(refused.value.details["field"]).startswith(field)
    assert f"`{field}" in str(refused.value)


def test_models_to_prefetch_are_lines_or_objects_with_any_reference() -> None:
    payload = command(
        "prefetch",
        {
            "models": [
                "lora hf:org/repo/x.safetensors name=ink hash=0123456789",
                {"kind": "vae", "ref": "soft"},
                {"kind": "checkpoint", "ref": URL, "name": "base", "refresh": True},
            ]
        },
    )

    lora, vae, checkpoint = payload.models
    assert (lora.kind, lora.url, lora.name) == (Kind.LORA, "hf:org/repo/x.safetensors", "ink")
    assert (vae.kind, vae.name, vae.url) == (Kind.VAE, "soft", None)
    assert (checkpoint.url, checkpoint.name, checkpoint.refresh) == (URL, "base", True)


def test_a_command_takes_its_fields_from_a_query_as_well() -> None:
    value = {"api": {"method": "GET", "endpoint": "v1/verify?kind=lora&all=true"}}
    job = parse(value, JobSettings()).job

    assert isinstance(job, Command)
    assert job.payload.model_dump() == {"kind": Kind.LORA, "name": None, "all": True}


def test_tokens_are_hidden_and_the_one_of_sync_wins() -> None:
    payload = command(
        "sync",
        {
            "repo_id": "org/x",
            "sync_path": "models",
            "hf_token": "mine",
            "tokens": {"huggingface": "other", "civitai": "theirs"},
        },
    )

    assert payload.secrets == {"huggingface": "mine", "civitai": "theirs"}
    assert "mine" not in repr(payload)
    assert "theirs" not in repr(payload)


def test_every_input_has_a_schema() -> None:
    told = schemas()

    routes = {route.path for route in ROUTES if route.payload}
    assert set(told) == {"txt2img", "img2img", *(f"/v1/{name}" for name in COMMANDS), *routes}
    assert schemas("/v1/prune")["/v1/prune"]["properties"]["dry_run"]["type"] == "boolean"
    with pytest.raises(InvalidInputError, match="no input 'x'"):
        schemas("x")
