"""The Dockerfile, read as instructions and stages, for the tests that hold it true without an engine."""

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Instruction:
    """One instruction, on one line; a RUN keeps its shell command as Docker would hand it to sh."""

    stage: str
    """Name of the stage that it is in; empty above the first."""
    name: str
    arguments: str

    @property
    def words(self) -> list[str]:
        return [word for word in self.arguments.split() if not word.startswith("--")]

    def flag(self, name: str) -> list[str]:
        """Return the values of `--name=value`, which may be there more than once."""
        return re.findall(rf"--{name}=(\S+)", self.arguments)

    @property
    def command(self) -> str:
        """What a RUN hands to the shell."""
        return re.sub(r"^(--\S+\s+)+", "", self.arguments)


def instructions() -> list[Instruction]:
    """Return the Dockerfile: comments gone, continued lines joined."""
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    text = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    found: list[Instruction] = []
    stage = ""
    for line in text.replace("\\\n", " ").splitlines():
        name, _, arguments = line.strip().partition(" ")
        if name == "FROM":
            stage = arguments.partition(" AS ")[2]
        if name:
            found.append(Instruction(stage, name, arguments.strip()))
    return found


def named(name: str, *stages: str) -> list[Instruction]:
    """Return the instructions called `name`, of those stages or of all."""
    return [
        each
        for each in instructions()
        if each.name == name and (not stages or each.stage in stages)
    ]


def argument_defaults(stage: str | None = None) -> dict[str, str]:
    """Return name -> default of the ARGs with a default, those of one stage or the first of each."""
    defaults: dict[str, str] = {}
    for each in named("ARG"):
        name, given, default = each.arguments.partition("=")
        if given and stage in {None, each.stage}:
            defaults.setdefault(name, default)
    return defaults


def copies() -> list[tuple[list[str], str]]:
    """Return (sources, target) of every COPY from this folder; patterns are spelt out."""
    return [
        ([name for word in each.words[:-1] for name in _matching(word)], each.words[-1])
        for each in named("COPY")
        if not each.flag("from")
    ]


def in_image() -> dict[str, str]:
    """Return source -> path in the image of everything that lands in /app."""
    return {
        source: str(PurePosixPath(target) / source) if target.endswith("/") else target
        for sources, target in copies()
        if target.startswith("/app")
        for source in sources
    }


def _matching(pattern: str) -> list[str]:
    return sorted(path.name for path in ROOT.glob(pattern)) or [pattern]
