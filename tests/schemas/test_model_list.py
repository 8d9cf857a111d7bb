import pytest

from schemas import model_list
from schemas.errors import InvalidInputError
from schemas.model_ref import Kind, ModelRef

A = "a" * 64


def test_each_line_is_a_reference_and_the_rest_is_for_people() -> None:
    text = f"""
    # what the shop uses
    checkpoint  hf:org/repo/base.safetensors@main  name=base   # the house style
    lora        https://example.org/x.safetensors#part hash={A}
    vae         sharp
    """

    assert model_list.parse(text) == (
        ModelRef(kind=Kind.CHECKPOINT, url="hf:org/repo/base.safetensors@main", name="base"),
        ModelRef(kind=Kind.LORA, url="https://example.org/x.safetensors#part", hash=A),
        ModelRef(kind=Kind.VAE, name="sharp"),
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("lora", "line 1 is not `KIND REFERENCE`", id="no reference"),
        pytest.param("\nmodel x", "line 2 is not `KIND REFERENCE`", id="no such kind"),
        pytest.param("lora x scale=1", "line 1: 'scale=1' is neither", id="no such option"),
        pytest.param("lora x name=", "line 1: 'name=' is neither", id="an empty option"),
        pytest.param("lora ../x", "line 1", id="a name that leaves its folder"),
        pytest.param("lora x hash=12", "line 1", id="no hash"),
    ],
)
def test_a_line_that_is_no_reference_is_named_by_its_number(text: str, said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        model_list.parse(text)
