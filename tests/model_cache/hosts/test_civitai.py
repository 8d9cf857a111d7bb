import hashlib
import json
from typing import Any

import pytest

from model_cache.hosts import civitai, civitai_files
from schemas.errors import (
    InvalidInputError,
    ModelAccessDeniedError,
    ModelIncompatibleError,
    ModelNotFoundError,
    ModelUnsafeError,
    SourceQuotaError,
    SourceUnavailableError,
    WorkerError,
)
from schemas.model_ref import Kind
from schemas.settings import CacheSettings
from tests.model_cache.asking import SECRET, fetched, resolved
from tests.model_cache.conftest import Hub

SETTINGS = CacheSettings()
CHECKPOINT = {"type": "Checkpoint", "name": "A model"}


def key(url: str) -> str:
    reference = civitai.read(url, SETTINGS)
    assert reference is not None
    return reference.key


def base(url: str, settings: CacheSettings = SETTINGS) -> str:
    reference = civitai.read(url, settings)
    assert reference is not None
    return reference.base


def put(hub: Hub, version: int, *names: str, **marks: Any) -> None:
    """Put a version with these files, each of which holds its own name."""
    folder = hub.root / "civitai" / str(version)
    folder.mkdir(parents=True)
    for name in names or ("style.safetensors",):
        (folder / name).write_text(name)
    (folder / "simulator.json").write_text(json.dumps({"modelId": 99, **marks}))


def sha256(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://civitai.com/models/99", "civitai:model:99"),
        ("https://www.civitai.com/models/99/", "civitai:model:99"),
        ("https://civitai.com/models/99/some-words?x=1", "civitai:model:99"),
        ("https://civitai.com/models/99?modelVersionId=7", "civitai:version:7"),
        ("https://civitai.red/models/99/some-words?modelVersionId=7", "civitai:version:7"),
        ("https://civitai.green/model-versions/7", "civitai:version:7"),
        ("https://civitai.com/api/v1/model-versions/7", "civitai:version:7"),
        ("https://civitai.com/api/v1/models/99", "civitai:model:99"),
        ("https://civitai.com/api/download/models/7?token=s", "civitai:version:7"),
        ("https://civitai.com/api/download/models/7?fileId=5&fp=fp16", "civitai:version:7:file:5"),
        (
            "https://civitai.com/api/download/models/7?type=Model&format=SafeTensor&size=full&fp=",
            "civitai:version:7?format=safetensor&size=full&type=model",
        ),
        ("urn:air:sdxl:lora:civitai:99@7", "civitai:version:7"),
        ("URN:AIR:sdxl:lora:CIVITAI:99@7+5", "civitai:version:7:file:5"),
        ("urn:air:sdxl:lora:civitai:99", "civitai:model:99"),
        ("urn:air:civitai:99@7", "civitai:version:7"),
        ("urn:air:sd1:checkpoint:civitai:99@7.ckpt", "civitai:version:7?format=pickletensor"),
        ("civitai:model:99?fp=fp16", "civitai:model:99?fp=fp16"),
    ],
)
def test_every_spelling_of_a_version_has_one_key(url: str, expected: str) -> None:
    assert key(url) == expected
    assert key(expected) == expected


@pytest.mark.parametrize(
    "url",
    [
        "https://civitai.com/",
        "https://civitai.com/images/5",
        "https://civitai.com/models/0",
        "https://civitai.com/models/99999999999",
        "https://civitai.com/models/٣",
        "https://civitai.com.evil.example/models/99",
        "https://image.civitai.com/models/99",
        "hf:org/repo",
    ],
)
def test_what_is_no_model_of_civitai_is_left_to_others(url: str) -> None:
    assert civitai.read(url, SETTINGS) is None


@pytest.mark.parametrize(
    "url",
    [
        "urn:air:sdxl:lora:huggingface:org/repo",
        "urn:air:sdxl:lora:civitai:x",
        "urn:air:",
        "civitai:99",
        "civitai:version:7?token=planted-secret#x\n",
        "https://civitai.com/models/99?modelVersionId=x&token=planted-secret",
    ],
)
def test_a_reference_that_can_mean_no_version_is_refused_without_a_secret(url: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        civitai.read(url, SETTINGS)

    assert SECRET not in str(caught.value.as_response())


def test_each_host_is_asked_itself_and_a_mirror_stands_for_all() -> None:
    mirror = CacheSettings(civitai_endpoint="https://mirror.example/c")

    assert base("https://civitai.com/models/99") == "https://civitai.com"
    assert base("https://civitai.red/models/99") == "https://civitai.red"
    assert base("urn:air:sd1:lora:civitai:99") == "https://civitai.com"
    assert base("https://civitai.red/models/99", mirror) == "https://mirror.example/c"
    assert base("https://mirror.example/c/models/99", mirror) == "https://mirror.example/c"


def test_only_a_model_without_a_version_changes_its_meaning() -> None:
    model, version = (civitai.read(f"civitai:{x}:7", SETTINGS) for x in ("model", "version"))

    assert model is not None
    assert model.mutable
    assert version is not None
    assert not version.mutable


def test_a_version_is_its_primary_file_with_its_digest(model_hub: Hub) -> None:
    put(model_hub, 7, "style.safetensors", "z.safetensors")

    download = resolved(model_hub, "civitai:version:7")

    assert download.sha256 == sha256("style.safetensors")
    assert download.size_bytes is None
    assert download.file_name == "style.safetensors"
    assert download.source == "civitai:version:7:file:700"
    assert download.also_from == ("civitai:version:7",)
    assert fetched(model_hub, download) == b"style.safetensors"


def test_a_page_without_a_version_is_the_newest_that_is_published(model_hub: Hub) -> None:
    put(model_hub, 7, "old.safetensors")
    put(model_hub, 8, "new.safetensors")
    put(model_hub, 9, "draft.safetensors", status="Draft")

    download = resolved(model_hub, f"{model_hub.url}/models/99/words")

    assert download.file_name == "new.safetensors"
    assert download.source == "civitai:version:8:file:800"
    assert download.also_from == ("civitai:model:99", "civitai:version:8")


FILES = ("a.ckpt", "b.safetensors", "c.vae.safetensors", "d.safetensors", "training.zip")
TRAITS = {
    "c.vae.safetensors": {"type": "VAE"},
    "d.safetensors": {"type": "Pruned Model", "metadata": {"size": "pruned", "fp": "fp32"}},
    "training.zip": {"type": "Training Data"},
}


@pytest.mark.parametrize(
    ("query", "kind", "name"),
    [
        pytest.param("", Kind.CHECKPOINT, "b.safetensors", id="safetensors before the primary"),
        pytest.param("?size=PRUNED", Kind.CHECKPOINT, "d.safetensors", id="size"),
        pytest.param("?fp=fp32", Kind.CHECKPOINT, "d.safetensors", id="fp"),
        pytest.param("?type=Pruned+Model", Kind.CHECKPOINT, "d.safetensors", id="type"),
        pytest.param("?format=PickleTensor", Kind.CHECKPOINT, "a.ckpt", id="format"),
        pytest.param(":file:700", Kind.CHECKPOINT, "a.ckpt", id="number"),
        pytest.param("", Kind.VAE, "c.vae.safetensors", id="the VAE for a VAE"),
        pytest.param("?type=VAE", Kind.VAE, "c.vae.safetensors", id="VAE by type"),
    ],
)
def test_the_file_is_chosen_by_number_traits_and_kind(
    query: str, kind: Kind, name: str, model_hub: Hub
) -> None:
    put(model_hub, 7, *FILES, files=TRAITS, model=CHECKPOINT)

    download = resolved(model_hub, f"civitai:version:7{query}", kind)

    assert download.file_name == name
    assert download.sha256 == sha256(name)
    assert fetched(model_hub, download) == name.encode()


def test_a_choice_that_is_not_ours_is_not_recorded_for_the_whole_version(model_hub: Hub) -> None:
    put(model_hub, 7, *FILES, files=TRAITS, model=CHECKPOINT)

    pruned = resolved(model_hub, "civitai:version:7?size=pruned", Kind.CHECKPOINT)
    named = resolved(model_hub, "civitai:version:7?format=safetensor&size=full", Kind.CHECKPOINT)

    assert pruned.also_from == ("civitai:version:7?size=pruned",)
    assert named.also_from == ("civitai:version:7?format=safetensor&size=full", "civitai:version:7")


@pytest.mark.parametrize("query", ["?size=tiny", ":file:5", ":file:704", "?type=Config"])
def test_where_no_file_fits_the_files_are_listed(query: str, model_hub: Hub) -> None:
    put(model_hub, 7, *FILES, files=TRAITS, model=CHECKPOINT)

    with pytest.raises(ModelNotFoundError) as caught:
        resolved(model_hub, f"civitai:version:7{query}", Kind.CHECKPOINT)

    assert "703 'd.safetensors' (pruned model, safetensor, pruned, fp32)" in caught.value.hint


def test_a_vae_that_is_another_versions_is_asked_for_by_what_its_link_says(
    model_hub: Hub,
) -> None:
    link = "https://civitai.example/api/download/models/7?type=VAE&token=x"
    marked = {"c.vae.safetensors": {"type": "VAE", "id": 5, "downloadUrl": link}}
    put(model_hub, 7, "b.safetensors", "c.vae.safetensors", files=marked, model=CHECKPOINT)

    download = resolved(model_hub, "civitai:version:7", Kind.VAE)

    assert download.url == f"{model_hub.url}/api/download/models/7?type=VAE"
    assert fetched(model_hub, download) == b"c.vae.safetensors"


@pytest.mark.parametrize(
    ("type_", "kind"),
    [
        ("LORA", Kind.LORA),
        ("LoCon", Kind.LORA),
        ("DoRA", Kind.LORA),
        ("TextualInversion", Kind.EMBEDDING),
        ("Hypernetwork", Kind.HYPERNETWORK),
        ("VAE", Kind.VAE),
        ("Controlnet", Kind.CONTROLNET),
        ("Upscaler", Kind.UPSCALER),
        ("Checkpoint", Kind.CHECKPOINT),
    ],
)
def test_a_model_of_another_kind_is_refused_before_a_byte_of_it_comes(
    type_: str, kind: Kind, model_hub: Hub
) -> None:
    put(model_hub, 7, model={"type": type_})
    other = Kind.LORA if kind is Kind.CHECKPOINT else Kind.CHECKPOINT

    assert resolved(model_hub, "civitai:version:7", kind).sha256 is not None
    with pytest.raises(ModelIncompatibleError, match=f"is a {kind}, and was asked for as a"):
        resolved(model_hub, "civitai:version:7", other)


def test_a_model_of_a_type_that_says_nothing_is_left_to_its_header(model_hub: Hub) -> None:
    put(model_hub, 7, model={"type": "Other"})

    assert resolved(model_hub, "civitai:version:7", Kind.UPSCALER).sha256 is not None


@pytest.mark.parametrize(
    ("marks", "error", "said"),
    [
        ({"model": {"mode": "Archived"}}, ModelNotFoundError, "archived by its creator"),
        ({"model": {"mode": "TakenDown"}}, ModelNotFoundError, "taken down"),
        ({"usageControl": "Generation"}, ModelAccessDeniedError, "on Civitai only"),
        (
            {"earlyAccessEndsAt": "2099-01-02T03:04:05.000Z"},
            ModelAccessDeniedError,
            "until 2099-01-02 03:04 UTC",
        ),
        ({"status": "Draft"}, ModelNotFoundError, "civitai.red"),
    ],
)
def test_what_civitai_does_not_give_out_is_refused_with_the_reason(
    marks: dict[str, Any], error: type[WorkerError], said: str, model_hub: Hub
) -> None:
    put(model_hub, 7, **marks)

    with pytest.raises(error) as caught:
        resolved(model_hub, "civitai:version:7")

    assert said in f"{caught.value} {caught.value.hint}"


def test_whether_an_account_has_early_access_is_left_to_the_download(model_hub: Hub) -> None:
    put(model_hub, 7, earlyAccessEndsAt="2099-01-01T00:00:00.000Z")

    assert resolved(model_hub, "civitai:version:7", civitai_token=SECRET).authorization


@pytest.mark.parametrize("when", ["2020-01-01T00:00:00.000Z", "2020-01-01", "soon"])
def test_early_access_that_is_over_or_unreadable_is_none(when: str, model_hub: Hub) -> None:
    put(model_hub, 7, earlyAccessEndsAt=when)

    assert resolved(model_hub, "civitai:version:7").sha256 is not None


@pytest.mark.parametrize(
    ("name", "scans", "safe"),
    [
        ("a.ckpt", {}, True),
        ("a.ckpt", {"pickleScanResult": "Pending"}, False),
        ("a.ckpt", {"virusScanResult": None}, False),
        ("a.safetensors", {"pickleScanResult": "Pending", "virusScanResult": "Pending"}, True),
        ("a.safetensors", {"virusScanResult": "Danger"}, False),
    ],
)
def test_a_file_that_the_scanners_did_not_clear_is_refused(
    name: str, scans: dict[str, Any], *, safe: bool, model_hub: Hub
) -> None:
    put(model_hub, 7, name, files={name: scans})

    if safe:
        assert resolved(model_hub, "civitai:version:7").file_name == name
    else:
        with pytest.raises(ModelUnsafeError, match=name):
            resolved(model_hub, "civitai:version:7")


def test_while_the_api_is_down_a_known_version_is_downloaded_without_it(model_hub: Hub) -> None:
    put(model_hub, 7, "a.safetensors", "b.safetensors")
    model_hub.spoil(path="/api/v1/*", times=6, status=503, retry_after="0")
    url = f"{model_hub.url}/api/download/models/7?fileId=701"

    download = resolved(model_hub, url)

    assert download.source == "civitai:version:7:file:701"
    assert (download.sha256, download.also_from) == (None, ())
    assert fetched(model_hub, download) == b"b.safetensors"
    with pytest.raises(SourceUnavailableError):
        resolved(model_hub, "civitai:model:99")


def test_what_the_api_has_no_answers_left_for_is_downloaded_without_it(model_hub: Hub) -> None:
    put(model_hub, 7)
    model_hub.spoil(path="/api/v1/*", times=-1, status=429, retry_after="3600")

    assert resolved(model_hub, "civitai:version:7").source == "civitai:version:7"
    assert len(model_hub.requests) == 1
    with pytest.raises(SourceQuotaError):
        resolved(model_hub, "civitai:model:99")


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_of_the_api_names_the_token(status: int, model_hub: Hub) -> None:
    model_hub.spoil(path="/api/v1/*", status=status)

    with pytest.raises(ModelAccessDeniedError) as caught:
        resolved(model_hub, "civitai:version:7")

    assert "CIVITAI_TOKEN" in caught.value.hint


@pytest.mark.parametrize(
    "how",
    [
        {"civitai_token": SECRET},
        {"tokens": {"civitai": SECRET}},
        {"tokens": {"civitai": SECRET}, "civitai_token": "own"},
    ],
)
def test_the_token_is_shown_nowhere_and_goes_no_further(how: Any, model_hub: Hub) -> None:
    model_hub.site.token = SECRET
    put(model_hub, 7, requires_token=True)

    download = resolved(model_hub, "civitai:version:7", **how)

    assert download.authorization == f"Bearer {SECRET}"
    assert fetched(model_hub, download) == b"style.safetensors"
    assert SECRET not in repr(download) + download.url + download.source
    assert not any(entry.authorization for entry in model_hub.requests if entry.host == "cdn")


def test_a_token_in_the_url_becomes_a_header(model_hub: Hub) -> None:
    put(model_hub, 7, requires_token=True)
    model_hub.site.token = SECRET
    url = f"{model_hub.url}/api/download/models/7?token={SECRET}"

    download = resolved(model_hub, url, civitai_token="own")

    assert download.authorization == f"Bearer {SECRET}"
    assert SECRET not in repr(download) + download.url + download.source
    assert SECRET not in repr(civitai.read(url, CacheSettings(civitai_endpoint=model_hub.url)))
    assert not any(SECRET in entry.query for entry in model_hub.requests)


@pytest.mark.parametrize(
    "fields",
    [
        {"files": None},
        {"files": [None, 5, {"id": "x"}]},
        {"files": {"a": 1}},
        {"model": None, "files": [{"id": 1}]},
        {"files": [{"id": 1, "name": 5, "metadata": [], "hashes": "x"}]},
    ],
)
def test_an_answer_of_another_shape_is_a_version_without_files(
    fields: dict[str, Any],
) -> None:
    found = civitai_files.version(fields, 7)

    with pytest.raises(ModelNotFoundError, match="has no file that fits"):
        civitai_files.choose(found, civitai_files.Choice(), Kind.LORA)


def test_a_model_of_which_no_version_is_published_is_not_found(model_hub: Hub) -> None:
    drafts = {"modelVersions": [{"id": 1, "status": "Draft"}, {"id": "x"}, None]}
    (model_hub.root / "drafts.json").write_text(json.dumps(drafts))
    model_hub.spoil(path="/api/v1/models/99", redirect="/drafts.json")

    with pytest.raises(ModelNotFoundError, match="no published version"):
        resolved(model_hub, "civitai:model:99")


@pytest.mark.parametrize("link", ["", "https://[", "https://civitai.example/x?token=t"])
def test_a_link_that_says_nothing_leaves_the_number(link: str) -> None:
    vae = {"id": 5, "type": "VAE", "name": "x.safetensors", "downloadUrl": link}

    (file,) = civitai_files.version({"files": [vae], "model": CHECKPOINT}, 7).files

    assert file.query == {"fileId": "5"}
