import errno
import os
from pathlib import Path

import pytest

from model_cache.hosts import hubcache
from model_cache.hosts.huggingface import Reference
from schemas.errors import VolumeMissingError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = "f" * 40


def cached(
    volume: Path,
    *names: str,
    repo: str = "models--org--repo",
    commit: str = COMMIT,
    branch: str | None = "main",
) -> Path:
    """Put files into the cache as huggingface_hub does, and return the snapshot."""
    folder = volume / "huggingface-cache" / "hub" / repo
    for name in names:
        blob = folder / "blobs" / f"{commit}-{name.replace('/', '_')}"
        link = folder / "snapshots" / commit / name
        for path in (blob, link):
            path.parent.mkdir(parents=True, exist_ok=True)
        blob.write_text(name)
        link.symlink_to(os.path.relpath(blob, link.parent))
    if branch is not None:
        ref = folder / "refs" / branch
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(commit)
    return folder / "snapshots" / commit


@pytest.mark.parametrize(
    "reference",
    [
        Reference("org/repo", "x.safetensors"),
        Reference("org/repo", "x.safetensors", COMMIT),
        Reference("Org/RePo", "x.safetensors"),
        Reference("org/repo"),
        Reference("org/repo", "", COMMIT),
    ],
)
def test_a_cached_file_is_used_where_it_is(reference: Reference, volume: Path) -> None:
    snapshot = cached(volume, "x.safetensors", "README.md", "unet/y.safetensors")

    assert hubcache.find(volume, reference) == snapshot / "x.safetensors"


def test_a_file_in_a_folder_and_a_revision_with_a_slash_are_found(volume: Path) -> None:
    snapshot = cached(volume, "unet/y.safetensors", branch="refs/pr/1")

    found = hubcache.find(volume, Reference("org/repo", "unet/y.safetensors", "refs/pr/1"))

    assert found == snapshot / "unet/y.safetensors"


def test_a_data_set_is_told_from_a_model_of_the_same_name(volume: Path) -> None:
    snapshot = cached(volume, "x.bin", repo="datasets--org--repo")

    assert hubcache.find(volume, Reference("datasets/org/repo", "x.bin")) == snapshot / "x.bin"
    assert hubcache.find(volume, Reference("org/repo", "x.bin")) is None


@pytest.mark.parametrize(
    "reference",
    [
        Reference("org/none", "x.safetensors"),
        Reference("org/repo", "none.safetensors"),
        Reference("org/repo", "x.safetensors", "v2"),
        Reference("org/repo", "x.safetensors", OTHER),
        Reference("org/repo", "unet"),
    ],
)
def test_what_is_not_cached_is_not_found(reference: Reference, volume: Path) -> None:
    cached(volume, "x.safetensors", "unet/y.safetensors")

    assert hubcache.find(volume, reference) is None


def test_without_a_cache_nothing_is_found(volume: Path) -> None:
    assert hubcache.find(volume, Reference("org/repo", "x")) is None
    assert list(hubcache.files(volume)) == []


def test_two_models_are_not_the_only_one(volume: Path) -> None:
    cached(volume, "x.safetensors", "y.safetensors")

    assert hubcache.find(volume, Reference("org/repo")) is None


def test_the_only_snapshot_is_main_where_the_platform_wrote_no_branch(volume: Path) -> None:
    snapshot = cached(volume, "x.safetensors", branch=None)

    assert hubcache.find(volume, Reference("org/repo", "x.safetensors")) == (
        snapshot / "x.safetensors"
    )
    assert hubcache.find(volume, Reference("org/repo", "x.safetensors", "v1")) is None

    cached(volume, "x.safetensors", commit=OTHER, branch=None)

    assert hubcache.find(volume, Reference("org/repo", "x.safetensors")) is None


@pytest.mark.parametrize("ref", ["", "../../etc", "main", "g" * 40, "\0"])
def test_a_branch_that_names_no_commit_means_nothing(ref: str, volume: Path) -> None:
    snapshot = cached(volume, "x.safetensors", branch="v1")
    (snapshot.parents[1] / "refs" / "v1").write_text(ref)

    assert hubcache.find(volume, Reference("org/repo", "x.safetensors", "v1")) is None


def test_a_link_that_leaves_the_cache_is_not_followed(volume: Path, tmp_path: Path) -> None:
    snapshot = cached(volume, "x.safetensors")
    outside = tmp_path / "secret.safetensors"
    outside.write_text("secret")
    (snapshot / "out.safetensors").symlink_to(outside)
    (snapshot / "broken.safetensors").symlink_to(tmp_path / "none")
    (snapshot / "circle.safetensors").symlink_to(snapshot / "circle.safetensors")

    for name in ("out", "broken", "circle"):
        assert hubcache.find(volume, Reference("org/repo", f"{name}.safetensors")) is None
    assert [path.name for path, _ in hubcache.files(volume)] == ["x.safetensors"]


def test_only_whole_models_at_the_top_of_a_repository_are_listed(volume: Path) -> None:
    snapshot = cached(
        volume,
        "x.safetensors",
        "y.pth",
        "m-00001-of-00002.safetensors",
        "config.json",
        "unet/z.safetensors",
    )
    cached(volume, "d.safetensors", repo="datasets--org--repo")
    cached(volume, "e.safetensors", repo="models--gpt2")
    (snapshot.parent / "not-a-commit").mkdir()

    assert list(hubcache.files(volume)) == [
        (snapshot / "x.safetensors", f"hf:org/repo/x.safetensors@{COMMIT}"),
        (snapshot / "y.pth", f"hf:org/repo/y.pth@{COMMIT}"),
    ]


@pytest.mark.parametrize("number", [errno.ESTALE, errno.ENOTCONN, errno.EIO])
def test_a_volume_that_does_not_answer_is_our_error(
    volume: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def stale(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "stat", stale)

    with pytest.raises(VolumeMissingError):
        hubcache.find(volume, Reference("org/repo", "x.safetensors"))


def test_a_name_that_no_disk_could_hold_is_not_cached(volume: Path) -> None:
    cached(volume, "x.safetensors")

    assert hubcache.find(volume, Reference(f"org/{'r' * 300}", "x.safetensors")) is None
