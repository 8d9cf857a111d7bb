import hashlib
import struct
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from model_cache.weights.digests import Digests
from simulator import models


@given(st.binary(max_size=200), st.binary(max_size=200), st.lists(st.integers(0, 420)))
def test_however_a_file_is_cut_its_digests_are_the_same(
    header: bytes, weights: bytes, cuts: list[int]
) -> None:
    content = struct.pack("<Q", len(header)) + header + weights
    digests = Digests(autov3=True)
    places = sorted({0, *cuts, len(content)})

    for begin, end in zip(places, [*places[1:], len(content)], strict=True):
        digests.update(memoryview(content)[begin:end])

    assert digests.sha256 == hashlib.sha256(content).hexdigest()
    assert digests.autov3 == hashlib.sha256(weights).hexdigest()[:12]


@given(st.binary(max_size=20))
def test_bytes_that_are_no_safetensors_file_are_hashed_all_the_same(content: bytes) -> None:
    digests = Digests(autov3=True)

    digests.update(content)

    assert digests.sha256 == hashlib.sha256(content).hexdigest()


def test_autov3_is_the_hash_that_a1111_lists_of_a_lora(tmp_path: Path) -> None:
    """What modules/hashes.py of A1111 1.10.1 computes, addnet_hash_safetensors."""
    models.write_lora(tmp_path / "m", seed="m")
    content = (tmp_path / "m").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    digests = Digests(autov3=True)

    digests.update(content)

    assert digests.autov3 == hashlib.sha256(content[8 + length :]).hexdigest()[:12]


def test_autov3_is_empty_unless_it_is_asked_for() -> None:
    digests = Digests()

    digests.update(b"x")

    assert digests.autov3 == ""
