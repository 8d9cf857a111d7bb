import contextlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import InvalidInputError
from worker.child.links import carriable
from worker.generation.prompt import (
    Tag,
    lora_tag,
    renamed,
    replaced,
    split_name,
    tags,
    with_tags,
)

names = st.text(min_size=1).map(carriable)


def test_tags_are_read_as_a1111_reads_them() -> None:
    assert tags("a <lora:x:0.3> < lora:y:1> <lyco:z> <lora:>") == [
        Tag("lora", ("x", "0.3"), "<lora:x:0.3>"),
        Tag("lyco", ("z",), "<lyco:z>"),
    ]


def test_a_tag_in_a_comment_is_not_seen() -> None:
    assert tags("a # <lora:x:1>\nb <lora:y:1>") == [Tag("lora", ("y", "1"), "<lora:y:1>")]


@given(names, st.floats(-10, 10))
def test_a_written_tag_reads_back_as_its_name_and_scale(name: str, scale: float) -> None:
    [tag] = tags(with_tags("a cat", [lora_tag(name, scale)]))

    assert tag.items[0] == name
    assert float(tag.items[1]) == pytest.approx(scale, rel=1e-4)


@given(st.text())
def test_a_carriable_name_stays_as_it_is(name: str) -> None:
    assert carriable(carriable(name)) == carriable(name)


def test_tags_go_before_the_prompt() -> None:
    assert with_tags("a cat", [lora_tag("b", 0.8), lora_tag("c", 1)]) == (
        "<lora:b:0.8> <lora:c:1> a cat"
    )
    assert with_tags("a cat", []) == "a cat"


@pytest.mark.parametrize(
    ("text", "known", "name", "weights"),
    [
        pytest.param("<lora:a:0.5>", "a", "a", ("0.5",), id="weight"),
        pytest.param("<lora:a>", "a", "a", (), id="no weight"),
        pytest.param("<lora:a:0.5:0.9>", "a", "a", ("0.5", "0.9"), id="text encoder and UNet"),
        pytest.param("<lora:a:te=0.5:unet=1.2>", "a", "a", ("te=0.5", "unet=1.2"), id="named"),
        pytest.param("<lora:a:b:0.5>", "a:b", "a:b", ("0.5",), id="colon in the name"),
        pytest.param("<lora:a:1>", "a:1", "a:1", (), id="the longest known name"),
        pytest.param("<lora:nope:1>", "a", "nope", ("1",), id="unknown"),
    ],
)
def test_a_tag_splits_into_name_and_weights(
    text: str, known: str, name: str, weights: tuple[str, ...]
) -> None:
    assert split_name(tags(text)[0], lambda candidate: candidate == known) == (name, weights)


@pytest.mark.parametrize(
    "text",
    [
        "<lora:a:abc>",
        "<lora:a:0,8>",
        "<lora:a:x=1>",
        "<lora:a:1:>",
        "<lora:a:nan>",
        "<lora:a:-inf>",
        "<lora:a:1:1:0.5>",
        "<lora:a:dyn=0.5>",
    ],
)
def test_a_weight_that_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError, match="not a number"):
        split_name(tags(text)[0], lambda name: name == "a")


def test_renaming_keeps_the_weights() -> None:
    prompt = "x <lora:a:b:0.5> y"
    [tag] = tags(prompt)

    texts = {tag.text: renamed(tag, "a_b", ("0.5",))}
    assert replaced(prompt, texts) == "x <lora:a_b:0.5> y"


@pytest.mark.parametrize("prompt", ["<a:" * 16_000, "<lora:" + "a:" * 24_000 + "1>"])
def test_no_prompt_takes_long_to_read(prompt: str) -> None:
    started = time.process_time()
    for tag in tags(prompt):
        with contextlib.suppress(InvalidInputError):
            split_name(tag, lambda name: name == "nope")

    assert time.process_time() - started < 1
