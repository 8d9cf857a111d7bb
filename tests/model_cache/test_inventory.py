import os
from pathlib import Path

import pytest

from model_cache import inventory, layout, manifests
from model_cache.inventory import Inventory
from schemas.errors import ModelNotFoundError
from schemas.model_ref import Kind
from simulator import models

SHA = "ab" * 32


def put(volume: Path, *places: str) -> None:
    for place in places:
        path = volume / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.fsencode(place))


def listed(volume: Path) -> Inventory:
    return Inventory(volume, inventory.scan(volume, {}))


def names(volume: Path, kind: Kind) -> list[str]:
    return [model.name for model in listed(volume).models(kind)]


@pytest.mark.parametrize(
    ("kind", "place"),
    [
        (Kind.CHECKPOINT, "models/checkpoints/m"),
        (Kind.CHECKPOINT, "models/Stable-diffusion/m"),
        (Kind.CHECKPOINT, "stable-diffusion-webui/models/Stable-diffusion/sub/deep/m"),
        (Kind.CHECKPOINT, "ComfyUI/models/checkpoints/m"),
        (Kind.LORA, "models/loras/sub/m"),
        (Kind.LORA, "models/Lora/m"),
        (Kind.LORA, "stable-diffusion-webui-forge/models/Lora/m"),
        (Kind.LORA, "runpod-slim/ComfyUI/models/loras/m"),
        (Kind.EMBEDDING, "models/embeddings/m"),
        (Kind.EMBEDDING, "embeddings/m"),
        (Kind.EMBEDDING, "stable-diffusion-webui/embeddings/m"),
        (Kind.VAE, "models/vae/m"),
        (Kind.VAE, "models/VAE/m"),
        (Kind.VAE, "models/Stable-diffusion/m.vae"),
        (Kind.CONTROLNET, "models/ControlNet/m"),
        (Kind.UPSCALER, "models/RealESRGAN/m"),
        (Kind.UPSCALER, "ComfyUI/models/upscale_models/m"),
        (Kind.HYPERNETWORK, "models/hypernetworks/m"),
    ],
)
def test_a_model_is_found_in_every_layout(tmp_path: Path, kind: Kind, place: str) -> None:
    put(tmp_path, f"{place}.safetensors")

    found = {kind: names(tmp_path, kind) for kind in Kind}

    assert found.pop(kind) == [Path(place).name]
    assert set(map(tuple, found.values())) == {()}


def test_what_is_no_model_is_not_listed(tmp_path: Path) -> None:
    put(
        tmp_path,
        "models/loras/.hidden.safetensors",
        "models/loras/.cache/m.safetensors",
        "models/loras/m.safetensors.part",
        "models/loras/m.ckpt",
        "models/loras/m.txt",
        "models/.worker/tmp/m.safetensors",
        "models/m.safetensors",
    )
    os.mkfifo(tmp_path / "models/loras/pipe.safetensors")
    (tmp_path / "models/loras/broken.safetensors").symlink_to("nowhere")
    (tmp_path / "models/loras/folder.safetensors").mkdir()

    assert names(tmp_path, Kind.LORA) == []
    for name in ("pipe", "broken", "folder"):
        path = tmp_path / f"models/loras/{name}.safetensors"
        assert inventory.look(tmp_path, Kind.LORA, path, {}) is None


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    put(tmp_path, "elsewhere/a.safetensors", "elsewhere/sub/b.safetensors")
    folder = tmp_path / "models" / "loras"
    folder.mkdir(parents=True)
    (folder / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "sub" / "loop").symlink_to(folder)
    (folder / "c.safetensors").symlink_to(tmp_path / "elsewhere" / "a.safetensors")

    assert names(tmp_path, Kind.LORA) == ["a", "b", "c"]


def test_a_folder_that_is_a_link_to_another_root_is_listed_once(tmp_path: Path) -> None:
    put(tmp_path, "ComfyUI/models/loras/a.safetensors")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "loras").symlink_to(tmp_path / "ComfyUI" / "models" / "loras")

    assert names(tmp_path, Kind.LORA) == ["a"]


@pytest.mark.parametrize(
    "text",
    [
        "deep",
        "deep.safetensors",
        "sub dir/deep",
        "sub dir/deep.safetensors",
        "sub dir_deep",
        SHA,
        SHA.upper(),
        SHA[:10],
    ],
)
def test_a_model_answers_to_every_spelling_of_a1111(tmp_path: Path, text: str) -> None:
    put(tmp_path, "models/loras/sub dir/deep.safetensors", "models/loras/other.safetensors")
    path = tmp_path / "models/loras/sub dir/deep.safetensors"
    manifest = manifests.new(SHA, path.stat(), "https://h/deep", "sd1", "an alias")
    manifests.write(tmp_path, layout.manifest_path(tmp_path, Kind.LORA, path), manifest)

    model = listed(tmp_path).find(Kind.LORA, text)

    assert model is not None
    assert (model.path, model.sha256, model.base, model.alias, model.source) == (
        path,
        SHA,
        "sd1",
        "an alias",
        "https://h/deep",
    )


@pytest.mark.parametrize("text", ["Deep", "dee", "deep ", "sub dir", "sub dir/other", SHA[:9]])
def test_a_model_answers_to_nothing_else(tmp_path: Path, text: str) -> None:
    put(tmp_path, "models/loras/sub dir/deep.safetensors", "models/loras/other.safetensors")

    assert listed(tmp_path).find(Kind.LORA, text) is None
    assert listed(tmp_path).find(Kind.CHECKPOINT, "deep") is None


def test_a_name_that_means_two_files_is_an_error_that_lists_them(tmp_path: Path) -> None:
    put(tmp_path, "models/loras/a/x.safetensors", "models/loras/b/x.safetensors")

    with pytest.raises(ModelNotFoundError, match="2 lora files are called 'x'") as caught:
        listed(tmp_path).find(Kind.LORA, "x")

    assert caught.value.hint == "Use one of: a_x, b_x."


def test_a_published_file_is_meant_by_its_stem_whatever_else_has_it(tmp_path: Path) -> None:
    put(tmp_path, "models/loras/a/x.safetensors", "models/loras/x.safetensors")

    model = listed(tmp_path).find(Kind.LORA, "x")

    assert model is not None
    assert model.path == tmp_path / "models/loras/x.safetensors"


def test_a_file_with_two_names_counts_once(tmp_path: Path) -> None:
    put(tmp_path, "models/loras/a.safetensors")
    os.link(tmp_path / "models/loras/a.safetensors", tmp_path / "models/loras/b.safetensors")

    found = listed(tmp_path)

    assert found.total_bytes == len("models/loras/a.safetensors")
    assert len(found.models(Kind.LORA)) == 2


def test_a_manifest_is_not_believed_of_a_file_that_changed(tmp_path: Path) -> None:
    path = tmp_path / "models/loras/a.safetensors"
    models.write_lora(path, seed="a")
    manifest = manifests.new(SHA, path.stat(), "https://h/a", "sd1", "")
    manifests.write(tmp_path, layout.manifest_path(tmp_path, Kind.LORA, path), manifest)
    before = inventory.scan(tmp_path, {})
    os.utime(path, ns=(0, 0))

    after = inventory.scan(tmp_path, before)

    assert before[path].manifest == manifest
    assert after[path].manifest is None


def test_a_file_whose_name_is_no_text_gets_one_that_json_can_carry(tmp_path: Path) -> None:
    put(tmp_path, os.fsdecode(b"models/loras/b\xffd\n.safetensors"))

    assert names(tmp_path, Kind.LORA) == ["b_d_"]


def test_a_folder_that_cannot_be_read_does_not_hide_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "models/loras/a.safetensors", "models/loras/sub/b.safetensors")
    scandir = os.scandir

    def refusing(path: Path) -> object:
        if Path(path).name == "sub":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)

    assert names(tmp_path, Kind.LORA) == ["a"]
