import contextlib
import io
import os
import pickle
import re
import resource
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_cache.weights import pickles
from schemas.errors import ModelUnsafeError
from simulator.models import UPSCALER, write_lora
from simulator.pickles import as_legacy, as_zip, program, write_pickle

HARMLESS = program(UPSCALER)
WEIGHTS = {"0": b"\0" * 16}


class Attack:
    """Something whose unpickling runs a command."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("true",)


def attacks() -> dict[str, bytes]:
    """Pickles that run code, by how they name it."""
    return {
        "os.system": pickle.dumps(Attack(), 2),
        "stack global": pickle.dumps(Attack(), 4),
        "text protocol": b"cos\nsystem\n(S'true'\ntR.",
        "instance": b"(S'true'\nios\nsystem\n.",
        "extension": b"\x80\x02\x82\x01)R.",
        "eval": b"\x80\x02c__builtin__\neval\n(X\x01\0\0\0" + b"1tR.",
        "no function of weights": b"\x80\x02ctorch.hub\nload\n)R.",
        "one that picklescan lets pass": b"\x80\x02cexec_anything\nrun\n)R.",
        "behind a harmless one": HARMLESS[:-1] + b"cos\nsystem\n(X\x01\0\0\0" + b"1tR.",
        "an attribute with an escape": b"\x80\x02ccollections\n\\x4frderedDict\\x41\n)R.",
    }


def refused(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    with pytest.raises(ModelUnsafeError, match=r"^The (pickle|file) of 'called' ") as caught:
        pickles.require_harmless(path, "called")
    return str(caught.value)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_what_torch_saves_of_weights_is_harmless(tmp_path: Path, *, legacy: bool) -> None:
    write_pickle(tmp_path / "m.pth", seed="m", legacy=legacy)

    pickles.require_harmless(tmp_path / "m.pth", "m")


@pytest.mark.parametrize("pack", [as_zip, as_legacy], ids=["zip", "legacy"])
@pytest.mark.parametrize("how", attacks())
def test_a_pickle_that_runs_something_is_refused(
    tmp_path: Path, how: str, pack: Callable[[bytes, dict[str, bytes]], bytes]
) -> None:
    refused(tmp_path / "m", pack(attacks()[how], WEIGHTS))


def test_the_refusal_names_what_was_found(tmp_path: Path) -> None:
    said = refused(tmp_path / "m", as_zip(attacks()["eval"], WEIGHTS))

    assert "it names '__builtin__.eval', which weights do not need" in said


def test_picklescan_has_a_word_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "_HARMLESS", {"posix system", "__builtin__ eval"})

    said = refused(tmp_path / "m", as_zip(attacks()["os.system"], WEIGHTS))

    assert "picklescan finds 'posix.system' dangerous" in said


def test_a_program_in_any_of_the_five_legacy_pickles_is_found(tmp_path: Path) -> None:
    attack = attacks()["os.system"]
    begun = as_legacy(HARMLESS, WEIGHTS)
    magic = begun[: begun.index(b".") + 1]

    for place in range(5):
        parts = [magic, pickle.dumps(1, 2), pickle.dumps({}, 2), HARMLESS, pickle.dumps([], 2)]
        parts[place] = attack
        refused(tmp_path / "m", b"".join(parts))


def zip_of(*entries: tuple[str, bytes], packed: bool = False, comment: bytes = b"") -> bytes:
    file = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in entries:
            archive.writestr(name, data)
        archive.comment = comment
    return file.getvalue()


PROGRAM = ("archive/data.pkl", HARMLESS)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(zip_of(PROGRAM, ("archive/code/m.py", b"")), "code/m.py", id="TorchScript"),
        pytest.param(zip_of(PROGRAM, ("archive/other.pkl", b"")), "other.pkl", id="more pickles"),
        pytest.param(zip_of(PROGRAM, ("b/data.pkl", HARMLESS)), "several", id="two folders"),
        pytest.param(zip_of(PROGRAM, ("../data.pkl", b"")), "several", id="parent folder"),
        pytest.param(zip_of(PROGRAM, ("archive/DATA.PKL", b"")), "DATA.PKL", id="other case"),
        pytest.param(zip_of(PROGRAM, packed=True), "packed", id="packed"),
        pytest.param(zip_of(PROGRAM, comment=b"x"), "before or after", id="comment"),
        pytest.param(b"PK\x03\x04" + zip_of(PROGRAM), "before or after", id="something before"),
        pytest.param(
            zip_of(PROGRAM, ("archive/data/0Xa", b"")).replace(b"0Xa", b"0\0a"),
            "which no model has",
            id="NUL in a name",
        ),
        pytest.param(zip_of(("archive/version", b"3")), "no PyTorch pickle", id="no program"),
        pytest.param(zip_of(), "no PyTorch pickle", id="empty archive"),
        pytest.param(zip_of(PROGRAM)[:-1], "no PyTorch pickle", id="cut off"),
        pytest.param(zip_of(PROGRAM).replace(b"torch", b"tosch", 1), "no PyTorch", id="damaged"),
        pytest.param(
            as_zip(HARMLESS, WEIGHTS) + as_zip(HARMLESS, WEIGHTS), "before or after", id="two zips"
        ),
        pytest.param(pickle.dumps({"a": 1}, 2) * 5, "torch.save begins", id="plain pickle"),
        pytest.param(as_legacy(HARMLESS, WEIGHTS)[:99], "no PyTorch pickle", id="legacy cut off"),
        pytest.param(b"", "no PyTorch pickle", id="empty"),
        pytest.param(b"\x80\x02" + b"0" * 600_000, "instructions", id="too long"),
    ],
)
def test_what_is_not_laid_out_as_torch_does_is_refused(
    tmp_path: Path, data: bytes, reason: str
) -> None:
    assert re.search(reason, refused(tmp_path / "m", data))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_programs_of_one_name_are_refused(tmp_path: Path) -> None:
    assert "files of one name" in refused(tmp_path / "m", zip_of(PROGRAM, PROGRAM))


def test_a_file_that_is_a_tar_archive_too_is_refused(tmp_path: Path) -> None:
    begin = as_legacy(HARMLESS, WEIGHTS)
    magic = begin[: begin.index(b".") + 1]
    member = tarfile.TarInfo("name")
    header = bytearray(member.tobuf())
    header[: len(magic)] = magic
    header[148:156] = b"        "
    header[148:156] = f"{sum(header):06o}\0 ".encode()

    assert "tar archive" in refused(tmp_path / "m", bytes(header))


def test_a_program_of_many_megabytes_is_refused_before_it_is_read(tmp_path: Path) -> None:
    assert "too large" in refused(tmp_path / "m", as_zip(b"\x80\x02" + b"0" * (9 << 20), WEIGHTS))


def test_a_file_that_claims_gigabytes_is_not_read(tmp_path: Path) -> None:
    """The limit on memory would end the process that tried."""
    path = tmp_path / "m"
    write_pickle(path, seed="m", tensors={"a": (40, 40)})
    with path.open("r+b") as file:
        # A directory of 6 GB: its size is told in the last 22 bytes.
        file.seek(-22 + 12, os.SEEK_END)
        file.write((0xFFFF_FFF0).to_bytes(4, "little"))
    big_program = tmp_path / "big"
    with zipfile.ZipFile(big_program, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + b"0" * (20 << 20))
    legacy = tmp_path / "legacy"
    legacy.write_bytes(as_legacy(HARMLESS, WEIGHTS))
    os.truncate(legacy, 7 << 30)
    text = f"""
from pathlib import Path
from model_cache.weights import pickles
from schemas.errors import ModelUnsafeError
for name in ("m", "big"):
    try:
        pickles.require_harmless(Path({str(tmp_path)!r}) / name, name)
    except ModelUnsafeError:
        print("refused")
pickles.require_harmless(Path({str(legacy)!r}), "legacy")
print("harmless")
"""

    done = subprocess.run(
        [sys.executable, "-c", text],
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30)),
    )

    assert done.stdout.split() == ["refused", "refused", "harmless"]


def test_a_safetensors_file_is_no_pickle(tmp_path: Path) -> None:
    write_lora(tmp_path / "lora", seed="m")

    refused(tmp_path / "m", (tmp_path / "lora").read_bytes())


@given(data=st.binary(max_size=400), zipped=st.booleans())
def test_any_bytes_either_pass_or_are_refused(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, *, zipped: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(as_zip(data, WEIGHTS) if zipped else data)

    with contextlib.suppress(ModelUnsafeError):
        pickles.require_harmless(path, "any")


@given(st.data())
def test_a_flipped_byte_never_makes_something_else_than_our_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    sound = bytearray(data.draw(st.sampled_from([as_zip, as_legacy]))(HARMLESS, WEIGHTS))
    place = data.draw(st.integers(4, len(sound) - 1))
    sound[place] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "flipped"
    path.write_bytes(sound)

    with contextlib.suppress(ModelUnsafeError):
        pickles.require_harmless(path, "flipped")
