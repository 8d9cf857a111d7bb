"""Prompts, styles, tags and infotexts of the simulated WebUI."""

from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from simulator.webui import infotext, prompts
from simulator.webui.options import Options
from simulator.webui.prompts import Style, Tag

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=40)


@pytest.mark.parametrize(
    ("prompt", "texts", "expected"),
    [
        ("a cat", ["oil, {prompt}, fine"], "oil, a cat, fine"),
        ("a cat", ["oil"], "a cat, oil"),
        ("", ["oil"], "oil"),
        ("a cat ", [" oil "], "a cat, oil"),
        ("a cat", ["", "oil", "({prompt})"], "(a cat, oil)"),
    ],
)
def test_styles_go_around_or_behind(prompt: str, texts: list[str], expected: str) -> None:
    assert prompts.with_styles(prompt, texts) == expected


def test_styles_are_found_again_in_a_finished_prompt() -> None:
    styles = [Style("Oil", "oil, {prompt}, fine", "flat"), Style("Old", "old", "")]

    found = prompts.extract_styles("oil, a cat, fine, old", "bad, flat", styles)

    assert found == (["Oil", "Old"], "a cat", "bad")


def test_a_style_of_which_one_half_is_missing_is_not_found() -> None:
    styles = [Style("Oil", "oil, {prompt}", "flat")]

    assert prompts.extract_styles("oil, a cat", "", styles) == ([], "oil, a cat", "")


def test_styles_are_read_as_spreadsheets_write_them(tmp_path: Path) -> None:
    file = tmp_path / "styles.csv"
    file.write_text('\ufeffname,text\nOne,"a, b"\n#comment,x\n,nameless\n', encoding="utf-8")

    assert prompts.read_styles([file, tmp_path / "none.csv"]) == {"One": Style("One", "a, b", "")}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a # b\nc", "a \nc"),
        ("# all\na", "\na"),
        ("a\n# b\nc", "a\nc"),
        ("a #b", "a \n"),
        ("a", "a"),
    ],
)
def test_comments_end_with_their_line(text: str, expected: str) -> None:
    assert prompts.without_comments(text) == expected


def test_tags_are_taken_out_with_their_arguments() -> None:
    text, tags = prompts.take_tags("a <lora:one:0.5:unet=1> b <lyco:two> <a:b=c=d>")

    assert text == "a  b  "
    assert tags == {
        "lora": [Tag(("one", "0.5"), {"unet": "1"})],
        "lyco": [Tag(("two",), {})],
        "a": [Tag(("b=c=d",), {})],
    }


@pytest.mark.parametrize("text", ["< lora:a:1>", "<lora>", "<lora:>", "a < b > c", "<:a>"])
def test_what_only_looks_like_a_tag_stays(text: str) -> None:
    assert prompts.take_tags(text) == (text, {})


def test_an_infotext_is_parsed_into_its_parameters() -> None:
    text = (
        "a cat,\nsitting\nNegative prompt: bad\nworse\n"
        'Steps: 20, Sampler: Euler a, Size: 512x768, Lora hashes: "a: 1, b: 2", Version: v1.10.1'
    )

    found = infotext.parse(text, [], "Ignore")

    assert found["Prompt"] == "a cat,\nsitting"
    assert found["Negative prompt"] == "bad\nworse"
    assert (found["Size-1"], found["Size-2"]) == ("512", "768")
    assert found["Lora hashes"] == "a: 1, b: 2"
    assert found["Clip skip"] == "1"


def test_a_last_line_with_few_parameters_is_prompt() -> None:
    assert infotext.parse("a cat\nSteps: 20, Seed: 1", [], "Ignore")["Prompt"] == (
        "a cat\nSteps: 20, Seed: 1"
    )


def test_emphasis_in_the_prompt_is_noted() -> None:
    assert infotext.parse("(a) cat", [], "Ignore")["Emphasis"] == "Original"
    assert "Emphasis" not in infotext.parse(r"a \(cat", [], "Ignore")


def test_styles_of_an_infotext_are_named() -> None:
    found = infotext.parse("a cat, oil", [Style("Oil", "oil", "")], "Apply if any")

    assert (found["Prompt"], found["Styles array"]) == ("a cat", ["Oil"])


@given(st.dictionaries(st.sampled_from(["Alpha", "Beta x", "Gamma-1", "Delta"]), TEXT, min_size=3))
def test_what_is_written_in_a_line_is_read_from_it(parameters: dict[str, str]) -> None:
    # What begins with a quote and is not quoted itself is read on to the next quote, by A1111, too.
    values = parameters.values()
    assume(
        not any(text.lstrip().startswith('"') and infotext.quote(text) == text for text in values)
    )
    written = infotext.compose("a cat", "", parameters)
    found = infotext.parse(written, [], "Ignore")

    for name, value in parameters.items():
        if value and value == value.strip() and not value.startswith('"') and "x" not in value:
            assert found[name] == value


@given(TEXT)
def test_a_quoted_value_has_no_comma_outside_of_its_quotes(value: str) -> None:
    quoted = infotext.quote(value)

    assert quoted.startswith('"') or not {",", ":", "\n"} & set(quoted)


def test_an_infotext_overrides_the_options_that_are_set_otherwise(tmp_path: Path) -> None:
    options = Options(tmp_path / "config.json")
    options.data["eta_noise_seed_delta"] = 7

    found = infotext.overrides({"Clip skip": "2", "ENSD": "7", "RNG": "CPU"}, options)

    assert found == {"CLIP_stop_at_last_layers": 2, "randn_source": "CPU"}
