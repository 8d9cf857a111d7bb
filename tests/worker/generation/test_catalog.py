"""Names that A1111 owns, checked against the lists of a running (simulated) one."""

from collections.abc import Iterator
from typing import Any

import pytest

from schemas.errors import InvalidInputError
from schemas.settings import JobSettings
from tests.conftest import running
from tests.parsing import parse
from worker.child.client import WebuiClient
from worker.generation.catalog import Catalog

pytestmark = pytest.mark.slow

HIRES = {"enable_hr": True, "denoising_strength": 0.5}


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Catalog]:
    folder = tmp_path_factory.mktemp("models")
    (folder / "styles.csv").write_text("name,prompt,negative_prompt\nTiny,masterpiece,\n")
    with running("webui", "--models-dir", folder) as webui:
        yield Catalog(WebuiClient(webui.url))


def checked(catalog: Catalog, fields: dict[str, Any]) -> dict[str, Any]:
    return catalog.checked(parse(fields, JobSettings()).job)


@pytest.mark.parametrize(
    ("fields", "changes"),
    [
        pytest.param({}, {}, id="defaults"),
        pytest.param({"sampler_name": "Euler a"}, {}, id="sampler"),
        pytest.param({"sampler_index": "DDIM"}, {}, id="the older field"),
        pytest.param({"sampler_name": "", "sampler_index": "DDIM"}, {}, id="empty name"),
        pytest.param({"scheduler": "karras"}, {}, id="scheduler by name"),
        pytest.param({"scheduler": "Karras"}, {}, id="scheduler by label"),
        pytest.param(
            {"sampler_name": "DPM++ 2M Karras"},
            {"sampler_name": "DPM++ 2M", "scheduler": "Karras"},
            id="both in one",
        ),
        pytest.param(
            {"sampler_name": "DPM++ 2M SDE Exponential"},
            {"sampler_name": "DPM++ 2M SDE", "scheduler": "Exponential"},
            id="a sampler whose name begins like another's",
        ),
        pytest.param(
            {"sampler_index": "DPM++ 2M Karras"},
            {"sampler_name": "DPM++ 2M", "scheduler": "Karras"},
            id="both in the older field",
        ),
        pytest.param(
            {"sampler_name": "DPM++ 2M Karras", "scheduler": "Automatic"},
            {"sampler_name": "DPM++ 2M", "scheduler": "Karras"},
            id="both in one, scheduler left open",
        ),
        pytest.param(
            {"sampler_name": "DPM++ 2M Karras", "scheduler": "karras"},
            {"sampler_name": "DPM++ 2M", "scheduler": "Karras"},
            id="both in one, and the same again",
        ),
        pytest.param({"styles": ["Tiny"]}, {}, id="style"),
        pytest.param({"script_name": "Prompt Matrix"}, {}, id="script in any case"),
        pytest.param({**HIRES, "hr_upscaler": "Latent"}, {}, id="latent upscaler"),
        pytest.param({**HIRES, "hr_upscaler": "Lanczos"}, {}, id="upscaler"),
        pytest.param(
            {
                **HIRES,
                "hr_sampler_name": "Use same sampler",
                "hr_scheduler": "Use same scheduler",
            },
            {},
            id="the same in the hires pass",
        ),
        pytest.param(
            {**HIRES, "hr_sampler_name": "DPM++ 2M Karras"},
            {"hr_sampler_name": "DPM++ 2M", "hr_scheduler": "Karras"},
            id="both in one in the hires pass",
        ),
        pytest.param({**HIRES, "hr_scheduler": "Karras"}, {}, id="scheduler of the hires pass"),
        pytest.param(
            {"override_settings": {"upscaler_for_img2img": "Lanczos"}}, {}, id="upscaler option"
        ),
        pytest.param(
            {"override_settings": {"face_restoration_model": "GFPGAN"}}, {}, id="restorer option"
        ),
    ],
)
def test_what_the_webui_offers_is_taken(
    catalog: Catalog, fields: dict[str, Any], changes: dict[str, Any]
) -> None:
    assert checked(catalog, fields) == changes


@pytest.mark.parametrize(
    ("fields", "field", "near"),
    [
        pytest.param({"sampler_name": "Eulr a"}, "sampler_name", "Euler a", id="misspelt"),
        pytest.param({"sampler_name": "euler a"}, "sampler_name", "Euler a", id="case"),
        pytest.param({"sampler_name": "k_euler_a"}, "sampler_name", "Euler a", id="alias"),
        pytest.param({"sampler_name": "DPM++ 2M Karas"}, "sampler_name", "DPM++ 2M", id="suffix"),
        pytest.param({"sampler_index": "nope"}, "sampler_index", None, id="the older field"),
        pytest.param({"scheduler": "Karas"}, "scheduler", "Karras", id="scheduler"),
        pytest.param(
            {"sampler_name": "DPM++ 2M Karras", "scheduler": "Exponential"},
            "scheduler",
            None,
            id="two schedulers",
        ),
        pytest.param({"styles": ["Tiny", "Tyny"]}, "styles[1]", "Tiny", id="style"),
        pytest.param({"script_name": "promt matrix"}, "script_name", "prompt matrix", id="script"),
        pytest.param(
            {"alwayson_scripts": {"Hypertyle": {}}},
            "alwayson_scripts.Hypertyle",
            "Hypertile",
            id="script that is always on",
        ),
        pytest.param(
            {"alwayson_scripts": {"prompt matrix": {}}},
            "alwayson_scripts.prompt matrix",
            None,
            id="script that is to be selected",
        ),
        pytest.param({"script_name": "seed"}, "script_name", None, id="and the other way round"),
        pytest.param({**HIRES, "hr_upscaler": "Lancsoz"}, "hr_upscaler", "Lanczos", id="upscaler"),
        pytest.param(
            {**HIRES, "hr_sampler_name": "x"}, "hr_sampler_name", None, id="hires sampler"
        ),
        pytest.param({**HIRES, "hr_scheduler": "x"}, "hr_scheduler", None, id="hires scheduler"),
        pytest.param(
            {"override_settings": {"upscaler_for_img2img": "x"}},
            "override_settings.upscaler_for_img2img",
            None,
            id="upscaler option",
        ),
        pytest.param(
            {"override_settings": {"face_restoration_model": "GFPGANN"}},
            "override_settings.face_restoration_model",
            "GFPGAN",
            id="restorer option",
        ),
    ],
)
def test_what_it_does_not_offer_is_refused_with_near_matches(
    catalog: Catalog, fields: dict[str, Any], field: str, near: str | None
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        checked(catalog, fields)

    assert caught.value.details["field"] == field
    if near is not None:
        assert near in caught.value.details["near"]
        assert repr(near) in caught.value.hint


@pytest.mark.parametrize("name", ["ADetailer", "reactor", "InstantID"])
def test_the_script_of_an_absent_extension_is_not_taken_for_a_misspelling(
    catalog: Catalog, name: str
) -> None:
    with pytest.raises(InvalidInputError, match=f"knows no '{name}'") as caught:
        checked(catalog, {"alwayson_scripts": {name: {}}})

    assert caught.value.details["near"] == []
    assert caught.value.hint == "There are: extra options, Hypertile, refiner, sampler, seed."


def test_an_unknown_hypernetwork_is_refused(catalog: Catalog) -> None:
    with pytest.raises(InvalidInputError, match="knows no 'x'"):
        catalog.require_hypernetwork("x")
