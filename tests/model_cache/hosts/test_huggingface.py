import hashlib
from pathlib import Path

import pytest

from model_cache.hosts import huggingface
from model_cache.hosts.huggingface import Reference
from schemas.errors import (
    InvalidInputError,
    ModelAccessDeniedError,
    ModelNotFoundError,
    SourceUnavailableError,
    WorkerError,
)
from schemas.model_ref import Kind
from schemas.settings import CacheSettings
from simulator.hub.huggingface_world import commit_of
from tests.model_cache.asking import SECRET, fetched, resolved
from tests.model_cache.conftest import Hub

SETTINGS = CacheSettings()
BODY = b"the bytes of a model"
DIGEST = hashlib.sha256(BODY).hexdigest()
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def repo(hub: Hub, *names: str, name: str = "org/repo") -> Path:
    """Put files into a repository; every one holds `BODY`."""
    folder = hub.root / "huggingface" / name
    for file in names:
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(BODY)
    return folder


@pytest.mark.parametrize(
    ("url", "reference"),
    [
        ("hf:o/r", Reference("o/r")),
        ("HF:o/r@v1", Reference("o/r", "", "v1")),
        ("hf://o/r/x.bin", Reference("o/r", "x.bin")),
        ("hf:o/r/sub/x.bin@v1", Reference("o/r", "sub/x.bin", "v1")),
        ("hf:o/r/a@b.bin@v1", Reference("o/r", "a@b.bin", "v1")),
        ("hf:o/r@v1/sub/x.bin", Reference("o/r", "sub/x.bin", "v1")),
        ("hf:o/r@refs/pr/7", Reference("o/r", "", "refs/pr/7")),
        ("hf:o/r@refs/pr/7/x.bin", Reference("o/r", "x.bin", "refs/pr/7")),
        ("hf:o/r/x.bin@refs/pr/7", Reference("o/r", "x.bin", "refs/pr/7")),
        ("hf:o/r/x.bin@my%2Fbranch", Reference("o/r", "x.bin", "my/branch")),
        ("hf:datasets/o/r/x.bin", Reference("datasets/o/r", "x.bin")),
        ("https://huggingface.co/o/r", Reference("o/r")),
        ("https://huggingface.co/o/r/", Reference("o/r")),
        ("https://huggingface.co/o/r/tree/v1", Reference("o/r", "", "v1")),
        ("https://huggingface.co/o/r/resolve/main/x.bin", Reference("o/r", "x.bin")),
        ("https://huggingface.co/o/r/blob/v1/s/x.bin", Reference("o/r", "s/x.bin", "v1")),
        ("https://huggingface.co/o/r/raw/v1/x.bin?download=true", Reference("o/r", "x.bin", "v1")),
        ("http://www.huggingface.co/o/r/resolve/main/a%20b.bin", Reference("o/r", "a b.bin")),
        ("https://hf.co/o/r/resolve/refs%2Fpr%2F7/x", Reference("o/r", "x", "refs/pr/7")),
        ("https://hf.co/o/r/resolve/refs/pr/7/x", Reference("o/r", "x", "refs/pr/7")),
        ("https://hf.co/o/r/resolve/my%2Fbranch/x", Reference("o/r", "x", "my/branch")),
        ("https://huggingface.co/spaces/o/r/blob/main/x", Reference("spaces/o/r", "x")),
    ],
)
def test_every_spelling_means_one_file_of_one_key(url: str, reference: Reference) -> None:
    found = huggingface.read(url, SETTINGS)

    assert found == reference
    assert huggingface.read(reference.key, SETTINGS) == reference


@pytest.mark.parametrize(
    "url",
    [
        "https://huggingface.co/",
        "https://huggingface.co/org",
        "https://huggingface.co/gpt2/resolve/main/x.bin",
        "https://huggingface.co/api/models/o/r",
        "https://huggingface.co/docs/hub",
        "https://huggingface.co/o/r/discussions/1",
        "https://cdn.huggingface.co/o/r/resolve/main/x",
        "https://example.com/o/r/resolve/main/x",
        "s3://bucket/x",
    ],
)
def test_what_is_no_file_of_a_repository_is_left_to_others(url: str) -> None:
    assert huggingface.read(url, SETTINGS) is None


@pytest.mark.parametrize(
    "url",
    [
        "hf:",
        "hf:org",
        "hf:org/",
        "hf:/org/repo//x",
        "hf:org/repo/../x",
        "hf:org/repo/./x",
        "hf:org/repo@",
        "hf:org/repo/x@",
        "hf:org/repo@../../x",
        "hf:o rg/repo/x",
        "hf:org/re..po/x",
        "hf:org/repo/x\\y",
        "hf:org/repo/x?token=planted-secret",
        "hf:datasets/org",
        "https://huggingface.co/org/repo/resolve",
        "https://huggingface.co/org/repo/resolve/main/%2E%2E/x",
        "https://huggingface.co/org/repo/tree/main/unet",
    ],
)
def test_a_reference_that_can_mean_no_file_is_refused_with_the_right_form(url: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        huggingface.read(url, SETTINGS)

    assert "hf:org/repo" in caught.value.hint
    assert SECRET not in str(caught.value.as_response())


def test_only_a_commit_never_changes_its_meaning() -> None:
    assert Reference("o/r", "x").mutable
    assert not Reference("o/r", "x", COMMIT).mutable


def test_a_mirror_stands_for_the_hub() -> None:
    mirror = CacheSettings(hf_endpoint="https://mirror.example/hub/")

    found = huggingface.read("https://mirror.example/hub/o/r/resolve/main/x", mirror)

    assert found == Reference("o/r", "x") == huggingface.read("hf:o/r/x", mirror)


def test_size_and_digest_are_known_before_the_first_byte(model_hub: Hub) -> None:
    folder = repo(model_hub, "sub/x.safetensors")
    commit = commit_of(folder)

    download = resolved(model_hub, "hf:org/repo/sub/x.safetensors")

    assert (download.size_bytes, download.sha256) == (len(BODY), DIGEST)
    assert download.file_name == "x.safetensors"
    assert download.source == f"hf:org/repo/sub/x.safetensors@{commit}"
    assert download.also_from == ("hf:org/repo/sub/x.safetensors@main",)
    assert [entry.method for entry in model_hub.requests] == ["HEAD"]
    assert fetched(model_hub, download) == BODY


def test_a_commit_is_its_own_only_key(model_hub: Hub) -> None:
    commit = commit_of(repo(model_hub, "x.safetensors"))

    download = resolved(model_hub, f"hf:org/repo/x.safetensors@{commit}")

    assert download.source.endswith(f"@{commit}")
    assert download.also_from == ()


def test_another_revision_is_another_file(model_hub: Hub) -> None:
    repo(model_hub, "x.safetensors")
    other = repo(model_hub, "x.safetensors", name="org/repo@v2")
    (other / "x.safetensors").write_bytes(b"second")

    download = resolved(model_hub, f"{model_hub.url}/org/repo/blob/v2/x.safetensors")

    assert download.sha256 == hashlib.sha256(b"second").hexdigest()
    assert download.also_from == ("hf:org/repo/x.safetensors@v2",)


def test_of_a_small_file_only_the_size_is_declared(model_hub: Hub) -> None:
    repo(model_hub, "x.txt")

    download = resolved(model_hub, "hf:org/repo/x.txt")

    assert (download.size_bytes, download.sha256) == (len(BODY), None)


def test_a_renamed_repository_is_found_under_its_new_name(model_hub: Hub) -> None:
    repo(model_hub, "x.safetensors", name="org/new")
    folder = repo(model_hub, ".renamed", name="org/old")
    (folder / ".renamed").write_text("org/new")

    by_path = resolved(model_hub, "hf:org/old/x.safetensors")
    alone = resolved(model_hub, "hf:org/old")

    assert by_path.sha256 == alone.sha256 == DIGEST
    assert fetched(model_hub, alone) == BODY


def test_the_only_model_of_a_repository_needs_no_path(model_hub: Hub) -> None:
    repo(model_hub, "x.safetensors", "README.md", "unet/y.safetensors", "old.ckpt")

    download = resolved(model_hub, "https://huggingface.co/org/repo", Kind.CHECKPOINT)

    assert download.file_name == "x.safetensors"
    assert download.source.startswith("hf:org/repo/x.safetensors@")
    assert download.also_from == ("hf:org/repo@main", "hf:org/repo/x.safetensors@main")


def test_a_pickle_is_the_only_model_where_pickles_of_its_kind_are_taken(model_hub: Hub) -> None:
    repo(model_hub, "4x.pth", "README.md")

    taken = resolved(model_hub, "hf:org/repo", Kind.UPSCALER, allow_pickle="upscaler")

    assert taken.file_name == "4x.pth"
    with pytest.raises(InvalidInputError, match=r"4x\.pth"):
        resolved(model_hub, "hf:org/repo", Kind.UPSCALER)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["a.safetensors", "b.safetensors"], "holds 2 files that may be the lora.*'a.safetensors'"),
        (["README.md"], "holds no files.*none"),
        (["loras/a.safetensors"], "'loras/a.safetensors'"),
        (["m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors"], "holds no files"),
        (["model_index.json", "unet/x.safetensors"], "diffusers folder"),
    ],
)
def test_a_repository_without_one_model_is_refused_with_what_it_has(
    names: list[str], said: str, model_hub: Hub
) -> None:
    repo(model_hub, *names)

    with pytest.raises(InvalidInputError, match=said):
        resolved(model_hub, "hf:org/repo")


@pytest.mark.parametrize(
    ("url", "error", "said"),
    [
        ("hf:org/none/x", ModelNotFoundError, "no org/none"),
        ("hf:org/none", ModelNotFoundError, "HF_TOKEN"),
        ("hf:org/repo/none.bin", ModelNotFoundError, "no file 'none.bin'"),
        ("hf:org/repo/x.bin@none", ModelNotFoundError, "no revision 'none'"),
        ("hf:org/repo@none", ModelNotFoundError, "no revision 'none'"),
        ("hf:org/gated/x.bin", ModelAccessDeniedError, "Accept its terms"),
        ("hf:org/private/x.bin", ModelNotFoundError, "HF_TOKEN"),
        ("hf:org/disabled/x.bin", ModelAccessDeniedError, "refuses org/disabled"),
    ],
)
def test_a_refusal_of_the_hub_says_what_to_do(
    url: str, error: type[WorkerError], said: str, model_hub: Hub
) -> None:
    repo(model_hub, "x.bin")
    for mark in ("gated", "private", "disabled"):
        (repo(model_hub, "x.bin", name=f"org/{mark}") / f".{mark}").write_text("good")

    for tokens in ({}, {"huggingface": SECRET}):
        with pytest.raises(error) as caught:
            resolved(model_hub, url, tokens=tokens)

        assert said in f"{caught.value} {caught.value.hint}"
        assert SECRET not in str(caught.value.as_response())


@pytest.mark.parametrize("mark", [".gated", ".private"])
def test_the_right_token_opens_a_repository_and_is_shown_nowhere(mark: str, model_hub: Hub) -> None:
    (repo(model_hub, "x.safetensors") / mark).write_text(SECRET)

    download = resolved(model_hub, "hf:org/repo", hf_token=SECRET)

    assert download.authorization == f"Bearer {SECRET}"
    assert fetched(model_hub, download) == BODY
    assert SECRET not in repr(download) + download.url + "".join(download.also_from)
    assert not any(entry.authorization for entry in model_hub.requests if entry.host == "cdn")


def test_a_host_that_fails_once_is_asked_again(model_hub: Hub) -> None:
    repo(model_hub, "x.safetensors")
    model_hub.spoil(path="/org/*", times=1, status=503, retry_after="0")

    assert resolved(model_hub, "hf:org/repo/x.safetensors").sha256 == DIGEST


def test_a_repository_that_redirects_for_ever_is_given_up(model_hub: Hub) -> None:
    model_hub.spoil(path="/org/*", times=50, redirect="loop")

    with pytest.raises(SourceUnavailableError, match="again and again"):
        resolved(model_hub, "hf:org/repo/x.safetensors")


def test_any_other_refusal_is_told_by_its_status(model_hub: Hub) -> None:
    model_hub.spoil(path="/org/*", status=400)

    with pytest.raises(ModelNotFoundError, match="answered 400 for org/repo"):
        resolved(model_hub, "hf:org/repo/x.safetensors")
