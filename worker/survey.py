"""What is here and what of it will not work: `start.sh check`. Looks only; prepares nothing."""

import json
import os
import platform
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from model_cache.volume import layout
from schemas.errors import UploadFailedError
from schemas.settings import CacheSettings, Settings, SettingsError
from worker.delivery.bucket import bucket_of
from worker.machine import hardware, helpers, preflight, versions, webui_flags
from worker.machine.places import Places

GB = 1e9


class Level(StrEnum):
    """How good a finding is."""

    FINE = "fine"
    WARNING = "warning"
    """It works, with less."""
    PROBLEM = "problem"
    """It will not work."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    subject: str
    text: str
    level: Level = Level.FINE

    def as_line(self) -> str:
        """Return it for a person, aligned with others; what is not fine says so first."""
        mark = "" if self.level is Level.FINE else f"{self.level.upper()}: "
        return f"{self.subject:<8} {mark}{self.text}"


def survey(environ: Mapping[str, str], places: Places) -> Iterator[Finding]:
    """Yield what is found, as it is found: importing torch may take a minute.

    Raises:
        SettingsError: the environment does not make settings; one line per problem.
    """
    settings = Settings.from_env(environ)
    data_dir = places.local_data_dir(settings.cache.volume)
    yield Finding("worker", _worker())
    yield from _volume(settings.cache)
    yield from _folders(settings.cache, data_dir)
    yield from _storage(settings)
    yield Finding("memory", _memory(settings))
    yield from _webui(settings, environ, places)
    yield Finding("data", preflight.data_line(places, data_dir))
    gpus = hardware.gpus()
    yield from _gpus(gpus, given=f"{settings.webui.flags} {environ.get('COMMANDLINE_ARGS', '')}")
    if shutil.which(places.webui_python) is not None:
        yield from _torch(hardware.torch(places.webui_python), gpus)
        argv = preflight.start_command(settings.webui, places, data_dir, environ)
        yield Finding("flags", webui_flags.shown(argv))
    yield from _helpers(settings, places, data_dir)
    yield _tokenizer(places.hf_home)


def wrong_settings(error: SettingsError) -> list[Finding]:
    """Return the findings of a survey that could not begin."""
    return [Finding("settings", line, Level.PROBLEM) for line in str(error).splitlines()]


def as_json(findings: Iterable[Finding]) -> str:
    """Return `{"ok": …, "findings": [{"subject", "text", "level"}, …]}`."""
    found = [asdict(finding) for finding in findings]
    ok = all(finding["level"] != Level.PROBLEM for finding in found)
    return json.dumps({"ok": ok, "findings": found}, indent=2, ensure_ascii=False)


def _worker() -> str:
    sdk = versions.sdk() or "not installed"
    return f"{versions.WORKER}, runpod {sdk}, Python {platform.python_version()}"


def _volume(cache: CacheSettings) -> Iterator[Finding]:
    there = cache.volume.is_dir()
    level = Level.FINE if there and os.access(cache.volume, os.W_OK) else Level.WARNING
    yield Finding("volume", preflight.volume_line(cache), level)
    path = cache.volume.resolve()
    if there and not any(folder.is_mount() for folder in (path, *path.parents[:-1])):
        text = f"{cache.volume} is a folder of this machine's disk, nothing is mounted there"
        yield Finding("volume", text, Level.WARNING)
    folders: dict[Path, None] = {}
    for root in layout.roots(cache.volume, cache.baked):
        if root.path.is_dir():
            folders[root.path] = None
    yield Finding("models", ", ".join(map(str, folders)) or "no folder of models anywhere")


def _folders(cache: CacheSettings, data_dir: Path) -> Iterator[Finding]:
    wanted = [data_dir] if cache.volume.is_dir() else [data_dir, cache.local_root]
    for folder in wanted:
        place = next(path for path in (folder, *folder.parents) if path.exists())
        if not (place.is_dir() and os.access(place, os.W_OK)):
            yield Finding("disk", f"{folder} cannot be written", Level.PROBLEM)


def _storage(settings: Settings) -> Iterator[Finding]:
    bucket = bucket_of(settings, None)
    if bucket is None:
        return
    try:
        bucket.check()
    except UploadFailedError as error:
        yield Finding("storage", f"pictures cannot be uploaded: {error}", Level.WARNING)
    else:
        yield Finding("storage", "pictures can be uploaded")


def _memory(settings: Settings) -> str:
    memory = hardware.memory_bytes()
    kept = preflight.checkpoints_kept(settings.webui, memory)
    return f"{memory / GB:.1f} GB for this container; {kept} checkpoint(s) stay loaded"


def _webui(settings: Settings, environ: Mapping[str, str], places: Places) -> Iterator[Finding]:
    problems = preflight.wrong_with(settings, environ, places)
    for problem in problems:
        yield Finding("webui", problem, Level.PROBLEM)
    if not problems:
        version = versions.webui(places.webui_dir) or "of unknown version"
        yield Finding("webui", f"{settings.webui.kind} {version} in {places.webui_dir}")


def _gpus(gpus: tuple[hardware.Gpu, ...], given: str) -> Iterator[Finding]:
    for gpu in gpus:
        yield Finding("gpu", f"{gpu.name}, {gpu.memory_bytes / GB:.1f} GB, driver {gpu.driver}")
    if not gpus:
        # A1111 computes in half precision unless told, which a CPU cannot.
        level = Level.WARNING if "--use-cpu" in given.split() else Level.PROBLEM
        yield Finding("gpu", "none: nvidia-smi is not here, or lists none", level)


def _torch(torch: hardware.Torch | None, gpus: tuple[hardware.Gpu, ...]) -> Iterator[Finding]:
    if torch is None:
        yield Finding("torch", "does not import in A1111's interpreter", Level.PROBLEM)
        return
    built = f"{torch.version}, built for CUDA {torch.cuda}" if torch.cuda else torch.version
    kernels = f", kernels for {' '.join(torch.archs)}" if torch.archs else ""
    yield Finding("torch", built + kernels)
    if torch.capability is None:
        if gpus:
            why = (
                "is the driver older than its CUDA?" if torch.cuda else "it was built without CUDA"
            )
            yield Finding("torch", f"it cannot use the GPU: {why}", Level.PROBLEM)
    elif not torch.has_kernels:
        device = "sm_{}{}".format(*torch.capability)
        yield Finding(
            "torch",
            f"no kernel image for this GPU ({device}): every picture would fail. Use an image whose"
            " torch has it; cards of 2025, as the RTX 5090 (sm_120), need CUDA 12.8",
            Level.PROBLEM,
        )


def _helpers(settings: Settings, places: Places, data_dir: Path) -> Iterator[Finding]:
    sources = [
        data_dir / "models",
        *preflight.helper_sources(settings.cache, places, data_dir),
    ]
    absent = [
        name for name in helpers.HELPERS if helpers.lacking(name, settings.webui.links, sources)
    ]
    there = ", ".join(name for name in helpers.HELPERS if name not in absent)
    yield Finding("helpers", there or "none")
    if absent:
        text = f"a request that needs one of these is refused: {', '.join(absent)}"
        yield Finding("helpers", text, Level.WARNING)


def _tokenizer(hf_home: Path) -> Finding:
    # Of every SD 1.x and SDXL checkpoint. Source: A1111 1.10.1, configs/v1-inference.yaml and
    # generative-models' configs (FrozenCLIPEmbedder); the layout is huggingface_hub's.
    name = "openai/clip-vit-large-patch14"
    files = hf_home.glob(f"hub/models--{name.replace('/', '--')}/snapshots/*/vocab.json")
    if any(file.is_file() for file in files):
        return Finding("clip", f"{name} in {hf_home}")
    text = f"{name} is not in {hf_home}: every new container fetches it with its first checkpoint"
    return Finding("clip", text, Level.WARNING)
