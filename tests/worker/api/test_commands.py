"""Commands as jobs, against model hosts and a simulated A1111, without the SDK."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from pydantic import ConfigDict, TypeAdapter

from model_cache.cache import ModelCache
from model_cache.sharing import pins
from schemas.answers import ANSWERS
from schemas.commands import COMMANDS
from schemas.errors import (
    InvalidInputError,
    JobCancelledError,
    ModelAccessDeniedError,
    ModelNotFoundError,
    WorkerError,
)
from schemas.model_ref import Kind, ModelRef
from schemas.settings import CacheSettings, Settings, WebuiSettings
from simulator import hub, loopback, pickles
from simulator import models as files
from simulator.hub.faults import Fault, Rule
from simulator.hub.site import Site
from tests.conftest import ROOT, Simulator, running
from tests.worker.keeping import kept
from worker.child.client import WebuiClient
from worker.run import Runner

pytestmark = pytest.mark.slow

PAGE = (ROOT / "docs" / "commands.md").read_text()
TOKEN = "planted-secret"


@dataclass
class World:
    """A worker on an empty volume; hosts with a few models; an A1111 that is shown the volume."""

    url: str
    site: Site
    settings: CacheSettings
    links: Path
    runner: Runner
    progress: list[dict[str, Any]] = field(default_factory=list)

    @property
    def volume(self) -> Path:
        return self.settings.volume

    def call(
        self, name: str, payload: Any = None, *, cancelled: Event | None = None
    ) -> dict[str, Any]:
        """Return the answer to one command; `{hub}` in its payload is the hosts' URL."""
        given = json.loads(json.dumps(payload).replace("{hub}", self.url))
        job = {
            "id": "j",
            "input": {"api": {"method": "POST", "endpoint": f"/v1/{name}"}, "payload": given},
        }
        return dict(self.runner.run(job, cancelled or Event(), self.progress.append))

    def refused(self, name: str, payload: Any) -> WorkerError:
        with pytest.raises(WorkerError) as refusal:
            self.call(name, payload)
        return refusal.value

    def linked(self) -> set[str]:
        """Return the names of the files that A1111 is shown."""
        return {path.name for path in self.links.rglob("*.safetensors")}

    def spoil(self, path: str = "*", times: int = 1, **how: Any) -> None:
        """Make the next answers go wrong; `how` names fields of `Fault`."""
        self.site.faults.rules.append(Rule(Fault(**how), path=path, times=times))


MakeWorld = Callable[..., World]


@pytest.fixture(scope="module")
def webui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    with running("webui", "--models-dir", tmp_path_factory.mktemp("webui")) as started:
        yield started


@pytest.fixture
def make_world(tmp_path: Path, webui: Simulator) -> Iterator[MakeWorld]:
    site = Site(tmp_path / "hub")
    put_models(site.root)
    with ExitStack() as stack:
        url = stack.enter_context(loopback.in_background(lambda: hub.hosts(site)))

        def make(**settings: Any) -> World:
            volume, links = tmp_path / "volume", tmp_path / "links"
            volume.mkdir()
            configured = Settings(
                cache=CacheSettings(
                    volume=volume,
                    allow_private_hosts=True,
                    hf_endpoint=url,
                    civitai_endpoint=url,
                    **settings,
                ),
                webui=WebuiSettings(port=int(webui.url.rpartition(":")[2]), links=links),
            )
            client = WebuiClient(webui.url)
            keeper = kept(client)
            stack.callback(keeper.stop, 0)
            runner = Runner(ModelCache(configured.cache), client, keeper, configured)
            runner.show_models()
            return World(url, site, configured.cache, links, runner)

        yield make


@pytest.fixture
def world(make_world: MakeWorld) -> World:
    return make_world()


def put_models(root: Path) -> None:
    """Put what the examples of the page ask for."""
    files.write_lora(root / "ink.safetensors", seed="ink")
    version = root / "civitai" / "456"
    files.write_lora(version / "style.safetensors", seed="style")
    marks = {"modelId": 123, "trainedWords": ["inked style"]}
    marks["model"] = {"name": "Inked", "type": "LORA"}
    (version / "simulator.json").write_text(json.dumps(marks))
    repository = root / "huggingface" / "org" / "models"
    files.write_checkpoint(repository / "checkpoints" / "base.safetensors", seed="base")
    files.write_lora(repository / "Lora" / "detail.safetensors", seed="detail")
    (repository / "Lora" / "old.pt").write_bytes(b"")


def shape(value: Any) -> Any:
    """Return the keys of a JSON value, all the way down; of a list that of its first entry."""
    if isinstance(value, dict):
        return {key: shape(entry) for key, entry in value.items()}
    return [shape(value[0])] if isinstance(value, list) and value else None


def require_as_published(answer: Any, published: Any) -> None:
    """Require that an answer has the fields of its schema and no others, of the right types."""
    shape = TypeAdapter[Any](list[published], config=ConfigDict(extra="forbid", strict=True))
    shape.validate_json(json.dumps([answer]))


def examples() -> list[tuple[str, str]]:
    """Return the requests of the page with the answer below each, empty for none."""
    blocks = [part.partition("\n```")[0] for part in PAGE.split("```json\n")[1:]]
    return [
        (block, "" if after.startswith('{"input"') else after)
        for block, after in zip(blocks, [*blocks[1:], '{"input"'], strict=True)
        if block.startswith('{"input"')
    ]


def test_every_example_of_the_page_is_answered_as_it_shows(world: World) -> None:
    (world.volume / "models").mkdir()
    (world.volume / "models" / "aliases.json").write_text('{"Base model": "base"}')
    assert len(examples()) >= 14
    for request, shown in examples():
        value = json.loads(request.replace("https://example.org", world.url))["input"]
        answer = world.runner.run({"id": "j", "input": value}, Event(), world.progress.append)

        name = value["api"]["endpoint"].partition("?")[0].removeprefix("/v1/")
        require_as_published(answer, ANSWERS[name])
        if shown:
            assert shape(answer) == shape(json.loads(shown)), request
        else:
            assert answer


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_is_on_the_page(name: str) -> None:
    assert f"`/v1/{name}`" in PAGE


def test_an_older_download_gets_its_three_keys_and_a111_sees_the_file(world: World) -> None:
    payload = {
        "source_url": "{hub}/ink.safetensors",
        "download_path": "/workspace/models/Lora/x.safetensors",
    }
    first, again = world.call("download", payload), world.call("download", payload)

    assert (first["msg"], first["source_url"], first["download_path"]) == (
        "Download successful",
        f"{world.url}/ink.safetensors",
        "/workspace/models/Lora/x.safetensors",
    )
    assert Path(first["path"]) == world.volume / "models" / "loras" / "x.safetensors"
    assert (first["state"], again["state"]) == ("fetched", "present")
    assert world.linked() == {"x.safetensors"}


@pytest.mark.parametrize(
    ("payload", "kind", "field"),
    [
        ({"source_url": "{hub}/ink.safetensors", "download_path": "/etc/cron.d/x"}, None, None),
        ({"source_url": "{hub}/ink.safetensors", "download_path": "loras/../../x"}, None, None),
        ({"source_url": "{hub}/ink.safetensors", "download_path": "models"}, None, None),
        (
            {"source_url": "{hub}/none.safetensors", "download_path": "loras/"},
            ModelNotFoundError,
            "source_url",
        ),
        ({"ref": "{hub}/none.safetensors", "kind": "lora"}, ModelNotFoundError, "ref"),
        ({"ref": "none", "kind": "lora"}, ModelNotFoundError, "ref"),
        ({"ref": "none", "kind": "lora", "name": "x"}, InvalidInputError, "name"),
        ({"url": "{hub}/ink.safetensors", "kind": "vae"}, WorkerError, "url"),
    ],
)
def test_a_download_that_cannot_be_names_the_field_and_leaves_nothing(
    world: World, payload: dict[str, str], kind: type[WorkerError] | None, field: str | None
) -> None:
    refusal = world.refused("download", payload)

    assert isinstance(refusal, kind or InvalidInputError)
    assert refusal.details["field"] == (field or "download_path")
    assert world.linked() == set()
    assert list(world.volume.rglob("*.safetensors")) == []
    assert not (world.volume.parent / "x").exists()


def test_the_pickle_of_an_older_page_is_taken_where_its_kind_may_be_one(
    make_world: MakeWorld,
) -> None:
    world = make_world(allow_pickle=[Kind.UPSCALER])
    source = world.site.root / "4x-UltraSharp.pth"
    pickles.write_pickle(source, seed="4x")
    path = "/workspace/stable-diffusion-webui/models/ESRGAN/4x-UltraSharp.pth"
    payload = {"source_url": "{hub}/4x-UltraSharp.pth", "download_path": path}

    answer = world.call("download", payload)
    refusal = world.refused("download", {**payload, "download_path": "models/VAE/4x.pth"})

    kept = world.volume / "models" / "upscalers" / "4x-UltraSharp.pth"
    assert (answer["kind"], answer["path"]) == ("upscaler", str(kept))
    assert kept.read_bytes() == source.read_bytes()
    assert (refusal.code, refusal.details["field"]) == ("MODEL_UNSAFE", "source_url")


@pytest.mark.parametrize(
    ("path", "warned"),
    [
        ("models/loras/x.safetensors", False),
        ("/workspace/models/loras/x", False),
        ("models/loras/", False),
        ("models/Lora/x.safetensors", True),
        ("models/loras/styles/x.safetensors", True),
    ],
)
def test_a_download_that_lies_elsewhere_than_asked_is_told_and_no_other(
    world: World, path: str, *, warned: bool
) -> None:
    payload = {"source_url": "{hub}/ink.safetensors", "download_path": path}
    answer = world.call("download", payload)

    said = [f"It is kept as {answer['path']}."] if warned else []
    assert answer["warnings"] == said


@pytest.mark.parametrize(
    ("command", "payload", "field"),
    [
        ("sync", {"revision": "nope"}, "revision"),
        ("sync", {"hf_token": "a\nb"}, "hf_token"),
        ("sync", {"tokens": {"huggingface": "a\nb"}}, "tokens.huggingface"),
        ("sync", {"allow_patterns": ["LORA/*"]}, "allow_patterns"),
        ("sync", {"repo_id": "org/none"}, "repo_id"),
        (
            "download",
            {"ref": "hf:org/models/x", "kind": "lora", "tokens": {"huggingface": "\n"}},
            "tokens.huggingface",
        ),
        ("civitai", {"air": "urn:air:sd1:lora:civitai:1@99"}, "air"),
        ("civitai", {"air": "https://example.org/x"}, "air"),
        ("models", {"kind": "nope"}, "kind"),
        ("prefetch", {"models": [5]}, "models[0]"),
    ],
)
def test_a_refusal_names_the_field_that_is_wrong(
    world: World, command: str, payload: dict[str, Any], field: str
) -> None:
    base = {"repo_id": "org/models", "sync_path": "models"} if command == "sync" else {}

    assert world.refused(command, {**base, **payload}).details["field"] == field


def test_a_limit_of_the_request_holds_and_does_not_raise_that_of_the_settings(
    make_world: MakeWorld,
) -> None:
    world = make_world(max_download_gb=1e-5)
    payload = {"url": "{hub}/ink.safetensors", "kind": "lora"}

    assert world.refused("download", {**payload, "max_download_gb": 1}).code == (
        "DOWNLOAD_BUDGET_EXCEEDED"
    )
    assert world.refused("prefetch", {"models": [payload]}).details["models"][0]["code"] == (
        "DOWNLOAD_BUDGET_EXCEEDED"
    )


def test_sync_fetches_what_changed_and_answers_as_the_older_worker(world: World) -> None:
    payload = {"repo_id": "org/models", "sync_path": "/runpod-volume/models"}
    first = world.call("sync", payload)
    second = world.call("sync", payload)
    repository = world.site.root / "huggingface" / "org" / "models"
    files.write_lora(repository / "Lora" / "detail.safetensors", seed="another")
    third = world.call("sync", payload)

    loras = world.volume / "models" / "loras"
    assert first["synced_count"] == 2
    assert set(first["synced_files"]) == {
        str(loras / "detail.safetensors"),
        str(world.volume / "models" / "checkpoints" / "base.safetensors"),
    }
    assert (second["synced_count"], second["synced_files"], second["present"]) == (0, [], 2)
    (changed,) = third["synced_files"]
    assert Path(changed).name.startswith("detail-")
    assert Path(changed).read_bytes() == (repository / "Lora" / "detail.safetensors").read_bytes()
    assert [one["file"] for one in third["skipped"]] == ["Lora/old.pt"]
    assert world.linked() >= {"detail.safetensors", Path(changed).name, "base.safetensors"}


def test_the_token_of_sync_opens_a_repository_and_goes_to_its_host_alone(world: World) -> None:
    repository = world.site.root / "huggingface" / "org" / "models"
    (repository / ".gated").write_text(TOKEN)
    payload = {"repo_id": "org/models", "sync_path": "models"}

    refusal = world.refused("sync", payload)
    assert isinstance(refusal, ModelAccessDeniedError)
    assert refusal.details["field"] == "repo_id"
    answer = world.call("sync", {**payload, "hf_token": TOKEN})
    assert answer["synced_count"] == 2
    assert TOKEN not in json.dumps(answer) + json.dumps(world.progress)
    behind = [entry for entry in world.site.journal.entries if entry.host == "cdn"]
    assert behind
    assert not any(entry.authorization for entry in behind)


def test_a_sync_of_too_many_models_is_refused_before_any_is_fetched(world: World) -> None:
    folder = world.site.root / "huggingface" / "org" / "many" / "loras"
    folder.mkdir(parents=True)
    for number in range(501):
        (folder / f"{number}.safetensors").touch()

    refusal = world.refused("sync", {"repo_id": "org/many", "sync_path": "models"})

    assert refusal.details["field"] == "allow_patterns"
    assert world.refused("sync", {"repo_id": "org/many", "sync_path": "/tmp"}).details == {
        "field": "sync_path"
    }


def test_one_model_that_fails_does_not_stop_the_others(world: World) -> None:
    good = {"kind": "lora", "url": "{hub}/ink.safetensors"}
    bad = {"kind": "lora", "url": "{hub}/none.safetensors"}

    refusal = world.refused("prefetch", {"models": [bad, good, "lora civitai:version:456"]})

    assert refusal.code == "MODEL_NOT_FOUND"
    assert "1 of 3" in str(refusal)
    assert refusal.details["field"] == "models[0]"
    assert [row["state"] for row in refusal.details["models"]] == ["failed", "fetched", "fetched"]
    assert world.linked() == {"ink.safetensors", "style.safetensors"}


def test_a_cancel_ends_a_prefetch_in_the_midst_of_a_file(world: World) -> None:
    world.spoil("/slow.safetensors", times=99, rate=2000)
    files.write_checkpoint(world.site.root / "slow.safetensors", seed="slow")
    cancelled = Event()

    def cancel(progress: dict[str, Any]) -> None:
        assert progress["stage"] == "fetching"
        cancelled.set()

    value = {
        "api": {"method": "POST", "endpoint": "/v1/prefetch"},
        "payload": {"models": [{"kind": "checkpoint", "url": f"{world.url}/slow.safetensors"}]},
    }
    started = time.monotonic()
    with pytest.raises(JobCancelledError):
        world.runner.run({"id": "j", "input": value}, cancelled, cancel)

    assert time.monotonic() - started < 10


def test_lists_have_the_keys_of_the_older_api(world: World) -> None:
    (world.volume / "models").mkdir()
    (world.volume / "models" / "aliases.json").write_text('{"Base model": "base", "Gone": "zzz"}')
    world.call("sync", {"repo_id": "org/models", "sync_path": "models"})

    checkpoints, all_ = world.call("models"), world.call("models", {"kind": "all"})
    assert checkpoints["status"] == "success"
    assert [(one["name"], one["label"]) for one in checkpoints["models"]] == [
        ("base", "Base model")
    ]
    assert {one["kind"] for one in all_["models"]} == {"checkpoint", "lora"}
    assert [(one["name"], one["scale"]) for one in world.call("loras")["loras"]] == [
        ("detail", 1.0)
    ]
    aliases = world.call("models/aliases")["models"]
    assert [(one["label"], one["name"], one["here"]) for one in aliases] == [
        ("Base model", "base", True),
        ("Gone", "zzz", False),
    ]


def test_civitai_is_asked_by_hash_and_what_is_here_is_marked(world: World) -> None:
    fetched = world.call("download", {"ref": "civitai:version:456", "kind": "lora"})

    told = world.call("civitai", {"hash": fetched["sha256"]})

    assert told == world.call("civitai", {"url": "https://civitai.com/models/123"})
    assert told["versions"][0]["files"][0]["here"] == [{"kind": "lora", "name": "style"}]
    assert world.refused("civitai", {"hash": "0" * 64}).details["field"] == "hash"
    assert world.refused("civitai", {"url": "https://example.org/x"}).details["field"] == "url"


def test_what_a1111_offers_is_asked_of_it(world: World) -> None:
    upscalers = world.call("upscalers")["upscalers"]
    methods = world.call("sampling_methods")

    assert {"name": "Latent", "path": "internal", "here": True} in upscalers
    assert {"name": "Lanczos", "path": "internal", "here": True} in upscalers
    assert [one["here"] for one in upscalers if one["name"] == "R-ESRGAN 4x+"] == [False]
    assert "Euler a" in methods["sampling_methods"]
    assert {"default", "karras"} <= set(methods["scheduler_types"])
    assert methods == world.call("sampling-methods")


def test_verify_finds_a_file_whose_bytes_changed(world: World) -> None:
    world.call("sync", {"repo_id": "org/models", "sync_path": "models"})
    lora = world.volume / "models" / "loras" / "detail.safetensors"
    spoilt = bytearray(lora.read_bytes())
    spoilt[-1] ^= 1
    lora.write_bytes(spoilt)

    quick, hashed = world.call("verify"), world.call("verify", {"all": True})
    one = world.call("verify", {"name": "base"})
    assert (quick["by"], quick["good"]) == ("header", 1)
    assert (hashed["by"], hashed["good"], hashed["bad"]) == ("hash", 1, 1)
    assert [row["state"] for row in hashed["models"]] == ["good", "bad"]
    assert (one["checked"], one["good"]) == (1, 1)
    assert {step["stage"] for step in world.progress if step["stage"] != "fetching"} == {
        "verifying"
    }
    assert world.refused("verify", {"name": "zzz"}).details["field"] == "name"
    cancelled = Event()
    cancelled.set()
    with pytest.raises(JobCancelledError):
        world.call("verify", {"all": True}, cancelled=cancelled)


def test_a_name_of_two_kinds_has_to_be_told_apart(world: World) -> None:
    for folder in ("loras", "embeddings"):
        path = world.volume / "models" / folder / "twice.safetensors"
        write = files.write_lora if folder == "loras" else files.write_embedding
        write(path, seed=folder)

    assert world.refused("verify", {"name": "twice"}).details["field"] == "kind"
    assert world.call("verify", {"name": "twice", "kind": "lora"})["unhashed"] == 1


def test_a_file_whose_name_is_no_text_is_told_in_text(world: World) -> None:
    folder = world.volume / "models" / "loras"
    files.write_lora(folder / "plain.safetensors", seed="p")
    (folder / "plain.safetensors").rename(Path(f"{folder}/half\udcff.safetensors"))

    for command in ("loras", "verify", "compatibility", "cache"):
        json.dumps(world.call(command), ensure_ascii=False).encode()
    assert world.call("loras")["loras"][0]["path"] == f"{folder}/half?.safetensors"


def test_loras_are_held_against_checkpoints_by_name_or_all_together(world: World) -> None:
    folder = world.volume / "models"
    files.write_checkpoint(folder / "checkpoints" / "base.safetensors", seed="b")
    files.write_lora(folder / "loras" / "fits.safetensors", seed="f")
    files.write_lora(folder / "loras" / "xl.safetensors", seed="x", base="sdxl")

    every = world.call("compatibility")
    one = world.call("compatibility", {"lora": "xl"})

    assert (every["total_tests"], every["models"][0]["compatible"]) == (2, ["fits"])
    assert [pair["lora"] for pair in every["models"][0]["incompatible"]] == ["xl"]
    assert one["total_tests"] == 1
    refusal = world.refused("compatibility", {"model": ["base", "zzz"]})
    assert refusal.details["field"] == "model[1]"


def test_the_account_tells_whose_bytes_they_are(world: World) -> None:
    path = world.volume / "models" / "loras" / "mine.safetensors"
    files.write_lora(path, seed="mine")
    world.call("download", {"kind": "lora", "url": "{hub}/ink.safetensors"})
    pins.pin(world.volume, Kind.VAE, "soft")

    told = world.call("cache")

    assert told["brought_bytes"] == path.stat().st_size
    assert told["in_use_bytes"] > 0
    assert told["models_bytes"] == told["brought_bytes"] + told["in_use_bytes"]
    assert told["pins"] == [{"kind": "vae", "name": "soft"}]
    assert told["kinds"]["lora"] == 2


def test_prune_tells_first_then_evicts_and_a1111_is_no_longer_shown_it(world: World) -> None:
    earlier = ModelCache(world.settings)
    ref = ModelRef(kind=Kind.LORA, url=f"{world.url}/ink.safetensors")
    size = earlier.ensure(ref, cancelled=Event()).model.size_bytes
    earlier.close()
    world.call("models")  # looks at the volume
    world.runner.show_models()
    assert world.linked() == {"ink.safetensors"}

    told = world.call("prune", {"to_gb": 0, "dry_run": True})
    assert world.linked() == {"ink.safetensors"}
    done = world.call("prune", {"to_gb": 0})

    assert (told["freed_bytes"], told["dry_run"]) == (size, True)
    assert done == {**told, "dry_run": False}
    assert [one["name"] for one in done["evicted"]] == ["ink"]
    assert world.linked() == set()
    assert not Path(done["evicted"][0]["path"]).exists()


def test_prune_needs_a_size_from_somewhere(make_world: MakeWorld) -> None:
    world = make_world()

    assert world.refused("prune", {}).details["field"] == "to_gb"
    world.call("download", {"kind": "lora", "url": "{hub}/ink.safetensors"})
    assert world.refused("prune", {"to_gb": 0}).code == "VOLUME_FULL"
