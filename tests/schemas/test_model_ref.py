import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from schemas.errors import InvalidInputError
from schemas.model_ref import (
    SUFFIX,
    SUFFIXES,
    HashForm,
    Kind,
    ModelRef,
    as_fields,
    hash_form,
    parse_ref,
    stem_of,
)


def ref(**fields: object) -> ModelRef:
    return ModelRef.model_validate({"kind": Kind.LORA, **fields})


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("https://host/x", "url"),
        ("HTTPS://host/x", "url"),
        ("http://host/x", "url"),
        ("hf:org/repo", "url"),
        ("hf://org/repo/x.safetensors@main", "url"),
        ("civitai:version:4", "url"),
        ("s3://bucket/key", "url"),
        ("urn:air:sd1:lora:civitai:1@2", "url"),
        ("org/repo", "name"),
        ("detail", "name"),
        ("hfx", "name"),
        ("urn:isbn:1", "name"),
        ("s3:x", "name"),
    ],
)
def test_a_bare_string_is_what_its_start_says(text: str, field: str) -> None:
    assert as_fields(text, Kind.LORA) == {"kind": Kind.LORA, field: text}


@pytest.mark.parametrize(
    "url",
    [
        "hf:org/repo/a file.safetensors@main",
        "s3://bucket/a key",
        "urn:air:sd1:lora:civitai:1@2+3.safetensor",
        "URN:AIR:sd1:lora:civitai:1",
        "https://host/x?token=s",
    ],
)
def test_a_reference_is_kept_as_it_is(url: str) -> None:
    assert ref(url=url).url == url


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://host/x",
        "host/x",
        "https://",
        "https://[/x",
        "https://user:pw@host/x",
        "s3://key:secret@bucket/x",
        "https://host/a b",
        "hf:org/repo\n",
        "urn:isbn:1",
        "s3:bucket/x",
    ],
)
def test_what_names_no_place_to_fetch_from_is_refused(url: str) -> None:
    with pytest.raises(ValidationError):
        ref(url=url)


@pytest.mark.parametrize(
    ("given_", "kept", "form"),
    [
        ("A" * 64, "a" * 64, HashForm.SHA256),
        (f"sha256:{'b' * 64}", "b" * 64, HashForm.SHA256),
        (" 0123456789 ", "0123456789", HashForm.AUTOV2),
        ("AutoV2:0123456789", "0123456789", HashForm.AUTOV2),
        ("0123456789AB", "0123456789ab", HashForm.AUTOV3),
        ("autov3:0123456789ab", "0123456789ab", HashForm.AUTOV3),
    ],
)
def test_a_hash_tells_its_form_by_its_length(given_: str, kept: str, form: HashForm) -> None:
    digest = ref(name="x", hash=given_).hash

    assert digest == kept
    assert hash_form(kept) is form


@pytest.mark.parametrize(
    "text",
    [
        "0",
        "0" * 8,
        "0" * 63,
        "g" * 64,
        f"autov2:{'0' * 12}",
        f"autov3:{'0' * 64}",
        "md5:" + "0" * 12,
    ],
)
def test_a_hash_of_another_length_or_another_form_than_it_says_is_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        ref(name="x", hash=text)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_one_suffix_of_a_model_is_no_part_of_its_name(suffix: str) -> None:
    assert stem_of(f"4x.v2{suffix}") == "4x.v2"
    assert stem_of(f"4x{suffix}{SUFFIX}") == f"4x{suffix}"
    assert ref(name=f"4x.v2{suffix}").name == "4x.v2"


def test_other_endings_are_part_of_the_name() -> None:
    assert stem_of("v1.5") == "v1.5"
    assert ref(name="a.gguf").name == "a.gguf"


@pytest.mark.parametrize("name", SUFFIXES)
def test_a_suffix_alone_is_no_name(name: str) -> None:
    with pytest.raises(ValidationError):
        ref(name=name)


@pytest.mark.parametrize(
    ("url", "label"),
    [
        ("https://user.host/a/b?token=SECRET#SECRET", "user.host/a/b"),
        ("hf:org/repo/x?token=SECRET", "hf:org/repo/x"),
        ("s3://bucket/key?X-Amz-Signature=SECRET", "s3://bucket/key"),
        ("urn:air:sd1:lora:civitai:1@2", "urn:air:sd1:lora:civitai:1@2"),
        ("civitai:version:4?token=SECRET", "civitai:version:4"),
    ],
)
def test_a_label_shows_no_secret(url: str, label: str) -> None:
    assert ref(url=url).label == label


def test_a_reference_is_not_looked_up_again_unless_that_is_asked() -> None:
    assert not ref(name="x").refresh
    assert ref(url="hf:org/repo", refresh=True).refresh


@given(st.text())
def test_any_string_is_a_reference_or_invalid_input(text: str) -> None:
    try:
        label = parse_ref(text, Kind.LORA, "loras[0]").label
    except InvalidInputError as error:
        label = error.details["field"]

    assert label


@given(st.text(st.characters(codec="utf-8")), st.sampled_from(SUFFIXES))
def test_the_name_of_a_name_is_itself_but_for_one_suffix(name: str, suffix: str) -> None:
    assert stem_of(name + suffix) == name
