import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from schemas.settings import SettingsError
from worker.__main__ import main
from worker.links import FOLDERS
from worker.preflight import OPTIONS, preflight

ROOT = Path(__file__).parent.parent.parent
RECORDED = ROOT.parent / "shared" / "webui" / "recordings" / "get_options.json"


@pytest.fixture
def container(tmp_path: Path) -> dict[str, str]:
    """A container's folders below `tmp_path`, and the environment that names them."""
    (tmp_path / "webui").mkdir()
    (tmp_path / "webui" / "launch.py").touch()
    (tmp_path / "volume" / "models").mkdir(parents=True)
    return {
        "A1111_CACHE_VOLUME": str(tmp_path / "volume"),
        "A1111_WEBUI_LINKS": str(tmp_path / "links"),
    }


def run(environ: dict[str, str], tmp_path: Path) -> list[str]:
    return preflight(environ, tmp_path / "webui", tmp_path / "data")


def config(tmp_path: Path) -> dict[str, Any]:
    options: dict[str, Any] = json.loads((tmp_path / "data" / "config.json").read_text())
    return options


def test_it_says_what_it_found_one_line_each(container: dict[str, str], tmp_path: Path) -> None:
    lines = run(container, tmp_path)

    assert [line.split()[0] for line in lines] == ["webui", "volume", "links", "config"]
    assert lines[1].endswith(f"models in {tmp_path / 'volume' / 'models'}")
    assert all("\n" not in line for line in lines)


def test_the_folders_that_a1111_is_shown_are_there(
    container: dict[str, str], tmp_path: Path
) -> None:
    run(container, tmp_path)

    assert {path.name for path in (tmp_path / "links").iterdir()} == set(FOLDERS.values())


def test_a1111_finds_its_options(container: dict[str, str], tmp_path: Path) -> None:
    run(container, tmp_path)

    assert config(tmp_path) == OPTIONS
    assert config(tmp_path)["disable_mmap_load_safetensors"] is True
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["config.json"]


def test_a_users_own_options_win_and_stay(container: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    own = {"sd_checkpoints_limit": 2, "CLIP_stop_at_last_layers": 2, "ünknown": None}
    (tmp_path / "data" / "config.json").write_text(json.dumps(own))

    lines = run(container, tmp_path)

    assert config(tmp_path) == {**OPTIONS, **own}
    assert lines[-1].endswith("sd_checkpoints_limit is 2 as it was")


def test_a_second_start_changes_nothing(container: dict[str, str], tmp_path: Path) -> None:
    run(container, tmp_path)
    before = (tmp_path / "data" / "config.json").stat()

    lines = run(container, tmp_path)

    assert lines[-1].endswith("config.json, 0 options added")
    assert (tmp_path / "data" / "config.json").stat() == before


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param(b'{"samples_save": ', "not JSON", id="cut"),
        pytest.param(b"\xff\xfe{}", "not JSON", id="another encoding"),
        pytest.param(b"[]", "not a JSON object", id="a list"),
        pytest.param(b'{"sd_vae": null}', "`sd_vae` must be str, not NoneType", id="null"),
        pytest.param(
            b'{"sd_checkpoints_limit": true}', "must be int, not bool", id="bool for a number"
        ),
        pytest.param(b'{"samples_save": "no"}', "must be bool, not str", id="text for a bool"),
    ],
)
def test_a_config_that_a1111_could_not_live_with_stops_the_start(
    container: dict[str, str], tmp_path: Path, text: bytes, words: str
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "config.json").write_bytes(text)

    with pytest.raises(SettingsError, match=words):
        run(container, tmp_path)

    assert (tmp_path / "data" / "config.json").read_bytes() == text


def test_without_a_volume_the_worker_says_where_models_will_be_kept(
    container: dict[str, str], tmp_path: Path
) -> None:
    container |= {"A1111_CACHE_VOLUME": str(tmp_path / "absent"), "A1111_CACHE_LOCAL_ROOT": "/own"}

    lines = run(container, tmp_path)

    assert lines[1].startswith(
        f"volume  none at {tmp_path / 'absent'}: models will be kept in /own"
    )


def test_a_volume_that_is_demanded_and_not_there_stops_the_start(
    container: dict[str, str], tmp_path: Path
) -> None:
    container |= {"A1111_CACHE_VOLUME": "/absent", "A1111_CACHE_REQUIRE_VOLUME": "true"}

    with pytest.raises(SettingsError, match=r"^A1111_CACHE_VOLUME: /absent is not mounted\.$"):
        run(container, tmp_path)


@pytest.mark.parametrize(
    ("variable", "flags", "flag"),
    [
        pytest.param("A1111_WEBUI_FLAGS", "--xformers --listen", "--listen", id="every interface"),
        pytest.param("A1111_WEBUI_FLAGS", "--port=80", "--port", id="with an equals sign"),
        pytest.param(
            "COMMANDLINE_ARGS", "--disable-safe-unpickle", "--disable-safe-unpickle", id="pickles"
        ),
        pytest.param("A1111_WEBUI_FLAGS", "--lis", "--listen", id="the beginning of a flag"),
        pytest.param("A1111_WEBUI_FLAGS", "--ckpt-dir /x", "--ckpt-dir", id="another folder"),
    ],
)
def test_a_flag_that_would_open_or_break_a1111_stops_the_start(
    container: dict[str, str], tmp_path: Path, variable: str, flags: str, flag: str
) -> None:
    with pytest.raises(SettingsError, match=f"^{variable}: {flag} is not possible here: "):
        run({**container, variable: flags}, tmp_path)

    assert not (tmp_path / "data").exists()


def test_a_flag_of_a1111_is_left_to_a1111(container: dict[str, str], tmp_path: Path) -> None:
    assert run({**container, "A1111_WEBUI_FLAGS": "--xformers --medvram"}, tmp_path)


def test_every_problem_has_a_line(container: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "webui" / "launch.py").unlink()

    with pytest.raises(SettingsError) as caught:
        run({**container, "A1111_WEBUI_FLAGS": "--share --listen"}, tmp_path)

    assert len(str(caught.value).splitlines()) == 3
    assert "WEBUI_DIR: there is no A1111" in str(caught.value)


@pytest.mark.skipif(not RECORDED.is_file(), reason="no recordings beside this checkout")
def test_every_option_exists_in_a1111_and_has_its_type() -> None:
    defaults = json.loads(RECORDED.read_text())["response"]

    assert {key: type(value) for key, value in OPTIONS.items()} == {
        key: type(defaults[key]) for key in OPTIONS
    }


@pytest.fixture
def command(
    container: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., int]:
    """Run `python -m worker preflight` in the container, with more variables if need be."""

    def run_command(**more: str) -> int:
        for name, text in (container | more).items():
            monkeypatch.setenv(name, text)
        folders = ["--webui-dir", str(tmp_path / "webui"), "--data-dir", str(tmp_path / "data")]
        return main(["preflight", *folders])

    return run_command


def test_the_command_prints_what_it_found(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command() == 0

    said, complaints = capsys.readouterr()
    assert [line.split()[:2] for line in said.splitlines()] == [
        ["preflight:", word] for word in ("webui", "volume", "links", "config")
    ]
    assert complaints == ""


def test_the_command_ends_with_78_and_one_line_per_wrong_setting(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(A1111_CACHE_STALL_S="-1", A1111_WEBUI_POTR="1") == 78

    said, complaints = capsys.readouterr()
    assert said == ""
    assert [line.split()[1] for line in complaints.splitlines()] == [
        "A1111_CACHE_STALL_S:",
        "A1111_WEBUI_POTR:",
    ]


def test_the_command_names_the_file_that_it_cannot_write(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").write_text("a file, where a folder should be")

    assert command() == 78

    assert f"preflight: {tmp_path / 'data'}" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [[], ["preflight"], ["preflght"]])
def test_a_command_line_that_names_no_command_is_refused(argv: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(argv)
