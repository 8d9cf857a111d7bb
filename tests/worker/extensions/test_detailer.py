"""Which models ADetailer may be told to look with, against the simulated A1111 that has it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import InvalidInputError
from tests.conftest import running
from tests.worker.calling import SMALL, World, make_world, write_models

pytestmark = pytest.mark.slow

UNKNOWN = {"ad_model": "face_yolov9n.pt"}
# An A1111 that tells nothing of its routes.
SILENT = {"kind": "fail", "path": "/openapi.json", "status": 200, "times": 0}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("detailer")
    write_models(folder / "volume")
    with running("webui", "--models-dir", folder / "links", "--adetailer") as webui:
        yield make_world(folder, webui)


def detailed(world: World, *arguments: Any) -> list[str]:
    """Make a picture that ADetailer is to look at; return the warnings."""
    scripts = {"ADetailer": {"args": list(arguments)}}
    answer = world.run({"prompt": "a", "checkpoint": "a", **SMALL, "alwayson_scripts": scripts})
    warnings: list[str] = answer["warnings"]
    return warnings


def test_a_model_that_adetailer_lacks_is_refused_with_those_like_it(world: World) -> None:
    """It would answer the picture as it was, with status 200."""
    before = world.requests("/sdapi/v1/txt2img")

    with pytest.raises(InvalidInputError) as caught:
        detailed(world, True, False, {"ad_model": "None"}, UNKNOWN)

    assert caught.value.details["field"] == "alwayson_scripts.ADetailer.args[3].ad_model"
    assert caught.value.details["near"][0] == "face_yolov8n.pt"
    assert world.requests("/sdapi/v1/txt2img") == before


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param([{"ad_model": "mediapipe_face_mesh"}], id="one that it has"),
        pytest.param([False, False, UNKNOWN], id="switched off"),
        pytest.param([True, False, {**UNKNOWN, "ad_tab_enable": False}], id="its tab off"),
        pytest.param([True, False, {"ad_model": "None"}, {}], id="none"),
    ],
)
def test_what_adetailer_is_not_to_look_with_is_not_asked_for(
    world: World, arguments: list[Any]
) -> None:
    assert detailed(world, *arguments) == []


def test_an_adetailer_that_does_not_tell_its_models_is_told_of(tmp_path: Path) -> None:
    write_models(tmp_path / "volume")
    flags = ("--models-dir", tmp_path / "links", "--adetailer", "--fault", json.dumps(SILENT))
    with running("webui", *flags) as webui:
        warnings = detailed(make_world(tmp_path, webui), UNKNOWN)

    (told,) = warnings
    assert told.startswith("This ADetailer does not tell which models it has;")
    assert told.endswith("if it lacks face_yolov9n.pt.")
