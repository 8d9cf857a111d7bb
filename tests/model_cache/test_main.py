import hashlib
import io
import json
import logging
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from model_cache.__main__ import main
from model_cache.cli import tables
from model_cache.cli.console import Console
from model_cache.models import Progress
from model_cache.sharing import pins, uses
from model_cache.sharing.uses import Uses
from model_cache.volume import layout, manifests
from schemas.model_ref import Kind
from simulator import models
from tests.conftest import ROOT
from tests.model_cache.conftest import Hub, shelf_on

COMMANDS = (
    "list", "info", "compat", "pull", "verify", "adopt", "prune", "pin", "unpin", "registry",
    "doctor",
)  # fmt: skip
DEADLINE_S = 30.0


@pytest.fixture
def environ(volume: Path) -> dict[str, str]:
    return {"A1111_CACHE_VOLUME": str(volume), "A1111_CACHE_ALLOW_PRIVATE_HOSTS": "1"}


@pytest.fixture
def command(environ: dict[str, str], capsys: pytest.CaptureFixture[str]) -> "Command":
    return Command(environ, capsys)


@pytest.fixture
def sha256(model_hub: Hub) -> str:
    return models.write_lora(model_hub.root / "m.safetensors", seed="m")


class Command:
    """The command line, on the volume of the test."""

    def __init__(self, environ: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
        self.environ = environ
        self._capsys = capsys
        self.err = ""

    def __call__(self, *argv: str, status: int = 0) -> str:
        """Run a command that ends with `status` and return what it prints."""
        ended = main(argv, self.environ)
        said = self._capsys.readouterr()
        self.err = said.err
        assert ended == status, said
        return said.out

    def json(self, *argv: str, status: int = 0) -> Any:
        return json.loads(self(*argv, "--json", status=status))


def rot(path: Path) -> None:
    """Change the last byte of a file and leave its time as it was."""
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def brought(volume: Path, name: str) -> Path:
    path = volume / "models" / "loras" / f"{name}.safetensors"
    models.write_lora(path, seed=name)
    return path


def started(
    environ: dict[str, str], *argv: str, stderr: int = subprocess.PIPE
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "model_cache", *argv],
        cwd=ROOT,
        env=os.environ | environ,  # noqa: TID251 - a child needs its PATH
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )


# pull


def test_a_model_is_fetched_once_and_then_there(
    model_hub: Hub, volume: Path, command: Command, sha256: str
) -> None:
    ref = ("--kind", "lora", "--hash", sha256, f"{model_hub.url}/m.safetensors")

    first = command("pull", *ref).splitlines()
    second = command("pull", *ref).splitlines()

    path = volume / "models" / "loras" / "m.safetensors"
    assert first[0].startswith(f"fetched  {path} (")
    assert first[1].endswith(" s), 0 already there, 0 failed")
    assert first[1].startswith("1 fetched (")
    assert second[0] == f"present  {path}"
    assert second[1].endswith("1 already there, 0 failed")
    assert command.err == ""
    assert len(model_hub.requests) == 1


def test_what_was_pulled_can_be_read_by_a_program(
    model_hub: Hub, command: Command, sha256: str
) -> None:
    url = f"{model_hub.url}/m.safetensors"

    done = command.json("pull", "--kind", "lora", "--name", "x", "--hash", sha256, url)

    (row,) = done["models"]
    assert (done["fetched"], done["present"], done["failed"]) == (1, 0, 0)
    assert done["bytes"] == row["bytes_fetched"] == row["model"]["size_bytes"]
    assert (row["state"], row["checked"], row["warnings"]) == ("fetched", "sha256", [])
    assert (row["model"]["name"], row["model"]["sha256"]) == ("x", sha256)


def test_one_that_fails_does_not_stop_the_others(
    model_hub: Hub, volume: Path, command: Command, sha256: str, tmp_path: Path
) -> None:
    wanted = tmp_path / "models.txt"
    wanted.write_text(
        f"# for the demo\nlora {model_hub.url}/none.safetensors\n"
        f"lora {model_hub.url}/m.safetensors name=a hash={sha256}\n"
        f"lora {model_hub.url}/m.safetensors?2 name=b\n"
    )

    said = command("pull", "-f", str(wanted), status=1)

    assert said.splitlines()[-1].startswith("2 fetched (")
    assert said.endswith(", 0 already there, 1 failed\n")
    assert "failed   lora 127.0.0.1/none.safetensors: MODEL_NOT_FOUND: " in command.err
    view = json.loads(layout.registry_path(volume).read_text())
    assert [model["name"] for model in view["models"]] == ["a", "b"]


def test_a_failure_is_told_to_a_program(model_hub: Hub, command: Command) -> None:
    done = command.json("pull", "--kind", "vae", f"{model_hub.url}/none.safetensors", status=1)

    (row,) = done["models"]
    assert (row["kind"], row["state"], row["code"]) == ("vae", "failed", "MODEL_NOT_FOUND")
    assert done["failed"] == 1


def test_a_refreshed_url_is_fetched_again(model_hub: Hub, command: Command, sha256: str) -> None:
    ref = ("--kind", "lora", f"{model_hub.url}/m.safetensors")
    command("pull", *ref)
    newer = models.write_lora(model_hub.root / "m.safetensors", seed="newer")

    kept = command.json("pull", *ref)
    fresh = command.json("pull", "--refresh", *ref)

    assert kept["models"][0]["model"]["sha256"] == sha256
    assert fresh["models"][0]["model"]["sha256"] == newer


def test_warnings_go_to_stderr(volume: Path, command: Command) -> None:
    brought(volume, "x")

    command("pull", "--kind", "lora", "--name", "x", "https://h.example/x")

    assert "x: " in command.err
    assert "no record of where it came from" in command.err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["https://h.example/x"], "Say --kind"),
        (["--kind", "lora"], "nothing to pull"),
        (["--kind", "lora", "--name", "x", "a", "b"], "exactly one REF"),
        (["--kind", "lora", "../x"], "must not contain"),
        (["-f", "/nowhere/models.txt"], "/nowhere/models.txt cannot be read"),
        (["-f", "LIST"], "models.txt: line 2 is not `KIND REFERENCE`"),
    ],
)
def test_what_cannot_be_understood_is_wrong_usage(
    command: Command, tmp_path: Path, argv: list[str], said: str
) -> None:
    wanted = tmp_path / "models.txt"
    wanted.write_text("\nmodel x\n")

    command("pull", *(str(wanted) if word == "LIST" else word for word in argv), status=2)

    assert said in command.err


@pytest.mark.slow
def test_an_interrupted_pull_goes_on_where_it_was(model_hub: Hub, environ: dict[str, str]) -> None:
    path = model_hub.root / "big.safetensors"
    models.write_lora(path, seed="big", size_bytes=24 << 20)
    size = path.stat().st_size
    model_hub.spoil(path="*big*", times=-1, rate=1 << 20)
    argv = ("pull", "--kind", "lora", "--json", f"{model_hub.url}/big.safetensors")
    tmp = layout.tmp_folder(Path(environ["A1111_CACHE_VOLUME"]))

    process = started(environ, *argv)
    deadline = time.monotonic() + DEADLINE_S
    while not list(tmp.glob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=DEADLINE_S)

    assert (process.returncode, out) == (130, "")
    assert err.startswith("Interrupted. What came is kept")
    model_hub.site.faults.rules.clear()
    done = json.loads(started(environ, *argv).communicate(timeout=DEADLINE_S)[0])
    assert (done["fetched"], done["failed"]) == (1, 0)
    assert 0 < done["bytes"] < size
    fetched = Path(done["models"][0]["model"]["path"])
    assert hashlib.sha256(fetched.read_bytes()).digest() == (
        hashlib.sha256(path.read_bytes()).digest()
    )
    assert list(tmp.iterdir()) == []


@pytest.mark.slow
def test_a_terminal_shows_how_far_it_is_and_is_left_tidy(
    model_hub: Hub, environ: dict[str, str]
) -> None:
    models.write_lora(model_hub.root / "big.safetensors", seed="big", size_bytes=3 << 20)
    model_hub.spoil(path="*big*", times=-1, rate=2 << 20)
    ours, theirs = pty.openpty()
    argv = ("pull", "--kind", "lora", f"{model_hub.url}/big.safetensors")

    process = started(environ, *argv, stderr=theirs)
    os.close(theirs)
    screen = drained(ours)
    out, _ = process.communicate(timeout=DEADLINE_S)

    assert process.returncode == 0
    assert out.startswith("fetched  ")
    assert "127.0.0.1/big.safetensors: " in screen
    assert "%|" in screen
    assert screen.endswith("\r")
    assert "\n" not in screen


def test_what_is_logged_meanwhile_comes_between_two_frames(
    capsys: pytest.CaptureFixture[str],
) -> None:
    console = Console(as_json=True)
    console.say("for people")

    with console.bar("x") as bar:
        first, second = bar.part(), bar.part()
        first(Progress(5, 10))
        second(Progress(1, None))
        logging.getLogger("model_cache").warning("The volume is %s.", "slow")
        logging.getLogger("model_cache").info("not said")

    assert capsys.readouterr() == ("", "The volume is slow.\n")
    assert logging.getLogger().handlers == handlers_of_pytest()


def handlers_of_pytest() -> list[logging.Handler]:
    return [one for one in logging.getLogger().handlers if "pytest" in type(one).__module__]


def drained(terminal: int) -> str:
    """Return all that is written to a terminal until its last writer ends."""
    shown = io.BytesIO()
    while select.select([terminal], [], [], DEADLINE_S)[0]:
        try:
            piece = os.read(terminal, 65536)
        except OSError:  # EIO: nobody has the other end any more.
            break
        shown.write(piece)
    os.close(terminal)
    return shown.getvalue().decode()


# list, info


def test_the_list_tells_what_where_from_and_when(
    model_hub: Hub, volume: Path, command: Command, sha256: str
) -> None:
    command("pull", "--kind", "lora", f"{model_hub.url}/m.safetensors")
    brought(volume, "mine")
    command("pin", "m")

    table = command("list").splitlines()

    assert table[0].split() == ["KIND", "NAME", "SIZE", "BASE", "ORIGIN", "USED", "PIN", "SHA-256"]
    assert table[1].split() == [
        *("lora", "m", *size_of(volume, "m"), "sd1", "published", "just", "now", "pin"),
        sha256[:10],
    ]
    assert table[2].split() == ["lora", "mine", *size_of(volume, "mine"), "brought"]
    assert max(map(len, table)) <= 80


def size_of(volume: Path, name: str) -> list[str]:
    size = (volume / "models" / "loras" / f"{name}.safetensors").stat().st_size
    return tables.size(size).split()


def test_a_program_gets_the_whole_list(model_hub: Hub, command: Command, sha256: str) -> None:
    url = f"{model_hub.url}/m.safetensors"
    command("pull", "--kind", "lora", url)

    (row,) = command.json("list", "--kind", "lora")

    assert (row["sha256"], row["source"], row["origin"]) == (sha256, url, "published")
    assert (row["uses"], row["pinned"]) == (1, False)
    assert time.time() - 60 < row["last_used"] <= time.time()
    assert command.json("list", "--kind", "vae") == []


def test_the_volume_is_told_in_numbers(volume: Path, command: Command) -> None:
    size = brought(volume, "x").stat().st_size
    command.environ["A1111_CACHE_BUDGET_GB"] = "50"

    lines = dict(line.split("  ", 1) for line in command("info").splitlines())
    numbers = command.json("info")

    assert lines["models"].strip() == "1 lora"
    assert lines["budget"].strip() == "50.0 GB"
    assert "put there by people" in lines
    assert "pinned" not in lines
    assert (numbers["loras_cached"], numbers["kinds"]["lora"]) == (1, 1)
    assert numbers["brought_bytes"] == numbers["models_bytes"] == size
    assert numbers["budget_bytes"] == 50_000_000_000


def test_all_that_is_known_of_a_model_is_told(volume: Path, command: Command) -> None:
    path = brought(volume, "x")
    models.write_vae(volume / "models" / "vae" / "y.safetensors", seed="y")

    said = command("info", "x.safetensors", "y")
    told = command.json("info", "x")

    assert f"file     {path}\n" in said
    assert "base     sd1\n" in said
    assert "used     never\n" in said
    assert "\n\nkind     vae\n" in said
    assert (told[0]["name"], told[0]["base"]) == ("x", "sd1")


def test_a_name_that_two_kinds_have_needs_its_kind(volume: Path, command: Command) -> None:
    brought(volume, "x")
    models.write_vae(volume / "models" / "vae" / "x.safetensors", seed="y")

    command("info", "x", status=2)

    assert "There is a lora and a vae called 'x'. Say which one with --kind." in command.err
    assert command.json("info", "x", "--kind", "vae")[0]["kind"] == "vae"


def test_a_name_that_is_not_there_is_a_failure_with_near_ones(
    volume: Path, command: Command
) -> None:
    brought(volume, "detail")

    answer = command.json("info", "detial", status=1)

    assert answer["code"] == "MODEL_NOT_FOUND"
    assert "Did you mean detail?" in command.err
    command("verify", "zzz", status=1)
    assert "`list` shows what there is" in command.err


@pytest.mark.slow
def test_a_reader_that_leaves_early_is_no_error(volume: Path, environ: dict[str, str]) -> None:
    brought(volume, "x")
    reader, writer = os.pipe()
    os.close(reader)

    done = subprocess.run(
        [sys.executable, "-m", "model_cache", "list", "--json"],
        cwd=ROOT,
        env=os.environ | environ,  # noqa: TID251 - a child needs its PATH
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writer)

    assert (done.returncode, done.stderr) == (1, "")


# verify, adopt


def test_a_quick_check_tells_the_good_from_the_bad(
    model_hub: Hub, volume: Path, command: Command, sha256: str
) -> None:
    shelf = shelf_on(volume)
    for name in ("good", "touched", "replaced"):
        shelf.ensure(name=name, url=f"{model_hub.url}/m.safetensors?{name}", hash=sha256)
    folder = volume / "models" / "loras"
    for name, seed, size in (("touched", "m", 0), ("replaced", "n", 50_000)):
        (folder / f"{name}.safetensors").unlink()
        models.write_lora(folder / f"{name}.safetensors", seed=seed, size_bytes=size)
    brought(volume, "by_hand")
    (folder / "half.safetensors").write_bytes(b"half")

    states = {row["name"]: row["state"] for row in command.json("verify", status=1)}
    said = command("verify", status=1)

    assert states == {
        "good": "good",
        "touched": "touched",
        "replaced": "bad",
        "by_hand": "unhashed",
        "half": "bad",
    }
    assert f"bad       {folder}/half.safetensors: The file of 'half' is not a whole" in said
    assert said.endswith(
        "5 models checked (by size, time and header): 1 good, 1 unhashed, 1 touched, 2 bad\n"
    )


def test_bytes_that_rotted_on_the_disk_are_found_by_hashing(
    model_hub: Hub, volume: Path, command: Command, sha256: str
) -> None:
    path = shelf_on(volume).ensure(url=f"{model_hub.url}/m.safetensors", hash=sha256).model.path
    rot(path)

    assert "1 good" in command("verify")
    assert f"and was {sha256} when" in command("verify", "--all", status=1)
    assert "1 bad" in command("verify", "m", status=1)


def test_a_file_whose_time_alone_changed_is_believed_again_once_it_was_hashed(
    model_hub: Hub, volume: Path, command: Command, sha256: str
) -> None:
    path = shelf_on(volume).ensure(url=f"{model_hub.url}/m.safetensors", hash=sha256).model.path
    os.utime(path, (1e9, 1e9))
    assert "1 touched" in command("verify")

    assert "(hashed again): 1 good" in command("verify", "--all")

    (row,) = command.json("list")
    assert (row["sha256"], row["origin"]) == (sha256, "published")


def test_what_people_brought_is_adopted_once(volume: Path, command: Command) -> None:
    path = brought(volume, "x")
    (path.parent / "half.safetensors").write_bytes(b"half")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()

    first = command("adopt", status=1)
    refused = command.err
    second = command("adopt", "x")

    assert first == f"adopted  lora x: {digest[:10]}\n1 adopted, 0 known already, 1 failed\n"
    assert "failed   lora half: MODEL_CORRUPT: " in refused
    assert second == "0 adopted, 1 known already, 0 failed\n"
    assert command.json("list")[1]["sha256"] == digest
    stored = manifests.stored(layout.manifest_path(volume, Kind.LORA, path))
    assert stored is not None
    assert stored.sha256 == digest


def test_a_failed_adoption_is_told_to_a_program(volume: Path, command: Command) -> None:
    (brought(volume, "x").parent / "half.safetensors").write_bytes(b"half")

    half, whole = command.json("adopt", status=1)

    assert (half["name"], half["code"]) == ("half", "MODEL_CORRUPT")
    assert len(whole["sha256"]) == 64


# prune, pin, unpin, registry


@pytest.fixture
def three(model_hub: Hub, volume: Path) -> list[Path]:
    """Three models that were fetched and used by a worker that ended, the first longest ago."""
    shelf = shelf_on(volume)
    paths = []
    for name in ("one", "two", "three"):
        models.write_lora(model_hub.root / f"{name}.safetensors", seed=name)
        done = shelf.ensure(url=f"{model_hub.url}/{name}.safetensors")
        paths.append(done.model.path)
        time.sleep(0.01)
    shelf.cache.close()
    return paths


def test_a_dry_run_tells_what_would_go_and_that_then_goes(
    volume: Path, command: Command, three: list[Path]
) -> None:
    brought(volume, "mine")
    pins.pin(volume, Kind.LORA, "one")
    total = sum(path.stat().st_size for path in [*three, three[0].with_stem("mine")])
    to = f"{(total - three[1].stat().st_size - 1) / 1e9:.9f}"

    planned = command.json("prune", "--to", to, "--dry-run")
    present = [path.exists() for path in three]
    done = command.json("prune", "--to", to)

    assert present == [True] * 3
    assert planned == {**done, "dry_run": True}
    assert [row["name"] for row in done["evicted"]] == ["two", "three"]
    assert done["freed_bytes"] == total - sum(
        path.stat().st_size for path in (three[0], three[0].with_stem("mine"))
    )
    assert [path.exists() for path in three] == [True, False, False]


def test_what_went_is_listed_and_the_view_says_so(
    volume: Path, command: Command, three: list[Path]
) -> None:
    command.environ["A1111_CACHE_BUDGET_GB"] = f"{three[0].stat().st_size * 2.5 / 1e9:.9f}"

    planned = command("prune", "--dry-run").splitlines()
    lines = command("prune").splitlines()

    assert planned[0] == lines[0].replace("evicted", "would go")
    assert planned[1].endswith("to be freed")
    assert lines[0].startswith("evicted  lora one (")
    assert lines[1].endswith(" freed")
    view = json.loads(layout.registry_path(volume).read_text())
    assert [model["name"] for model in view["models"]] == ["three", "two"]


def test_leftovers_and_manifests_of_nothing_are_cleared_without_a_budget(
    volume: Path, command: Command, three: list[Path]
) -> None:
    three[0].unlink()
    part = layout.tmp_folder(volume) / "k.1.part"
    part.write_bytes(b"x" * 5000)
    os.utime(part, (time.time() - 9000,) * 2)

    planned = command("prune", "--dry-run")
    said = command("prune")

    assert "leftovers of died fetches: " in said
    assert "1 manifest without a file" in said
    assert "there is no budget" in said
    assert planned.replace("to be freed", "freed") == said
    assert not part.exists()
    assert len(manifests.names(volume, Kind.LORA)) == 2


def test_a_file_with_two_names_is_freed_once(
    model_hub: Hub, command: Command, sha256: str, volume: Path
) -> None:
    shelf = shelf_on(volume)
    url = f"{model_hub.url}/m.safetensors"
    size = shelf.ensure(name="a", url=url, hash=sha256).model.size_bytes
    shelf.ensure(name="b", url=url, hash=sha256)
    shelf.cache.close()

    planned = command.json("prune", "--to", "0", "--dry-run")
    done = command.json("prune", "--to", "0")

    assert {row["name"] for row in done["evicted"]} == {"a", "b"}
    assert planned["freed_bytes"] == done["freed_bytes"] == size


def test_models_in_the_image_are_neither_adopted_nor_evicted(
    command: Command, tmp_path: Path
) -> None:
    path = tmp_path / "image" / "loras" / "x.safetensors"
    models.write_lora(path, seed="x")
    command.environ["A1111_CACHE_BAKED"] = str(tmp_path / "image")

    assert command("adopt") == "0 adopted, 1 known already, 0 failed\n"
    assert "1 unhashed" in command("verify", "--all")
    assert command("prune", "--to", "0") == "0 B freed\n"
    assert command.json("list")[0]["origin"] == "baked"


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_what_cannot_be_reached_is_refused_and_nothing_goes(
    volume: Path, command: Command, three: list[Path], more: list[str]
) -> None:
    user = Uses(volume)
    user.note(three[2])

    answer = command.json("prune", "--to", "0", *more, status=1)

    assert answer["code"] == "VOLUME_FULL"
    assert "--watch" in command.err
    assert all(path.exists() for path in three)


def test_after_a_minute_of_watching_a_dead_worker_keeps_nothing(
    volume: Path, command: Command, three: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    Uses(volume).note(three[2])
    monkeypatch.setattr(uses, "ALIVE_S", 1.0)

    said = command("prune", "--to", "0", "--watch")

    assert said.count("evicted  ") == 3
    assert "Watching for 1 s" in command.err
    assert not any(path.exists() for path in three)


@pytest.mark.parametrize("size", ["-1", "inf", "much"])
def test_a_size_has_to_be_a_number(command: Command, size: str) -> None:
    with pytest.raises(SystemExit) as ended:
        command("prune", f"--to={size}")

    assert ended.value.code == 2


def test_a_model_is_pinned_and_let_go(volume: Path, command: Command, three: list[Path]) -> None:
    said = command("pin", "one.safetensors", "two")
    listed = [row["pinned"] for row in command.json("list")]
    let_go = command("unpin", "one.safetensors")

    assert said == "pinned  lora one\npinned  lora two\n"
    assert listed == [True, False, True]
    assert let_go == "unpinned  lora one\n"
    assert pins.pinned(volume) == {(Kind.LORA, "two")}
    view = json.loads(layout.registry_path(volume).read_text())
    assert {model["name"]: model["pinned"] for model in view["models"]} == {
        "one": False,
        "three": False,
        "two": True,
    }
    assert three[0].exists()


def test_a_pin_may_come_before_its_model_and_outlive_it(volume: Path, command: Command) -> None:
    command("pin", "later", status=2)
    assert "give its --kind" in command.err

    told = command.json("pin", "later", "--kind", "vae")
    assert told == [{"kind": "vae", "name": "later", "pinned": True}]
    assert pins.pinned(volume) == {(Kind.VAE, "later")}

    assert command("unpin", "later", "never", status=1) == "unpinned  vae later\n"
    assert "never is not pinned." in command.err
    assert pins.pinned(volume) == frozenset()


def test_the_view_is_written_and_its_place_told(volume: Path, command: Command) -> None:
    brought(volume, "x")

    place = command("registry").strip()

    assert place == str(layout.registry_path(volume))
    assert json.loads(Path(place).read_text())["models"][0]["name"] == "x"
    assert command.json("registry") == {"path": place, "written": True}


def test_a_view_that_cannot_be_written_is_a_failure(volume: Path, command: Command) -> None:
    layout.registry_path(volume).mkdir(parents=True)

    assert command.json("registry", status=1)["written"] is False


# all


@pytest.mark.parametrize(
    ("environ", "status", "said"),
    [({}, 1, "VOLUME_MISSING"), ({"A1111_CACHE_STALL_S": "soon"}, 78, "A1111_CACHE_STALL_S")],
)
def test_a_failure_before_the_command_has_its_status(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    environ: dict[str, str],
    status: int,
    said: str,
) -> None:
    assert main(["list", "--volume", str(tmp_path / "none")], environ) == status

    assert said in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_with_an_example(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"], {})

    said = capsys.readouterr().out
    assert ended.value.code == 0
    assert said.startswith(f"usage: python -m model_cache {name} ")
    assert f"  python -m model_cache {name}" in said[said.index("example") :]


def test_the_help_names_every_command_and_status(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"], {})

    said = capsys.readouterr().out
    assert [line.split()[0] for line in said.splitlines() if line.startswith("    ")] == [
        *("list", "info", "compat", "doctor", "pull", "verify", "adopt", "prune", "pin", "unpin"),
        "registry",
    ]
    assert "0 done, 1 something failed or is bad, 2 wrong usage, 78 wrong settings" in said


@pytest.mark.slow
def test_the_command_starts_without_what_only_some_sources_need() -> None:
    script = (
        "import sys, model_cache.__main__; "
        "print(sorted({'boto3', 'botocore', 'huggingface_hub'} & set(sys.modules)))"
    )

    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert done.stdout == "[]\n"
