import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from model_cache.models import Origin
from model_cache.volume import inventory, layout, manifests
from model_cache.volume.inventory import Inventory
from model_cache.weights import header
from schemas.errors import ModelNotFoundError
from schemas.model_ref import Kind
from simulator import models
from simulator.pickles import write_pickle
from tests.model_cache.conftest import safetensors

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
        (Kind.UPSCALER, "stable-diffusion-webui/models/SwinIR/m"),
        (Kind.UPSCALER, "stable-diffusion-webui-forge/models/DAT/m"),
        (Kind.CONTROLNET, "stable-diffusion-webui/extensions/sd-webui-controlnet/models/m"),
        (Kind.CONTROLNET, "ComfyUI/models/t2i_adapter/m"),
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


def test_pickles_are_listed_of_the_kinds_that_may_have_them(tmp_path: Path) -> None:
    put(
        tmp_path,
        "models/upscalers/a.pth",
        "models/loras/b.pt",
        "models/Stable-diffusion/c.vae.pt",
        "models/Stable-diffusion/d.ckpt",
    )

    files = inventory.scan(tmp_path, {}, allow_pickle=[Kind.UPSCALER, Kind.VAE])

    found = Inventory(tmp_path, files)
    assert {kind: [m.name for m in found.models(kind)] for kind in Kind if found.models(kind)} == {
        Kind.UPSCALER: ["a"],
        Kind.VAE: ["c.vae"],
    }
    assert all(model.is_pickle for model in found.models(Kind.UPSCALER))
    assert [model.suffix for model in found.models(Kind.VAE)] == [".pt"]


def bake(image: Path, volume: Path) -> Path:
    """Fill an image with a model as `pull` left it on a volume; return its path in the image."""
    path = volume / "models/loras/x.safetensors"
    models.write_lora(path, seed="x")
    manifest = manifests.new(SHA, path.stat(), "https://h/x", "sd1", "")
    manifests.write(volume, layout.manifest_path(volume, Kind.LORA, path), manifest)
    shutil.copytree(volume / "models", image)
    shutil.rmtree(volume / "models")
    baked = image / "loras/x.safetensors"
    # As an image keeps it: whole seconds.
    os.utime(baked, ns=(0, manifest.mtime_ns // 10**9 * 10**9))
    return baked


def test_a_baked_model_is_known_by_the_manifest_that_came_with_it(tmp_path: Path) -> None:
    image, volume = tmp_path / "image", tmp_path / "volume"
    path = bake(image, volume)

    found = Inventory(volume, inventory.scan(volume, {}, baked=image))

    [model] = found.from_source(Kind.LORA, "https://h/x")
    assert (model.path, model.name, model.sha256) == (path, "x", SHA)
    assert model.origin is Origin.BAKED
    assert found.total_bytes == 0


def test_a_baked_file_that_is_not_the_one_of_its_manifest_is_not_known(tmp_path: Path) -> None:
    image, volume = tmp_path / "image", tmp_path / "volume"
    path = bake(image, volume)
    os.utime(path, ns=(0, 0))

    [model] = Inventory(volume, inventory.scan(volume, {}, baked=image)).models(Kind.LORA)

    assert (model.sha256, model.source) == (None, "")


def test_a_baked_file_in_a_sub_folder_has_no_manifest(tmp_path: Path) -> None:
    put(tmp_path, "image/loras/sub/x.safetensors")

    [model] = Inventory(
        tmp_path / "volume", inventory.scan(tmp_path / "volume", {}, baked=tmp_path / "image")
    ).models(Kind.LORA)

    assert (model.name, model.sha256) == ("x", None)


def cached(volume: Path, name: str, revision: str = "a" * 40) -> Path:
    """Return where a file of the repository org/repo lies in the platform's cache."""
    hub = volume / "huggingface-cache/hub/models--org--repo"
    blob = hub / "blobs" / f"{revision}-{name.replace('/', '-')}"
    link = hub / "snapshots" / revision / name
    link.parent.mkdir(parents=True, exist_ok=True)
    blob.parent.mkdir(exist_ok=True)
    link.symlink_to(blob)
    return blob


def test_models_of_the_platforms_cache_are_listed_by_what_their_headers_say(
    tmp_path: Path,
) -> None:
    models.write_checkpoint(cached(tmp_path, "model.safetensors"), seed="c")
    models.write_lora(cached(tmp_path, "lora.safetensors"), seed="l")
    cached(tmp_path, "unknown.safetensors").write_bytes(safetensors({}))
    cached(tmp_path, "damaged.safetensors").write_bytes(b"damaged")
    cached(tmp_path, "gone.safetensors")
    write_pickle(cached(tmp_path, "pickle.ckpt"), seed="p")

    found = listed(tmp_path)

    [checkpoint] = found.models(Kind.CHECKPOINT)
    assert (checkpoint.name, checkpoint.origin) == ("model", Origin.HUB)
    assert found.find(Kind.CHECKPOINT, "org/repo/model") == checkpoint
    assert found.from_source(Kind.CHECKPOINT, checkpoint.source) == (checkpoint,)
    assert checkpoint.source.startswith("hf:org/repo/model.safetensors@")
    assert checkpoint.sha256 is None
    assert [model.name for model in found.models(Kind.LORA)] == ["lora"]
    assert found.total_bytes == 0


def test_the_digest_of_a_cached_file_is_remembered_on_the_volume(tmp_path: Path) -> None:
    models.write_lora(cached(tmp_path, "lora.safetensors"), seed="l")
    [path] = inventory.scan(tmp_path, {})
    manifest = manifests.new(SHA, path.stat(), "", "sd1", "")
    manifests.write(tmp_path, layout.manifest_path(tmp_path, Kind.LORA, path), manifest)

    once = inventory.scan(tmp_path, {})
    again = inventory.scan(tmp_path, once)

    assert once[path].manifest == again[path].manifest == manifest


def test_two_revisions_of_a_cached_file_have_two_names(tmp_path: Path) -> None:
    for revision in ("a" * 40, "b" * 40):
        models.write_lora(cached(tmp_path, "lora.safetensors", revision), seed=revision)

    assert len(set(names(tmp_path, Kind.LORA))) == 2


def test_only_what_can_be_fetched_again_is_published(tmp_path: Path) -> None:
    put(tmp_path, "models/loras/a.safetensors", "models/Lora/b.safetensors")
    put(tmp_path, "models/loras/c.safetensors", "models/loras/d.safetensors")
    for place, source in (("loras/a", "https://h/a"), ("Lora/b", "https://h/b"), ("loras/c", "")):
        path = tmp_path / "models" / f"{place}.safetensors"
        manifest = manifests.new(SHA, path.stat(), source, "sd1", "")
        manifests.write(tmp_path, layout.manifest_path(tmp_path, Kind.LORA, path), manifest)

    origins = {model.name: model.origin for model in listed(tmp_path).models(Kind.LORA)}

    assert origins == {
        "a": Origin.PUBLISHED,
        "b": Origin.BROUGHT,
        "c": Origin.BROUGHT,
        "d": Origin.BROUGHT,
    }


def test_a_volume_that_answers_slowly_is_looked_at_by_several_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, *(f"models/loras/m{number}.safetensors" for number in range(200)))
    quick = inventory.scan(tmp_path, {})
    monkeypatch.setattr(inventory, "_SLOW_S", 0.0)

    assert inventory.scan(tmp_path, {}) == quick


def test_a_file_that_becomes_another_kind_changes_its_shelf(tmp_path: Path) -> None:
    blob = cached(tmp_path, "m.safetensors")
    models.write_lora(blob, seed="m")
    [found] = inventory.scan(tmp_path, {}).values()
    before = listed(tmp_path)

    after = before.with_file(replace(found, kind=Kind.VAE))

    assert [model.name for model in after.models(Kind.VAE)] == ["m"]
    assert after.models(Kind.LORA) == ()
    assert after.without(tmp_path / "nowhere") is after


def test_a_cached_file_that_the_disk_does_not_give_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    models.write_lora(cached(tmp_path, "lora.safetensors"), seed="l")

    def failing(*_: object) -> header.Header:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(header, "read", failing)

    assert names(tmp_path, Kind.LORA) == []
    assert "lora.safetensors cannot be read: Input/output error" in caplog.text


def test_a_manifest_that_was_written_anew_is_read_again(tmp_path: Path) -> None:
    path = layout.published_path(tmp_path, Kind.LORA, "x")
    models.write_lora(path, seed="x")
    place = layout.manifest_path(tmp_path, Kind.LORA, path)
    manifest = manifests.new(SHA, path.stat(), "https://h/a", "sd1", "")
    manifests.write(tmp_path, place, manifest)
    known = inventory.scan(tmp_path, {})
    assert inventory.scan(tmp_path, known)[path] is known[path]

    newer = manifests.with_sources(manifest, ["https://h/b"], manifest.created)
    manifests.write(tmp_path, place, newer)
    seen = inventory.scan(tmp_path, known)
    assert seen[path].manifest == newer

    # What was known of the very same file is true, whatever becomes of its manifest.
    manifests.write(tmp_path, place, newer.model_copy(update={"mtime_ns": 1}))
    assert inventory.scan(tmp_path, seen)[path].manifest == newer
    place.unlink()
    assert inventory.scan(tmp_path, seen)[path].manifest == newer
