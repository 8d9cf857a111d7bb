import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_cache import layout
from schemas.model_ref import MAX_NAME_BYTES, Kind, ModelRef

VOLUME = Path("/volume")


@given(st.text())
def test_a_name_from_a_host_becomes_one_that_a_request_could_give(text: str) -> None:
    name = layout.safe_name(text)

    assert ModelRef(kind=Kind.LORA, name=name).name == name
    assert len(name.encode()) <= MAX_NAME_BYTES
    assert layout.published_path(VOLUME, Kind.LORA, name).parent == VOLUME / "models" / "loras"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        pytest.param("detail_v2.safetensors", "detail_v2", id="plain"),
        pytest.param("Detail.SafeTensors", "Detail", id="suffix in another case"),
        pytest.param("../../../etc/passwd", "passwd", id="path"),
        pytest.param("..\\..\\evil.safetensors", "evil", id="backslashes"),
        pytest.param("a<b>:c.safetensors", "a_b__c", id="signs of a tag"),
        pytest.param(".hidden.safetensors", "hidden", id="hidden"),
        pytest.param("model.ckpt", "model.ckpt", id="another suffix stays"),
        pytest.param("ünï_日本", "ünï_日本", id="letters of other scripts"),
        pytest.param("n\0u\nl", "n_u_l", id="control characters"),
        pytest.param("..", "model", id="nothing left"),
        pytest.param("x" * 400, "x" * MAX_NAME_BYTES, id="too long"),
        pytest.param("e\u0301", "é", id="composed"),
    ],
)
def test_a_name_from_a_host_is_made_plain(text: str, name: str) -> None:
    assert layout.safe_name(text) == name


@given(st.text(st.characters(blacklist_characters="/\0", codec="utf-8"), min_size=1, max_size=300))
def test_every_file_name_has_a_manifest_that_the_disk_can_name(stem: str) -> None:
    path = VOLUME / "models" / "loras" / f"{stem}.safetensors"

    manifest = layout.manifest_path(VOLUME, Kind.LORA, path)

    assert manifest.parent == VOLUME / "models" / ".worker" / "manifests" / "lora"
    assert len(os.fsencode(manifest.name)) <= 255


def test_files_with_one_name_in_two_folders_have_two_manifests() -> None:
    places = [
        VOLUME / "models" / "loras" / "x.safetensors",
        VOLUME / "models" / "loras" / "sub" / "x.safetensors",
        VOLUME / "ComfyUI" / "models" / "loras" / "x.safetensors",
    ]

    manifests = {layout.manifest_path(VOLUME, Kind.LORA, place) for place in places}

    assert len(manifests) == 3
    assert manifests >= {VOLUME / "models/.worker/manifests/lora/x.safetensors.json"}


def test_every_kind_has_a_folder_of_its_own_and_it_is_looked_into_first() -> None:
    roots = list(layout.roots(VOLUME))

    first = {kind: next(root for root in roots if root.kind is kind) for kind in Kind}

    assert [root.path.name for root in first.values()] == list(layout.FOLDERS.values())
    assert all(root.ours for root in first.values())
    assert sum(root.ours for root in roots) == len(Kind)
