"""The rules of docs/architecture.md, executed."""

import ast
import functools
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "schemas": set[str](),
    "model_cache": {"schemas"},
    "worker": {"schemas", "model_cache"},
    "simulator": set[str](),
    "rp_post.py": {"schemas"},
    "rp_stream.py": {"rp_post"},
    "rp_guards.py": {"rp_post", "rp_stream"},
    "rp_sdk.py": {"schemas", "rp_guards"},
    "rp_jobs.py": {"schemas", "worker", "rp_sdk"},
    "rp_handler.py": {"schemas", "model_cache", "worker", "rp_sdk", "rp_jobs"},
}
# Of worker/: rooms, each with those below it that it may use. What is in no room may use all of them.
ROOMS = {
    "log": set[str](),
    "pictures": set[str](),
    "child": {"log", "pictures"},
    "machine": {"child"},
    "extensions": {"child", "machine", "pictures"},
    "generation": {"child", "machine", "pictures", "extensions"},
    "delivery": {"pictures", "extensions", "generation"},
    "api": {"child", "machine", "pictures", "extensions", "generation"},
    "local": {"child", "pictures"},
}
# Third parties that live in one place only.
ONLY_IN = {
    "pydantic": {"schemas"},
    "runpod": {"rp_sdk.py", "rp_guards.py", "rp_post.py", "rp_stream.py"},
    "aiohttp": {"simulator", "rp_guards.py", "rp_post.py", "rp_stream.py"},
    "huggingface_hub": {"model_cache"},
    "boto3": {"model_cache", "worker"},
    "botocore": {"model_cache", "worker"},
    "picklescan": {"model_cache"},
    "diskcache": {"worker", "simulator"},
    "PIL": {"worker", "simulator"},
}
SOURCES = [
    (layer, file)
    for layer in MAY_IMPORT
    for file in (sorted((ROOT / layer).rglob("*.py")) or [ROOT / layer])
]


@functools.cache
def imported(file: Path) -> frozenset[str]:
    found = set[str]()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return frozenset(found)


@pytest.mark.parametrize(
    ("layer", "file"),
    [pytest.param(*source, id=str(source[1].relative_to(ROOT))) for source in SOURCES],
)
def test_imports_point_one_way(layer: str, file: Path) -> None:
    ours = imported(file) & {name.removesuffix(".py") for name in MAY_IMPORT}

    assert ours - {layer} <= MAY_IMPORT[layer]


@pytest.mark.parametrize(
    ("layer", "file"),
    [pytest.param(*source, id=str(source[1].relative_to(ROOT))) for source in SOURCES],
)
def test_third_parties_stay_in_their_place(layer: str, file: Path) -> None:
    strays = {name for name in imported(file) & set(ONLY_IN) if layer not in ONLY_IN[name]}

    assert strays == set()


def test_everything_of_ours_is_held_to_the_rules() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"benchmarks"}
    modules = {path.name for path in ROOT.glob("*.py")}

    assert packages | modules <= set(MAY_IMPORT)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_of_the_worker_uses_those_below_it(room: str) -> None:
    folder = ROOT / "worker" / room
    used = {
        name
        for file in folder.glob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module
        for name in ROOMS
        if f"{node.module}.".startswith(f"worker.{name}.")
    }

    assert used - {room} == ROOMS[room]


def test_every_folder_of_the_worker_is_a_room() -> None:
    folders = {path.parent.name for path in (ROOT / "worker").glob("*/__init__.py")}

    assert folders == set(ROOMS)
