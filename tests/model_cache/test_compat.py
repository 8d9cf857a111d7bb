"""Which LoRAs work with which checkpoints: told from headers, which are read once."""

import json
import re
import time
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from model_cache import compat
from model_cache.__main__ import main
from model_cache.cache import ModelCache
from model_cache.volume import headers, layout
from model_cache.weights.architecture import Nature
from schemas.errors import JobCancelledError
from schemas.model_ref import Kind
from schemas.settings import CacheSettings
from simulator import models
from tests.conftest import ROOT


@pytest.fixture
def stocked(volume: Path) -> Path:
    folder = volume / "models"
    for base in ("sd1", "sdxl"):
        models.write_checkpoint(
            folder / "checkpoints" / f"{base}.safetensors", seed=base, base=base
        )
        models.write_lora(folder / "loras" / f"for_{base}.safetensors", seed=base, base=base)
    models.write_checkpoint(
        folder / "checkpoints" / "paint.safetensors", seed="p", base="sd1-inpaint"
    )
    odd(folder / "loras" / "odd.safetensors")
    odd(folder / "loras" / "told.safetensors", {"ss_base_model_version": "sdxl_base_v1-0"})
    (folder / "loras" / "cut.safetensors").write_bytes(b"\0" * 20)
    return volume


def odd(path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a LoRA of which no shape tells the base."""
    header: dict[str, Any] = {
        "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": {
            "dtype": "F16",
            "shape": [4, 8],
            "data_offsets": [0, 64],
        }
    }
    if metadata:
        header["__metadata__"] = metadata
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(64))


def reported(volume: Path) -> compat.Report:
    cache = ModelCache(CacheSettings(volume=volume))
    return compat.report(
        cache, cache.models(Kind.CHECKPOINT), cache.models(Kind.LORA), cancelled=Event()
    )


def test_every_checkpoint_is_compared_with_every_lora(stocked: Path) -> None:
    told = reported(stocked).as_json()

    assert {key: told[key] for key in ("total_tests", "compatible", "incompatible", "unknown")} == {
        "total_tests": 15,
        "compatible": 4,
        "incompatible": 8,
        "unknown": 3,
    }
    assert told["success_rate"] == 26.7
    rows = {row["name"]: row for row in told["models"]}
    assert rows["sd1"]["compatible"] == rows["paint"]["compatible"] == ["for_sd1"]
    assert rows["sdxl"]["compatible"] == ["for_sdxl", "told"]
    assert rows["sdxl"]["unknown"] == ["odd"]
    assert rows["sdxl"]["summary"] == "2/5 (40.0%)"
    assert rows["sdxl"]["base_by"] == "shapes"


def test_a_reason_says_how_each_base_is_known(stocked: Path) -> None:
    rows = {row["name"]: row for row in reported(stocked).as_json()["models"]}

    reasons = {entry["lora"]: entry["reason"] for entry in rows["sd1"]["incompatible"]}
    assert reasons["told"] == (
        "The lora `told` is made for sdxl (by its header's metadata), the checkpoint `sd1` is sd1"
        " (by the shapes of its tensors)."
    )
    assert "by the shapes of its tensors), the checkpoint" in reasons["for_sdxl"]
    assert "not a whole safetensors file" in reasons["cut"]


def test_the_page_shows_the_report_that_is_made(volume: Path) -> None:
    folder = volume / "models"
    models.write_checkpoint(folder / "checkpoints" / "deliberate_v6.safetensors", seed="d")
    models.write_lora(folder / "loras" / "detail.safetensors", seed="d")
    odd(folder / "loras" / "ink.safetensors", {"ss_base_model_version": "sdxl_base_v1-0"})
    page = (ROOT / "docs" / "compatibility.md").read_text()
    shown = next(
        text for text in re.findall(r"```json\n(.*?)```", page, re.DOTALL) if "generated" in text
    )

    made = reported(volume).as_json()

    assert {**json.loads(shown), "generated": made["generated"]} == made


def test_a_volume_without_models_has_an_empty_report(volume: Path) -> None:
    told = reported(volume).as_json()

    assert (told["total_tests"], told["success_rate"], told["models"]) == (0, 0.0, [])


def test_what_one_process_read_the_next_one_does_not(stocked: Path) -> None:
    first = reported(stocked)
    noted = headers.load(stocked)
    assert {path.name for path, _, _ in noted} == {
        "sd1.safetensors",
        "sdxl.safetensors",
        "paint.safetensors",
        "for_sd1.safetensors",
        "for_sdxl.safetensors",
        "odd.safetensors",
        "told.safetensors",
    }
    state = next(state for state in noted if state[0].stem == "for_sdxl")
    headers.save(stocked, {state: Nature(Kind.LORA, "flux", "", base_by="metadata")})

    again = reported(stocked)

    assert first.compatible == 4
    assert again.compatible == 3  # It believed the note.
    assert len(headers.load(stocked)) == len(noted)


def test_a_file_that_changed_is_read_again(stocked: Path) -> None:
    reported(stocked)
    models.write_lora(stocked / "models" / "loras" / "for_sd1.safetensors", seed="new", base="sdxl")

    rows = {row.checkpoint.model.name: row for row in reported(stocked).rows}

    assert rows["sdxl"].compatible == ("for_sd1", "for_sdxl", "told")


def test_a_file_that_has_gone_is_no_longer_noted(stocked: Path) -> None:
    reported(stocked)
    (stocked / "models" / "loras" / "odd.safetensors").unlink()
    odd(stocked / "models" / "loras" / "another.safetensors")

    reported(stocked)

    names = {path.stem for path, _, _ in headers.load(stocked)}
    assert "another" in names
    assert "odd" not in names


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"\xff",
        b'{"version": 2, "files": {}}',
        b'{"version": 1, "files": []}',
        b'{"version": 1, "files": {"a": 5, "b": [1, 2, "nope", "sd1", "", ""], "c": [1, 2, []]}}',
    ],
)
def test_a_damaged_note_is_as_good_as_none(stocked: Path, content: bytes) -> None:
    place = layout.headers_path(stocked)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(content)

    assert headers.load(stocked) == {}
    assert reported(stocked).compatible == 4


def test_a_note_that_says_it_all_is_not_written_again(stocked: Path, tmp_path: Path) -> None:
    baked = tmp_path / "baked" / "loras" / "in_image.safetensors"
    models.write_lora(baked, seed="b")
    settings = CacheSettings(volume=stocked, baked=tmp_path / "baked")

    def written() -> int:
        cache = ModelCache(settings)
        compat.report(cache, (), cache.models(Kind.LORA), cancelled=Event())
        return layout.headers_path(stocked).stat().st_ino

    assert written() == written()
    assert "in_image" not in {path.stem for path, _, _ in headers.load(stocked)}


def test_a_volume_that_cannot_be_written_has_its_report_all_the_same(stocked: Path) -> None:
    layout.headers_path(stocked).mkdir(parents=True)

    assert reported(stocked).compatible == 4


def test_a_cancel_ends_the_report(stocked: Path) -> None:
    cancelled = Event()
    cancelled.set()
    cache = ModelCache(CacheSettings(volume=stocked))

    with pytest.raises(JobCancelledError):
        compat.report(cache, cache.models(Kind.CHECKPOINT), (), cancelled=cancelled)


def command(volume: Path, *argv: str) -> int:
    return main(["compat", *argv], {"A1111_CACHE_VOLUME": str(volume)})


def test_the_command_prints_totals_and_a_table_for_each_checkpoint(
    stocked: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(stocked) == 0

    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["Total", "tests", "15"]
    assert "sdxl   2/5 (40.0%)" in lines
    table = lines[lines.index("sdxl: sdxl, by its shapes") + 1 :]
    assert table[0].split() == ["LORA", "BASE", "KNOWN", "BY", "FITS", "REASON"]
    assert table[1].split() == ["for_sdxl", "sdxl", "shapes", "yes"]
    assert table[3].split() == ["odd", "unknown", "unknown"]
    assert table[4].startswith("cut")


def test_the_command_can_be_asked_of_one_pair(
    stocked: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(stocked, "--model", "sd1", "--lora", "told.safetensors", "--json") == 0

    told = json.loads(capsys.readouterr().out)
    assert (told["total_tests"], told["incompatible"]) == (1, 1)
    assert command(stocked, "--model", "nope") == 1
    assert "no checkpoint called" in capsys.readouterr().err


@pytest.mark.slow
def test_fifty_checkpoints_and_a_thousand_loras_take_seconds(volume: Path) -> None:
    folder = volume / "models"
    for number in range(50):
        path = folder / "checkpoints" / f"c{number}.safetensors"
        models.write_checkpoint(path, seed=str(number), base=("sd1", "sdxl")[number % 2])
    (folder / "loras").mkdir()
    for number in range(1000):
        odd(folder / "loras" / f"l{number}.safetensors", {"ss_base_model_version": "sd_v1"})
    reported(volume)

    started = time.monotonic()
    again = reported(volume)

    assert (again.total, again.compatible) == (50_000, 25_000)
    assert time.monotonic() - started < 10
