import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_cache.cli import tables


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (999_999, "1.00 MB"),
        (151_112, "151 kB"),
        (6_938_040_706, "6.94 GB"),
        (42_100_000_000, "42.1 GB"),
        (4e15, "4000 TB"),
    ],
)
def test_a_size_has_three_digits_and_the_unit_that_fits(size_bytes: float, text: str) -> None:
    assert tables.size(size_bytes) == text


@pytest.mark.parametrize(
    ("ago_s", "text"),
    [
        (-3600, "just now"),
        (59, "just now"),
        (60, "1 minute ago"),
        (2 * 3600, "2 hours ago"),
        (3.5 * 86_400, "3 days ago"),
        (40 * 86_400, "1 month ago"),
        (800 * 86_400, "2 years ago"),
    ],
)
def test_an_age_is_told_in_words(ago_s: float, text: str) -> None:
    assert tables.age(1e9 - ago_s, 1e9) == text


@pytest.mark.parametrize(
    ("duration_s", "text"),
    [
        (0.04, "0.0 s"),
        (9.9, "9.9 s"),
        (59.6, "1 min 0 s"),
        (185, "3 min 5 s"),
        (7800, "2 h 10 min"),
    ],
)
def test_a_duration_is_told_in_two_units_at_most(duration_s: float, text: str) -> None:
    assert tables.seconds(duration_s) == text


def test_a_number_of_things_has_its_plural() -> None:
    assert [tables.count(number, "alias") for number in (0, 1, 2)] == [
        "0 aliases",
        "1 alias",
        "2 aliases",
    ]


def test_a_long_name_is_cut_in_its_middle() -> None:
    assert tables.cut("realistic_vision_v6_inpainting", 15) == "realist…ainting"
    assert tables.cut("short", 5) == "short"


@given(st.text(), st.integers(min_value=1, max_value=40))
def test_what_is_cut_fits(text: str, most: int) -> None:
    assert tables.columns(tables.cut(text, most)) <= most


def test_a_table_fits_the_terminal_by_cutting_names_alone() -> None:
    rows = [("lora", "a_very_long_name_of_a_lora_v1_fp16", "1.00 MB"), ("vae", "b", "12 B")]

    lines = tables.table(("KIND", "NAME", "SIZE"), rows, width=30, flexible=1, right=frozenset({2}))

    assert lines == [
        "KIND  NAME                SIZE",
        "lora  a_very_…v1_fp16  1.00 MB",
        "vae   b                   12 B",
    ]


def test_without_a_terminal_nothing_is_cut() -> None:
    assert tables.table(("NAME",), [("x" * 300,)])[1] == "x" * 300


def test_a_column_in_which_nothing_stands_is_left_out() -> None:
    assert tables.table(("A", "B", "C"), [("1", "", "3"), ("1", "", "")]) == ["A  C", "1  3", "1"]


def test_wide_letters_keep_the_columns_in_line() -> None:
    lines = tables.table(("NAME", "X"), [("模型", "1"), ("e\N{COMBINING ACUTE ACCENT}", "2")])

    assert lines == ["NAME  X", "模型  1", "e\N{COMBINING ACUTE ACCENT}     2"]


def test_a_name_cannot_control_the_terminal() -> None:
    assert "\x1b" not in tables.table(("NAME",), [("a\x1b[2Jb",)])[1]
    assert tables.printable("a\udcffb\nc") == "a\ufffdb\nc"


def test_what_is_empty_is_not_told() -> None:
    assert tables.pairs([("kind", "lora"), ("alias", ""), ("sha", "1")]) == [
        "kind  lora",
        "sha   1",
    ]
