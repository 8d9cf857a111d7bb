from pathlib import Path

import pytest

from model_cache.models import CachedModel
from model_cache.weights import fit
from schemas.errors import ModelIncompatibleError
from schemas.model_ref import Kind
from worker.generation.fit import Judge


def model(kind: Kind, base: str, base_by: str = "") -> CachedModel:
    return CachedModel(kind, f"my_{kind}", Path(kind), None, 1, 1, base, base_by)


@pytest.mark.parametrize(
    ("checkpoint", "lora", "fits"),
    [
        ("sd1", "sd1", True),
        ("sd1-inpaint", "sd1", True),
        ("sd1", "unknown", True),
        ("unknown", "sdxl", True),
        ("sdxl", "sdxl-refiner", True),
        ("sd1", "sdxl", False),
        ("sdxl", "sd2", False),
    ],
)
def test_architectures_must_agree_where_both_are_known(
    checkpoint: str, lora: str, *, fits: bool
) -> None:
    judge = Judge(model(Kind.CHECKPOINT, checkpoint), skips=False)

    if fits:
        assert judge.takes(model(Kind.LORA, lora), "loras[0]")
    else:
        with pytest.raises(ModelIncompatibleError, match=r"made for .*, the checkpoint") as caught:
            judge.takes(model(Kind.LORA, lora), "loras[0]")
        assert caught.value.details["field"] == "loras[0]"
        assert "skip" in caught.value.hint


def test_a_misfit_that_is_skipped_is_told_once() -> None:
    judge = Judge(model(Kind.CHECKPOINT, "sd1", "shapes"), skips=True)
    lora = model(Kind.LORA, "sdxl", "metadata")

    assert not judge.takes(lora, "loras[0]")
    assert not judge.takes(lora, "prompt")
    assert judge.takes(model(Kind.LORA, "sd1"), "loras[1]")
    (warning,) = judge.warnings
    assert warning == (
        "The lora `my_lora` is made for sdxl (by its header's metadata), the checkpoint"
        " `my_checkpoint` is sd1 (by the shapes of its tensors). It was skipped."
    )


def test_a_skipped_embedding_leaves_its_name_in_the_prompt() -> None:
    judge = Judge(model(Kind.CHECKPOINT, "sdxl"), skips=True)

    assert not judge.takes(model(Kind.EMBEDDING, "sd1"), "embeddings[0]")
    assert judge.warnings[0].endswith("Its name in the prompt is read as words.")


def test_what_is_not_known_is_not_judged() -> None:
    sd1, unknown = model(Kind.CHECKPOINT, "sd1"), model(Kind.LORA, "unknown")

    assert fit.misfit(sd1, unknown) == ""
    assert not fit.is_judged(sd1, unknown)
    assert fit.is_judged(sd1, model(Kind.LORA, "sdxl"))
