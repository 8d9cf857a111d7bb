import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_cache.volume import layout
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
        pytest.param("model.CKPT", "model", id="suffix of a pickle"),
        pytest.param("model.zip", "model.zip", id="another suffix stays"),
        pytest.param("\ufb01ne \uff44etail", "fine detail", id="letters that look like Latin ones"),
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


@given(text=st.text(), upper=st.booleans())
def test_names_that_look_alike_to_a_disk_are_folded_into_one(text: str, *, upper: bool) -> None:
    other = unicodedata.normalize("NFD", text.upper() if upper else text.lower())

    assert layout.folded(layout.folded(text)) == layout.folded(text)
    assert layout.folded(other.casefold()) == layout.folded(other)
    assert layout.folded(unicodedata.normalize("NFC", other)) == layout.folded(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Detail", "dETAIL"),
        ("caf\u00e9", "cafe\u0301"),
        ("STRASSE", "stra\u00dfe"),
        ("\uff44etail", "detail"),
        ("\ufb01ne", "FINE"),
    ],
)
def test_names_that_a_disk_could_take_for_one_another_fold_to_the_same(
    one: str, other: str
) -> None:
    assert layout.folded(one) == layout.folded(other)


def test_the_image_is_looked_into_last_and_never_published_into() -> None:
    roots = list(layout.roots(VOLUME, Path("/models")))

    first = next(index for index, root in enumerate(roots) if root.baked)
    assert all(root.baked and not root.ours for root in roots[first:])
    assert {root.path for root in roots[first:]} >= {
        Path("/models/checkpoints"),
        Path("/models/models/upscalers"),
        Path("/models/Lora"),
    }


def test_every_root_is_yielded_once() -> None:
    roots = [(root.kind, root.path) for root in layout.roots(VOLUME, Path("/models"))]

    assert len(set(roots)) == len(roots)


def test_a_file_outside_of_the_volume_has_a_manifest_of_its_own_name() -> None:
    places = {
        layout.manifest_path(VOLUME, Kind.LORA, Path(path))
        for path in ("/models/loras/x.safetensors", "/volume/models/loras/x.safetensors")
    }

    assert len(places) == 2


@pytest.mark.parametrize(
    ("kind", "file_name", "suffix"),
    [
        (Kind.UPSCALER, "4x.pth", ".pth"),
        (Kind.UPSCALER, "4x.PT", ".pt"),
        (Kind.UPSCALER, "4x.bin", ".pth"),
        (Kind.CHECKPOINT, "m.pt", ".ckpt"),
        (Kind.EMBEDDING, "concept.bin", ".bin"),
        (Kind.EMBEDDING, "", ".pt"),
        (Kind.CONTROLNET, "canny.pth", ".pth"),
    ],
)
def test_a_pickle_gets_a_suffix_that_a1111_looks_for(
    kind: Kind, file_name: str, suffix: str
) -> None:
    assert layout.suffix_for(kind, file_name, pickle=True) == suffix
    assert layout.suffix_for(kind, file_name, pickle=False) == ".safetensors"
