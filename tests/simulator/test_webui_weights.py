"""What the simulated WebUI reads from model files."""

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from simulator import models
from simulator.webui import weights
from simulator.webui.embeddings import Embeddings
from simulator.webui.failure import WebuiError
from simulator.webui.hashes import DATA, HashCache, Places


@pytest.mark.parametrize(
    ("base", "width"), [("sd1", 768), ("sd2", 1024), ("sdxl", 2048), ("flux", 0)]
)
def test_the_width_of_the_text_tells_base_models_apart(
    tmp_path: Path, base: str, width: int
) -> None:
    models.write_checkpoint(tmp_path / "a.safetensors", seed="a", base=base)

    assert weights.text_width(weights.read_header(tmp_path / "a.safetensors")) == width


@pytest.mark.parametrize("nan", [True, False])
def test_nan_is_found_in_the_weights_themselves(tmp_path: Path, *, nan: bool) -> None:
    path = tmp_path / "a.safetensors"
    models.write_checkpoint(path, seed="a", nan=nan)

    assert weights.has_nan_weights(path, weights.read_header(path)) is nan


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"abc", "HeaderTooSmall"),
        (b"this is not a safetensors file", "HeaderTooLarge"),
        (struct.pack("<Q", 50) + b"{}", "InvalidHeaderLength"),
        (struct.pack("<Q", 2) + b"{{", "InvalidHeaderDeserialization"),
        (struct.pack("<Q", 2) + b"[]", "InvalidHeaderDeserialization"),
        (struct.pack("<Q", 2) + b"{}x", "MetadataIncompleteBuffer"),
    ],
)
def test_a_damaged_file_fails_with_the_librarys_words(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)

    with pytest.raises(WebuiError, match=f"Error while deserializing header: {reason}"):
        weights.read_header(path)


def test_json_in_metadata_is_parsed_and_what_is_none_is_not(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    models.write_lora(path, seed="a", metadata={"tags": '{"a": 1}', "odd": "{not json"})

    assert weights.listed_metadata(path) == {"tags": {"a": 1}, "odd": "{not json"}


def test_a_large_file_is_fingerprinted_by_samples(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a", "b", "c")]
    for path, last in zip(paths, (b"1", b"1", b"2"), strict=True):
        with path.open("wb") as file:
            file.truncate(20 << 20)
            file.seek(-1, io.SEEK_END)
            file.write(last)

    one, same, other = (weights.fingerprint(path) for path in paths)
    assert one == same != other


def embedding(path: Path, content: dict[str, Any]) -> None:
    """Write a .pt whose tensors are stood in for by calls of a harmless builtin."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("made/data.pkl", pickle.dumps(content, protocol=2))


class Tensor:
    """Pickles as a call of a function with a shape as its third argument, as a tensor does."""

    def __init__(self, *shape: int) -> None:
        self.shape = shape

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("storage", 0, self.shape, (1,))


def test_a_pickled_embedding_is_read_without_calling_what_it_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = {"string_to_param": {"*": Tensor(3, 768)}, "step": 10, "sd_checkpoint": "abc"}
    embedding(tmp_path / "made.pt", content)
    embeddings = Embeddings(tmp_path, hash_cache(tmp_path))

    embeddings.reload(768, force=True)

    (found,) = embeddings.loaded.values()
    assert (found.name, found.vectors, found.shape, found.step) == ("made", 3, 768, 10)
    assert capsys.readouterr().out == ""


def test_what_is_no_embedding_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "junk.pt").write_bytes(b"junk")
    (tmp_path / "empty.pt").touch()
    (tmp_path / "note.txt").write_text("x")
    (tmp_path / "good.preview.png").write_bytes(b"x")
    embedding(tmp_path / "two.pt", {"string_to_param": {"a": Tensor(1, 768), "b": Tensor(1, 768)}})
    models.write_embedding(tmp_path / "good.safetensors", seed="g", base="sdxl")
    embeddings = Embeddings(tmp_path, hash_cache(tmp_path))

    embeddings.reload(2048, force=True)

    assert [*embeddings.loaded, *embeddings.skipped] == ["good"]


def test_an_embedding_is_found_as_a_word_in_any_case(tmp_path: Path) -> None:
    models.write_embedding(tmp_path / "easy-neg.safetensors", seed="e")
    embeddings = Embeddings(tmp_path, hash_cache(tmp_path))
    embeddings.reload(768, force=True)

    assert [one.name for one in embeddings.used_in("(Easy-Neg:1.2), x")] == ["easy-neg"]
    assert embeddings.used_in("uneasy-neg, easy-negs") == []


def hash_cache(folder: Path, *, disabled: bool = False) -> HashCache:
    return HashCache(
        Places(folder / "cache", folder / "cache.json"), lambda _: None, disabled=disabled
    )


def test_a_hash_is_read_once_and_again_when_the_file_is_newer(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    cache = hash_cache(tmp_path)
    assert cache.known(path, "x") is None
    first = cache.of(path, "x")
    assert (cache.read_files, cache.read_bytes) == (1, 3)

    again = hash_cache(tmp_path)
    assert again.of(path, "x") == first
    assert again.read_files == 0
    path.write_bytes(b"two")
    later = path.stat().st_mtime + 5
    os.utime(path, (later, later))
    assert again.known(path, "x") is None
    assert again.of(path, "x") != first


def test_a_hash_of_a_file_that_is_gone_fails(tmp_path: Path) -> None:
    with pytest.raises(WebuiError, match="No such file or directory"):
        hash_cache(tmp_path).of(tmp_path / "gone", "x")


def test_a_hash_that_another_process_wrote_is_known_at_once_and_through_a_link(
    tmp_path: Path,
) -> None:
    file, link = tmp_path / "a", tmp_path / "link"
    file.write_bytes(b"one")
    link.symlink_to(file)
    cache = hash_cache(tmp_path)
    assert cache.known(link, "checkpoint/link") is None

    write = (
        "import sys, diskcache\n"
        "database = diskcache.Cache(sys.argv[1])\n"
        "database['checkpoint/link'] = {'mtime': float(sys.argv[2]), 'sha256': 'ab' * 32}\n"
    )
    mtime = str(file.stat().st_mtime)
    arguments = [sys.executable, "-c", write, str(tmp_path / "cache" / "hashes"), mtime]
    subprocess.run(arguments, check=True)

    assert cache.of(link, "checkpoint/link") == "ab" * 32
    assert cache.known(link, "checkpoint/link", DATA) is None
    assert hash_cache(tmp_path, disabled=True).of(link, "checkpoint/link") == "ab" * 32


def test_a_file_replaced_by_an_older_one_keeps_its_hash(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    cache = hash_cache(tmp_path)
    first = cache.of(path, "x")

    path.write_bytes(b"two")
    os.utime(path, (1, 1))

    assert cache.of(path, "x") == first


def test_hashes_of_older_versions_are_taken_over_where_there_are_no_databases(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a"
    path.touch()
    old = {"hashes": {"x": {"mtime": 9e9, "sha256": "cd" * 32}}, "hashes-addnet": {}}
    (tmp_path / "cache.json").write_text(json.dumps(old))

    assert hash_cache(tmp_path).known(path, "x") == "cd" * 32
    assert (tmp_path / "cache.json").exists()
    (tmp_path / "cache.json").write_text("{")
    assert hash_cache(tmp_path).known(path, "x") == "cd" * 32


def test_hashes_of_older_versions_that_cannot_be_read_are_put_aside(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.touch()
    (tmp_path / "cache.json").write_text("{")

    assert hash_cache(tmp_path).known(path, "x") is None
    assert (tmp_path / "tmp" / "cache.json").read_text() == "{"
