import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_cache.weights import header
from schemas.errors import ModelCorruptError, ModelUnsafeError
from simulator import models
from tests.model_cache.conftest import safetensors

F16 = {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]}


def read(path: Path, content: bytes) -> header.Header:
    path.write_bytes(content)
    return header.read(path, "m")


def test_a_sound_file_is_read(tmp_path: Path) -> None:
    entries = {
        "b": {"dtype": "F32", "shape": [], "data_offsets": [12, 16]},
        "a": F16,
        "empty": {"dtype": "I64", "shape": [0, 7], "data_offsets": [16, 16]},
        "__metadata__": {"ss_output_name": "x"},
    }

    found = read(tmp_path / "m", safetensors(entries, bytes(16)))

    assert found.shapes == {"a": (2, 3), "b": (), "empty": (0, 7)}
    assert found.metadata == {"ss_output_name": "x"}


@pytest.mark.parametrize("cut", [1, 7, 1000])
def test_a_file_that_lost_its_end_is_noticed(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "m"
    models.write_lora(path, seed="m")
    os.truncate(path, path.stat().st_size - cut)

    with pytest.raises(ModelCorruptError, match="not a whole safetensors file"):
        header.read(path, "m")


def test_a_file_with_one_byte_too_many_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(ModelCorruptError, match="12 bytes, 13 are there"):
        read(tmp_path / "m", safetensors({"a": F16}, bytes(13)))


def tensor(**changes: Any) -> dict[str, Any]:
    return {"a": {**F16, **changes}}


@pytest.mark.parametrize(
    ("raw", "flaw"),
    [
        pytest.param(b"[]", "begin with", id="no object"),
        pytest.param(b'{"a":', "not JSON", id="no JSON"),
        pytest.param(b'{"\xff": 1}', "not JSON", id="not UTF-8"),
        pytest.param(b'{"a": ' + b"[" * 200_000, "nested too deep", id="deep nesting"),
        pytest.param(b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested too deep", id="deep"),
        pytest.param(b'{"a": ' + b"9" * 5000 + b"}", "not JSON", id="a number of 5000 digits"),
        pytest.param(b'{"a": NaN}', "NaN", id="NaN"),
        pytest.param(b'{"a": 1, "a": 1}', "twice", id="same key twice"),
        pytest.param(b'{"a": {"dtype": "F16", "dtype": "F16"}}', "twice", id="inner key twice"),
        pytest.param(b'{"a": 1}', "not an object", id="tensor is a number"),
        pytest.param(tensor(dtype="F17"), "unknown type", id="unknown type"),
        pytest.param(tensor(dtype=["F16"]), "unknown type", id="type is a list"),
        pytest.param(tensor(shape=None), "impossible shape", id="no shape"),
        pytest.param(tensor(shape=[2, -3]), "impossible shape", id="negative size"),
        pytest.param(tensor(shape=[True, 6]), "impossible shape", id="true as a size"),
        pytest.param(tensor(shape=[2.0, 3]), "impossible shape", id="size with a point"),
        pytest.param(tensor(shape=[1 << 63, 0]), "impossible shape", id="size beyond any file"),
        pytest.param(tensor(shape=[2, 2]), "as many bytes", id="other size than its bytes"),
        pytest.param(tensor(shape=[1 << 60] * 100_000), "as many bytes", id="100,000 sizes"),
        pytest.param(tensor(data_offsets=[0]), "outside", id="one offset"),
        pytest.param(tensor(data_offsets=[-12, 0]), "outside", id="negative offset"),
        pytest.param(tensor(data_offsets=[12, 0]), "outside", id="end before start"),
        pytest.param(tensor(data_offsets=[0, 24], shape=[12]), "outside", id="beyond the end"),
        pytest.param({"a": F16, "b": F16}, "overlap", id="overlap"),
        pytest.param(tensor(data_offsets=[2, 12], shape=[5]), "hole", id="hole"),
        pytest.param({"__metadata__": {"a": 1}, "a": F16}, "text to text", id="metadata number"),
        pytest.param({"__metadata__": [], "a": F16}, "text to text", id="metadata list"),
        pytest.param({}, "0 bytes, 12 are there", id="no tensors"),
        pytest.param(
            tensor(dtype="F4", shape=[23], data_offsets=[0, 12]), "as many bytes", id="half a byte"
        ),
    ],
)
def test_a_hostile_header_gets_the_typed_error(tmp_path: Path, raw: Any, flaw: str) -> None:
    content = safetensors(raw, bytes(12))
    started = time.process_time()

    with pytest.raises(ModelCorruptError, match=flaw):
        read(tmp_path / "m", content)

    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    ("content", "flaw"),
    [
        pytest.param(b"", "it has 0 bytes", id="empty"),
        pytest.param(b"\1\0\0", "it has 3 bytes", id="three bytes"),
        pytest.param(safetensors({}, length=200_000_000), "100 MB", id="header too long"),
        pytest.param(safetensors({}, length=(1 << 64) - 1), "100 MB", id="greatest length"),
        pytest.param(safetensors({}, length=50), "header ends at 58", id="header beyond the end"),
        pytest.param(safetensors(b""), "begin with", id="header of nothing"),
    ],
)
def test_a_broken_frame_gets_the_typed_error(tmp_path: Path, content: bytes, flaw: str) -> None:
    with pytest.raises(ModelCorruptError, match=flaw):
        read(tmp_path / "m", content)


def test_a_web_page_is_called_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(ModelUnsafeError, match="web page"):
        read(tmp_path / "m", b"<!DOCTYPE html><html></html>")


def test_a_pipe_under_the_name_of_a_model_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m")
    writer = os.open(tmp_path / "m", os.O_RDWR)

    with pytest.raises(ModelCorruptError, match="not a regular file"):
        header.read(tmp_path / "m", "m")

    os.close(writer)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 70), 1 << 70)
    | st.floats()
    | st.text()
    | st.sampled_from(["F16", "U8", "BOOL", 0, 1, 2, 12]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["dtype", "shape", "data_offsets", "__metadata__", "a"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(
    st.dictionaries(st.text(max_size=12) | st.just("__metadata__"), json_values), st.integers(0, 64)
)
def test_whatever_the_header_says_the_outcome_is_a_header_or_the_error(
    entries: dict[str, Any], data_bytes: int
) -> None:
    raw = json.dumps(entries).encode()

    found = None
    with contextlib.suppress(header.FlawError):
        found = header.parse(raw, data_bytes=data_bytes)

    assert found is None or found.shapes.keys() == entries.keys() - {"__metadata__"}


@given(st.binary(max_size=200))
def test_whatever_the_bytes_are_the_outcome_is_the_error(content: bytes) -> None:
    with pytest.raises(header.FlawError):
        header.parse(b"{" + content + b"\xff", data_bytes=0)


sound_tensors = st.lists(
    st.tuples(st.sampled_from([("U8", 1), ("F16", 2), ("F32", 4)]), st.lists(st.integers(0, 9))),
    max_size=6,
)


@given(sound_tensors, st.randoms())
def test_every_sound_header_is_accepted_in_any_order(tensors: Any, random: Any) -> None:
    entries = {}
    position = 0
    for number, ((dtype, width), shape) in enumerate(tensors):
        size = width
        for dimension in shape[:4]:
            size *= dimension
        entries[f"t{number}"] = {
            "dtype": dtype,
            "shape": shape[:4],
            "data_offsets": [position, position + size],
        }
        position += size
    shuffled = list(entries.items())
    random.shuffle(shuffled)

    found = header.parse(json.dumps(dict(shuffled)).encode(), data_bytes=position)

    assert found.shapes == {name: tuple(entry["shape"]) for name, entry in entries.items()}
