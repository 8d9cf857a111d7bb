import tomllib
from pathlib import Path

import pytest

from worker.machine import versions

ROOT = Path(__file__).parents[3]
COMMIT = "82a973c04367123ae98bd9abdf80d9eda9b910e2"


def test_our_version_is_that_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    assert project["version"] == versions.WORKER


def test_the_sdks_version_is_the_one_that_is_installed() -> None:
    assert versions.sdk() == "1.12.0"


@pytest.mark.parametrize(
    ("files", "said"),
    [
        pytest.param({}, "", id="nothing"),
        pytest.param({"CHANGELOG.md": "## 1.10.1\n\n## 1.10.0\n"}, "1.10.1", id="image"),
        pytest.param(
            {"CHANGELOG.md": "## 1.10.1\n", ".git/HEAD": f"{COMMIT}\n"},
            "1.10.1 (82a973c04367)",
            id="detached",
        ),
        pytest.param(
            {".git/HEAD": "ref: refs/heads/master\n", ".git/refs/heads/master": f"{COMMIT}\n"},
            "(82a973c04367)",
            id="branch",
        ),
        pytest.param(
            {
                ".git/HEAD": "ref: refs/heads/master\n",
                ".git/packed-refs": f"# pack-refs\n{COMMIT} refs/heads/master\n",
            },
            "(82a973c04367)",
            id="packed branch",
        ),
        pytest.param(
            {
                "CHANGELOG.md": "## 1.10.1\n",
                "modules_forge/forge_version.py": "version = '2.0.1v1.10.1-previous'\n",
            },
            "2.0.1v1.10.1-previous",
            id="forge",
        ),
    ],
)
def test_a_webuis_version_is_what_its_folder_says(
    tmp_path: Path, files: dict[str, str], said: str
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    assert versions.webui(tmp_path) == said
