"""What of the Dockerfile can be held true without a Docker engine."""

import ast
import fnmatch
import functools
import importlib.metadata
import json
import os
import re
import sys
import tomllib
from pathlib import Path
from typing import get_args
from urllib.parse import urlsplit

import pytest

from schemas.settings import CacheSettings, WebuiSettings
from tests.recipe import ROOT, argument_defaults, copies, in_image, instructions, named
from worker.machine.helpers import HELPERS

ENTRY_POINTS = (Path("rp_handler.py"), Path("worker/__main__.py"), Path("model_cache/__main__.py"))
# Every repository that the image takes something from, at one commit each.
COMMITS = {
    "AUTOMATIC1111/stable-diffusion-webui": "82a973c04367123ae98bd9abdf80d9eda9b910e2",
    "AUTOMATIC1111/stable-diffusion-webui-assets": "6f7db241d2f8ba7457bac5ca9753331f0c266917",
    "Bing-su/adetailer": "36189cbea735b85fd01e98ac42002b8ce6f0e41d",
    "Gourieff/sd-webui-reactor": "2c6a6e63527dc0e8ba9e620a324cb817306cea4b",
    "Mikubill/sd-webui-controlnet": "56cec5b2958edf3b1807b7e7b2b1b5186dbd2f81",
    "Stability-AI/generative-models": "45c443b316737a4ab6e40413d7794a7f5657c19f",
    "crowsonkb/k-diffusion": "ab527a9a6d347f364e3d185ba6d714e22d80cb3c",
    "lllyasviel/huggingface_guess": "84826248b49bb7ca754c73293299c4d4e23a548d",
    "lllyasviel/stable-diffusion-webui-forge": "dfdcbab685e57677014f05a3309b48cc87383167",
    "openai/CLIP": "d50d76daa670286dd6cacf3bcd80b5e4823fc8e1",
    "salesforce/BLIP": "48211a1594f1321b00f14c9f7a5b4813144b2fb9",
    "w-e-w/stablediffusion": "cf1d67a6fd5ea1aa600c4df58e5b47da45f6bdbf",
}
VARIABLE = re.compile(r"\$\{?([A-Z_0-9]+)")
# What each of the arguments that choose a stage may be.
SWITCHES = {
    "WEBUI_KIND": get_args(WebuiSettings.model_fields["kind"].annotation),
    "CONTROLNET": ("off", "on"),
    "ADETAILER": ("off", "on"),
    "REACTOR": ("off", "on"),
    "HELPERS": ("off", "on"),
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


@functools.cache
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

    assert Path("worker/child/links.py") in files
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
    (entry_point,) = named("ENTRYPOINT")

    program, separator, script = json.loads(entry_point.arguments)
    assert (program, separator) == ("tini", "--")
    assert script == in_image()["start.sh"]
    assert os.access(ROOT / "start.sh", os.X_OK)
    assert (ROOT / "start.sh").read_text().startswith("#!/usr/bin/env bash\n")


def test_everything_lies_where_start_sh_looks_for_it() -> None:
    built = " ".join(each.arguments for each in named("RUN"))
    copied = {each.words[-1] for each in named("COPY", "slim") if each.flag("from")}
    script = (ROOT / "start.sh").read_text()

    for place in ("/opt/webui-venv", "/opt/worker-venv"):
        assert place in built
    for place in (
        "/opt/webui-venv",
        "/opt/worker-venv",
        "/opt/stable-diffusion-webui",
        "/opt/helpers",
        "/opt/huggingface",
    ):
        assert place in copied
        assert f":-{place}" in script


def test_the_worker_runs_on_the_containers_disk() -> None:
    assert [each.arguments for each in named("WORKDIR", "slim")] == ["/app"]


def test_the_last_stage_holds_a_checkpoint_and_names_it_as_the_default() -> None:
    stages = [each.stage for each in named("FROM")]
    (copy,) = named("COPY", "baked")
    (env,) = named("ENV", "baked")

    assert stages[-2:] == ["checkpoint", "baked"]
    assert copy.words == [str(CacheSettings().baked)] * 2
    assert env.arguments == "A1111_WEBUI_CHECKPOINT=${CHECKPOINT_NAME}"
    assert argument_defaults()["CHECKPOINT_NAME"] == "deliberate_v6"


def test_the_health_check_asks_the_worker_itself() -> None:
    (check,) = named("HEALTHCHECK")
    command = json.loads(check.arguments.partition("CMD ")[2])

    assert command[0] in (ROOT / "start.sh").read_text()
    assert command[1:] == ["-m", "worker", "health"]
    assert check.flag("start-period") == [f"{WebuiSettings().ready_timeout_s:g}s"]


def test_every_stage_that_is_named_is_there() -> None:
    seen = set[str]()
    for each in instructions():
        sources = [each.words[0]] if each.name == "FROM" else each.flag("from")
        sources += re.findall(r"--mount=\S*from=([\w-]+)", each.arguments)
        for source in sources:
            (variable, *_) = VARIABLE.findall(source) or [""]
            chosen = [
                re.sub(r"\$\{\w+\}", value, source) for value in SWITCHES.get(variable, ())
            ] or [source]
            known = seen | {"scratch", "${WEBUI_BASE}", "${WORKER_BASE}"}
            assert set(chosen) <= known, each
        if each.name == "FROM":
            assert each.stage, each
            assert each.stage not in seen
            seen.add(each.stage)


def test_every_argument_is_used_in_its_stage_and_says_the_same_everywhere() -> None:
    defaults = argument_defaults()
    for argument in named("ARG"):
        name, given, default = argument.arguments.partition("=")
        used = {
            each.stage
            for each in instructions()
            if each.name != "ARG" and name in VARIABLE.findall(each.arguments)
        }
        assert argument.stage in used or not argument.stage, name
        assert used, name
        assert name in defaults, name
        assert not given or default == defaults[name], name


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_switch_has_a_default_that_it_may_have(switch: str) -> None:
    assert argument_defaults("")[switch] in SWITCHES[switch]


def test_nothing_is_taken_at_its_newest() -> None:
    text = (ROOT / "Dockerfile").read_text()
    bases = [value for name, value in argument_defaults().items() if name.endswith("_BASE")]

    assert ":latest" not in text
    assert len(bases) == 2
    assert [base for base in bases if not re.search(r":\d+\.\d+\.\d+-|@sha256:", base)] == []


def test_sources_are_pinned_by_the_commits_of_the_table() -> None:
    text = " ".join(each.arguments for each in instructions())
    urls = re.findall(r"https://github\.com/(\S+?)(?:\.git#|/archive/)([^\s.]+)", text)

    assert {repository: {commit} for repository, commit in urls} == {
        repository: {commit} for repository, commit in COMMITS.items()
    }
    assert all(COMMITS[repository] == commit for repository, commit in urls)


def test_every_other_download_is_pinned_by_digest_or_commit() -> None:
    for each in named("ADD"):
        urls = [word for word in each.words if urlsplit(word).scheme]
        assert urls, each
        for url in urls:
            commit = re.search(r"\.git#[0-9a-f]{40}$|/resolve/[0-9a-f]{40}/", url)
            digest = re.fullmatch(r"sha256:[0-9a-f]{64}", "".join(each.flag("checksum")))
            assert commit or digest, url


def test_the_image_holds_helpers_where_the_worker_looks_for_them() -> None:
    known = {f"/opt/helpers/{file.path}": file.url for files in HELPERS.values() for file in files}
    baked = {each.words[1]: each.words[0] for each in named("ADD", "helpers-on")}

    assert len(baked) == 6
    assert baked.items() <= known.items()


def test_the_tokenizer_lies_as_in_a_hugging_face_cache() -> None:
    (add,) = named("ADD", "helpers-off")
    (run,) = named("RUN", "helpers-off")
    *urls, target = add.words
    revision = Path(target).name

    assert {url.rpartition("/")[0].rpartition("/")[2] for url in urls} == {revision}
    assert {"vocab.json", "merges.txt", "config.json"} <= {url.rpartition("/")[2] for url in urls}
    assert f"printf '%s' {revision}" in run.command
    assert run.command.endswith(f"{Path(target).parents[1]}/refs/main")


def test_packages_are_pinned_by_version_hash_or_date() -> None:
    installing = [each.command for each in named("RUN") if "pip install" in each.command]

    assert len(installing) == 4
    for command in installing:
        pinned = re.search(r"--require-hashes|--exclude-newer|uv==[\d.]+$", command.strip())
        assert pinned, command


@pytest.mark.parametrize(
    "program", [pytest.param(r"curl|wget", id="download"), pytest.param(r"\|\s*(ba)?sh", id="pipe")]
)
def test_nothing_that_is_downloaded_is_run(program: str) -> None:
    assert not re.search(program, " ".join(each.command for each in named("RUN")))


def test_system_packages_are_listed_one_a_line_in_order() -> None:
    text = (ROOT / "Dockerfile").read_text()
    lists = re.findall(r"--no-install-recommends ((?:\\\n +[\w.+-]+ ?)+)", text)

    assert len(lists) == 2
    for listed in lists:
        packages = [line.strip(" \\") for line in listed.splitlines() if line.strip(" \\")]
        assert packages == sorted(packages)
        assert all(" " not in package for package in packages)
    assert "tini" in lists[-1]


def test_the_label_says_the_projects_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (label,) = named("LABEL")

    assert f'org.opencontainers.image.version="{project["version"]}"' in label.arguments
