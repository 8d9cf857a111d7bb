from pathlib import Path
from threading import Event

import pytest

from model_cache.cache import ModelCache
from model_cache.models import CachedModel
from schemas.errors import InvalidInputError, ModelNotFoundError, WorkerError
from schemas.job import Txt2Img
from schemas.model_ref import Kind, LoraRef, ModelRef
from schemas.settings import CacheSettings, JobSettings
from simulator import models
from tests.parsing import parse
from worker.child.links import LinkFolder
from worker.generation.tagging import Tagged, knows_lora, lora_by_name, tagged


class World:
    """A volume with LoRAs, and the path of a prompt through it."""

    def __init__(self, folder: Path) -> None:
        loras = folder / "volume" / "models" / "loras"
        for name, alias in (
            ("a", ""),
            ("b", "b_alias"),
            ("twin1", "twin"),
            ("twin2", "twin"),
            ("colon:name", ""),
            ("p:q", ""),
            ("p_q", ""),
            ("sub/deep", ""),
        ):
            metadata = models.kohya_metadata("sd1", alias) if alias else None
            models.write_lora(loras / f"{name}.safetensors", seed=name, metadata=metadata)
        (loras / "broken.safetensors").write_bytes(b"{}")
        self.cache = ModelCache(CacheSettings(volume=folder / "volume"))
        self.links = LinkFolder(folder / "links")

    def find(self, name: str) -> CachedModel:
        ref = ModelRef(kind=Kind.LORA, name=name)
        return self.cache.ensure(ref, cancelled=Event()).model

    def tag(self, fields: dict[str, object], misfits: frozenset[str] = frozenset()) -> Tagged:
        job = parse(fields, JobSettings()).job
        assert isinstance(job, Txt2Img)
        listed: dict[LoraRef, CachedModel] = {
            ref: self.find(ref.name) for ref in job.loras if ref.name is not None
        }
        return tagged(
            job,
            listed,
            lambda name: lora_by_name(self.cache, self.find, name),
            lambda name: knows_lora(self.cache, name),
            lambda model: self.links.show(model)[0],
            lambda model, _: model.name not in misfits,
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


def test_listed_loras_become_tags_before_the_prompt(world: World) -> None:
    out = world.tag({"prompt": "x", "loras": [{"name": "a", "scale": 0.8}, "b"]})

    assert out.fields == {"prompt": "<lora:a:0.8> <lora:b:1> x"}
    assert set(out.loras) == {"a", "b"}


def test_a_tag_by_hand_wins_over_the_list(world: World) -> None:
    out = world.tag({"prompt": "x <lora:a:0.3>", "loras": [{"name": "a", "scale": 0.9}, "b"]})

    assert out.fields == {"prompt": "<lora:b:1> x <lora:a:0.3>"}


def test_a_tag_by_alias_is_the_same_lora(world: World) -> None:
    out = world.tag({"prompt": "x <lora:b_alias:0.3>", "loras": ["b"]})

    assert out.fields == {"prompt": "x <lora:b:0.3>"}


def test_the_hires_prompt_gets_the_tags_too(world: World) -> None:
    fields = {"enable_hr": True, "denoising_strength": 0.5, "hr_prompt": "y"}
    out = world.tag({"prompt": "x", "loras": ["a"], **fields})

    assert out.fields == {"prompt": "<lora:a:1> x", "hr_prompt": "<lora:a:1> y"}


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        pytest.param("<lora:colon:name:0.5>", "<lora:colon_name:0.5>", id="colon"),
        pytest.param("<lora:deep:1>", None, id="file in a sub-folder by its stem"),
        pytest.param("<lora:sub/deep:1>", "<lora:deep:1>", id="path"),
        pytest.param("<lora:a.safetensors:1>", "<lora:a:1>", id="suffix"),
        pytest.param("<lora:a>", None, id="no weight"),
        pytest.param("# <lora:nope:1>", None, id="in a comment"),
    ],
)
def test_a_tag_by_hand_is_made_to_name_one_file(
    world: World, written: str, sent: str | None
) -> None:
    out = world.tag({"prompt": written})

    assert out.fields == ({} if sent is None else {"prompt": sent})


@pytest.mark.parametrize(
    ("written", "error"),
    [
        pytest.param("<lora:nope:1>", ModelNotFoundError, id="unknown"),
        pytest.param("<lora:twin:1>", InvalidInputError, id="ambiguous alias"),
        pytest.param("<lora:a:abc>", InvalidInputError, id="weight"),
        pytest.param("<LORA:a:1>", InvalidInputError, id="upper case"),
        pytest.param("<lora:../../x:1>", InvalidInputError, id="path out of the folder"),
        pytest.param("<lora:A:1>", ModelNotFoundError, id="another case"),
        pytest.param("<lora:http://evil:1>", (ModelNotFoundError, InvalidInputError), id="a URL"),
        pytest.param("<lora::1>", InvalidInputError, id="no name"),
    ],
)
def test_a_tag_that_a1111_would_drop_is_refused(
    world: World, written: str, error: type[Exception] | tuple[type[Exception], ...]
) -> None:
    with pytest.raises(error):
        world.tag({"prompt": written})


@pytest.mark.parametrize("at", ["prompt", "hr_prompt"])
@pytest.mark.parametrize("tag", ["a:abc", "nope:1", "twin:1", "../../x:1", "LORA"])
def test_a_tag_that_is_refused_names_the_prompt_that_it_is_in(
    world: World, at: str, tag: str
) -> None:
    written = "<LORA:a:1>" if tag == "LORA" else f"<lora:{tag}>"
    fields = {"prompt": "x", "enable_hr": True, "denoising_strength": 0.5, at: written}

    with pytest.raises(WorkerError) as refused:
        world.tag(fields)
    assert refused.value.details["field"] == at


def test_a_hires_prompt_that_is_not_used_is_left_alone(world: World) -> None:
    assert world.tag({"prompt": "x", "hr_prompt": "<lora:nope:1>"}).fields == {}


def test_two_files_whose_tags_look_alike_stay_two(world: World) -> None:
    names = [world.links.show(world.find(name))[0] for name in ("p:q", "p_q")]

    out = world.tag({"prompt": "<lora:p:q:1> <lora:p_q:1>"})

    assert len(set(names)) == 2
    assert out.fields == {"prompt": f"<lora:{names[0]}:1> <lora:{names[1]}:1>"}
    by_hand = world.tag({"prompt": "<lora:p_q:0.5>", "loras": ["p:q"]})
    assert by_hand.fields == {"prompt": f"<lora:{names[0]}:1> <lora:{names[1]}:0.5>"}


def test_one_file_under_two_names_is_refused(world: World) -> None:
    with pytest.raises(InvalidInputError, match="twice"):
        world.tag({"prompt": "x", "loras": ["deep", "sub/deep"]})


def test_a_lora_that_does_not_fit_has_no_tag(world: World) -> None:
    fields = {"enable_hr": True, "denoising_strength": 0.5, "hr_prompt": "<lora:b_alias:2>y"}
    out = world.tag(
        {"prompt": "x <lora:deep:1> z <lora:a:1>", "loras": ["b", "a"], **fields},
        misfits=frozenset({"b", "deep"}),
    )

    assert out.fields == {"prompt": "x  z <lora:a:1>", "hr_prompt": "<lora:a:1> y"}
    assert set(out.loras) == {"a"}


def test_tags_that_do_nothing_are_warned_about(world: World) -> None:
    out = world.tag({"prompt": "<foo:bar:1>", "negative_prompt": "<lora:a:1>"})

    assert len(out.warnings) == 2
    assert out.fields == {}


def test_switched_off_networks_leave_the_prompt_alone(world: World) -> None:
    out = world.tag({"prompt": "<lora:nope:1>", "disable_extra_networks": True})

    assert (out.fields, out.loras) == ({}, {})
