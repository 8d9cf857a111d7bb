import json
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from schemas.settings import Settings, SettingsError, WebuiSettings
from worker.__main__ import main
from worker.child.links import FOLDERS
from worker.machine import hardware
from worker.machine.places import Places
from worker.machine.preflight import LIMIT, OPTIONS, checkpoints_kept, preflight, reconfigure

ROOT = Path(__file__).parents[3]
SUBJECTS = ["webui", "volume", "links", "data", "config", "helpers", "flags"]
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
        # Nothing is asked of the machine that these tests run on.
        "A1111_WEBUI_ATTENTION": "sdp",
        "A1111_WEBUI_VRAM": "high",
        "A1111_WEBUI_LOADED_CHECKPOINTS": "1",
    }


def places(tmp_path: Path, data_dir: str = "data") -> Places:
    return Places(
        webui_dir=tmp_path / "webui",
        webui_python=Path(sys.executable),
        data_dir=tmp_path / data_dir,
        cache_dir=tmp_path / "cache",
        helpers_dir=tmp_path / "helpers",
        hf_home=tmp_path / "huggingface",
    )


def run(environ: dict[str, str], tmp_path: Path, data_dir: str = "data") -> list[str]:
    return preflight(environ, places(tmp_path, data_dir), tmp_path / "cache" / "command")


def config(tmp_path: Path) -> dict[str, Any]:
    options: dict[str, Any] = json.loads((tmp_path / "data" / "config.json").read_text())
    return options


def test_it_says_what_it_found_one_line_each(container: dict[str, str], tmp_path: Path) -> None:
    lines = run(container, tmp_path)

    assert [line.split()[0] for line in lines] == SUBJECTS
    assert lines[1].endswith(f"models in {tmp_path / 'volume' / 'models'}")
    assert all("\n" not in line for line in lines)


def test_the_folders_that_a1111_is_shown_are_there(
    container: dict[str, str], tmp_path: Path
) -> None:
    run(container, tmp_path)

    assert {path.name for path in (tmp_path / "links").iterdir()} == {*FOLDERS.values(), "data"}
    assert (tmp_path / "links" / "data").readlink() == tmp_path / "data"


def test_a1111_finds_its_options(container: dict[str, str], tmp_path: Path) -> None:
    run(container, tmp_path)

    assert config(tmp_path) == {**OPTIONS, LIMIT: 1}
    assert config(tmp_path)["disable_mmap_load_safetensors"] is True
    assert {path.name for path in (tmp_path / "data").iterdir()} == {"config.json", "models"}


def test_a_users_own_options_win_and_stay(container: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    del container["A1111_WEBUI_LOADED_CHECKPOINTS"]
    own = {LIMIT: 11, "CLIP_stop_at_last_layers": 2, "ünknown": None}
    (tmp_path / "data" / "config.json").write_text(json.dumps(own))

    lines = run(container, tmp_path)

    assert config(tmp_path) == {**OPTIONS, **own}
    assert lines[SUBJECTS.index("config")].endswith("sd_checkpoints_limit is 11 as it was")


def test_a_setting_wins_over_what_an_earlier_start_wrote(
    container: dict[str, str], tmp_path: Path
) -> None:
    run(container, tmp_path)

    run({**container, "A1111_WEBUI_LOADED_CHECKPOINTS": "3"}, tmp_path)

    assert config(tmp_path)[LIMIT] == 3


def test_a_second_start_changes_nothing(container: dict[str, str], tmp_path: Path) -> None:
    run(container, tmp_path)
    before = (tmp_path / "data" / "config.json").stat()

    lines = run(container, tmp_path)

    assert lines[SUBJECTS.index("config")].endswith("config.json, 0 options added")
    assert (tmp_path / "data" / "config.json").stat() == before


@pytest.mark.parametrize(
    ("text", "words"),
    [
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


@pytest.mark.parametrize("text", [b'{"samples_save": ', b"\xff\xfe{}", b"[]"])
def test_a_config_that_a1111_left_half_written_is_set_aside(
    container: dict[str, str], tmp_path: Path, text: bytes
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "config.json").write_bytes(text)

    lines = run(container, tmp_path)

    assert "config.json.broken" in lines[SUBJECTS.index("config")]
    assert (tmp_path / "data" / "config.json.broken").read_bytes() == text
    assert json.loads((tmp_path / "data" / "config.json").read_text())["samples_save"] is False


def test_before_a_restart_our_options_are_there_again(
    container: dict[str, str], tmp_path: Path
) -> None:
    run(container, tmp_path)
    config = tmp_path / "data" / "config.json"
    config.write_text('{"samples_sav')

    reconfigure(Settings.from_env(container).webui)

    assert json.loads(config.read_text())["disable_mmap_load_safetensors"] is True


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
    missing = replace(places(tmp_path), webui_python=tmp_path / "python")

    with pytest.raises(SettingsError) as caught:
        preflight({**container, "A1111_WEBUI_FLAGS": "--share --listen"}, missing, tmp_path / "c")

    assert len(str(caught.value).splitlines()) == 4
    assert "WEBUI_DIR: there is no A1111" in str(caught.value)
    assert "WEBUI_PYTHON: there is no interpreter" in str(caught.value)


@pytest.mark.skipif(not RECORDED.is_file(), reason="no recordings beside this checkout")
def test_every_option_exists_in_a1111_and_has_its_type() -> None:
    defaults = json.loads(RECORDED.read_text())["response"]

    ours = {**OPTIONS, LIMIT: 1}
    assert {key: type(value) for key, value in ours.items()} == {
        key: type(defaults[key]) for key in ours
    }


@pytest.fixture
def command(
    container: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., int]:
    """Run `python -m worker preflight` in the container, with more variables if need be."""

    def run_command(**more: str) -> int:
        for name, text in (container | more).items():
            monkeypatch.setenv(name, text)
        there = places(tmp_path)
        folders = [
            f"--{field.name.replace('_', '-')}={getattr(there, field.name)}"
            for field in fields(there)
        ]
        return main(["preflight", *folders, "--command-file", str(tmp_path / "command")])

    return run_command


def test_the_command_prints_what_it_found(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command() == 0

    said, complaints = capsys.readouterr()
    assert [line.split()[:2] for line in said.splitlines()] == [
        ["preflight:", word] for word in SUBJECTS
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


def test_the_command_line_is_kept_word_by_word(container: dict[str, str], tmp_path: Path) -> None:
    run({**container, "A1111_WEBUI_FLAGS": "--styles-file *.csv $HOME"}, tmp_path)

    words = (tmp_path / "cache" / "command").read_text().split("\0")
    assert words[:3] == [sys.executable, "-u", "launch.py"]
    assert words[-8:] == [
        *("--styles-file", "*.csv", "$HOME"),
        *("--server-name", "127.0.0.1", "--port", "3000"),
        "",
    ]


def test_a_data_folder_on_the_volume_is_replaced_by_one_on_the_disk(
    container: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").symlink_to(tmp_path / "volume")

    lines = run(container, tmp_path, data_dir="elsewhere/webui-data")

    assert "is on the network volume" in lines[SUBJECTS.index("data")]
    assert (tmp_path / "cache" / "webui" / "config.json").is_file()
    assert list((tmp_path / "volume").rglob("*.json")) == []


def test_what_a1111_looks_for_in_its_data_folder_is_found_beside_it(
    container: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "webui" / "extensions" / "sd-webui-controlnet").mkdir(parents=True)
    (tmp_path / "webui" / "styles.csv").write_text("name,prompt,negative_prompt\n")

    run(container, tmp_path)
    lines = run(container, tmp_path)

    assert (tmp_path / "data" / "styles.csv").read_text().startswith("name")
    assert (tmp_path / "data" / "extensions").samefile(tmp_path / "webui" / "extensions")
    assert "--controlnet-dir" in lines[SUBJECTS.index("flags")]


def test_helper_weights_are_linked_the_nearest_first(
    container: dict[str, str], tmp_path: Path
) -> None:
    for home in ("helpers", "webui/models", "volume/models"):
        folder = tmp_path / home / "GFPGAN"
        folder.mkdir(parents=True)
        (folder / "GFPGANv1.4.pth").write_text(home)
    (tmp_path / "volume" / "models" / "GFPGAN" / "parsing_parsenet.pth").touch()

    lines = run(container, tmp_path)

    gfpgan = tmp_path / "data" / "models" / "GFPGAN"
    assert (gfpgan / "GFPGANv1.4.pth").read_text() == "helpers"
    assert (gfpgan / "parsing_parsenet.pth").is_symlink()
    assert lines[SUBJECTS.index("helpers")].startswith("helpers 2 links made; missing: CodeFormer,")


@pytest.mark.parametrize(
    ("gb", "kept"),
    [
        pytest.param(0, 1, id="unknown"),
        pytest.param(16, 1, id="16 GB"),
        pytest.param(39, 1, id="39 GB"),
        pytest.param(41, 2, id="41 GB"),
        pytest.param(1000, 4, id="1 TB"),
    ],
)
def test_as_many_checkpoints_stay_loaded_as_the_memory_holds(gb: int, kept: int) -> None:
    assert checkpoints_kept(WebuiSettings(), gb * 10**9) == kept
    assert checkpoints_kept(WebuiSettings(loaded_checkpoints=7), gb * 10**9) == 7


def test_the_memory_of_this_machine_decides_when_no_setting_does(
    container: dict[str, str], tmp_path: Path
) -> None:
    del container["A1111_WEBUI_LOADED_CHECKPOINTS"]

    run(container, tmp_path)

    assert config(tmp_path)[LIMIT] == checkpoints_kept(WebuiSettings(), hardware.memory_bytes())
