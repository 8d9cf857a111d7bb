import contextlib
import pickle
import struct
import zipfile
from io import BytesIO

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from model_cache.weights import magic
from schemas.errors import ModelUnsafeError


def zipped() -> bytes:
    file = BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
    return file.getvalue()


@pytest.mark.parametrize(
    ("start", "what"),
    [
        pytest.param(zipped(), "zip archive", id="zip"),
        *(
            pytest.param(
                pickle.dumps({"a": [1.0] * 9}, protocol), "pickle", id=f"pickle {protocol}"
            )
            for protocol in range(2, 6)
        ),
        pytest.param(pickle.dumps({}, 4), "pickle", id="a pickle of nothing"),
        pytest.param(b"<!DOCTYPE html><html>", "web page", id="html"),
        pytest.param(b"\xef\xbb\xbf\n <html>", "web page", id="html after a byte order mark"),
        pytest.param(b'{"error":"Unauthorized"}', "JSON", id="json"),
        pytest.param(b"[]", "JSON", id="json list"),
        pytest.param(b"GGUF\x03\0\0\0\0\0", "GGUF", id="gguf"),
        pytest.param(b"\x1f\x8b\x08\0\0\0\0\0\0", "gzip", id="gzip"),
        pytest.param(b"version https://git-lfs.github.com/spec/v1", "Git LFS", id="lfs pointer"),
    ],
)
def test_what_is_no_safetensors_file_is_refused_by_its_name(start: bytes, what: str) -> None:
    with pytest.raises(ModelUnsafeError, match=what):
        magic.refuse(start)


@pytest.mark.parametrize("start", [zipped(), pickle.dumps({"a": [1.0] * 9}, 2)])
def test_where_pickles_are_allowed_their_beginning_passes(start: bytes) -> None:
    magic.refuse(start, pickle_allowed=True)

    assert magic.is_pickle(start)


@pytest.mark.parametrize("start", [b"<html>", b"{}", b"7z\xbc\xaf\x27\x1c", b"GGUF"])
def test_where_pickles_are_allowed_nothing_else_is(start: bytes) -> None:
    with pytest.raises(ModelUnsafeError, match="safetensors files and PyTorch pickles are taken"):
        magic.refuse(start, pickle_allowed=True)


@given(st.integers(2, magic.MAX_HEADER_BYTES))
# Lengths whose bytes read like "<", "{", "[", a pickle of protocol 2 and 4, and gzip.
@example(0x3C)
@example(0x7B)
@example(0x5B)
@example(0x0280)
@example(0x0480)
@example(0x8B1F)
def test_no_length_of_a_sound_header_is_taken_for_something_else(length: int) -> None:
    start = struct.pack("<Q", length) + b'{"__metadata__":{}'

    magic.refuse(start)

    assert not magic.is_pickle(start)


@given(st.binary(max_size=600))
def test_any_bytes_either_pass_or_are_refused(start: bytes) -> None:
    with contextlib.suppress(ModelUnsafeError):
        magic.refuse(start)
