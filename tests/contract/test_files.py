"""Files that come, go and change while the program runs; and what LoRAs and embeddings do."""

import os
import time
from pathlib import Path

import pytest

from simulator import models
from tests.contract.conftest import Start, Webui, pixels

PROMPT = "a cat <lora:{}:{}>"


def hashes(text: str) -> bool:
    return "Lora hashes" in text


def test_a_lora_changes_pixels_and_is_listed_in_the_infotext(steady: Webui) -> None:
    plain = steady.generate()

    answer = steady.generate(prompt="a cat <lora:detail:0.8>")

    assert pixels(answer) != pixels(plain)
    assert 'Lora hashes: "detail: ' in answer["info"]["infotexts"][0]
    assert answer["info"]["prompt"] == "a cat <lora:detail:0.8>"


@pytest.mark.parametrize(
    ("tag", "same_as"),
    [
        pytest.param("<lora:detail>", "<lora:detail:1>", id="no weight is 1"),
        pytest.param("<lora:more detail:1>", "<lora:detail:1>", id="by its alias"),
        pytest.param("<lyco:detail:1>", "<lora:detail:1>", id="lyco is lora"),
        pytest.param("<lora:detail:0.5:0.5>", "<lora:detail:0.5>", id="one weight is for both"),
        pytest.param("<lora:detail:te=0.5:unet=0.5>", "<lora:detail:0.5>", id="named weights"),
        pytest.param("<lora:plain:1>", "<lora:plain:1.0>", id="below a folder by its stem"),
        pytest.param("<lora:nope:1> <lora:detail:1>", "<lora:detail:1>", id="beside a missing one"),
        pytest.param("<lora:detail:0>", "", id="weight 0"),
        pytest.param("<lora:nope:1>", "", id="missing"),
        pytest.param("<lora:detail.safetensors:1>", "", id="with its extension"),
        pytest.param("<lora:Detail:1>", "", id="in another case"),
        pytest.param("<lora:detail :1>", "", id="with a space behind"),
        pytest.param("<lora:deep/plain:1>", "", id="by its path"),
        pytest.param("<LORA:detail:1>", "", id="tag in capitals"),
        pytest.param("<lora::1>", "", id="without a name"),
        pytest.param("<lora:plain:1> <lora:detail:0,8>", "", id="a bad weight drops all"),
        pytest.param("<lora:foreign:1>", "", id="of another base model"),
        pytest.param("<foo:detail:1>", "", id="unknown kind of tag"),
    ],
)
def test_a_tag_does_what_another_one_does(steady: Webui, tag: str, same_as: str) -> None:
    one = steady.generate(prompt=f"a cat {tag}")
    other = steady.generate(prompt=f"a cat {same_as}")

    assert pixels(one) == pixels(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("<lora:detail:0.5>", "<lora:detail:0.6>"),
        ("<lora:detail:0.5:0.9>", "<lora:detail:0.5>"),
        ("<lora:detail:1>", "<lora:plain:1>"),
        ("<lora:detail:1> <lora:plain:1>", "<lora:detail:1>"),
        ("<lora:detail:1> <lora:detail:0.2>", "<lora:detail:1>"),
        ("< lora:detail:1>", ""),
    ],
)
def test_these_tags_give_different_pictures(steady: Webui, one: str, other: str) -> None:
    assert pixels(steady.generate(prompt=f"a cat {one}")) != pixels(
        steady.generate(prompt=f"a cat {other}")
    )


def test_a_lora_of_another_base_model_is_listed_as_if_it_worked(steady: Webui) -> None:
    assert hashes(steady.generate(prompt="a cat <lora:foreign:1>")["info"]["infotexts"][0])


def test_tags_in_the_negative_prompt_are_text(steady: Webui) -> None:
    plain = steady.generate()

    answer = steady.generate(negative_prompt="<lora:detail:1>")

    assert not hashes(answer["info"]["infotexts"][0])
    assert pixels(answer) != pixels(plain)


def test_an_alias_of_two_loras_is_nobodys(webui: Webui, world: Path) -> None:
    metadata = models.kohya_metadata("sd1", "more detail")
    models.write_lora(world / "Lora" / "other.safetensors", seed="o", metadata=metadata)
    webui.post("refresh-loras")

    assert not hashes(webui.generate(prompt="<lora:more detail:1>")["info"]["infotexts"][0])
    assert hashes(webui.generate(prompt="<lora:other:1>")["info"]["infotexts"][0])


def test_a_new_lora_is_found_by_the_job_that_names_it(webui: Webui, world: Path) -> None:
    models.write_lora(world / "Lora" / "late.safetensors", seed="late")
    listed = [one["name"] for one in webui.get("loras").json()]
    assert "late" not in listed

    assert hashes(webui.generate(prompt="<lora:late:1>")["info"]["infotexts"][0])

    assert "late" in [one["name"] for one in webui.get("loras").json()]


def test_a_hash_in_the_metadata_is_believed(webui: Webui, world: Path) -> None:
    metadata = {"sshs_model_hash": "0" * 64}
    models.write_lora(world / "Lora" / "zero.safetensors", seed="zero", metadata=metadata)

    text = webui.generate(prompt="<lora:zero:1>")["info"]["infotexts"][0]

    assert 'Lora hashes: "zero: 000000000000"' in text


def test_a_deleted_lora_stays_listed_and_does_nothing(webui: Webui, world: Path) -> None:
    plain = webui.generate()
    (world / "Lora" / "detail.safetensors").unlink()

    answer = webui.generate(prompt=PROMPT.format("detail", 1))

    assert not hashes(answer["info"]["infotexts"][0])
    assert pixels(answer) == pixels(plain)
    assert "detail" in [one["name"] for one in webui.get("loras").json()]


def test_a_lora_that_was_replaced_is_applied_again_only_after_another_prompt(
    webui: Webui, world: Path
) -> None:
    prompt = PROMPT.format("plain", 1)
    before = webui.generate(prompt=prompt)
    path = world / "Lora" / "deep" / "plain.safetensors"
    models.write_lora(path, seed="another")
    os.utime(path, (time.time() + 5, time.time() + 5))

    assert pixels(webui.generate(prompt=prompt)) == pixels(before)
    webui.generate()
    assert pixels(webui.generate(prompt=prompt)) != pixels(before)


def test_a_corrupt_lora_is_left_out_in_silence(webui: Webui, world: Path) -> None:
    plain = webui.generate()
    (world / "Lora" / "junk.safetensors").write_bytes(b"this is not a safetensors file")

    answer = webui.generate(prompt=PROMPT.format("junk", 1))

    assert not hashes(answer["info"]["infotexts"][0])
    assert pixels(answer) == pixels(plain)
    (listed,) = (one for one in webui.get("loras").json() if one["name"] == "junk")
    assert listed["metadata"] == {}


def test_with_extra_networks_disabled_tags_are_not_followed(webui: Webui) -> None:
    plain = webui.generate()

    answer = webui.generate(prompt="a cat <lora:detail:1>", disable_extra_networks=True)

    assert pixels(answer) == pixels(plain)


def test_a_new_checkpoint_is_unknown_until_a_refresh(webui: Webui, world: Path) -> None:
    wanted = {"sd_model_checkpoint": "late"}
    models.write_checkpoint(world / "Stable-diffusion" / "late.safetensors", seed="late")

    assert webui.post("options", wanted).status_code == 500
    assert webui.generate(override_settings=wanted)["info"]["sd_model_name"] == "alpha"
    assert webui.post("refresh-checkpoints").json() is None
    assert webui.generate(override_settings=wanted)["info"]["sd_model_name"] == "late"
    assert webui.journal()["refreshes"] == {"checkpoints": 1}


def test_a_new_vae_is_none_until_a_refresh(webui: Webui, world: Path) -> None:
    wanted = {"sd_vae": "late.safetensors"}
    models.write_vae(world / "VAE" / "late.safetensors", seed="late")

    assert webui.generate(override_settings=wanted)["info"]["sd_vae_name"] is None
    webui.post("refresh-vae")
    assert webui.generate(override_settings=wanted)["info"]["sd_vae_name"] == "late.safetensors"


def test_a_checkpoint_that_was_replaced_is_loaded_only_after_a_switch(
    webui: Webui, world: Path
) -> None:
    before = webui.generate()
    path = world / "Stable-diffusion" / "alpha.safetensors"
    models.write_checkpoint(path, seed="another")
    os.utime(path, (time.time() + 5, time.time() + 5))
    webui.post("refresh-checkpoints")
    webui.post("options", {"sd_model_checkpoint": "alpha"})

    assert pixels(webui.generate()) == pixels(before)
    webui.post("options", {"sd_model_checkpoint": "beta"})
    webui.post("options", {"sd_model_checkpoint": "alpha"})
    after = webui.generate()
    assert pixels(after) != pixels(before)
    assert after["info"]["sd_model_hash"] != before["info"]["sd_model_hash"]


def test_a_deleted_checkpoint_fails_and_leaves_the_next_pictures_different(
    webui: Webui, world: Path
) -> None:
    plain = webui.generate()
    webui.generate(override_settings={"sd_model_checkpoint": "beta"})
    webui.generate()
    path = world / "Stable-diffusion" / "below" / "beta.safetensors"
    path.unlink()

    answer = webui.post("txt2img", {"override_settings": {"sd_model_checkpoint": "beta"}})

    assert answer.status_code == 500
    assert answer.json()["errors"] == f"[Errno 2] No such file or directory: {str(path)!r}"
    after = webui.generate()
    assert after["info"]["sd_model_hash"] == plain["info"]["sd_model_hash"]
    assert pixels(after) != pixels(plain)
    models.write_checkpoint(path, seed="beta")
    webui.generate(override_settings={"sd_model_checkpoint": "beta"})
    assert pixels(webui.generate()) == pixels(plain)


def test_a_word_of_an_embedding_changes_pixels_and_a_skipped_one_is_just_a_word(
    steady: Webui,
) -> None:
    listed = steady.get("embeddings").json()

    assert listed["loaded"]["charm"]["shape"] == 768
    assert listed["skipped"]["wide"]["shape"] == 1024
    assert pixels(steady.generate(prompt="a charm")) != pixels(steady.generate(prompt="a charn"))
    text = steady.generate(prompt="a charm, bright")["info"]["infotexts"][0]
    assert 'TI hashes: "charm: ' in text
    assert "TI hashes" not in steady.generate(prompt="a wide charming")["info"]["infotexts"][0]


def test_an_embedding_that_comes_is_read_by_the_next_job(webui: Webui, world: Path) -> None:
    before = webui.generate(prompt="a late one")
    models.write_embedding(world / "embeddings" / "late.safetensors", seed="late")

    after = webui.generate(prompt="a late one, too")

    assert 'TI hashes: "late: ' in after["info"]["infotexts"][0]
    assert pixels(after) != pixels(before)


def test_added_folders_are_searched_and_replacing_ones_replace(
    start: Start, world: Path, tmp_path: Path
) -> None:
    more = tmp_path / "more"
    models.write_checkpoint(more / "c" / "gamma.safetensors", seed="gamma")
    models.write_vae(more / "v" / "hard.safetensors", seed="hard")
    models.write_lora(more / "l" / "only.safetensors", seed="only")
    (more / "e").mkdir()
    link = more / "l" / "linked.safetensors"
    link.symlink_to(world / "Lora" / "detail.safetensors")
    webui = start(
        *("--models-dir", world, "--ckpt-dir", more / "c", "--vae-dir", more / "v"),
        *("--lora-dir", more / "l", "--embeddings-dir", more / "e"),
    )

    checkpoints = [one["model_name"] for one in webui.get("sd-models").json()]
    assert checkpoints == ["gamma", "alpha", "broken", "below_beta"]
    vaes = {one["model_name"] for one in webui.get("sd-vae").json()}
    assert vaes == {"soft.safetensors", "hard.safetensors"}
    loras = [one["name"] for one in webui.get("loras").json()]
    assert loras == ["linked", "only"]
    assert webui.get("embeddings").json() == {"loaded": {}, "skipped": {}}
    assert webui.get("cmd-flags").json()["lora_dir"] == str(more / "l")
