import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import diskcache
import pytest

from model_cache.models import CachedModel
from schemas.model_ref import Kind
from worker.child.hashes import HashCache

# How A1111 1.10.1 looks a hash up, in a process of its own: modules/cache.py, make_cache, and
# modules/hashes.py, sha256_from_cache.
A1111 = """
import diskcache, os, sys
folder, key, file = sys.argv[1:]
database = diskcache.Cache(folder, size_limit=2**32, disk_min_file_size=2**18)
entry = database[key] if key in database else {}
fresh = os.path.getmtime(file) <= entry.get("mtime", 0)
print(entry.get("sha256") if fresh else None)
"""


def looked_up(data: Path, database: str, key: str, file: Path) -> str:
    argv = [sys.executable, "-c", A1111, str(data / "cache" / database), key, str(file)]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()


def model(tmp_path: Path, kind: Kind, name: str, digit: str = "a") -> CachedModel:
    file = tmp_path / name
    file.touch()
    os.utime(file, ns=(1, 1_700_000_000_123_456_789))
    return CachedModel(
        kind=kind,
        name=file.stem,
        path=file,
        sha256=digit * 64,
        size_bytes=0,
        mtime_ns=file.stat().st_mtime_ns,
        autov3="b" * 12,
    )


def entries(data: Path, database: str) -> dict[str, str]:
    with diskcache.Cache(str(data / "cache" / database)) as opened:
        return {key: opened[key]["sha256"] for key in opened}


def test_a1111_finds_the_hash_of_a_checkpoint_by_its_link(tmp_path: Path) -> None:
    night = model(tmp_path, Kind.CHECKPOINT, "night.safetensors")
    link = tmp_path / "night-2.safetensors"
    link.symlink_to(night.path)
    data = tmp_path / "data"
    data.mkdir()

    HashCache(data).put(night, "night-2")

    assert looked_up(data, "hashes", "checkpoint/night-2.safetensors", link) == "a" * 64


def test_a_file_that_changed_since_is_hashed_by_a1111(tmp_path: Path) -> None:
    night = model(tmp_path, Kind.CHECKPOINT, "night.safetensors")
    HashCache(tmp_path).put(night, "night")

    os.utime(night.path, ns=(1, night.mtime_ns + 10**6))

    assert looked_up(tmp_path, "hashes", "checkpoint/night.safetensors", night.path) == "None"


def test_each_kind_has_the_key_by_which_a1111_looks_for_it(tmp_path: Path) -> None:
    HashCache(tmp_path).put_all(
        [
            (model(tmp_path, Kind.LORA, "ink.safetensors"), "ink"),
            (model(tmp_path, Kind.LORA, "old.pt"), "old"),
            (model(tmp_path, Kind.VAE, "vae.safetensors"), "vae-2"),
            (model(tmp_path, Kind.EMBEDDING, "easy.pt"), "easy"),
            (model(tmp_path, Kind.HYPERNETWORK, "hyper.pt"), "hyper"),
            (model(tmp_path, Kind.CONTROLNET, "canny.safetensors"), "canny"),
        ]
    )

    assert entries(tmp_path, "hashes-addnet") == {"lora/ink": "b" * 12}
    assert set(entries(tmp_path, "hashes")) == {
        "lora/old",
        "vae",
        "textual_inversion/easy",
        "hypernet/hyper",
    }


def test_the_one_hash_of_all_vaes_is_that_of_the_last_one_named(tmp_path: Path) -> None:
    cache = HashCache(tmp_path)
    first = model(tmp_path, Kind.VAE, "first.safetensors", "1")
    second = model(tmp_path, Kind.VAE, "second.safetensors", "2")

    for vae in (first, second, first):
        cache.put(vae, vae.name)

    assert entries(tmp_path, "hashes") == {"vae": "1" * 64}


def test_a_hash_that_nobody_knows_is_left_to_a1111(tmp_path: Path) -> None:
    unknown = CachedModel(Kind.CHECKPOINT, "new", tmp_path / "new.safetensors", None, 0, 0)

    HashCache(tmp_path).put(unknown, "new")

    assert not (tmp_path / "cache").exists()


def test_nothing_is_written_beside_an_a1111_that_somebody_else_started(tmp_path: Path) -> None:
    HashCache(tmp_path / "data").put(model(tmp_path, Kind.CHECKPOINT, "n.safetensors"), "n")

    assert not (tmp_path / "data").exists()


def test_it_is_told_while_a1111_has_it_open(tmp_path: Path) -> None:
    theirs = diskcache.Cache(str(tmp_path / "cache" / "hashes"), size_limit=2**32)
    theirs["checkpoint/theirs.safetensors"] = {"mtime": 1.0, "sha256": "c" * 64}

    HashCache(tmp_path).put(model(tmp_path, Kind.CHECKPOINT, "ours.safetensors"), "ours")

    assert theirs["checkpoint/ours.safetensors"]["sha256"] == "a" * 64
    assert theirs["checkpoint/theirs.safetensors"]["sha256"] == "c" * 64
    theirs.close()


def test_a_database_that_is_locked_or_broken_costs_no_job(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    night = model(tmp_path, Kind.CHECKPOINT, "night.safetensors")
    cache = HashCache(tmp_path, lock_s=0.1)
    cache.put(night, "first")
    holder = sqlite3.connect(tmp_path / "cache" / "hashes" / "cache.db")
    holder.execute("BEGIN EXCLUSIVE")

    cache.put(night, "second")

    holder.rollback()
    holder.close()
    cache.put(night, "second")
    cache.close()
    assert "A1111 will hash 1 files itself" in caplog.text
    assert set(entries(tmp_path, "hashes")) == {
        "checkpoint/first.safetensors",
        "checkpoint/second.safetensors",
    }

    (tmp_path / "cache" / "hashes" / "cache.db").write_bytes(b"not SQLite" * 1000)
    caplog.clear()
    HashCache(tmp_path).put(night, "third")
    assert "A1111 will hash 1 files itself" in caplog.text
