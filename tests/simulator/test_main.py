from pathlib import Path

import pytest

from simulator.__main__ import main


def test_help_lists_every_simulator(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0

    out = capsys.readouterr().out
    assert all(name in out for name in ("webui", "hub", "queue", "models"))


@pytest.mark.parametrize("argv", [[], ["webgui"], ["--port", "1"]])
def test_a_name_that_is_unknown_or_missing_is_a_usage_error(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2

    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.endswith("shows the options of each.\n")


def test_the_rest_of_the_command_line_goes_to_the_one_that_was_named(tmp_path: Path) -> None:
    assert main(["models", str(tmp_path / "m")]) == 0

    assert (tmp_path / "m" / "checkpoints" / "simulated_v1.safetensors").is_file()
