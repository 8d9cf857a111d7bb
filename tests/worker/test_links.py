from pathlib import Path

from model_cache.models import CachedModel
from schemas.model_ref import Kind
from worker.links import FOLDERS, LinkFolder
from worker.prompt import carriable, lora_tag, tags


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


def test_every_kind_has_its_folder(tmp_path: Path) -> None:
    LinkFolder(tmp_path / "links")

    assert {path.name for path in (tmp_path / "links").iterdir()} == set(FOLDERS.values())
    assert set(FOLDERS) == set(Kind)
