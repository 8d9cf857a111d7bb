import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simulator import models


def read(path: Path) -> tuple[dict[str, Any], bytes]:
    """Parse by the rules of the format, which is all that a reader may rely on."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    assert raw[8:9] == b"{"
    header: dict[str, Any] = json.loads(raw[8 : 8 + length])
    data = raw[8 + length :]
    position = 0
    for name, tensor in sorted(
        ((k, v) for k, v in header.items() if k != "__metadata__"),
        key=lambda item: item[1]["data_offsets"],
    ):
        start, end = tensor["data_offsets"]
        count = 1
        for dimension in tensor["shape"]:
            count *= dimension
        assert start == position, f"hole or overlap before {name}"
        assert end - start == count * {"F16": 2, "U8": 1}[tensor["dtype"]], name
        position = end
    assert position == len(data)
    return header, data


def shape_of(path: Path, ending: str) -> list[int]:
    header, _ = read(path)
    shapes: list[list[int]] = [v["shape"] for k, v in header.items() if k.endswith(ending)]
    return shapes[0]


WRITERS: list[Any] = [
    *(
        pytest.param(lambda p, b=base: models.write_checkpoint(p, seed="s", base=b), id=base)
        for base in models.CHECKPOINTS
    ),
    *(
        pytest.param(lambda p, b=base: models.write_lora(p, seed="s", base=b), id=f"lora-{base}")
        for base in ("sd1", "sd2", "sdxl", "flux")
    ),
    *(
        pytest.param(lambda p, b=base: models.write_embedding(p, seed="s", base=b), id=f"ti-{base}")
        for base in models.EMBEDDINGS
    ),
    *(
        pytest.param(
            lambda p, b=base: models.write_controlnet(p, seed="s", base=b), id=f"cn-{base}"
        )
        for base in models.CONTROLNETS
    ),
    pytest.param(lambda p: models.write_loha(p, seed="s"), id="loha"),
    pytest.param(lambda p: models.write_vae(p, seed="s"), id="vae"),
    pytest.param(lambda p: models.write_upscaler(p, seed="s"), id="upscaler"),
]


@pytest.mark.parametrize("write", WRITERS)
def test_every_kind_is_a_small_valid_safetensors_file(
    write: Callable[[Path], str], tmp_path: Path
) -> None:
    path = tmp_path / "new" / "model.safetensors"

    digest = write(path)

    read(path)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert path.stat().st_size < 300_000
    assert [p.name for p in path.parent.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize(
    ("base", "block", "width"),
    [("sd1", 2, 768), ("sd2", 2, 1024), ("sdxl", 4, 2048), ("sdxl-refiner", 4, 1280)],
)
def test_a_checkpoint_tells_its_base_by_the_width_of_its_cross_attention(
    base: str, block: int, width: int, tmp_path: Path
) -> None:
    models.write_checkpoint(tmp_path / "c", seed="s", base=base)

    ending = f"input_blocks.{block}.1.transformer_blocks.0.attn2.to_k.weight"
    assert shape_of(tmp_path / "c", ending)[-1] == width


def test_an_inpainting_checkpoint_takes_nine_channels(tmp_path: Path) -> None:
    models.write_checkpoint(tmp_path / "c", seed="s", base="sd1-inpaint")

    assert shape_of(tmp_path / "c", "input_blocks.0.0.weight") == [320, 9, 3, 3]


@pytest.mark.parametrize(("base", "width"), [("sd1", 768), ("sd2", 1024), ("sdxl", 2048)])
def test_a_lora_tells_its_base_by_the_inputs_of_its_cross_attention(
    base: str, width: int, tmp_path: Path
) -> None:
    models.write_lora(tmp_path / "l", seed="s", base=base)

    assert shape_of(tmp_path / "l", "attn2_to_k.lora_down.weight")[1] == width


def test_a_lora_carries_the_metadata_it_is_given_and_none_otherwise(tmp_path: Path) -> None:
    models.write_lora(
        tmp_path / "with", seed="s", metadata=models.kohya_metadata("sdxl", "my style")
    )
    models.write_lora(tmp_path / "without", seed="s")

    metadata = read(tmp_path / "with")[0]["__metadata__"]
    assert metadata["ss_output_name"] == "my style"
    assert metadata["ss_base_model_version"].startswith("sdxl_")
    assert "__metadata__" not in read(tmp_path / "without")[0]


def test_the_bytes_follow_from_the_seed_alone(tmp_path: Path) -> None:
    first = models.write_checkpoint(tmp_path / "a", seed="one", size_bytes=3_000_000)
    again = models.write_checkpoint(tmp_path / "b", seed="one", size_bytes=3_000_000)
    other = models.write_checkpoint(tmp_path / "c", seed="two", size_bytes=3_000_000)

    assert first == again
    assert first != other


def test_weights_are_finite_unless_asked_to_be_nan(tmp_path: Path) -> None:
    models.write_checkpoint(tmp_path / "good", seed="s")
    models.write_checkpoint(tmp_path / "bad", seed="s", nan=True)

    def nans(path: Path) -> int:
        _, data = read(path)
        values = struct.unpack(f"<{len(data) // 2}e", data)
        return sum(value != value for value in values)  # noqa: PLR0124 - NaN differs from itself

    assert nans(tmp_path / "good") == 0
    assert nans(tmp_path / "bad") == len(read(tmp_path / "bad")[1]) // 2


@pytest.mark.parametrize("size", [200_001, 1 << 20, 2_500_003, 9_999_999, 10_000_000])
def test_a_file_can_be_made_to_weigh_exactly_so_much(size: int, tmp_path: Path) -> None:
    models.write_checkpoint(tmp_path / "c", seed="s", size_bytes=size)

    read(tmp_path / "c")
    assert (tmp_path / "c").stat().st_size == size


def test_no_two_chunks_of_a_large_file_are_alike(tmp_path: Path) -> None:
    models.write_checkpoint(tmp_path / "c", seed="s", size_bytes=5_000_000)

    header, data = read(tmp_path / "c")
    start, end = header[models.FILLER]["data_offsets"]
    chunks = [data[i : i + 4096] for i in range(start, end, models.CHUNK)]
    assert len(set(chunks)) == len(chunks) > 3


def test_a_size_that_cannot_hold_the_tensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="5000 bytes"):
        models.write_checkpoint(tmp_path / "c", seed="s", size_bytes=5000)

    assert not (tmp_path / "c").exists()


def test_seeding_a_world_twice_changes_nothing(tmp_path: Path) -> None:
    written = models.seed_world(tmp_path)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}

    assert models.seed_world(tmp_path) == []
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before
    assert [p.name for p in written] == ["simulated_v1.safetensors", "simulated_detail.safetensors"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "checkpoints",
        "embeddings",
        "loras",
        "vae",
    ]


def test_the_command_line_names_the_files_it_wrote(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert models.main([str(tmp_path)]) == 0

    assert [Path(line).name for line in capsys.readouterr().out.splitlines()] == [
        "simulated_v1.safetensors",
        "simulated_detail.safetensors",
    ]
