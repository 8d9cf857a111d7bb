"""Steps of the Dockerfile that need no engine, run as they stand there by the shell that Docker uses."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from simulator import models
from tests.conftest import running
from tests.recipe import ROOT, argument_defaults, named

pytestmark = pytest.mark.slow

Install = Callable[[], tuple[list[str], list[str], list[str]]]
Run = Callable[..., subprocess.CompletedProcess[str]]


def step(stage: str, word: str, places: dict[str, Path | str]) -> str:
    """Return the command of the stage's RUN that has `word` in it, with other places for its own."""
    (command,) = (each.command for each in named("RUN", stage) if word in each.command)
    for place in places:
        assert place in command
    # In one go: what one place became may hold the name of another.
    return re.sub(
        rf"(?<![\w/])({'|'.join(map(re.escape, places))})(?![\w-])",
        lambda found: str(places[found[0]]),
        command,
    )


def shell(command: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    # Debian's /bin/sh, as in the base images.
    return subprocess.run(
        ["/bin/sh", "-c", command],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **environment},  # noqa: TID251 - a child's PATH
        check=False,
        capture_output=True,
        text=True,
    )


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return a WebUI with an extension that lists what it needs, and one without an installer."""
    source = tmp_path / "source"
    for folder, has_installer in (("a", True), ("b", False), ("c", True)):
        extension = source / "extensions-builtin" / folder
        extension.mkdir(parents=True)
        if folder != "c":
            (extension / "requirements.txt").write_text(f"of-{folder}")
        if has_installer:
            (extension / "install.py").touch()
    (source / "requirements_versions.txt").write_text("numpy==1.26.2\npillow-avif-plugin==1.4.3")
    return source


@pytest.fixture
def install(tmp_path: Path, source: Path) -> Install:
    """Run the step that installs the WebUI's packages; return uv's flags, requirements, overrides."""

    def run() -> tuple[list[str], list[str], list[str]]:
        uv = tmp_path / "bin" / "uv"
        uv.parent.mkdir()
        uv.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/flags\n')
        uv.chmod(0o755)
        command = step(
            "webui", "requirements_versions", {"/source": source, "/tmp": tmp_path, "uv": uv}
        )
        done = shell(command, argument_defaults("webui"))
        assert done.returncode == 0, done.stderr
        read = [tmp_path / name for name in ("flags", "requirements.txt", "overrides.txt")]
        flags, requirements, overrides = (file.read_text().splitlines() for file in read)
        return flags, requirements, overrides

    return run


def test_the_requirements_are_those_of_the_webui_and_of_extensions_with_an_installer(
    install: Install,
) -> None:
    flags, requirements, overrides = install()

    assert requirements == ["numpy==1.26.2", "pillow-avif-plugin==1.4.3", "of-a"]
    assert overrides == ["safetensors==0.4.5", "uvicorn==0.32.1"]
    assert "torch==2.1.2" in flags
    assert "xformers==0.0.23.post1" in flags
    assert flags[flags.index("--exclude-newer") + 1] == "2024-12-01"


def test_the_extensions_that_name_their_packages_in_python_get_them(
    install: Install, source: Path
) -> None:
    for name in ("adetailer", "sd-webui-reactor"):
        (source / "extensions" / name).mkdir(parents=True)

    _, requirements, overrides = install()

    assert requirements[-4:] == [
        "ultralytics>=8.2",
        "mediapipe>=0.10.13",
        "rich>=13",
        "onnxruntime",
    ]
    assert "protobuf==4.25.5" in overrides


@dataclass(frozen=True)
class Host:
    """A model host with a checkpoint and a page to log in."""

    url: str
    digest: str
    """The checkpoint's SHA-256."""


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    files = tmp_path_factory.mktemp("hub")
    digest = models.write_checkpoint(files / "c.safetensors", seed="b")
    (files / "login.html").write_text("<html>Please log in.</html>" * 1000)
    with running("hub", "--root", files) as hub:
        yield Host(hub.url, digest)


@pytest.fixture
def bake(tmp_path: Path, host: Host) -> Run:
    """Run the step that bakes a checkpoint, into `tmp_path/models`."""

    def run(file: str, **arguments: str) -> subprocess.CompletedProcess[str]:
        command = step(
            "checkpoint",
            "model_cache pull",
            {
                "/opt/worker-venv/bin/python": sys.executable,
                "/volume": tmp_path / "volume",
                "/run/secrets": tmp_path / "secrets",
                "/models": tmp_path / "models",
            },
        )
        return shell(
            command,
            {
                "A1111_CACHE_ALLOW_PRIVATE_HOSTS": "true",
                "CHECKPOINT_NAME": argument_defaults()["CHECKPOINT_NAME"],
                "CHECKPOINT_URL": f"{host.url}/{file}",
                **arguments,
            },
        )

    return run


def test_a_baked_checkpoint_is_found_by_its_name_with_its_digest(
    tmp_path: Path, bake: Run, host: Host
) -> None:
    done = bake("c.safetensors", CHECKPOINT_SHA256=host.digest)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(tmp_path / "volume")
    for file in (tmp_path / "models").rglob("*"):  # as a layer keeps it: whole seconds
        os.utime(file, (file.stat().st_atime, int(file.stat().st_mtime)))
    (tmp_path / "empty").mkdir()
    shown = shell(
        f"{sys.executable} -m model_cache list --json --volume {tmp_path}/empty",
        {"A1111_CACHE_BAKED": f"{tmp_path}/models"},
    )

    (model,) = json.loads(shown.stdout)
    assert (model["name"], model["origin"]) == ("deliberate_v6", "baked")
    assert model["sha256"] == host.digest


@pytest.mark.parametrize(
    ("file", "arguments"),
    [
        pytest.param("c.safetensors", {"CHECKPOINT_SHA256": "0" * 64}, id="other-digest"),
        pytest.param("login.html", {}, id="no-model"),
    ],
)
def test_a_wrong_checkpoint_ends_the_build(
    tmp_path: Path, bake: Run, file: str, arguments: dict[str, str]
) -> None:
    done = bake(file, **arguments)

    assert done.returncode != 0
    assert "failed   checkpoint deliberate_v6" in done.stderr
    assert not (tmp_path / "models").exists()
