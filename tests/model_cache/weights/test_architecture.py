from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from model_cache.weights import architecture, header
from model_cache.weights.header import Header
from schemas.model_ref import Kind
from simulator import models

UNET = "model.diffusion_model."


def told(shapes: Mapping[str, tuple[int, ...]], **metadata: str) -> tuple[Kind | None, str]:
    nature = architecture.nature(Header(shapes, metadata))
    return nature.kind, nature.base


@pytest.mark.parametrize(
    ("write", "kind", "base"),
    [
        *(
            pytest.param(
                lambda path, base=base: models.write_checkpoint(path, seed="m", base=base),
                Kind.CHECKPOINT,
                base,
                id=f"checkpoint {base}",
            )
            for base in models.CHECKPOINTS
        ),
        *(
            pytest.param(
                lambda path, base=base, write=write: write(path, seed="m", base=base),
                Kind.LORA,
                base,
                id=f"{write.__name__} {base}",
            )
            for base in ("sd1", "sd2", "sdxl", "flux")
            for write in (models.write_lora, models.write_loha)
        ),
        *(
            pytest.param(
                lambda path, base=base: models.write_embedding(path, seed="m", base=base),
                Kind.EMBEDDING,
                base,
                id=f"embedding {base}",
            )
            for base in models.EMBEDDINGS
        ),
        *(
            pytest.param(
                lambda path, base=base: models.write_controlnet(path, seed="m", base=base),
                Kind.CONTROLNET,
                base,
                id=f"controlnet {base}",
            )
            for base in models.CONTROLNETS
        ),
        pytest.param(lambda path: models.write_vae(path, seed="m"), Kind.VAE, "unknown", id="vae"),
        pytest.param(
            lambda path: models.write_upscaler(path, seed="m"),
            Kind.UPSCALER,
            "unknown",
            id="upscaler",
        ),
    ],
)
def test_a_real_looking_file_is_told_for_what_it_is(
    tmp_path: Path, write: Callable[[Path], str], kind: Kind, base: str
) -> None:
    write(tmp_path / "m")

    nature = architecture.nature(header.read(tmp_path / "m", "m"))

    assert (nature.kind, nature.base) == (kind, base)


CROSS = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"


@pytest.mark.parametrize(
    ("shapes", "kind", "base"),
    [
        pytest.param(
            {
                f"{UNET}input_blocks.0.0.weight": (320, 9, 3, 3),
                "conditioner.embedders.1.model.ln_final.weight": (1280,),
            },
            Kind.CHECKPOINT,
            "sdxl-inpaint",
            id="SDXL inpainting",
        ),
        pytest.param(
            {f"{UNET}joint_blocks.0.context_block.attn.qkv.weight": (8, 8)},
            Kind.CHECKPOINT,
            "sd3",
            id="SD 3",
        ),
        pytest.param({f"{UNET}other.weight": (8,)}, Kind.CHECKPOINT, "unknown", id="odd UNet"),
        pytest.param(
            {"first_stage_model.decoder.conv_in.weight": (8, 4)}, Kind.VAE, "unknown", id="bare VAE"
        ),
        pytest.param(
            {"unet.down_blocks.0.attn2.to_k.lora_A.weight": (4, 2048)},
            Kind.LORA,
            "sdxl",
            id="diffusers' LoRA",
        ),
        pytest.param(
            {f"{CROSS}.lokr_w1": (16, 24), f"{CROSS}.lokr_w2": (20, 32)},
            Kind.LORA,
            "sd1",
            id="LoKr",
        ),
        pytest.param(
            {
                f"{CROSS}.lokr_w1": (16, 32),
                f"{CROSS}.lokr_w2_a": (20, 4),
                f"{CROSS}.lokr_w2_b": (4, 64),
            },
            Kind.LORA,
            "sdxl",
            id="LoKr in three parts",
        ),
        pytest.param({f"{CROSS}.diff": (320, 1024)}, Kind.LORA, "sd2", id="full difference"),
        pytest.param(
            {"lora_unet_input_blocks_7_1_transformer_blocks_9_ff.lora_down.weight": (4, 1280)},
            Kind.LORA,
            "sdxl",
            id="LoRA of a deep UNet",
        ),
        pytest.param(
            {"lora_unet_joint_blocks_0.lora_up.weight": (4, 4)}, Kind.LORA, "sd3", id="SD 3 LoRA"
        ),
        pytest.param(
            {"lora_controlnet": (), f"{CROSS}.lora_up.weight": (4, 4)},
            Kind.CONTROLNET,
            "unknown",
            id="control LoRA",
        ),
        pytest.param({"<token>": (768,)}, Kind.EMBEDDING, "sd1", id="embedding of one tensor"),
        pytest.param({"emb_params": (1, 5)}, Kind.EMBEDDING, "unknown", id="odd embedding"),
        pytest.param({"weight": (5,)}, None, "unknown", id="one tensor that says nothing"),
        pytest.param({}, None, "unknown", id="nothing"),
    ],
)
def test_names_and_shapes_of_tensors_tell(
    shapes: dict[str, tuple[int, ...]], kind: Kind | None, base: str
) -> None:
    assert told(shapes) == (kind, base)


STYLE = {"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": (4, 768)}


@pytest.mark.parametrize(
    ("metadata", "base"),
    [
        ({"ss_base_model_version": "sdxl_base_v1-0"}, "sdxl"),
        ({"ss_base_model_version": "sd_v1"}, "sd1"),
        ({"ss_base_model_version": "sd_v2_v"}, "sd2"),
        ({"ss_v2": "True"}, "sd2"),
        ({"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}, "sdxl"),
        ({"modelspec.architecture": "stable-diffusion-v1/lora"}, "sd1"),
        ({}, "unknown"),
    ],
)
def test_a_lora_whose_shapes_do_not_tell_is_what_its_trainer_says(
    metadata: dict[str, str], base: str
) -> None:
    assert told(STYLE, **metadata) == (Kind.LORA, base)


def test_shapes_say_more_than_metadata() -> None:
    shapes = {f"{CROSS}.lora_down.weight": (4, 768)}

    assert told(shapes, ss_base_model_version="sdxl_base_v1-0") == (Kind.LORA, "sd1")


@pytest.mark.parametrize(
    ("output_name", "alias"),
    [("detail", "detail"), ("a\nb", ""), ("\ud800", ""), ("x" * 500, "")],
)
def test_an_alias_is_taken_only_if_a_tag_and_json_can_carry_it(
    output_name: str, alias: str
) -> None:
    nature = architecture.nature(Header(STYLE, {"ss_output_name": output_name}))

    assert nature.alias == alias
