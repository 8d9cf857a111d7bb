from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from model_cache.models import CachedModel
from model_cache.volume.shelf import Shelf
from schemas.model_ref import Kind

HOME = Path("/v")


@dataclass(frozen=True)
class File:
    place: str
    claim: int | None = None
    sources: Mapping[str, float] = field(default_factory=dict)
    sha256: str | None = None
    autov3: str = ""

    @property
    def path(self) -> Path:
        return HOME / f"{self.place}.safetensors"

    @property
    def relative(self) -> str:
        return self.place.partition("/")[2]

    def called(self, name: str) -> CachedModel:
        return CachedModel(Kind.LORA, name, self.path, self.sha256, 1, 1, autov3=self.autov3)


def everything(shelf: Shelf[File]) -> list[object]:
    """Return all that a shelf says of some files."""
    texts = ["x", "X", "y", "a_x", "a/x", "b_x", "Lora_x", "Lora_a_x", "ab" * 32, "ab" * 5, "u"]
    said: list[object] = [shelf.models]
    for text in texts:
        said += [shelf.named(text), shelf.spelled(text), shelf.alike(text)]
        said += [shelf.with_digest(text), shelf.from_source(text), shelf.given_by(text)]
    return said


files = st.builds(
    File,
    st.sampled_from(
        ["ours/x", "ours/a_x", "ours/y", "ours/X", "Lora/x", "Lora/a/x", "Lora/b/x", "Lora/y"]
    ),
    claim=st.none(),
    sources=st.sampled_from([{}, {"u": 1.0}, {"u": 2.0, "w": 1.0}]),
    sha256=st.sampled_from([None, "ab" * 32, "cd" * 32]),
).map(
    lambda file: File(
        file.place, 1 if file.place.startswith("ours") else None, file.sources, file.sha256
    )
)
changes = st.lists(st.tuples(st.booleans(), files), max_size=12)


@given(changes)
def test_a_shelf_that_was_changed_is_the_one_that_would_be_made_anew(
    steps: list[tuple[bool, File]],
) -> None:
    shelf: Shelf[File] = Shelf.of([])
    there: dict[Path, File] = {}

    for add, file in steps:
        before = everything(shelf)
        changed = shelf.with_file(file) if add else shelf.without(file.path)
        if add:
            there[file.path] = file
        else:
            there.pop(file.path, None)
        assert everything(changed) == everything(Shelf.of(list(there.values())))
        assert everything(shelf) == before
        shelf = changed

    assert [shelf.at(path) is not None for path in there] == [True] * len(there)


def test_a_file_that_is_called_by_its_path_gets_a_shorter_name_when_that_is_free() -> None:
    there = [File("ours/a_x", 1), File("Lora/a/x"), File("Lora/x")]

    shelf = Shelf.of(there).without(there[0].path)

    assert [model.name for model in shelf.models] == ["Lora_x", "a_x"]


def test_a_file_whose_stem_is_a_path_of_another_gets_it() -> None:
    there = [File("Lora/a/x"), File("Lora/x")]

    shelf = Shelf.of(there).with_file(File("Lora/a_x"))

    assert {model.name: model.path.parent.name for model in shelf.models} == {
        "Lora_a_x": "a",
        "Lora_x": "Lora",
        "a_x": "Lora",
    }


def test_a_model_is_known_by_every_form_of_its_hash() -> None:
    shelf = Shelf.of([File("ours/x", 1, {}, "ab" * 32, "0123456789cd")])

    for digest in ("ab" * 32, "ab" * 5, "ab" * 6, "0123456789cd"):
        assert [model.name for model in shelf.with_digest(digest)] == ["x"]
    assert shelf.with_digest("ab" * 4) == ()


def test_a_name_in_another_case_or_composition_is_alike() -> None:
    shelf = Shelf.of([File("ours/Caf\u00e9", 1)])

    assert [model.name for model in shelf.alike("cafe\u0301")] == ["Caf\u00e9"]
    assert shelf.named("cafe\u0301") is None


def test_a_published_file_that_is_called_otherwise_is_in_the_way_all_the_same() -> None:
    shelf = Shelf.of([File("baked/x", 0), File("ours/x", 1)])

    assert {model.name for model in shelf.alike("X")} == {"x", "ours_x"}


def test_a_source_means_what_it_was_last_seen_to_give() -> None:
    old, new = File("ours/x", sources={"u": 1.0, "w": 1.0}, sha256="aa"), "ours/y"
    shelf = Shelf.of([old, File(new, sources={"u": 2.0}, sha256="bb")])

    assert [model.name for model in shelf.from_source("u")] == ["y"]
    assert [model.name for model in shelf.given_by("u")] == ["x", "y"]
    assert [model.name for model in shelf.from_source("w")] == ["x"]
    assert (shelf.seen_at("u"), shelf.seen_at("w"), shelf.seen_at("v")) == (2.0, 1.0, 0.0)


def test_a_source_means_all_names_of_the_bytes_that_it_gave() -> None:
    names = [
        File(f"ours/{name}", sources={"u": 1.0 + at}, sha256="aa") for at, name in enumerate("ab")
    ]

    assert [model.name for model in Shelf.of(names).from_source("u")] == ["a", "b"]
