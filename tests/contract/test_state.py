"""What one request leaves for the next: options, overrides that leak, the loaded checkpoint."""

import json
from pathlib import Path
from typing import Any

import pytest

from simulator import models
from tests.contract.conftest import Start, StartProcess, Webui, pixels


def checkpoint(webui: Webui) -> Any:
    return webui.options()["sd_model_checkpoint"]


def used(answer: dict[str, Any]) -> str:
    return str(answer["info"]["sd_model_name"])


def override(name: Any, *, restore: bool = True) -> dict[str, Any]:
    return {
        "override_settings": {"sd_model_checkpoint": name},
        "override_settings_restore_afterwards": restore,
    }


def test_an_override_of_an_option_that_was_never_set_leaks_into_later_jobs(webui: Webui) -> None:
    assert webui.options()["eta_noise_seed_delta"] == 0

    webui.generate(override_settings={"eta_noise_seed_delta": 31337})

    assert webui.options()["eta_noise_seed_delta"] == 31337.0
    later = webui.generate(sampler_name="Euler a")
    assert "ENSD: 31337" in later["info"]["infotexts"][0]


def test_an_override_of_an_option_that_was_set_is_taken_back(webui: Webui) -> None:
    webui.post("options", {"eta_noise_seed_delta": 0})

    webui.generate(override_settings={"eta_noise_seed_delta": 31337})

    assert webui.options()["eta_noise_seed_delta"] == 0


def test_an_overridden_checkpoint_stays_loaded_while_the_option_goes_back(webui: Webui) -> None:
    webui.generate()
    alpha = checkpoint(webui)

    assert used(webui.generate(**override("beta"))) == "beta"
    assert checkpoint(webui) == alpha
    assert webui.journal()["loaded"].startswith("below/beta.safetensors [")
    assert used(webui.generate()) == "alpha"
    assert webui.journal()["loads"] == 3


def test_the_same_override_again_loads_nothing(webui: Webui) -> None:
    first = webui.generate(**override("beta"))
    loads = webui.journal()["loads"]

    again = webui.generate(**override("beta"))

    assert webui.journal()["loads"] == loads
    assert pixels(again) == pixels(first)


def test_an_override_that_stays_keeps_the_spelling_that_was_sent(webui: Webui) -> None:
    webui.generate(**override("beta"))
    webui.generate(**override("beta", restore=False))

    assert checkpoint(webui) == "beta"
    assert used(webui.generate()) == "beta"


@pytest.mark.parametrize("name", ["nope", "BETA", "beta [0000000000]", "", 5, None])
def test_an_unknown_checkpoint_in_an_override_is_ignored_in_silence(
    webui: Webui, name: Any
) -> None:
    plain = webui.generate()

    answer = webui.generate(**override(name))

    assert used(answer) == "alpha"
    assert pixels(answer) == pixels(plain)


def test_an_unknown_key_in_an_override_fails_and_the_next_job_does_not(webui: Webui) -> None:
    answer = webui.post("txt2img", {"override_settings": {"no_such": 1}})

    assert (answer.status_code, answer.json()["errors"]) == (500, "'no_such'")
    assert webui.generate()["images"]


def test_every_spelling_of_a_checkpoint_selects_it(webui: Webui) -> None:
    webui.post("options", {"sd_model_checkpoint": "beta"})
    (listed,) = (
        one for one in webui.get("sd-models").json() if one["hash"] and "beta" in one["title"]
    )
    spellings = ["beta", "below/beta.safetensors", "below_beta", listed["title"], listed["hash"]]
    spellings += [listed["sha256"], f"beta [{listed['hash']}]"]

    for spelling in spellings:
        assert webui.post("options", {"sd_model_checkpoint": "alpha"}).status_code == 200
        assert webui.post("options", {"sd_model_checkpoint": spelling}).status_code == 200
        assert checkpoint(webui) == listed["title"]


@pytest.mark.parametrize(
    "spelling", ["beta.safetensors", "below/beta", "Alpha", "alpha.safetensors [0000000000]", "", 5]
)
def test_other_spellings_are_refused_before_anything_is_set(webui: Webui, spelling: Any) -> None:
    answer = webui.post("options", {"jpeg_quality": 5, "sd_model_checkpoint": spelling})

    assert answer.status_code == 500
    assert answer.json()["errors"] == f"model {spelling!r} not found"
    assert webui.options()["jpeg_quality"] == 80


def test_a_loaded_checkpoint_keeps_the_spelling_it_is_asked_for(webui: Webui) -> None:
    webui.generate()

    webui.post("options", {"sd_model_checkpoint": "alpha.safetensors"})

    assert checkpoint(webui) == "alpha.safetensors"
    assert webui.journal()["loads"] == 1


def test_null_goes_back_to_the_first_checkpoint(webui: Webui) -> None:
    webui.post("options", {"sd_model_checkpoint": "beta"})

    webui.post("options", {"sd_model_checkpoint": None})

    assert used(webui.generate()) == "alpha"


def test_a_hash_is_known_only_after_a_load_and_remembered_across_restarts(
    start_process: StartProcess, world: Path, tmp_path: Path
) -> None:
    flags = ("--models-dir", world, "--data-dir", tmp_path / "data", "--skip-load-model-at-start")
    webui = start_process(*flags)

    def titles() -> list[str]:
        return [one["title"] for one in webui.get("sd-models").json()]

    assert titles() == ["alpha.safetensors", "broken.safetensors", "below/beta.safetensors"]
    webui.post("options", {"sd_model_checkpoint": "beta"})
    (alpha, broken, beta) = titles()
    assert (alpha, broken) == ("alpha.safetensors", "broken.safetensors")
    assert beta.startswith("below/beta.safetensors [")
    webui.stop()
    webui = start_process(*flags)
    assert titles() == [alpha, broken, beta]
    assert checkpoint(webui) == beta


def test_without_hashing_no_hash_is_ever_known(start: Start, world: Path) -> None:
    webui = start("--models-dir", world, "--no-hashing")

    answer = webui.generate()

    assert answer["info"]["sd_model_hash"] is None
    assert "Model hash" not in answer["info"]["infotexts"][0]
    assert webui.get("sd-models").json()[0]["title"] == "alpha.safetensors"


def test_with_skip_load_the_first_job_loads(start: Start, world: Path) -> None:
    webui = start("--models-dir", world, "--skip-load-model-at-start")

    assert checkpoint(webui) is None
    assert webui.get("embeddings").json() == {"loaded": {}, "skipped": {}}
    assert used(webui.generate()) == "alpha"
    assert list(webui.get("embeddings").json()["loaded"]) == ["charm"]


def test_refreshing_embeddings_loads_the_checkpoint(start: Start, world: Path) -> None:
    webui = start("--models-dir", world, "--skip-load-model-at-start")

    assert webui.post("refresh-embeddings").json() is None
    assert webui.journal()["loads"] == 1


def test_without_checkpoints_the_server_starts_and_jobs_fail(start: Start, tmp_path: Path) -> None:
    webui = start("--models-dir", tmp_path / "empty")

    assert webui.get("sd-models").json() == []
    answer = webui.post("txt2img", {})
    assert answer.status_code == 500
    assert answer.json()["error"] == "FileNotFoundError"
    assert answer.json()["errors"].startswith("No checkpoints found. When searching for")
    assert webui.get("progress").json()["state"]["job_count"] == 0


def test_options_before_an_unknown_one_are_set(webui: Webui) -> None:
    answer = webui.post("options", {"CLIP_stop_at_last_layers": 2, "no_such": 1, "jpeg_quality": 5})

    assert (answer.status_code, answer.json()["error"]) == (500, "KeyError")
    assert webui.options()["CLIP_stop_at_last_layers"] == 2.0
    assert webui.options()["jpeg_quality"] == 80


def test_an_option_of_a_wrong_type_is_taken_and_breaks_what_reads_it(webui: Webui) -> None:
    assert webui.post("options", {"CLIP_stop_at_last_layers": "abc"}).status_code == 200

    answer = webui.get("options")
    assert (answer.status_code, answer.json()["error"]) == (500, "ValidationError")
    assert webui.post("txt2img", {}).json()["error"] == "TypeError"
    webui.post("options", {"CLIP_stop_at_last_layers": 1})
    assert webui.get("options").status_code == 200
    assert webui.generate()["images"]


def test_options_are_kept_in_config_json(
    start_process: StartProcess, world: Path, tmp_path: Path
) -> None:
    flags = ("--models-dir", world, "--data-dir", tmp_path / "data")
    webui = start_process(*flags)
    webui.generate()  # The load at start ends before, and would write its own checkpoint.
    webui.post("options", {"jpeg_quality": 55, "sd_model_checkpoint": "beta"})
    webui.stop()

    saved = json.loads((tmp_path / "data" / "config.json").read_text())
    assert saved["jpeg_quality"] == 55
    again = start_process(*flags)
    assert again.options()["jpeg_quality"] == 55
    assert used(again.generate()) == "beta"


def test_options_that_the_api_must_not_set_stay(webui: Webui) -> None:
    assert webui.post("options", {"api_forbid_local_requests": False}).status_code == 200

    assert webui.options()["api_forbid_local_requests"] is True


def test_a_vae_changes_pixels_and_an_unknown_one_is_none(webui: Webui) -> None:
    plain = webui.generate()

    soft = webui.generate(override_settings={"sd_vae": "soft.safetensors"})
    assert soft["info"]["sd_vae_name"] == "soft.safetensors"
    assert "VAE: soft.safetensors" in soft["info"]["infotexts"][0]
    assert pixels(soft) != pixels(plain)

    unknown = webui.generate(override_settings={"sd_vae": "soft"})
    assert unknown["info"]["sd_vae_name"] is None
    assert pixels(unknown) == pixels(plain)


def test_an_override_of_a_vae_leaks(webui: Webui) -> None:
    webui.generate(override_settings={"sd_vae": "soft.safetensors"})

    assert webui.generate()["info"]["sd_vae_name"] == "soft.safetensors"


def test_the_refiner_is_noted_and_the_next_job_loads_the_base_again(webui: Webui) -> None:
    plain = webui.generate(steps=4)

    refined = webui.generate(steps=4, refiner_checkpoint="beta", refiner_switch_at=0.5)

    text = refined["info"]["infotexts"][0]
    assert "Refiner: beta [" in text
    assert "Refiner switch at: 0.5" in text
    assert used(refined) == "alpha"
    assert pixels(refined) != pixels(plain)
    assert webui.journal()["loaded"].startswith("below/beta")
    assert pixels(webui.generate(steps=4)) == pixels(plain)


def test_a_refiner_that_never_gets_its_turn_is_not_noted(webui: Webui) -> None:
    plain = webui.generate(steps=4)

    refined = webui.generate(steps=4, refiner_checkpoint="beta", refiner_switch_at=1.5)

    assert "Refiner" not in refined["info"]["infotexts"][0]
    assert pixels(refined) == pixels(plain)


def test_unloading_and_reloading_change_nothing_to_be_seen(webui: Webui) -> None:
    plain = webui.generate()

    assert webui.post("unload-checkpoint").json() == {}
    assert webui.post("reload-checkpoint").json() == {}
    assert pixels(webui.generate()) == pixels(plain)


def test_a_corrupt_checkpoint_fails_and_leaves_the_next_pictures_different(
    webui: Webui, world: Path
) -> None:
    plain = webui.generate()
    (world / "Stable-diffusion" / "junk.safetensors").write_bytes(b"this is not a safetensors file")
    webui.post("refresh-checkpoints")

    answer = webui.post("txt2img", override("junk"))

    assert answer.json()["error"] == "SafetensorError"
    assert pixels(webui.generate()) != pixels(plain)
    webui.generate(**override("beta"))
    assert pixels(webui.generate()) == pixels(plain)


def test_a_checkpoint_for_inpainting_says_so(webui: Webui, world: Path) -> None:
    path = world / "Stable-diffusion" / "paint.safetensors"
    models.write_checkpoint(path, seed="paint", base="sd1-inpaint")
    webui.post("refresh-checkpoints")

    info = webui.generate(**override("paint"))["info"]

    assert info["is_using_inpainting_conditioning"] is True
    assert "Conditional mask weight: 1.0" in info["infotexts"][0]
