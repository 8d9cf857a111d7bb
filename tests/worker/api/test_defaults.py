"""What `POST options` sets: for the following jobs of this worker, and nowhere else."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import InvalidInputError, ModelNotFoundError
from simulator import models as files
from tests.conftest import running
from tests.worker.calling import SMALL, World, make_world, write_models

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def one_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("defaults")
    write_models(folder / "volume")
    with running("webui", "--models-dir", folder / "links") as webui:
        yield make_world(folder, webui)


@pytest.fixture
def world(one_world: World) -> World:
    """Return the one world, with no default of an earlier test."""
    unset = {"sd_model_checkpoint": None, "sd_vae": None, "CLIP_stop_at_last_layers": None}
    one_world.post("options", **unset)
    return one_world


def test_what_posted_options_set_holds_for_jobs_that_name_none_and_is_told(world: World) -> None:
    assert world.post("options", sd_model_checkpoint="b", sd_vae="soft.safetensors") is None

    used, warnings = world.made()
    assert used == "b"
    assert [text for text in warnings if "'b.safetensors" in text and "this worker alone" in text]
    assert [text for text in warnings if "'soft.safetensors'" in text]
    used, warnings = world.made(checkpoint="a", vae="None")
    assert (used, warnings) == ("a", [])
    by_option = {"sd_model_checkpoint": "a", "sd_vae": "None"}
    assert world.made(override_settings=by_option) == ("a", [])


def test_posted_options_are_not_passed_on_to_a1111_and_its_config(world: World) -> None:
    def selected() -> list[str]:
        """Return the checkpoints that A1111 was told to select: that of its first job, once."""
        journal = world.webui.get("/simulator/journal")["requests"]
        posted = [e for e in journal if (e["method"], e["path"]) == ("POST", "/sdapi/v1/options")]
        return [
            e["body"]["sd_model_checkpoint"] for e in posted if "sd_model_checkpoint" in e["body"]
        ]

    world.made(checkpoint="a")
    before = selected()

    world.post("options", sd_model_checkpoint="b")
    world.made()

    assert len(before) == 1
    assert selected() == before


def test_a_null_unsets_what_was_set(world: World) -> None:
    world.post("options", sd_model_checkpoint="b")
    world.post("options", sd_model_checkpoint=None)

    with pytest.raises(InvalidInputError, match="names no checkpoint"):
        world.made()


def test_the_options_show_what_was_set_and_no_option_of_a_job(world: World) -> None:
    world.post("options", sd_model_checkpoint="b", CLIP_stop_at_last_layers=2)
    world.made(checkpoint="a", override_settings={"eta_noise_seed_delta": 7})

    options = world.get("options")

    assert options["sd_model_checkpoint"].startswith("b.safetensors")
    assert options["CLIP_stop_at_last_layers"] == 2
    assert options["eta_noise_seed_delta"] == 0
    # What every request sets, and A1111 does not restore.
    assert options["sd_vae"] == "Automatic"
    assert options["persistent_cond_cache"] is True


def test_every_spelling_of_a_checkpoint_that_a1111_takes_is_taken(tmp_path: Path) -> None:
    digests = write_models(tmp_path / "volume")
    sub = tmp_path / "volume" / "models" / "checkpoints" / "zsub" / "deep.safetensors"
    files.write_checkpoint(sub, seed="deep")
    digest = digests["b"]
    with running("webui", "--models-dir", tmp_path / "links") as webui:
        world = make_world(tmp_path, webui)
        for spelling in (
            "b",
            "b.safetensors",
            f"b.safetensors [{digest[:10]}]",
            f"b [{digest[:10]}]",
        ):
            world.post("options", sd_model_checkpoint="a")
            world.post("options", sd_model_checkpoint=spelling)
            assert world.made()[0] == "b", spelling
        for spelling in (digest[:10], digest):  # Known from the first load on, as to A1111.
            world.post("options", sd_model_checkpoint="a")
            world.post("options", sd_model_checkpoint=spelling)
            assert world.made()[0] == "b", spelling
        for spelling in ("zsub/deep.safetensors", "zsub_deep", "deep"):
            world.post("options", sd_model_checkpoint="a")
            world.post("options", sd_model_checkpoint=spelling)
            assert world.made()[0] in {"zsub_deep", "deep"}, spelling


@pytest.mark.parametrize("value", ["nope", "b.safetensors [0123456789]", "", 5, "../b", ["b"]])
def test_a_checkpoint_that_is_not_there_is_refused_and_nothing_is_set(
    world: World, value: object
) -> None:
    world.post("options", sd_model_checkpoint="a")

    with pytest.raises((ModelNotFoundError, InvalidInputError)):
        world.post("options", sd_vae="soft", sd_model_checkpoint=value)

    used, warnings = world.made()
    assert used == "a"
    assert len(warnings) == 1


def test_another_option_needs_a_setting(world: World) -> None:
    with pytest.raises(InvalidInputError, match="eta_ddim") as caught:
        world.post("options", eta_ddim=0.5)

    assert "A1111_JOB_OPTIONS" in caught.value.hint


def test_an_option_that_a_setting_allows_holds_for_the_jobs_that_do_not_set_it(
    world: World,
) -> None:
    world.post("options", CLIP_stop_at_last_layers=2)

    answer = world.run({"prompt": "x", "checkpoint": "a", **SMALL})
    own = {"override_settings": {"CLIP_stop_at_last_layers": 3}}
    other = world.run({"prompt": "x", "checkpoint": "a", **SMALL, **own})

    assert json.loads(answer["info"])["clip_skip"] == 2
    assert any("CLIP_stop_at_last_layers" in text for text in answer["warnings"])
    assert json.loads(other["info"])["clip_skip"] == 3
    assert other["warnings"] == []


def test_an_infotext_that_names_its_checkpoint_gives_the_same_picture_all_the_same(
    world: World,
) -> None:
    first = world.run({"prompt": "a cat", "checkpoint": "a", **SMALL})
    infotext = json.loads(first["info"])["infotexts"][0]
    world.post(
        "options", sd_model_checkpoint="b", sd_vae="soft.safetensors", CLIP_stop_at_last_layers=3
    )

    again = world.run({"infotext": infotext})

    assert again["images"] == first["images"]
    assert not [text for text in again["warnings"] if "POST options" in text]


def test_an_infotext_that_names_none_is_made_as_any_job_that_names_none(world: World) -> None:
    world.post("options", sd_model_checkpoint="b", CLIP_stop_at_last_layers=3)

    answer = world.run({"infotext": "a cat\nSteps: 2, Sampler: Euler, Seed: 1, Size: 64x64"})

    info = json.loads(answer["info"])
    assert (info["sd_model_name"], info["clip_skip"]) == ("b", 3)
    assert len([text for text in answer["warnings"] if "POST options" in text]) == 2


@pytest.mark.parametrize(
    "options",
    [{"CLIP_stop_at_last_layers": "abc"}, {"CLIP_stop_at_last_layers": 99}, {"samples_format": 1}],
)
def test_an_option_with_a_value_that_a1111_would_choke_on_is_refused(
    world: World, options: dict[str, Any]
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        world.post("options", **options)

    assert [caught.value.details["field"]] == list(options)
