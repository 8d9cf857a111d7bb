from pathlib import Path

import pytest

from model_cache.volume import asked
from model_cache.volume.asked import Asked
from schemas.errors import InvalidInputError
from schemas.model_ref import Kind

VOLUME = Path("/mnt/volume")


@pytest.mark.parametrize(
    ("path", "kind", "name"),
    [
        ("/mnt/volume/models/loras/ink.safetensors", Kind.LORA, "ink"),
        ("/runpod-volume/models/loras/ink.safetensors", Kind.LORA, "ink"),
        (
            "/workspace/stable-diffusion-webui/models/Stable-diffusion/v1.5.ckpt",
            Kind.CHECKPOINT,
            "v1.5",
        ),
        ("/workspace/ComfyUI/models/upscale_models/4x.pth", Kind.UPSCALER, "4x"),
        (
            "stable-diffusion-webui/extensions/sd-webui-controlnet/models/canny.pth",
            Kind.CONTROLNET,
            "canny",
        ),
        ("stable-diffusion-webui/embeddings/neg.pt", Kind.EMBEDDING, "neg"),
        ("models/lora/styles/dark/ink.safetensors", Kind.LORA, "ink"),
        ("vae/soft", Kind.VAE, "soft"),
        ("checkpoints", Kind.CHECKPOINT, None),
        ("models//checkpoints/", Kind.CHECKPOINT, None),
        ("loras/styles/", Kind.LORA, None),
    ],
)
def test_a_path_that_an_older_worker_took_tells_kind_and_name(
    path: str, kind: Kind, name: str | None
) -> None:
    assert asked.file(VOLUME, path, "download_path") == (kind, name)


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "//etc/passwd",
        "/mnt/volumes/models/loras/x",
        "/mnt/volume/models/loras/../../../etc/passwd",
        "loras/../x",
        "../x",
        "loras/.hidden",
        "models/.worker/manifests/lora/x.json",
        "loras\\x",
        "loras/x\n",
        "loras/x\0",
        "elsewhere/x.safetensors",
        "lorasx/x.safetensors",
    ],
)
def test_a_path_that_leads_elsewhere_is_refused_by_the_field_that_holds_it(path: str) -> None:
    with pytest.raises(InvalidInputError) as refused:
        asked.file(VOLUME, path, "download_path")

    assert refused.value.details["field"] == "download_path"


@pytest.mark.parametrize(
    "path", ["", "/", "/mnt/volume", "models", "stable-diffusion-webui/models"]
)
def test_a_folder_above_those_of_models_tells_no_kind(path: str) -> None:
    if path != "/":
        assert asked.read(VOLUME, path, "sync_path").kind is None
    with pytest.raises(InvalidInputError):
        asked.file(VOLUME, path, "download_path")


def test_a_folder_below_another_tells_the_kind_where_that_one_does_not() -> None:
    above = asked.read(VOLUME, "/mnt/volume/stable-diffusion-webui/models", "sync_path")

    assert asked.below(VOLUME, above, "Lora/styles") == Asked(Kind.LORA, ("styles",))
    loras = asked.read(VOLUME, "loras", "sync_path")
    assert asked.below(VOLUME, loras, "styles") == Asked(Kind.LORA, ("styles",))
    with pytest.raises(InvalidInputError):
        asked.below(VOLUME, loras, "../checkpoints")


@pytest.mark.parametrize(
    ("path", "is_there"),
    [
        ("models/loras/ink.safetensors", True),
        ("/workspace/models/loras/ink", True),
        ("loras/ink.safetensors", True),
        ("models//loras/", True),
        ("loras", True),
        ("Lora/ink.safetensors", False),
        ("loras/styles/ink.safetensors", False),
        ("loras/styles/", False),
        ("loras/inky.safetensors", False),
        ("loras/k.safetensors", False),
    ],
)
def test_a_path_names_the_file_that_lies_there_by_whatever_mount(
    path: str, *, is_there: bool
) -> None:
    found = VOLUME / "models" / "loras" / "ink.safetensors"

    assert asked.names(VOLUME, path, found) is is_there
    assert not asked.names(VOLUME, path, Path("/baked/models/loras/ink.safetensors"))
