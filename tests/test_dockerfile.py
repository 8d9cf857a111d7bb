"""What of the Dockerfile can be held true without a Docker engine."""

import ast
import fnmatch
import importlib.metadata
import json
import os
import re
import shlex
import sys
import tomllib
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parent.parent
ENTRY_POINTS = (Path("rp_handler.py"), Path("worker/__main__.py"), Path("model_cache/__main__.py"))


def instructions() -> list[tuple[str, str]]:
    """Return the Dockerfile as (instruction, arguments): comments gone, continued lines joined."""
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    text = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    joined = text.replace("\\\n", " ").splitlines()
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in joined if line.strip()]


def arguments_of(name: str) -> list[str]:
    return [arguments for instruction, arguments in instructions() if instruction == name]


def copies() -> list[tuple[list[str], str]]:
    """Return (sources, target) of every COPY from this folder."""
    found = []
    for arguments in arguments_of("COPY"):
        words = [word for word in arguments.split() if not word.startswith("--chmod")]
        if not words[0].startswith("--from"):
            found.append((words[:-1], words[-1]))
    return found


def in_image() -> dict[str, str]:
    """Return source -> path in the image of everything that lands in /app."""
    return {
        source: str(PurePosixPath(target) / source) if target.endswith("/") else target
        for sources, target in copies()
        if target.startswith("/app")
        for source in sources
    }


def is_ignored(path: str) -> bool:
    ignored = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#"):
            pattern = line.removeprefix("!").removeprefix("**/")
            names = path.split("/") if "**/" in line else [path.split("/", maxsplit=1)[0]]
            if any(fnmatch.fnmatchcase(name, pattern) for name in names):
                ignored = not line.startswith("!")
    return ignored


def imports_of(file: Path) -> set[str]:
    found = set[str]()
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def file_of(module: str) -> Path | None:
    path = Path(*module.split("."))
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if (ROOT / file).is_file():
            return file
    return None


def needed() -> tuple[set[Path], set[str]]:
    """Return the files of ours and the other packages that the entry points import, all the way."""
    files, others = set[Path](), set[str]()
    waiting = [file for file in ENTRY_POINTS if (ROOT / file).is_file()]
    while waiting:
        file = waiting.pop()
        if file in files:
            continue
        files.add(file)
        for module in imports_of(file):
            package = module.partition(".")[0]
            if file_of(package) is None:
                others.add(package)
            elif (ours := file_of(module)) is not None:
                waiting.append(ours)
    return files, others - sys.stdlib_module_names


def test_every_copied_file_is_there_and_reaches_the_build() -> None:
    for sources, _ in copies():
        for source in sources:
            assert (ROOT / source).exists(), source
            assert not is_ignored(source), source


def test_what_the_build_does_not_need_does_not_reach_it() -> None:
    for path in (".git/HEAD", ".venv", "simulator/__init__.py", "tests", "worker/__pycache__"):
        assert is_ignored(path), path


def test_everything_that_the_worker_imports_is_in_the_image() -> None:
    image = in_image()
    files, _ = needed()

    assert Path("worker/links.py") in files
    for file in files:
        source = file.parts[0]
        assert source in image, file
        assert image[source] == f"/app/{source}", file


def test_everything_that_the_worker_imports_from_others_is_a_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[=<>]", line)[0].lower() for line in project["dependencies"]}
    owners = importlib.metadata.packages_distributions()
    _, others = needed()

    # urllib3 is what requests raises, and comes with it.
    for package in others - {"urllib3"}:
        assert {owner.lower() for owner in owners[package]} & declared, package


def test_the_simulator_is_not_in_the_image() -> None:
    image = in_image()

    assert {"simulator", "tests", "benchmarks"} & set(image) == set()
    assert {file.parts[0] for file in needed()[0]} & {"simulator", "tests", "benchmarks"} == set()


def test_the_entry_point_is_start_sh_under_tini() -> None:
    (entry_point,) = arguments_of("ENTRYPOINT")

    program, separator, script = json.loads(entry_point)
    assert (program, separator) == ("tini", "--")
    assert script == in_image()["start.sh"]
    assert os.access(ROOT / "start.sh", os.X_OK)
    assert (ROOT / "start.sh").read_text().startswith("#!/usr/bin/env bash\n")


def test_both_environments_are_built_where_start_sh_looks_for_them() -> None:
    built = " ".join(arguments_of("RUN"))
    copied = [
        shlex.split(line)[-1]
        for line in arguments_of("COPY")
        if line.startswith(("--from=webui ", "--from=worker "))
    ]
    script = (ROOT / "start.sh").read_text()

    for place in ("/opt/webui-venv", "/opt/worker-venv", "/opt/stable-diffusion-webui"):
        assert place in built
        assert place in copied
        assert place in script


def test_the_worker_runs_on_the_containers_disk() -> None:
    assert arguments_of("WORKDIR") == ["/app"]


def test_nothing_is_taken_at_its_newest() -> None:
    text = (ROOT / "Dockerfile").read_text()
    bases = [line.partition("=")[2] for line in arguments_of("ARG") if "_BASE=" in line]

    assert ":latest" not in text
    assert [base for base in bases if not re.search(r":\d+\.\d+\.\d+-|@sha256:", base)] == []
    assert {line.split()[0] for line in arguments_of("FROM")} == {
        "scratch",
        "${WEBUI_BASE}",
        "${WORKER_BASE}",
    }


def test_sources_are_pinned_by_whole_commits() -> None:
    urls = re.findall(r"https://github\.com/\S+", " ".join(f"{i} {a}" for i, a in instructions()))

    assert len(urls) == 7
    for url in urls:
        assert re.search(r"(\.git#|/archive/)[0-9a-f]{40}(\.zip)?$", url), url


def test_packages_are_pinned_by_version_hash_or_date() -> None:
    for command in arguments_of("RUN"):
        if "pip install" in command:
            pinned = re.search(r"--require-hashes|--exclude-newer|uv==[\d.]+$", command.strip())
            assert pinned, command


@pytest.mark.parametrize(
    "program", [pytest.param(r"curl|wget", id="download"), pytest.param(r"\|\s*(ba)?sh", id="pipe")]
)
def test_nothing_that_is_downloaded_is_run(program: str) -> None:
    assert not re.search(program, " ".join(arguments_of("RUN")))


def test_system_packages_are_listed_one_a_line_in_order() -> None:
    text = (ROOT / "Dockerfile").read_text()
    (listed,) = re.findall(r"--no-install-recommends ((?:\\\n +[\w.+-]+ ?)+)", text)
    packages = [line.strip(" \\") for line in listed.splitlines() if line.strip(" \\")]

    assert "tini" in packages
    assert packages == sorted(packages)
    assert all(" " not in package for package in packages)
