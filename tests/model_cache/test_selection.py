import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from model_cache.selection import Choice, Fetch, Hash, Link, Use, Wanted, choose
from model_cache.volume import layout, manifests
from model_cache.volume.inventory import Found, Inventory
from schemas.errors import ModelCorruptError, ModelNotFoundError
from schemas.model_ref import Kind, ModelRef

VOLUME = Path("/volume")
A, B = "a" * 64, "b" * 64
URL, OTHER = "https://h/a", "https://h/b"


@dataclass(frozen=True)
class File:
    """A LoRA that is on the volume: what its manifest says, if it has one."""

    place: str
    sha256: str | None = None
    source: str = ""
    autov3: str = ""
    seen_at: float = 1.0


def choice(ref: dict[str, str], *files: File) -> Choice:
    """Choose for `ref` on a volume that holds `files`."""
    folder = VOLUME / "models" / layout.FOLDERS[Kind.LORA]
    listed = {}
    for file in files:
        path = folder / f"{file.place}.safetensors"
        status = os.stat_result((0o100644, hash(path), 1, 1, 0, 0, 10, 0, 0, 0), {"st_mtime_ns": 0})
        manifest = None
        if file.sha256 is not None:
            manifest = manifests.new(file.sha256, status, file.source, "sd1", "")
            means = dict.fromkeys(manifest.means, file.seen_at)
            manifest = manifest.model_copy(update={"autov3": file.autov3, "means": means})
        listed[path] = Found(Kind.LORA, path, folder, "/" not in file.place, status, manifest)
    asked = ModelRef.model_validate({"kind": Kind.LORA, **ref})
    keys = (asked.url,) if asked.url else ()
    return choose(Wanted.of(asked, keys), Inventory(VOLUME, listed))


def outcome(chosen: Choice) -> tuple[object, ...]:
    """Return a choice as: what to do, with which model, and the name to give or whether warned."""
    match chosen:
        case Use(model, warning):
            return "use", model.name, bool(warning)
        case Link(model, name):
            return "link", model.name, name
        case Hash(model):
            return "hash", model.name
        case Fetch():
            return ("fetch",)


@pytest.mark.parametrize(
    ("ref", "files", "expected"),
    [
        pytest.param({"name": "x"}, [File("x")], ("use", "x", False), id="a name that is here"),
        pytest.param(
            {"name": "x", "hash": A}, [File("x", A)], ("use", "x", False), id="with its hash"
        ),
        pytest.param({"name": "x", "hash": A}, [File("x")], ("hash", "x"), id="unhashed: hash it"),
        pytest.param(
            {"name": "x", "hash": A},
            [File("y", A)],
            ("link", "y", "x"),
            id="the bytes are here under another name",
        ),
        pytest.param(
            {"name": "x", "hash": A},
            [File("x", B), File(f"x-{A[:8]}", A)],
            ("use", f"x-{A[:8]}", True),
            id="the bytes are beside the name",
        ),
        pytest.param(
            {"name": "sub/x", "hash": A}, [File("sub/x", A)], ("use", "x", False), id="by path"
        ),
        pytest.param(
            {"name": "sub/x", "hash": A},
            [File("y", A)],
            ("use", "y", True),
            id="no link is laid in a sub-folder",
        ),
        pytest.param({"url": URL}, [], ("fetch",), id="a URL for the first time"),
        pytest.param({"url": URL}, [File("x", A, URL)], ("use", "x", False), id="a known source"),
        pytest.param(
            {"url": URL, "name": "x"}, [File("x", A, URL)], ("use", "x", False), id="and name"
        ),
        pytest.param(
            {"url": URL, "name": "z"},
            [File("x", A, URL)],
            ("link", "x", "z"),
            id="a known source under another name",
        ),
        pytest.param(
            {"url": URL, "name": "x"},
            [File("x", B, OTHER)],
            ("fetch",),
            id="the name belongs to another source",
        ),
        pytest.param(
            {"url": URL, "name": "x"},
            [File("x", B, OTHER), File(f"x-{A[:8]}", A, URL)],
            ("use", f"x-{A[:8]}", True),
            id="fetched beside it before",
        ),
        pytest.param(
            {"url": URL, "name": "x"},
            [File("x", B, OTHER), File("y", A, URL)],
            ("link", "y", f"x-{A[:8]}"),
            id="fetched under a third name before",
        ),
        pytest.param(
            {"url": URL, "name": "x"}, [File("x")], ("use", "x", True), id="put there by hand"
        ),
        pytest.param(
            {"url": URL, "name": "x"},
            [File("x", B)],
            ("use", "x", True),
            id="put there by hand, hashed since",
        ),
        pytest.param(
            {"url": URL, "name": "x", "hash": A},
            [File("x")],
            ("hash", "x"),
            id="by hand, hash told",
        ),
        pytest.param(
            {"url": URL, "name": "x", "hash": A},
            [File("x", B)],
            ("fetch",),
            id="by hand, other bytes",
        ),
        pytest.param(
            {"url": URL, "name": "x", "hash": A},
            [File("x", B, URL)],
            ("fetch",),
            id="the source has new bytes",
        ),
        pytest.param(
            {"url": URL, "name": "x", "hash": A},
            [File("x", B, URL), File(f"x-{A[:8]}", A, URL)],
            ("use", f"x-{A[:8]}", True),
            id="the new bytes are here",
        ),
        pytest.param(
            {"url": URL, "name": "x", "hash": A},
            [File("x"), File(f"x-{A[:8]}", A)],
            ("use", f"x-{A[:8]}", True),
            id="no hashing where the bytes are here beside it",
        ),
        pytest.param(
            {"url": URL, "name": "x", "hash": A},
            [File("x"), File("y", A)],
            ("hash", "x"),
            id="the name may have those bytes already",
        ),
        pytest.param(
            {"url": URL, "hash": A}, [File("y", A, OTHER)], ("use", "y", False), id="bytes decide"
        ),
        pytest.param(
            {"url": URL, "name": "x", "hash": A},
            [File("y", A, OTHER)],
            ("link", "y", "x"),
            id="bytes of another source",
        ),
        pytest.param(
            {"url": URL, "name": "x"},
            [File("sub/x", A, "")],
            ("use", "x", True),
            id="the name is that of a file in a sub-folder",
        ),
    ],
)
def test_a_reference_means_one_file(
    ref: dict[str, str], files: list[File], expected: tuple[object, ...]
) -> None:
    assert outcome(choice(ref, *files)) == expected


def test_a_name_with_another_hash_is_refused_with_both() -> None:
    with pytest.raises(ModelCorruptError, match=f"'x' has the SHA-256 {B}, not {A}"):
        choice({"name": "x", "hash": A}, File("x", B))


def test_a_name_with_another_hash_is_refused_though_the_bytes_have_another_name() -> None:
    with pytest.raises(ModelCorruptError):
        choice({"name": "x", "hash": A}, File("x", B), File("y", A))


@pytest.mark.parametrize(
    "title", [f"x.safetensors [{A[:10]}]", f"x [{A[:10]}]", f"x [{A[:10].upper()}]"]
)
def test_a_title_of_a1111_means_the_file_with_that_hash(title: str) -> None:
    assert outcome(choice({"name": title}, File("x", A))) == ("use", "x", False)


def test_the_hash_of_a_title_is_learnt_where_nobody_knows_it() -> None:
    assert outcome(choice({"name": f"x [{A[:10]}]"}, File("x"))) == ("hash", "x")


def test_a_title_with_another_hash_means_no_file() -> None:
    with pytest.raises(ModelNotFoundError, match=f"'x' has the hash {B[:10]}, not {A[:10]}"):
        choice({"name": f"x [{A[:10]}]"}, File("x", B))


def test_a_file_that_is_called_like_a_title_is_meant_first() -> None:
    name = f"x [{A[:10]}]"

    assert outcome(choice({"name": name}, File("x", B), File(name))) == ("use", name, False)


@pytest.mark.parametrize(
    ("name", "files", "hint"),
    [
        ("detial", ["detail", "other"], "Did you mean 'detail'?"),
        ("DETAIL", ["detail", "other"], "Did you mean 'detail'?"),
        ("q", ["aaa", "bbb"], "In models/loras there are: 'aaa', 'bbb'."),
        ("q", ["aaa", "bbb", "ccc", "ddd"], "In models/loras there are: 'aaa', 'bbb', 'ccc' and 1 more."),
        ("q", [], "There is no lora at all in models/loras; give its URL to have it fetched."),
    ],
)  # fmt: skip
def test_a_name_that_is_not_here_is_answered_with_what_is(
    name: str, files: list[str], hint: str
) -> None:
    with pytest.raises(ModelNotFoundError, match=f"no lora called {name!r}") as caught:
        choice({"name": name}, *map(File, files))

    assert caught.value.hint == hint


def test_a_file_among_several_of_that_stem_is_not_chosen_for_a_url() -> None:
    assert outcome(choice({"url": URL, "name": "x"}, File("a/x"), File("b/x"))) == ("fetch",)


def test_an_autov3_with_a_url_prefers_the_file_of_that_url() -> None:
    theirs = File("a", B, OTHER, autov3="0" * 12)
    ref = {"url": URL, "hash": "0" * 12}

    assert outcome(choice(ref, theirs, File("z", A, URL, autov3="0" * 12))) == ("use", "z", False)


def test_an_autov3_is_no_proof_of_the_header_which_is_said() -> None:
    chosen = choice({"url": URL, "hash": "0" * 12}, File("a", B, OTHER, autov3="0" * 12))

    assert isinstance(chosen, Use)
    assert "header was not compared" in chosen.warning


def test_a_url_means_what_it_was_last_seen_to_give() -> None:
    older, newer = File("a", B, URL, seen_at=1.0), File("b", A, URL, seen_at=2.0)

    assert outcome(choice({"url": URL}, older, newer)) == ("use", "b", False)
