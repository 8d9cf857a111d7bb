"""What the simulated WebUI reads from model files."""

import io
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest

from simulator import models
from simulator.webui import weights
from simulator.webui.embeddings import Embeddings
from simulator.webui.failure import WebuiError
from simulator.webui.hashes import HashCache


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
    embeddings = Embeddings(tmp_path)

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
    embeddings = Embeddings(tmp_path)

    embeddings.reload(2048, force=True)

    assert [*embeddings.loaded, *embeddings.skipped] == ["good"]


def test_an_embedding_is_found_as_a_word_in_any_case(tmp_path: Path) -> None:
    models.write_embedding(tmp_path / "easy-neg.safetensors", seed="e")
    embeddings = Embeddings(tmp_path)
    embeddings.reload(768, force=True)

    assert [one.name for one in embeddings.used_in("(Easy-Neg:1.2), x")] == ["easy-neg"]
    assert embeddings.used_in("uneasy-neg, easy-negs") == []


def test_a_hash_is_read_once_and_again_when_the_file_is_newer(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    cache = HashCache(tmp_path, disabled=False)
    assert cache.known(path, "x") is None
    first = cache.of(path, "x")

    again = HashCache(tmp_path, disabled=False)
    assert again.known(path, "x") == first
    path.write_bytes(b"two")
    later = path.stat().st_mtime + 5
    os.utime(path, (later, later))
    assert again.known(path, "x") is None
    assert again.of(path, "x") != first


def test_a_hash_of_a_file_that_is_gone_fails(tmp_path: Path) -> None:
    with pytest.raises(WebuiError, match="No such file or directory"):
        HashCache(tmp_path, disabled=False).of(tmp_path / "gone", "x")
