from dataclasses import replace
from pathlib import Path

import pytest

from model_cache.models import CachedModel
from schemas.model_ref import Kind
from worker.child.links import FOLDERS, LinkFolder, carriable
from worker.generation.prompt import lora_tag, tags


def model(folder: Path, name: str, kind: Kind = Kind.LORA, file: str = "") -> CachedModel:
    path = folder / (file or f"{name}.safetensors")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(name.encode())
    return CachedModel(
        kind=kind, name=name, path=path, sha256=None, size_bytes=path.stat().st_size, mtime_ns=0
    )


def test_a_model_is_linked_once_under_its_name(tmp_path: Path) -> None:
    links = LinkFolder(tmp_path / "links")
    lora = model(tmp_path, "detail")

    assert links.show(lora) == ("detail", True)
    assert links.show(lora) == ("detail", False)
    link = tmp_path / "links" / "Lora" / "detail.safetensors"
    assert link.is_symlink()
    assert link.read_bytes() == b"detail"


def test_a_name_that_a_tag_cannot_carry_is_replaced(tmp_path: Path) -> None:
    links = LinkFolder(tmp_path / "links")

    for name in ("colon:name", "eq=name", "comma, name", "a#b", "a|b", "<a>"):
        shown, _ = links.show(model(tmp_path, name))
        [tag] = tags(lora_tag(shown, 1))
        assert tag.items == (shown, "1")
        assert (tmp_path / "links" / "Lora" / f"{shown}.safetensors").exists()


def test_two_names_that_become_one_stay_two_links(tmp_path: Path) -> None:
    links = LinkFolder(tmp_path / "links")

    names = {links.show(model(tmp_path, name))[0] for name in ("a:b", "a=b", "a_b")}

    assert len(names) == 3
    assert all(carriable(name) == name for name in names)


def test_only_the_given_models_stay(tmp_path: Path) -> None:
    links = LinkFolder(tmp_path / "links")
    kept, gone = model(tmp_path, "kept"), model(tmp_path, "gone")

    assert links.show_only(Kind.LORA, [kept, gone])
    assert not links.show_only(Kind.LORA, [kept, gone])
    assert links.show_only(Kind.LORA, [kept])

    assert [path.name for path in (tmp_path / "links" / "Lora").iterdir()] == ["kept.safetensors"]


def test_links_of_an_earlier_start_are_removed_and_files_are_not(tmp_path: Path) -> None:
    LinkFolder(tmp_path / "links").show(model(tmp_path, "old"))
    own = tmp_path / "links" / "Lora" / "own.safetensors"
    own.write_bytes(b"not ours")

    LinkFolder(tmp_path / "links")

    assert list((tmp_path / "links" / "Lora").iterdir()) == [own]


def test_a_replaced_file_gets_a_name_that_a1111_has_not_seen(tmp_path: Path) -> None:
    links = LinkFolder(tmp_path / "links")
    old = model(tmp_path, "m")
    assert links.show(old) == ("m", True)

    new = replace(old, size_bytes=old.size_bytes + 1, mtime_ns=5)

    assert links.show(new) == ("m-2", True)
    assert links.show(new) == ("m-2", False)
    assert [path.name for path in (tmp_path / "links" / "Lora").iterdir()] == ["m-2.safetensors"]


def fetched(folder: Path, name: str, sha256: str | None, mtime_ns: int) -> CachedModel:
    return replace(model(folder, name), sha256=sha256, mtime_ns=mtime_ns)


def test_a_model_that_was_evicted_and_fetched_again_has_its_name_again(tmp_path: Path) -> None:
    links = LinkFolder(tmp_path / "links")
    first = fetched(tmp_path, "detail", "a" * 64, 1)
    links.show(first)

    first.path.unlink()
    links.forget_gone(Kind.LORA)
    again = fetched(tmp_path, "detail", "a" * 64, 2)

    assert links.show(again) == ("detail", True)
    assert links.show(replace(again, mtime_ns=3)) == (
        "detail",
        True,
    )  # nobody noted that it was gone


@pytest.mark.parametrize("sha256", ["b" * 64, None])
def test_other_bytes_never_have_a_name_again(tmp_path: Path, sha256: str | None) -> None:
    links = LinkFolder(tmp_path / "links")
    links.show(fetched(tmp_path, "detail", sha256 and "a" * 64, 1))
    links.show_only(Kind.LORA, [])

    assert links.show(fetched(tmp_path, "detail", sha256, 2)) == ("detail-2", True)


def test_two_files_of_the_same_bytes_have_two_names(tmp_path: Path) -> None:
    links = LinkFolder(tmp_path / "links")
    files = [fetched(tmp_path / place, "detail", "a" * 64, 1) for place in "ab"]

    assert [links.show(file)[0] for file in files] == ["detail", "detail-2"]


def test_a_checkpoint_that_a1111_would_take_for_a_vae_gets_another_name(tmp_path: Path) -> None:
    links = LinkFolder(tmp_path / "links")

    assert links.show(model(tmp_path, "foo.vae", Kind.CHECKPOINT))[0] == "foo_vae"
    assert links.show(model(tmp_path, "foo.vae", Kind.VAE))[0] == "foo.vae"


def test_a_name_with_the_suffix_in_it_is_not_taken_for_another(tmp_path: Path) -> None:
    links = LinkFolder(tmp_path / "links")

    names = [links.show(model(tmp_path, name))[0] for name in ("x", "x.safetensors")]

    assert names == ["x", "x_safetensors"]


def test_every_kind_has_its_folder(tmp_path: Path) -> None:
    LinkFolder(tmp_path / "links")

    assert {path.name for path in (tmp_path / "links").iterdir()} == set(FOLDERS.values())
    assert set(FOLDERS) == set(Kind)


def test_the_link_of_a_pickle_has_a_suffix_that_a1111_looks_for(tmp_path: Path) -> None:
    links = LinkFolder(tmp_path / "links")

    for kind, file, link in (
        (Kind.UPSCALER, "4x.pth", "ESRGAN/4x.pth"),
        (Kind.UPSCALER, "2x.bin", "ESRGAN/2x.pth"),
        (Kind.EMBEDDING, "bad.pt", "embeddings/bad.pt"),
        (Kind.CONTROLNET, "canny.pth", "ControlNet/canny.pth"),
        (Kind.CHECKPOINT, "old.ckpt", "Stable-diffusion/old.ckpt"),
    ):
        name = file.partition(".")[0]
        shown = model(tmp_path, name, kind, file)
        assert links.show(shown) == (name, True)
        assert (tmp_path / "links" / link).read_bytes() == name.encode()
        assert links.path_of(kind, name) == shown.path


def test_a_pickle_and_a_safetensors_file_of_one_name_have_two_links(tmp_path: Path) -> None:
    links = LinkFolder(tmp_path / "links")
    plain = model(tmp_path, "x", Kind.EMBEDDING)
    pickled = model(tmp_path, "x", Kind.EMBEDDING, "x.pt")

    assert [links.show(shown)[0] for shown in (plain, pickled)] == ["x", "x-2"]
    links.forget(pickled)
    assert [path.name for path in (links.root / "embeddings").iterdir()] == ["x.safetensors"]
