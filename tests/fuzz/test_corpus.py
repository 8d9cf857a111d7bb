"""What fuzzing found, or began with, is read again in every run; `make fuzz` looks for more."""

from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).with_name("corpus")


def taken(name: str, file: Path) -> bool:
    try:
        return TARGETS[name](file.read_bytes())
    except Exception as error:
        error.add_note(f"by {file}")
        raise


@pytest.mark.parametrize("name", TARGETS)
def test_every_input_of_the_corpus_is_taken_or_refused(name: str) -> None:
    outcomes = {taken(name, file) for file in sorted((CORPUS / name).iterdir())}

    assert outcomes == {True, False}


def test_every_corpus_has_its_reader() -> None:
    assert {folder.name for folder in CORPUS.iterdir()} == TARGETS.keys()
