"""The files round the Dockerfile say what it, the settings and the SDK say."""

import json
import re
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml  # type: ignore[import-untyped]  # comes with huggingface_hub, without types
from pydantic.fields import FieldInfo

from schemas.request import parse
from schemas.settings import ALIASES, JobSettings, Section, Settings
from tests.recipe import ROOT, argument_defaults, named

HUB: dict[str, Any] = json.loads((ROOT / ".runpod/hub.json").read_text())
HUB_TESTS: dict[str, Any] = json.loads((ROOT / ".runpod/tests.json").read_text())
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
INPUTS = {entry["key"]: entry["input"] for entry in HUB["config"]["env"]}
# Source: docs.runpod.io, hub/publishing-guide, "Environment variables"; and flash/configuration/
# gpu-types, "GPU pools": those of cards before Blackwell, which CUDA 12.1 does not know.
INPUT_TYPES = {"string", "number", "boolean", "huggingface"}
POOLS = {
    "AMPERE_16",
    "AMPERE_24",
    "ADA_24",
    "AMPERE_48",
    "ADA_48_PRO",
    "AMPERE_80",
    "ADA_80_PRO",
    "HOPPER_141",
}


def fields() -> dict[str, FieldInfo]:
    """Return every setting by the name of its variable, aliases included."""
    found: dict[str, FieldInfo] = {}
    for section, info in Settings.model_fields.items():
        kind = info.annotation
        assert isinstance(kind, type)
        assert issubclass(kind, Section)
        for name, field in kind.model_fields.items():
            found[f"A1111_{section}_{name}".upper()] = field
    return found | {alias: found[name] for alias, name in ALIASES.items()}


def bake_targets() -> dict[str, dict[str, Any]]:
    """Return what docker-bake.hcl says of each target, with what it inherits.

    Reads the little of HCL that is in that file: blocks, strings, lists, maps of strings.
    """
    text = re.sub(r"^#.*\n", "", (ROOT / "docker-bake.hcl").read_text(), flags=re.MULTILINE)
    targets: dict[str, dict[str, Any]] = {}
    for name, body in re.findall(
        r'^target "([\w-]+)" \{\n(.*?)^\}', text, re.DOTALL | re.MULTILINE
    ):
        said: dict[str, Any] = {"args": {}}
        own: dict[str, Any] = {}
        for key, value in re.findall(
            r"^  (\w+) += (\{.*?^  \}|.*?)$", body, re.DOTALL | re.MULTILINE
        ):
            own[key] = (
                dict(re.findall(r'(\w+) += "([^"]*)"', value))
                if value.startswith("{")
                else json.loads(value)
            )
        for parent in own.get("inherits", []):
            said |= targets[parent] | {"args": said["args"] | targets[parent]["args"]}
        targets[name] = said | own | {"args": said["args"] | own.get("args", {})}
    assert text.count("\ntarget ") == len(targets)
    return targets


BAKE = bake_targets()
BUILT = [name for name in BAKE if not name.startswith("_")]


@pytest.mark.parametrize("name", BUILT)
def test_a_target_builds_a_stage_with_arguments_that_the_dockerfile_has(name: str) -> None:
    target = BAKE[name]

    assert target["target"] in {each.stage for each in named("FROM")}
    assert set(target["args"]) <= set(argument_defaults())
    assert (ROOT / target["dockerfile"]).is_file()


def test_every_target_has_a_tag_of_its_own() -> None:
    tags = [tag for name in BUILT for tag in BAKE[name]["tags"]]

    assert len(tags) == len(set(tags)) == len(BUILT)


@pytest.mark.parametrize("name", BUILT)
def test_a_target_takes_torch_with_the_packages_that_were_built_for_it(name: str) -> None:
    # Which torch a torchvision and an xformers require is in the metadata of their wheels.
    matching = {
        "2.1.2": ("0.16.2", "0.0.23.post1"),
        "2.3.1": ("0.18.1", "0.0.27"),
        "2.8.0": ("0.23.0", "0.0.32.post2"),
    }
    chosen = argument_defaults() | BAKE[name]["args"]

    assert (chosen["TORCHVISION"], chosen["XFORMERS"]) == matching[chosen["TORCH"]]
    assert ("cuda-12-8" in name) == (chosen["TORCH"] == "2.8.0")
    assert ("forge" in name) == (chosen["WEBUI_KIND"] == "forge")


def test_compose_runs_an_image_that_bake_makes() -> None:
    variables = dict(
        re.findall(
            r'^variable "(\w+)" \{\n  default = "([^"]+)"',
            (ROOT / "docker-bake.hcl").read_text(),
            re.MULTILINE,
        )
    )
    (tag,) = BAKE["deliberate"]["tags"]

    for name, value in variables.items():
        tag = tag.replace(f"${{{name}}}", value)
    assert COMPOSE["services"]["worker"]["image"] == tag


def test_compose_sets_nothing_that_is_no_setting() -> None:
    environment = COMPOSE["services"]["worker"]["environment"]

    assert set(environment) <= set(fields())
    assert all(isinstance(value, str) for value in environment.values())


def test_compose_publishes_the_local_api_on_loopback_alone() -> None:
    worker = COMPOSE["services"]["worker"]

    # 8000 is the SDK's own. Source: runpod-python 1.12.0, serverless/__init__.py, --rp_api_port.
    assert worker["ports"] == ["127.0.0.1:8000:8000"]
    assert worker["command"][:2] == ["worker", "--rp_serve_api"]


def test_compose_mounts_the_volume_where_the_worker_looks_for_it() -> None:
    (mount,) = COMPOSE["services"]["worker"]["volumes"]
    volume, place = mount.split(":")

    assert volume in COMPOSE["volumes"]
    assert Path(place) == Settings().cache.volume


def test_compose_waits_until_the_worker_has_drained() -> None:
    grace_s = int(COMPOSE["services"]["worker"]["stop_grace_period"].removesuffix("s"))

    assert grace_s > Settings().job.drain_s + Settings().webui.stop_s


def test_the_hub_file_has_what_the_hub_requires() -> None:
    config = HUB["config"]

    assert set(HUB) == {"title", "description", "type", "category", "config"}
    assert (HUB["type"], HUB["category"], config["runsOn"]) == ("serverless", "image", "GPU")
    assert set(config["gpuIds"].split(",")) <= POOLS
    assert config["containerDiskInGb"] > 20
    for name in ("README.md", "Dockerfile", ".runpod/handler.py"):
        assert (ROOT / name).is_file()


@pytest.mark.parametrize("key", INPUTS)
def test_a_setting_in_the_hub_is_described_as_in_the_settings(key: str) -> None:
    field, shown = fields()[key], INPUTS[key]

    assert shown["description"] == field.description
    assert shown["type"] in INPUT_TYPES
    assert shown["name"]


@pytest.mark.parametrize("key", INPUTS)
def test_a_setting_in_the_hub_has_its_default(key: str) -> None:
    default = fields()[key].default
    if key == "A1111_WEBUI_CHECKPOINT":  # what the image says, not the settings
        default = argument_defaults()["CHECKPOINT_NAME"]

    assert INPUTS[key]["default"] == ("" if default in (None, ()) else default)


@pytest.mark.parametrize("key", INPUTS)
def test_a_setting_in_the_hub_offers_just_what_may_be_chosen(key: str) -> None:
    kind, shown = fields()[key].annotation, INPUTS[key]
    choices = get_args(kind) if get_origin(kind) is Literal else ()

    assert tuple(option["value"] for option in shown.get("options", ())) == choices
    assert (shown["type"] == "boolean") == (kind is bool)
    assert kind is not bool or (shown["trueValue"], shown["falseValue"]) == ("true", "false")


def test_the_worker_takes_what_the_hub_sets_by_default() -> None:
    said = {key: str(shown["default"]) for key, shown in INPUTS.items()}

    settings = Settings.from_env(said)

    assert settings.webui.checkpoint == "deliberate_v6"
    assert settings.cache == Settings().cache


def test_a_preset_sets_what_can_be_set() -> None:
    for preset in HUB["config"]["presets"]:
        assert set(preset["defaults"]) <= set(INPUTS)
        Settings.from_env({key: str(value) for key, value in preset["defaults"].items()})


def test_the_tests_of_the_hub_need_no_download() -> None:
    health, picture = HUB_TESTS["tests"]

    assert health["input"] == {"api": {"method": "GET", "endpoint": "/v1/health"}}
    assert "checkpoint" not in picture["input"]
    assert parse(picture["input"], JobSettings()).warnings == ()
    assert HUB_TESTS["config"]["allowedCudaVersions"] == HUB["config"]["allowedCudaVersions"]
    assert all(test["timeout"] >= 60_000 for test in HUB_TESTS["tests"])
