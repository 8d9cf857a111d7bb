import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_cache import manifests
from schemas.manifest import Manifest

SHA = "0123456789abcdef" * 4


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"weights")
    return path


def manifest_of(path: Path) -> Manifest:
    return manifests.new(SHA, path.stat(), "https://h/m", "sdxl", "alias")


def test_what_was_written_is_read(tmp_path: Path, model: Path) -> None:
    manifests.write(tmp_path, tmp_path / "folder" / "m.json", manifest_of(model))

    manifest = manifests.read(tmp_path / "folder" / "m.json", model.stat())

    assert manifest is not None
    assert (manifest.sha256, manifest.base, manifest.alias) == (SHA, "sdxl", "alias")


def test_nothing_but_the_manifest_is_left_behind(tmp_path: Path, model: Path) -> None:
    manifests.write(tmp_path, tmp_path / "m.json", manifest_of(model))

    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}

    assert left == {"m.json", "m.safetensors"}


@pytest.mark.parametrize("change", ["size", "time"])
def test_it_is_not_believed_once_the_file_changed(tmp_path: Path, model: Path, change: str) -> None:
    manifests.write(tmp_path, tmp_path / "m.json", manifest_of(model))
    status = model.stat()
    if change == "size":
        model.write_bytes(b"other weights")
        os.utime(model, ns=(status.st_atime_ns, status.st_mtime_ns))
    else:
        os.utime(model, ns=(0, 1))

    assert manifests.read(tmp_path / "m.json", model.stat()) is None
    assert manifests.stored(tmp_path / "m.json") is not None


@given(st.binary(max_size=300))
def test_a_damaged_manifest_is_one_that_is_not_there(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("m") / "m.json"
    path.write_bytes(content)

    assert manifests.stored(path) is None


def test_a_manifest_cut_anywhere_is_one_that_is_not_there(tmp_path: Path, model: Path) -> None:
    content = manifest_of(model).model_dump_json().encode()

    for length in range(len(content)):
        (tmp_path / "m.json").write_bytes(content[:length])
        assert manifests.stored(tmp_path / "m.json") is None


def test_a_digest_that_is_none_is_not_believed(tmp_path: Path, model: Path) -> None:
    bad = manifest_of(model).model_copy(update={"sha256": "../../x"})
    manifests.write(tmp_path, tmp_path / "m.json", bad)

    assert manifests.stored(tmp_path / "m.json") is None


def test_a_field_that_a_newer_worker_added_does_no_harm(tmp_path: Path, model: Path) -> None:
    text = manifest_of(model).model_dump_json().replace("{", '{"newer": [1], ', 1)
    (tmp_path / "m.json").write_text(text)

    assert manifests.stored(tmp_path / "m.json") == manifest_of(model).model_copy(
        update={"created": manifests.stored(tmp_path / "m.json").created}  # type: ignore[union-attr]
    )


def test_further_sources_are_remembered_once_and_not_for_ever(model: Path) -> None:
    manifest = manifest_of(model)

    for number in range(100):
        manifest = manifests.with_source(manifest, f"https://h/{number}")
        manifest = manifests.with_source(manifest, f"https://h/{number}")
    manifest = manifests.with_source(manifest, "https://h/m")
    manifest = manifests.with_source(manifest, "")

    assert manifest.source == "https://h/m"
    assert manifest.also_from == tuple(f"https://h/{number}" for number in range(84, 100))
