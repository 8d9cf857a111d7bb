import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.download import SCENES, require, scaled, size_of
from benchmarks.engines import OURS, PEERS
from benchmarks.link import DISTANT, MIB, THROTTLED, UNTHROTTLED
from benchmarks.verdict import Model
from tests.benchmarks.quick import QUICK_S

ROOT = Path(__file__).parent.parent.parent
SIZE = 2048 * MIB


def test_there_are_three_links_plain_and_by_tls() -> None:
    assert [str(scene) for scene in SCENES] == [
        "plain, unthrottled",
        "plain, 20 MiB/s per connection",
        "plain, 50 ms round trip",
        "TLS, unthrottled",
        "TLS, 20 MiB/s per connection",
        "TLS, 50 ms round trip",
    ]


def test_the_rest_of_a_file_comes_at_the_full_rate_of_a_connection() -> None:
    eighth = SIZE // 8

    assert scaled(13.0, eighth, SIZE, THROTTLED) == 13.0 + (SIZE - eighth) / (20 * MIB)
    assert scaled(4.0, eighth, SIZE, DISTANT) == 4.0 + (SIZE - eighth) / (80 * MIB)
    assert scaled(3.0, SIZE, SIZE, UNTHROTTLED) == 3.0


@pytest.mark.parametrize(
    ("text", "size"),
    [pytest.param("2GiB", SIZE, id="GiB"), pytest.param("8MiB", 8 * MIB, id="MiB")],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert size_of(text) == size


@pytest.mark.parametrize("text", ["", "2", "2GB", "-1GiB", "7MiB"])
def test_what_is_no_size_or_too_little_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="8 MiB or more"):
        size_of(text)


def test_what_an_engine_brought_is_compared(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(b"abc")
    right = Model("m", 3, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")

    require(path, right, "curl")
    path.write_bytes(b"abd")

    with pytest.raises(RuntimeError, match="'curl' brought other bytes"):
        require(path, right, "curl")


@pytest.mark.slow
def test_a_quick_run_ends_with_figures_of_every_engine(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.download", "--quick", "--size", "8MiB"),
            *("--only", "plain, unthrottled", "--workers", "2", "--folder", tmp_path),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=QUICK_S,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["bench"], told["runs"]) == ("download", 1)
    names = {row["what"].removeprefix("plain, unthrottled, ") for row in told["rows"]}
    assert {OURS, PEERS, "requests, 1 MiB", "huggingface_hub"} <= names
    assert all(row["s"] > 0 and row["measured_mib"] == 8 for row in told["rows"])
    crowd = told["aims"][-1]
    assert (crowd["aim"], crowd["limit"]) == ("2 workers at once: bytes served / size", 1.0)
    # See test_engines.py: less than each for itself.
    assert 1.0 <= crowd["value"] < 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_words_that_no_scene_has_are_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.download", "--only", "by pigeon"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 2
    assert "leaves nothing" in done.stderr
