import json

import pytest

from schemas.errors import BackendFailedError, WrongModelUsedError
from worker.generation import check


def test_info_is_json_in_a_string() -> None:
    assert check.info_of({"images": [], "info": json.dumps({"seed": 1})}) == {"seed": 1}


@pytest.mark.parametrize(
    "answer",
    [None, [], {}, {"images": []}, {"images": [], "info": "x"}, {"info": "{}", "images": 1}],
)
def test_another_shape_is_a_failure(answer: object) -> None:
    with pytest.raises(BackendFailedError):
        check.info_of(answer)


def test_the_checkpoint_is_compared_by_name_and_digest() -> None:
    info = {"sd_model_name": "a", "sd_model_hash": "0123456789"}

    check.require_checkpoint(info, "a", None)
    check.require_checkpoint(info, "a", "0123456789" + "0" * 54)
    check.require_checkpoint({"sd_model_name": "a", "sd_model_hash": None}, "a", "0" * 64)
    with pytest.raises(WrongModelUsedError):
        check.require_checkpoint(info, "b", None)
    with pytest.raises(WrongModelUsedError):
        check.require_checkpoint(info, "a", "f" * 64)


def test_the_vae_is_compared() -> None:
    check.require_vae({"sd_vae_name": "v.safetensors"}, "v.safetensors")
    check.require_vae({"sd_vae_name": None}, "None")
    with pytest.raises(WrongModelUsedError):
        check.require_vae({"sd_vae_name": "v.safetensors"}, "None")
    with pytest.raises(WrongModelUsedError):
        check.require_vae({"sd_vae_name": None}, "v.safetensors")


def test_each_lora_must_be_in_the_list_of_hashes() -> None:
    # As recorded from A1111 1.10.1: lora_twice, lora_space.
    info = {"extra_generation_params": {"Lora hashes": "tiny_lora: 000000000000, no meta: 33d3"}}

    check.require_loras(info, ["tiny_lora", "no meta"])
    check.require_loras({}, [])
    with pytest.raises(WrongModelUsedError, match="nope"):
        check.require_loras(info, ["tiny_lora", "nope"])
    with pytest.raises(WrongModelUsedError):
        check.require_loras({"extra_generation_params": {}}, ["tiny_lora"])


def test_the_refiner_is_compared_when_it_is_reported() -> None:
    info = {"extra_generation_params": {"Refiner": "tiny_b [7055f1e867]"}}

    check.require_refiner(info, "tiny_b")
    with pytest.raises(WrongModelUsedError):
        check.require_refiner(info, "tiny_a")
