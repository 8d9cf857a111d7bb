"""Every exchange that was recorded from a live A1111 1.10.1 is put to the simulator again.

The recordings lie beside the checkout, in ../shared/webui; without them this module is skipped.
Compared are status, keys, types, texts, the fields of `info` and of the infotext, the formats and
sizes of pictures, and which pictures are equal. Not compared is what depends on that machine or on
chance: hashes, times, random seeds, memory.
"""

import base64
import itertools
import json
import re
import shutil
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from simulator import models
from tests.conftest import ROOT
from tests.contract.conftest import WebuiProcess

SHARED = ROOT.parent / "shared" / "webui"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SHARED.is_dir(), reason="no recordings beside this checkout"),
]

# Recordings that are not matched, each with the reason.
UNMATCHED: dict[str, str] = {}

# Pictures that were equal by chance: two steps of tiny random weights do not tell samplers apart.
EQUAL_BY_CHANCE = {
    "sampler_dpmpp2m_sched_karras",
    "sampler_unknown",
    "sampler_alias",
    "sampler_lower",
    "txt2img_sampler_name_int",
    "sampler_euler_sched_exponential",
}
# The first img2img of a fresh process gave another picture than the second one with the same seed.
UNSTEADY = {"img2img_basic"}

# What the recorded server was started with.
FLAGS = [
    *("--api", "--nowebui", "--no-half", "--precision", "full", "--use-cpu", "all"),
    *("--server-name", "127.0.0.1", "--no-download-sd-model", "--disable-console-progressbars"),
    *("--skip-python-version-check", "--skip-torch-cuda-test", "--skip-install"),
    "--skip-version-check",
]
CHECKPOINTS = ("tiny_a", "tiny_b", "tiny_nan", "tiny_odd, (x) [y]", "zsub/tiny_d")
HOME = "/stable-diffusion-webui"
RANDOM = {"subseed", "all_subseeds", "job_timestamp"}
SEEDS = {"seed", "all_seeds"}
PIXELS = 6000


def recordings() -> list[dict[str, Any]]:
    """Return the recordings that can be replayed, in order."""
    if not SHARED.is_dir():
        return []
    found = [json.loads(file.read_text()) for file in (SHARED / "recordings").glob("*.json")]
    return sorted((one for one in found if one["replay"]), key=lambda one: one["order"])


def suites() -> dict[str, list[dict[str, Any]]]:
    by_suite: dict[str, list[dict[str, Any]]] = {}
    for one in recordings():
        by_suite.setdefault(one["suite"], []).append(one)
    return by_suite


class World:
    """The folders of the recorded server, with checkpoints of our own, and their hashes."""

    def __init__(self, home: Path) -> None:
        self.home = home
        shutil.copytree(SHARED / "models" / "Lora", home / "models" / "Lora")
        shutil.copytree(SHARED / "models" / "embeddings", home / "embeddings")
        shutil.copy(SHARED / "models" / "styles.csv", home)
        for name in CHECKPOINTS:
            path = home / "models" / "Stable-diffusion" / f"{name}.safetensors"
            _write_tiny_checkpoint(path, name)
        for name in ("tiny_vae", "other_vae"):
            models.write_vae(home / "models" / "VAE" / f"{name}.safetensors", seed=name)
        listed = _recorded("get_sd_models")
        self.hashes = {one["model_name"]: one["sha256"] for one in listed}
        self.ours: dict[str, str] = {}


def _write_tiny_checkpoint(path: Path, name: str) -> None:
    """Write a checkpoint whose text is 64 wide, as that of the recorded ones."""
    tensors: models.Tensors = {
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (8, 64),
        "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": (8, 64),
    }
    models._write(path, tensors, seed=name, nan=name == "tiny_nan")


def _recorded(name: str) -> Any:
    return json.loads((SHARED / "recordings" / f"{name}.json").read_text())["response"]


@pytest.fixture(scope="module")
def recorded_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world whose hashes are known already, as they were on the recorded server."""
    world = World(tmp_path_factory.mktemp("recorded") / "home")
    webui = WebuiProcess([*FLAGS, "--data-dir", str(world.home)], world.home / "warm-up.log")
    for name in CHECKPOINTS:
        assert (
            webui.post("options", {"sd_model_checkpoint": f"{name}.safetensors"}).status_code == 200
        )
    world.ours = {one["model_name"]: one["sha256"] for one in webui.get("sd-models").json()}
    webui.stop()
    (world.home / "config.json").unlink()
    return world


@pytest.fixture
def fresh(recorded_world: World, tmp_path: Path) -> Iterator[WebuiProcess]:
    """A freshly started simulator without config.json."""
    config = recorded_world.home / "config.json"
    config.unlink(missing_ok=True)
    webui = WebuiProcess([*FLAGS, "--data-dir", str(recorded_world.home)], tmp_path / "webui.log")
    yield webui
    webui.stop()
    config.unlink(missing_ok=True)


@pytest.mark.parametrize("suite", sorted(suites()))
def test_a_suite_of_recordings_is_answered_as_it_was(
    suite: str, fresh: WebuiProcess, recorded_world: World, subtests: pytest.Subtests
) -> None:
    drawn: dict[str, tuple[Any, Any]] = {}
    for one in suites()[suite]:
        status, answer = _replayed(one, fresh, recorded_world)
        if one["name"] in UNMATCHED:
            continue
        with subtests.test(msg=one["name"]):
            assert status == one["status"], answer
            theirs = Normal(one, recorded_world.hashes, HOME).of(one["response"])
            ours = Normal(one, recorded_world.ours, str(recorded_world.home)).of(answer)
            assert ours == theirs
        if isinstance(answer, dict) and answer.get("images") and status == 200:
            drawn[one["name"]] = (_pixels(one["response"]), _pixels(answer))
    with subtests.test(msg="pictures"):
        _check_pictures(drawn)


def test_the_schema_is_the_recorded_one(fresh: WebuiProcess) -> None:
    assert fresh.get("/openapi.json").json() == json.loads((SHARED / "openapi.json").read_text())


def _replayed(one: dict[str, Any], webui: WebuiProcess, world: World) -> tuple[int, Any]:
    request = one["request"]
    arguments: dict[str, Any] = {}
    if "raw_body" in request:
        arguments["data"] = request["raw_body"].encode("latin-1")
        arguments["headers"] = {"Content-Type": "application/json"}
    elif request["body"] is not None:
        text = json.dumps(request["body"])
        for name, theirs in world.hashes.items():
            text = text.replace(theirs, world.ours[name]).replace(
                theirs[:10], world.ours[name][:10]
            )
        arguments["json"] = json.loads(text)
    answer = webui.call(request["method"], request["path"], **arguments)
    kind = answer.headers.get("Content-Type", "")
    return answer.status_code, answer.json() if "json" in kind and answer.text else answer.text


class Normal:
    """Takes out of an answer what depends on the machine or on chance."""

    def __init__(self, one: dict[str, Any], hashes: dict[str, str], home: str) -> None:
        body = one["request"].get("body")
        fields = body if isinstance(body, dict) else {}
        self._path = one["request"]["path"]
        self._seed_is_random = "infotext" not in fields and fields.get("seed") in {None, -1}
        self._hashes = hashes
        self._home = home

    def of(self, value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: self.of(inner, name) for name, inner in value.items()}
        if isinstance(value, list):
            inner = [self.of(entry, key) for entry in value]
            # The VAEs come in the order of the directory, which is the file system's.
            return sorted(inner, key=str) if self._path.endswith("/sd-vae") else inner
        if (
            key in RANDOM
            or (key in SEEDS and self._seed_is_random)
            or key in {"free", "used", "total"}
        ):
            return type(value).__name__
        return self._text(value, key) if isinstance(value, str) else value

    def _text(self, text: str, key: str) -> Any:
        if key == "info" and text.startswith("{"):
            return self.of(json.loads(text))
        if key in {"images", "image", "init_images"}:
            return _described(text, self._plain)
        if text.lstrip().startswith("<!DOCTYPE"):
            return "page"
        return self._plain(text)

    def _plain(self, text: str) -> str:
        for name, sha256 in self._hashes.items():
            text = text.replace(sha256, f"<sha256 of {name}>").replace(sha256[:10], f"<{name}>")
        text = re.sub(r"VAE hash: [0-9a-f]{10}", "VAE hash: …", text)
        text = re.sub(r"^[0-9a-f]{10}$", "…", text)
        if self._seed_is_random:
            text = re.sub(r"Seed: \d+", "Seed: …", text)
        return re.sub(r"\b\d{5}\b", "<port>", text.replace(self._home, HOME))


def _described(text: str, plain: Any) -> Any:
    """Return format, size and infotext of a picture, of which only the beginning may be there."""
    data = _decoded(text)
    if data.startswith(b"\x89PNG"):
        chunks = dict(_chunks(data))
        size = struct.unpack(">II", chunks[b"IHDR"][:8])
        return "png", size, plain(chunks.get(b"tEXt", b"").decode("latin-1"))
    return {b"\xff\xd8": "jpeg", b"RI": "webp"}[data[:2]]


def _decoded(text: str) -> bytes:
    whole = re.match(r"[A-Za-z0-9+/=]*", text)
    assert whole is not None
    return base64.b64decode(whole[0][: len(whole[0]) // 4 * 4])


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 8
    while at + 8 <= len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        yield kind, data[at + 8 : at + 8 + length]
        at += 12 + length


def _pixels(answer: dict[str, Any]) -> tuple[tuple[Any, bytes], ...]:
    """Return the size and the first pixels of each PNG."""
    found = []
    for text in answer["images"]:
        data = _decoded(text)
        if data.startswith(b"\x89PNG"):
            chunks = list(_chunks(data))
            packed = b"".join(content for kind, content in chunks if kind == b"IDAT")
            found.append((chunks[0][1][:8], zlib.decompressobj().decompress(packed)[:PIXELS]))
    return tuple(found)


def _check_pictures(drawn: dict[str, tuple[Any, Any]]) -> None:
    """Pictures that were equal are equal again, and those that were not are not."""
    steady = [name for name in drawn if name not in UNSTEADY | EQUAL_BY_CHANCE]
    for one, other in itertools.combinations(steady, 2):
        was_equal = drawn[one][0] == drawn[other][0]
        is_equal = drawn[one][1] == drawn[other][1]
        assert is_equal == was_equal, f"{one} and {other}"
