import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model_cache.hosts.aliases import MAX_BYTES, Aliases
from schemas.model_ref import Kind, ModelRef


def write(volume: Path, content: Any) -> Path:
    path = volume / "models" / "aliases.json"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


@pytest.mark.parametrize(
    ("entry", "fields"),
    [
        ("hf:org/repo/x", {"url": "hf:org/repo/x"}),
        ("https://host/x", {"url": "https://host/x"}),
        ("other", {"name": "other"}),
        (
            {"url": "s3://b/k", "name": "k", "hash": "0123456789"},
            {"url": "s3://b/k", "name": "k", "hash": "0123456789"},
        ),
        ({"name": "other", "kind": "lora"}, {"name": "other"}),
    ],
)
def test_an_alias_stands_for_what_a_request_may_say(
    entry: Any, fields: dict[str, Any], volume: Path
) -> None:
    write(volume, {"detail": entry})

    found = Aliases(volume, look_every_s=0).lookup(Kind.LORA, "detail")

    assert found == ModelRef.model_validate({"kind": "lora", **fields})


def test_an_alias_of_one_kind_is_none_of_another(volume: Path) -> None:
    write(volume, {"any": "x", "lora": {"name": "x", "kind": "lora"}})
    aliases = Aliases(volume, look_every_s=0)

    assert aliases.lookup(Kind.VAE, "any") is not None
    assert aliases.lookup(Kind.VAE, "lora") is None


def test_an_alias_leads_one_step_and_is_spelled_exactly(volume: Path) -> None:
    write(volume, {"a": "b", "b": "c"})
    aliases = Aliases(volume, look_every_s=0)

    found = aliases.lookup(Kind.LORA, "a")

    assert found is not None
    assert found.name == "b"
    assert aliases.lookup(Kind.LORA, "A") is None


def test_without_a_file_nothing_is_an_alias(volume: Path) -> None:
    assert Aliases(volume, look_every_s=0).lookup(Kind.LORA, "a") is None


def test_a_changed_file_counts_at_once_and_a_deleted_one_no_more(volume: Path) -> None:
    aliases = Aliases(volume, look_every_s=0)
    answers = []
    path = write(volume, {"a": "x"})
    for content in ({"a": "long"}, {"b": "x"}):
        answers.append(aliases.lookup(Kind.LORA, "a"))
        write(volume, content)
    answers.append(aliases.lookup(Kind.LORA, "a"))
    path.unlink()
    answers.append(aliases.lookup(Kind.LORA, "b"))

    assert [answer.name if answer else None for answer in answers] == ["x", "long", None, None]


def test_a_file_that_did_not_change_is_not_read_again(
    volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(volume, {"a": "x"})
    aliases = Aliases(volume, look_every_s=0)
    aliases.lookup(Kind.LORA, "a")

    def no_reading(*_: Any, **__: Any) -> None:
        raise AssertionError("it was read again")

    monkeypatch.setattr(Path, "open", no_reading)

    assert aliases.lookup(Kind.LORA, "a") is not None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"a": "hf:org',
        b"\xff\xfe",
        b"[" * 100_000,
        b'["a"]',
        b"5",
        b'{"a": "' + b"x" * MAX_BYTES + b'"}',
    ],
    ids=["empty", "cut off", "no text", "deep", "list", "number", "long"],
)
def test_a_half_written_file_changes_nothing_and_is_told_once(
    content: bytes, volume: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(volume, {"a": "x"})
    aliases = Aliases(volume, look_every_s=0)
    before = aliases.lookup(Kind.LORA, "a")

    write(volume, content)
    during = [aliases.lookup(Kind.LORA, "a") for _ in range(3)]
    write(volume, {"a": "whole again"})
    after = aliases.lookup(Kind.LORA, "a")

    assert before is not None
    assert during == [before] * 3
    assert after is not None
    assert after.name == "whole again"
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    "entry",
    [
        5,
        None,
        [],
        {},
        "",
        "../x",
        "file:///x",
        {"nmae": "x"},
        {"name": "x", "weight": 1},
        {"kind": []},
    ],
)
def test_a_bad_entry_is_told_once_and_leaves_the_others(
    entry: Any, volume: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(volume, {"bad": entry, "good": "x"})
    aliases = Aliases(volume, look_every_s=0)

    assert [aliases.lookup(Kind.LORA, "bad") for _ in range(3)] == [None] * 3
    assert aliases.lookup(Kind.LORA, "good") is not None
    assert len(caplog.records) <= 1


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_is_no_file_fails_no_job_and_is_not_waited_for(
    make: Callable[[Path], None], volume: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (volume / "models").mkdir(parents=True, exist_ok=True)
    make(volume / "models" / "aliases.json")
    aliases = Aliases(volume, look_every_s=0)

    assert [aliases.lookup(Kind.LORA, "a") for _ in range(3)] == [None] * 3
    assert len(caplog.records) == 1
