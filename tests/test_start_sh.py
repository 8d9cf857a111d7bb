"""start.sh, run for real; only the interpreters are stand-ins."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import compress
from pathlib import Path
from typing import Any

import pytest

from simulator.models import write_checkpoint
from worker.child.links import FOLDERS

ROOT = Path(__file__).parent.parent
START_SH = ROOT / "start.sh"
LIBM = next(Path("/usr/lib").glob("*/libm.so.6"))

# In place of the worker's interpreter: the real one for preflight, a look around for the handler.
WORKER = f"""#!{sys.executable}
import json, os, sys
if sys.argv[1] == "-m":
    os.execv({sys.executable!r}, [{sys.executable!r}, *sys.argv[1:]])
options = dict(zip(sys.argv[3:7:2], map(int, sys.argv[4:8:2])))
with os.fdopen(options["--webui-log"]) as log:
    running = os.waitpid(options["--webui-pid"], os.WNOHANG) == (0, 0)
    open(os.environ["GO"], "w").close()
    lines = log.read().splitlines()
_, status = os.waitpid(options["--webui-pid"], 0)
print(json.dumps({{"argv": sys.argv[1:], "pid": os.getpid(), "cwd": os.getcwd(),
    "environ": dict(os.environ), "running": running, "lines": lines,
    "code": os.waitstatus_to_exitcode(status)}}))
"""

# In place of A1111's: says what it was given; when told to wait, ends when the worker has looked. Asked
# for its packages, it is the real interpreter with those that a test gave it.
WEBUI = f"""#!{sys.executable}
import json, os, sys, time
from pathlib import Path
if sys.argv[1] == "-c":
    os.environ["PYTHONPATH"] = str(Path(__file__).parent / "packages")
    os.execv({sys.executable!r}, [{sys.executable!r}, *sys.argv[1:]])
print(json.dumps({{"argv": sys.argv[1:], "cwd": os.getcwd(), "environ": dict(os.environ),
                  "leads": os.getpgrp() == os.getpid()}}), flush=True)
print("and on stderr", file=sys.stderr)
if "GO" in os.environ:
    while not Path(os.environ["GO"]).exists():
        time.sleep(0.01)
    sys.exit(7)
"""


class Container:
    """A folder that looks like the image, with stand-ins for both interpreters."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for folder in ("webui", "volume", "elsewhere", "bin", "packages"):
            (root / folder).mkdir()
        (root / "webui" / "launch.py").touch()
        self.environ = {
            "PATH": f"{root / 'bin'}:{os.defpath}",
            "WORKER_PYTHON": self.program("worker-python", WORKER),
            "WORKER_CACHE_DIR": str(root / "cache"),
            "WEBUI_DIR": str(root / "webui"),
            "WEBUI_PYTHON": self.program("webui-python", WEBUI),
            "WEBUI_DATA_DIR": str(root / "data"),
            "WEBUI_HELPERS_DIR": str(root / "helpers"),
            "WEBUI_HF_HOME": str(root / "huggingface"),
            "WEBUI_MALLOC": "",
            "A1111_CACHE_VOLUME": str(root / "volume"),
            "A1111_WEBUI_LINKS": str(root / "links"),
        }

    def program(self, name: str, text: str) -> str:
        file = self.root / name
        file.write_text(text)
        file.chmod(0o755)
        return str(file)

    def gpu(self, mib: int = 24_564, name: str = "NVIDIA GeForce RTX 4090") -> None:
        """Put a GPU into the machine: an `nvidia-smi` that lists it."""
        listed = f"#!/bin/sh\necho '{name}, {mib}, 550.54.15'\necho asked >>{self.root}/asked\n"
        self.program("bin/nvidia-smi", listed)

    def torch(self, capability: tuple[int, int] | None, archs: list[str]) -> None:
        """Put a torch into A1111's interpreter."""
        text = "from types import SimpleNamespace as N\n__version__ = '2.1.2+cu121'\n"
        text += f"version = N(cuda='12.1')\ncuda = N(is_available=lambda: {capability is not None},"
        text += f" get_arch_list=lambda: {archs}, get_device_capability=lambda: {capability})\n"
        (self.root / "packages" / "torch.py").write_text(text)

    def run(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [START_SH, *arguments],
            cwd=self.root / "elsewhere",
            env=self.environ | environ,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    def webui(self, **environ: str) -> dict[str, Any]:
        """Become A1111; return what its stand-in was given."""
        given: dict[str, Any] = json.loads(self.run("webui", **environ).stdout)
        return given

    def worker(self, **environ: str) -> dict[str, Any]:
        """Become the worker; return what the handler's stand-in saw."""
        done = self.run(GO=str(self.root / "go"), **environ)
        assert done.returncode == 0, done.stderr
        seen: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        is_preflight = [line.startswith("preflight: ") for line in seen["lines"]]
        seen["preflight"] = list(compress(seen["lines"], is_preflight))
        seen["lines"] = [line for line in seen["lines"] if line not in seen["preflight"]]
        return seen


@pytest.fixture
def container(tmp_path: Path) -> Container:
    return Container(tmp_path)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Container:
    """One in which nothing is set, for `plain_webui` alone."""
    return Container(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def plain_webui(plain: Container) -> dict[str, Any]:
    """What A1111's stand-in is given where nothing is set: one start for many tests."""
    return plain.webui()


@pytest.fixture(scope="module")
def plain_worker(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the handler's stand-in sees where nothing is set: one start for many tests."""
    return Container(tmp_path_factory.mktemp("plain")).worker()


def flags_of(argv: list[str]) -> dict[str, str]:
    """Return the flags that have a value; of one given twice the last, as A1111 reads them."""
    pairs = zip(argv, [*argv[1:], "--"], strict=True)
    return {flag: value for flag, value in pairs if flag[:2] == "--" and value[:2] != "--"}


def test_a1111_is_the_workers_own_child_and_its_end_is_seen(plain_worker: dict[str, Any]) -> None:
    assert plain_worker["running"]
    assert plain_worker["code"] == 7


def test_a1111_leads_a_group_of_its_own_so_that_all_that_it_starts_can_be_ended(
    plain_worker: dict[str, Any],
) -> None:
    assert json.loads(plain_worker["lines"][0])["leads"]


def test_a1111s_output_reaches_the_worker(plain_worker: dict[str, Any]) -> None:
    assert json.loads(plain_worker["lines"][0])["argv"][:2] == ["-u", "launch.py"]
    assert plain_worker["lines"][1:] == ["and on stderr"]


def test_the_worker_takes_the_place_of_the_script(container: Container) -> None:
    process = subprocess.Popen(
        [START_SH],
        env=container.environ | {"GO": str(container.root / "go")},
        stdout=subprocess.PIPE,
        text=True,
    )
    output = process.communicate(timeout=30)[0]

    assert json.loads(output.splitlines()[-1])["pid"] == process.pid


def test_the_worker_runs_in_its_own_folder_with_caches_off_the_volume(
    container: Container,
) -> None:
    seen = container.worker(
        HF_HOME="/runpod-volume/hf", HF_HUB_CACHE="/runpod-volume/hub", XDG_CACHE_HOME="/volume"
    )

    cache = str(container.root / "cache")
    assert seen["cwd"] == str(ROOT)
    assert seen["environ"]["HF_HOME"] == f"{cache}/huggingface"
    assert seen["environ"]["XDG_CACHE_HOME"] == cache
    assert "HF_HUB_CACHE" not in seen["environ"]
    assert json.loads(seen["lines"][0])["environ"]["HF_HOME"] == f"{cache}/huggingface"


def test_memory_is_kept_by_the_worker_and_not_by_a1111(
    plain_worker: dict[str, Any], container: Container
) -> None:
    seen = plain_worker["environ"]

    kept = {name: text for name, text in seen.items() if name.startswith("MALLOC_")}
    assert kept == {
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
        "MALLOC_TRIM_THRESHOLD_": str(128 << 20),
    }
    assert kept.keys() & container.webui(**kept)["environ"].keys() == set()


@pytest.mark.parametrize(
    ("name", "value"), [("A1111_CACHE_STALL_S", "soon"), ("A1111_WEBUI_FLAGS", "--listen")]
)
def test_what_preflight_objects_to_ends_a1111_and_the_worker_with_its_code(
    container: Container, name: str, value: str
) -> None:
    child = container.worker(**{name: value})
    real = container.run(**{name: value, "WORKER_PYTHON": sys.executable})

    assert child["code"] == 78
    assert any(line.startswith(f"preflight: {name}: ") for line in child["preflight"])
    assert real.returncode == 78
    assert f"{name}: " in real.stderr


def test_preflight_prepares_the_folder_that_a1111_is_told_of(container: Container) -> None:
    container.worker()

    assert (container.root / "data" / "config.json").is_file()
    assert flags_of(container.webui()["argv"])["--data-dir"] == str(container.root / "data")


@pytest.mark.slow
def test_a1111_does_not_outlive_a_killed_worker(container: Container) -> None:
    pid_file = container.root / "pid"
    container.program(
        "worker-python",
        f'#!/bin/sh\n[ $1 = -m ] && exec {sys.executable} "$@"\n'
        f"echo $4 >{pid_file}.new; mv {pid_file}.new {pid_file}; exec sleep 60\n",
    )
    container.program("webui-python", "#!/bin/sh\n[ $1 = -c ] || exec sleep 60\n")
    with subprocess.Popen([START_SH], env=container.environ) as process:
        wait_for(pid_file.exists)
        child = Path("/proc") / pid_file.read_text().strip()
        wait_for(lambda: (child / "comm").read_text() == "sleep\n")

        process.kill()

    wait_for(lambda: not child.exists() or " Z " in (child / "stat").read_text())


def wait_for(happens: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a1111_starts_headless_in_its_own_folder_and_loads_nothing(
    plain: Container, plain_webui: dict[str, Any]
) -> None:
    assert plain_webui["cwd"] == str(plain.root / "webui")
    assert plain_webui["argv"][:2] == ["-u", "launch.py"]
    assert set(plain_webui["argv"]) >= {
        "--api",
        "--nowebui",
        "--skip-load-model-at-start",
        "--no-download-sd-model",
        "--skip-prepare-environment",
    }
    assert "--disable-safe-unpickle" not in plain_webui["argv"]


def test_a1111_listens_on_loopback_whatever_the_flags_say(container: Container) -> None:
    flags = flags_of(container.webui(A1111_WEBUI_PORT="3456")["argv"])
    refused = container.run("webui", A1111_WEBUI_FLAGS="--server-name 0.0.0.0")

    assert (flags["--server-name"], flags["--port"]) == ("127.0.0.1", "3456")
    assert refused.returncode == 78


def test_an_empty_variable_is_an_absent_one(container: Container) -> None:
    flags = flags_of(container.webui(A1111_WEBUI_PORT="")["argv"])

    assert flags["--port"] == "3000"


def test_a1111_is_shown_every_folder_of_links_and_no_other(container: Container) -> None:
    (container.root / "data" / "extensions" / "sd-webui-controlnet").mkdir(parents=True)

    argv = container.webui()["argv"]

    links = container.root / "links"
    shown = {word for word in argv if word.startswith(f"{links}/")}
    assert shown == {str(links / folder) for folder in FOLDERS.values()}
    assert flags_of(argv)["--ckpt-dir"] == str(links / "Stable-diffusion")


def test_a_flag_of_an_absent_extension_is_left_out(plain_webui: dict[str, Any]) -> None:
    assert "--controlnet-dir" not in plain_webui["argv"]


def test_flags_of_the_user_are_split_at_white_space_and_nothing_else(container: Container) -> None:
    argv = container.webui(A1111_WEBUI_FLAGS="  --xformers\n--styles-file\t*.csv $HOME ")["argv"]

    start = argv.index("--xformers")
    assert argv[start : start + 5] == [
        "--xformers",
        "--styles-file",
        "*.csv",
        "$HOME",
        "--server-name",
    ]


def test_tcmalloc_is_preloaded_where_it_is_installed(container: Container) -> None:
    assert "LD_PRELOAD" not in container.webui(WEBUI_MALLOC="/absent.so")["environ"]
    assert container.webui(WEBUI_MALLOC=str(LIBM))["environ"]["LD_PRELOAD"] == str(LIBM)


@pytest.mark.slow
def test_the_container_does_a_job_and_leaves_nothing_running(
    container: Container, simulator: Callable[..., Any]
) -> None:
    write_checkpoint(container.root / "volume/models/checkpoints/night.safetensors", seed="night")
    queue = simulator("queue", "--open", "--hold-s", 0.5)
    # A1111's stand-in takes the whole command line, as A1111's own parser would.
    container.program(
        "webui-python",
        f'#!/bin/sh\n[ "$1 $2" = "-u launch.py" ] && shift 2 && cd {ROOT} || exit 1\n'
        f'exec {sys.executable} -m simulator webui --models-dir {container.root}/none "$@"\n',
    )
    environ = container.environ | queue.get("/simulator/env?worker=w1")
    environ |= {"WORKER_PYTHON": sys.executable, "RUNPOD_LOG_LEVEL": "WARN"}
    with (
        held_port() as port,
        subprocess.Popen(
            [START_SH],
            env=environ | {"A1111_WEBUI_PORT": str(port)},
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        try:
            job = {"input": {"prompt": "a lighthouse", "steps": 2, "width": 64, "height": 64}}
            answer = queue.post("/v2/sim/runsync", job)
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        finally:
            process.terminate()
            said = process.communicate(timeout=30)[1]

    assert answer["status"] == "COMPLETED", answer
    assert answer["output"]["models"][0]["name"] == "night"
    assert process.returncode == 0, said
    assert len(children.split()) >= 1
    assert [pid for pid in children.split() if Path("/proc", pid).exists()] == []


@contextlib.contextmanager
def held_port() -> Iterator[int]:
    """Yield a port for a child; nobody else gets it meanwhile, for it is taken, and nothing listens."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        yield int(held.getsockname()[1])


def test_help_is_printed_on_request(container: Container) -> None:
    done = container.run("--help")

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: start.sh")


@pytest.mark.parametrize(
    "arguments", [["check-everything"], ["webui", "--listen"], [""], ["check", "a", "b"]]
)
def test_an_unknown_word_is_refused_with_the_usage(
    container: Container, arguments: list[str]
) -> None:
    done = container.run(*arguments)

    assert (done.returncode, done.stdout) == (64, "")
    assert done.stderr.startswith("usage: start.sh")


def test_flags_of_the_sdk_reach_the_worker(container: Container) -> None:
    done = container.run(
        "worker", "--rp_serve_api", "--rp_api_host", "a b", GO=f"{container.root}/go"
    )

    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["argv"][-3:] == ["--rp_serve_api", "--rp_api_host", "a b"]


def test_a_restart_has_the_same_flags_and_asks_nothing_again(container: Container) -> None:
    container.gpu(mib=8192)
    seen = container.worker()
    first = json.loads(seen["lines"][0])["argv"]
    (container.root / "bin" / "nvidia-smi").unlink()

    again = container.webui(**seen["environ"], A1111_WEBUI_FLAGS="--no-half")["argv"]

    assert "--medvram-sdxl" in first
    assert again == first
    assert (container.root / "asked").read_text() == "asked\n"


def test_xformers_is_used_where_a1111s_interpreter_has_it(
    plain_webui: dict[str, Any], container: Container
) -> None:
    assert "--xformers" not in plain_webui["argv"]

    (container.root / "packages" / "xformers").mkdir()
    (container.root / "packages" / "xformers" / "__init__.py").write_text("raise RuntimeError")

    assert "--xformers" in container.webui()["argv"]


def test_an_a1111_on_the_network_volume_keeps_its_files_on_the_containers_disk(
    container: Container,
) -> None:
    home = container.root / "volume" / "stable-diffusion-webui"
    extension = home / "extensions" / "sd-webui-controlnet"
    extension.mkdir(parents=True)
    (home / "launch.py").touch()
    (home / "config.json").write_text('{"samples_save": true}')
    (home / "models" / "GFPGAN").mkdir(parents=True)
    (home / "models" / "GFPGAN" / "GFPGANv1.4.pth").touch()

    given = container.webui(WEBUI_DIR=str(home), WEBUI_DATA_DIR="")

    data = container.root / "cache" / "webui"
    assert given["cwd"] == str(home)
    assert flags_of(given["argv"])["--data-dir"] == str(data)
    assert "--controlnet-dir" in given["argv"]
    assert (data / "extensions" / "sd-webui-controlnet").samefile(extension)
    assert (data / "models" / "GFPGAN" / "GFPGANv1.4.pth").exists()
    assert json.loads((data / "config.json").read_text())["samples_save"] is False
    assert json.loads((home / "config.json").read_text()) == {"samples_save": True}


def test_a1111s_caches_are_the_images_and_its_own(container: Container) -> None:
    (container.root / "huggingface").mkdir()

    seen = container.worker(SD_WEBUI_CACHE_DIR="/runpod-volume/cache")

    given = json.loads(seen["lines"][0])["environ"]
    assert given["HF_HOME"] == str(container.root / "huggingface")
    assert seen["environ"]["HF_HOME"] == str(container.root / "cache" / "huggingface")
    assert "SD_WEBUI_CACHE_DIR" not in given


def test_forge_is_started_with_flags_that_it_has(container: Container) -> None:
    container.gpu(mib=8192)

    argv = container.webui(WEBUI_KIND="forge", A1111_WEBUI_ATTENTION="sdp")["argv"]

    assert "--attention-pytorch" in argv
    assert "--controlnet-dir" in argv
    assert not {"--opt-sdp-attention", "--medvram", "--medvram-sdxl"} & set(argv)


def said_by(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """Return what `check` says of each subject, the last of several lines."""
    said = {}
    for line in done.stdout.splitlines():
        subject, text = line.split(None, 1)
        said[subject] = text
    return said


def test_a_check_of_a_sound_machine_is_fine_and_changes_nothing(container: Container) -> None:
    container.gpu()
    container.torch((8, 9), ["sm_80", "sm_86", "sm_90"])
    (container.root / "webui" / "CHANGELOG.md").write_text("## 1.10.1\n\n### Bug Fixes:\n")
    snapshot = container.root / "huggingface/hub/models--openai--clip-vit-large-patch14/snapshots/x"
    snapshot.mkdir(parents=True)
    (snapshot / "vocab.json").touch()

    done = container.run("check")

    said = said_by(done)
    assert (done.returncode, done.stderr) == (0, "")
    assert said["gpu"] == "NVIDIA GeForce RTX 4090, 25.8 GB, driver 550.54.15"
    assert said["torch"] == "2.1.2+cu121, built for CUDA 12.1, kernels for sm_80 sm_86 sm_90"
    assert said["webui"].startswith("a1111 1.10.1 in ")
    assert "runpod 1.12.0" in said["worker"]
    assert said["clip"] == f"openai/clip-vit-large-patch14 in {container.root}/huggingface"
    assert said["flags"].endswith("--server-name 127.0.0.1 --port 3000")
    assert not (container.root / "data").exists()
    assert not (container.root / "links").exists()


def test_a_check_passes_its_exit_code_on(container: Container) -> None:
    done = container.run("check", "--json", A1111_WEBUI_VRAM="plenty")

    assert done.returncode == 78
    assert json.loads(done.stdout)["findings"][0]["subject"] == "settings"
