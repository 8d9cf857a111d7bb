from dataclasses import dataclass
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from model_cache.volume import naming
from schemas.model_ref import Kind, ModelRef, stem_of

VOLUME = Path("/volume")


@dataclass(frozen=True)
class Placed:
    path: Path
    relative: str
    place: str
    claim: int | None


ROOTS = ("models/loras", "models/Lora", "baked/loras")


def placed(place: str) -> Placed:
    """Return a file at `place`: in our folder, in that of A1111, or in the image."""
    root = next(root for root in ROOTS if place.startswith(root))
    relative = place.removeprefix(f"{root}/")
    claim = 1 if root == "models/loras" and "/" not in relative else None
    suffix = "" if place.endswith(".pt") else ".safetensors"
    return Placed(
        VOLUME / f"{place}{suffix}",
        relative.removesuffix(".pt"),
        place.removesuffix(".pt"),
        0 if root == "baked/loras" else claim,
    )


def names_of(*places: str) -> dict[str, str]:
    """Return name -> place."""
    named = naming.unique_names([placed(place) for place in places])
    return {
        name: str(file.path.relative_to(VOLUME)).removesuffix(".safetensors")
        for name, file in named.items()
    }


def test_a_baked_file_keeps_its_stem_whatever_comes_to_the_volume() -> None:
    assert names_of("models/loras/x", "baked/loras/x") == {
        "x": "baked/loras/x",
        "models_loras_x": "models/loras/x",
    }


def test_of_two_files_with_one_stem_the_safetensors_file_has_the_name() -> None:
    assert names_of("models/loras/x.pt", "models/loras/x") == {
        "x": "models/loras/x",
        "models_loras_x": "models/loras/x.pt",
    }


def test_a_file_alone_is_called_by_its_stem_wherever_it_is() -> None:
    assert names_of("models/Lora/people/x") == {"x": "models/Lora/people/x"}


def test_a_published_file_keeps_its_stem_and_the_other_is_called_by_its_path() -> None:
    assert names_of("models/loras/sub/x", "models/loras/x") == {
        "x": "models/loras/x",
        "sub_x": "models/loras/sub/x",
    }


def test_where_no_file_is_published_none_gets_the_stem() -> None:
    assert names_of("models/Lora/a/x", "models/Lora/b/x") == {
        "a_x": "models/Lora/a/x",
        "b_x": "models/Lora/b/x",
    }


def test_a_path_that_reads_like_another_name_gets_a_longer_one() -> None:
    assert names_of("models/loras/a_x", "models/loras/x", "models/Lora/a/x", "models/Lora/x") == {
        "a_x": "models/loras/a_x",
        "x": "models/loras/x",
        "models_Lora_a_x": "models/Lora/a/x",
        "models_Lora_x": "models/Lora/x",
    }


def test_a_number_decides_where_paths_read_alike() -> None:
    names = names_of(
        "models/Lora/a_b/c", "models/Lora/a/b_c", "models/Lora/a/b/c", "models/loras/c"
    )

    assert sorted(names) == ["a_b_c", "b_c", "c", "models_Lora_a_b_c"]


stems = st.text(st.characters(blacklist_characters="/\0"), min_size=1, max_size=200).filter(
    lambda stem: not stem.startswith(".")
)
places = st.builds(
    lambda root, folders, stem: "/".join([root, *folders, stem]),
    st.sampled_from(ROOTS),
    st.lists(st.sampled_from(["a", "b", "a_b"]), max_size=3),
    st.one_of(st.sampled_from(["x", "a_x", "b_x", "models_Lora_x"]), stems),
)


@given(st.sets(places, max_size=12))
def test_every_file_has_one_name_that_a_request_can_give(wheres: set[str]) -> None:
    files = [placed(where) for where in wheres]

    named = naming.unique_names(files)

    assert {file.path for file in named.values()} == {file.path for file in files}
    for name in named:
        assert name.isprintable()
        assert "/" not in name
        if name.strip() and not name.startswith(".") and stem_of(name) == name:
            assert ModelRef(kind=Kind.LORA, name=name).name == name


# What has a claim has a name that a request gave, and those are printable.
lawful = places.filter(lambda place: placed(place).claim is None or place.isprintable())
# Nothing new comes into an image while a worker runs.
on_the_volume = lawful.filter(lambda place: not place.startswith("baked"))


@given(st.sets(lawful, min_size=1, max_size=8), on_the_volume)
def test_a_new_file_never_takes_the_name_that_a_published_or_baked_one_has(
    wheres: set[str], new: str
) -> None:
    before = naming.unique_names([placed(where) for where in wheres])
    after = naming.unique_names([placed(where) for where in wheres | {new}])

    for name, file in before.items():
        if file.claim is not None and name == naming.stem(file):
            assert after[name] == file
