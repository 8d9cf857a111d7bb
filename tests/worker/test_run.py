"""Jobs against the simulated A1111, without the SDK: what a job asks for, and what it must not leave."""

import base64
import io
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from PIL import Image

from model_cache.cache import ModelCache
from model_cache.sharing.uses import Uses
from schemas.errors import (
    BackendCrashedError,
    BackendFailedError,
    BackendOutOfMemoryError,
    BackendStalledError,
    InvalidInputError,
    JobCancelledError,
    ModelCorruptError,
    ModelIncompatibleError,
    ModelNotFoundError,
    OutputTooLargeError,
    WrongModelUsedError,
)
from schemas.settings import CacheSettings, OutputSettings, Settings, WebuiSettings
from simulator import models as files
from tests.conftest import Simulator, running
from tests.worker.keeping import kept
from tests.worker.meanwhile import as_soon_as, has_struck, until
from worker.child.client import WebuiClient
from worker.run import Runner

pytestmark = pytest.mark.slow

LIST_IS_OLD_S = 0.25  # a younger list of what is on the volume is not made anew for a miss
SMALL = {"steps": 2, "width": 64, "height": 64, "seed": 1}


def ignore(progress: dict[str, Any]) -> None:
    del progress


@dataclass
class World:
    runner: Runner
    webui: Simulator
    models: Path

    def run(self, *, cancelled: Event | None = None, **fields: Any) -> dict[str, Any]:
        job = {"id": "job-1", "input": {"checkpoint": "a", "prompt": "a cat", **SMALL, **fields}}
        return dict(self.runner.run(job, cancelled or Event(), ignore))

    def sent(self) -> dict[str, Any]:
        """Return the body of the last generation that A1111 received."""
        journal = self.webui.get("/simulator/journal")
        entries = [e for e in journal["requests"] if e["path"].endswith(("/txt2img", "/img2img"))]
        body: dict[str, Any] = entries[-1]["body"]
        return body


def write_models(folder: Path) -> None:
    for name in ("a", "b"):
        files.write_checkpoint(folder / "checkpoints" / f"{name}.safetensors", seed=name)
    files.write_checkpoint(folder / "checkpoints" / "xl.safetensors", seed="xl", base="sdxl")
    files.write_lora(folder / "loras" / "detail.safetensors", seed="detail")
    files.write_lora(folder / "loras" / "colon:name.safetensors", seed="colon")
    files.write_lora(folder / "loras" / "xl_lora.safetensors", seed="xl", base="sdxl")
    (folder / "loras" / "cut.safetensors").write_bytes(
        (folder / "loras" / "detail.safetensors").read_bytes()[:-1]
    )
    files.write_vae(folder / "vae" / "soft.safetensors", seed="soft")
    files.write_embedding(folder / "embeddings" / "easyneg.safetensors", seed="neg")


def settings(folder: Path, webui: Simulator, **changes: Any) -> Settings:
    return Settings(
        cache=CacheSettings(volume=folder),
        webui=WebuiSettings(port=int(webui.url.rpartition(":")[2]), links=folder / "links"),
        **changes,
    )


def runner(configured: Settings) -> Runner:
    client = WebuiClient(f"http://127.0.0.1:{configured.webui.port}")
    made = Runner(ModelCache(configured.cache), client, kept(client), configured)
    made.show_models()
    return made


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("run")
    write_models(folder / "models")
    with running("webui", "--models-dir", folder / "links") as webui:
        yield World(runner(settings(folder, webui)), webui, folder / "models")


def picture(answer: dict[str, Any]) -> bytes:
    return base64.b64decode(answer["images"][0])


def test_the_checkpoint_goes_into_every_request_and_stays(world: World) -> None:
    answer = world.run(checkpoint="b")

    assert json.loads(answer["info"])["sd_model_name"] == "b"
    assert world.sent()["override_settings"]["sd_model_checkpoint"] == "b.safetensors"
    assert world.sent()["override_settings_restore_afterwards"] is False


@pytest.mark.parametrize(
    ("fields", "at"),
    [
        ({"checkpoint": "nope"}, "checkpoint"),
        ({"vae": "nope"}, "vae"),
        ({"loras": ["detail", "nope"]}, "loras[1]"),
        ({"prompt": "a cat <lora:nope:1>"}, "prompt"),
    ],
)
def test_a_model_that_is_nowhere_is_told_with_the_field_that_names_it(
    world: World, fields: dict[str, Any], at: str
) -> None:
    with pytest.raises(ModelNotFoundError) as refused:
        world.run(**fields)

    assert refused.value.details["field"] == at


def test_two_jobs_on_one_checkpoint_load_it_once(world: World) -> None:
    world.run(checkpoint="a")
    before = world.webui.get("/simulator/journal")["loads"]
    for _ in range(3):
        world.run(checkpoint="a")

    assert world.webui.get("/simulator/journal")["loads"] == before


def test_no_option_of_a_job_reaches_the_next(world: World) -> None:
    plain = world.run()
    overridden = world.run(override_settings={"CLIP_stop_at_last_layers": 2})

    assert json.loads(overridden["info"])["clip_skip"] == 2
    again = world.run()
    assert json.loads(again["info"])["clip_skip"] == 1
    assert again["images"] == plain["images"]


def test_an_infotext_passes_by_no_check(world: World) -> None:
    infotext = "a dog\nSteps: 2, Sampler: DDIM, Seed: 3, Size: 64x64, Clip skip: 2"
    plain = world.run()
    taken = world.runner.run(
        {"id": "j", "input": {"checkpoint": "a", "infotext": infotext}}, Event(), ignore
    )

    info = json.loads(taken["info"])
    assert (info["prompt"], info["sampler_name"], info["clip_skip"]) == ("a dog", "DDIM", 2)
    assert world.run()["images"] == plain["images"]
    with pytest.raises(InvalidInputError, match="sampler_name"):
        world.runner.run(
            {"id": "j", "input": {"infotext": infotext.replace("DDIM", "Nope")}}, Event(), ignore
        )


def test_no_vae_of_a_job_reaches_the_next(world: World) -> None:
    plain = world.run()
    with_vae = world.run(vae="soft")
    again = world.run()

    assert json.loads(with_vae["info"])["sd_vae_name"] == "soft.safetensors"
    assert with_vae["images"] != plain["images"]
    assert json.loads(again["info"])["sd_vae_name"] is None
    assert again["images"] == plain["images"]


def test_a_lora_changes_the_picture_and_is_in_the_prompt(world: World) -> None:
    plain = world.run()
    with_lora = world.run(loras=[{"name": "detail", "scale": 0.7}])

    assert with_lora["parameters"]["prompt"] == "<lora:detail:0.7> a cat"
    assert with_lora["images"] != plain["images"]


def test_a_name_that_no_tag_can_carry_works(world: World) -> None:
    answer = world.run(loras=["colon:name"])

    assert answer["parameters"]["prompt"] == "<lora:colon_name:1> a cat"
    assert answer["images"] != world.run()["images"]


def test_a_lora_named_by_a_tag_alone_is_among_the_models(world: World) -> None:
    answer = world.run(prompt="a cat <lora:detail:0.5>")

    assert [(model["kind"], model["name"]) for model in answer["models"]] == [
        ("checkpoint", "a"),
        ("lora", "detail"),
    ]


def test_words_of_a_prompt_fetch_nothing(world: World, tmp_path: Path) -> None:
    """Not even from Hugging Face, which a `checkpoint` or a `loras` entry of that name would."""
    with running("hub", "--root", tmp_path) as hub:
        cache = CacheSettings(
            volume=world.models.parent, allow_private_hosts=True, hf_endpoint=hub.url
        )
        webui = WebuiSettings(port=int(world.webui.url.rpartition(":")[2]), links=tmp_path / "l")
        fresh = World(runner(Settings(cache=cache, webui=webui)), world.webui, world.models)

        with pytest.raises(ModelNotFoundError):
            fresh.run(prompt="a cat <lora:org/repo:1>")

        assert hub.get("/simulator/journal")["requests"] == []


def test_the_models_of_a_job_are_shown_to_be_in_use(world: World) -> None:
    others = Uses(world.models.parent)

    world.run(prompt="a cat <lora:detail:0.5>", vae="soft")

    names = {path.stem for path in others.others_in_use()}
    assert {"a", "detail", "soft"} <= names


def test_overrides_may_name_the_checkpoint(world: World) -> None:
    job = {"id": "j", "input": {**SMALL, "override_settings": {"sd_model_checkpoint": "b"}}}

    answer = world.runner.run(job, Event(), ignore)

    assert json.loads(answer["info"])["sd_model_name"] == "b"


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        pytest.param({"loras": ["xl_lora"]}, ModelIncompatibleError, id="SDXL LoRA on SD 1"),
        pytest.param({"prompt": "<lora:xl_lora:1>"}, ModelIncompatibleError, id="the same by hand"),
        pytest.param({"mask": 5}, InvalidInputError, id="mask that is a number"),
        pytest.param(
            {"vae": "soft", "override_settings": {"sd_vae": {"name": "other"}}},
            ModelNotFoundError,
            id="two VAEs",
        ),
        pytest.param(
            {"infotext": "x\nSteps: 2, Sampler: Euler, Eta: nan"},
            InvalidInputError,
            id="NaN in infotext",
        ),
        pytest.param({"loras": ["cut"]}, ModelCorruptError, id="cut file"),
        pytest.param(
            {"checkpoint": "xl", "embeddings": ["easyneg"]}, ModelIncompatibleError, id="TI"
        ),
        pytest.param({"override_settings": {"samples_save": True}}, InvalidInputError, id="saving"),
        pytest.param(
            {"override_settings": {"CLIP_stop_at_last_layers": "abc"}},
            InvalidInputError,
            id="poison",
        ),
        pytest.param(
            {"override_settings": {"sd_model_checkpoint": "b"}}, InvalidInputError, id="two models"
        ),
    ],
)
def test_what_a1111_would_do_wrong_in_silence_is_an_error(
    world: World, fields: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        world.run(**fields)


def test_an_embedding_that_the_prompt_does_not_mention_is_told(world: World) -> None:
    assert any("easyneg" in w for w in world.run(embeddings=["easyneg"])["warnings"])
    assert world.run(embeddings=["easyneg"], negative_prompt="easyneg")["warnings"] == []


def test_a_picture_made_by_another_model_is_withheld(tmp_path: Path) -> None:
    write_models(tmp_path / "models")
    elsewhere = tmp_path / "elsewhere"
    files.write_checkpoint(elsewhere / "Stable-diffusion" / "other.safetensors", seed="other")
    with running("webui", "--models-dir", elsewhere) as webui:
        world = World(runner(settings(tmp_path, webui)), webui, tmp_path)

        with pytest.raises(WrongModelUsedError, match="`other`"):
            world.run()


def test_an_embedding_works_when_the_last_job_had_the_prompt_without_it(world: World) -> None:
    without = world.run(prompt="newti")
    files.write_embedding(world.models / "embeddings" / "newti.safetensors", seed="newti")
    time.sleep(LIST_IS_OLD_S)

    with_it = world.run(prompt="newti", embeddings=["newti"])

    assert with_it["images"] != without["images"]


def test_an_embedding_that_had_to_be_called_otherwise_is_not_taken_for_the_other(
    world: World,
) -> None:
    files.write_embedding(world.models / "embeddings" / "ea:sy.safetensors", seed="ea")
    time.sleep(LIST_IS_OLD_S)

    with pytest.raises(InvalidInputError, match="`ea_sy`"):
        world.run(prompt="ea:sy", embeddings=["ea:sy"])
    assert world.run(prompt="ea_sy", embeddings=["ea:sy"])["warnings"] == []


def test_an_embedding_that_is_replaced_keeps_its_name(world: World) -> None:
    file = world.models / "embeddings" / "mine.safetensors"
    files.write_embedding(file, seed="old")
    time.sleep(LIST_IS_OLD_S)
    before = world.run(prompt="mine, bad quality", embeddings=["mine"])
    files.write_embedding(file, seed="new")

    after = world.run(prompt="mine, bad quality", embeddings=["mine"])

    assert after["images"] != before["images"]
    assert after["warnings"] == []


def test_a_vae_that_goes_after_a_job_does_not_fail_the_next(world: World) -> None:
    file = world.models / "vae" / "short_lived.safetensors"
    files.write_vae(file, seed="s")
    time.sleep(LIST_IS_OLD_S)
    world.run(checkpoint="a", vae="short_lived")
    file.unlink()

    assert world.run(checkpoint="b")["images"]


def test_a_lora_called_as_the_checkpoint_is_among_the_models(world: World) -> None:
    files.write_lora(world.models / "loras" / "a.safetensors", seed="a")
    time.sleep(LIST_IS_OLD_S)

    answer = world.run(prompt="<lora:a:1> cat")

    assert [model["kind"] for model in answer["models"]] == ["checkpoint", "lora"]


def test_what_other_jobs_fetched_does_not_change_the_vae(world: World) -> None:
    plain = world.run()
    files.write_vae(world.models / "vae" / "a_other.safetensors", seed="other")
    time.sleep(LIST_IS_OLD_S)
    world.run(vae="a_other")

    assert world.run()["images"] == plain["images"]


def test_a_vae_called_as_its_checkpoint_goes_with_it(tmp_path: Path) -> None:
    write_models(tmp_path / "models")
    files.write_vae(tmp_path / "models" / "vae" / "a.safetensors", seed="a")
    with running("webui", "--models-dir", tmp_path / "links") as webui:
        world = World(runner(settings(tmp_path, webui)), webui, tmp_path)

        assert [model["kind"] for model in world.run()["models"]] == ["checkpoint", "vae"]
        assert json.loads(world.run(vae="None")["info"])["sd_vae_name"] is None


def test_a_file_that_is_replaced_is_noticed(tmp_path: Path) -> None:
    write_models(tmp_path / "models")
    with running("webui", "--models-dir", tmp_path / "links") as webui:
        world = World(runner(settings(tmp_path, webui)), webui, tmp_path / "models")
        before = {"a": world.run(), "detail": world.run(loras=["detail"])}
        files.write_checkpoint(world.models / "checkpoints" / "a.safetensors", seed="new")
        files.write_lora(world.models / "loras" / "detail.safetensors", seed="new")

        assert world.run()["images"] != before["a"]["images"]
        again = world.run(checkpoint="b", loras=["detail"])
        files.write_lora(world.models / "loras" / "detail.safetensors", seed="newer")
        assert world.run(checkpoint="b", loras=["detail"])["images"] != again["images"]


def test_a_file_that_goes_while_the_job_waits_is_an_error_and_spoils_nothing(world: World) -> None:
    files.write_checkpoint(world.models / "checkpoints" / "gone.safetensors", seed="gone")
    time.sleep(LIST_IS_OLD_S)
    plain = world.run()
    errors: list[BaseException] = []

    def late() -> None:
        try:
            world.run(checkpoint="gone")
        except ModelNotFoundError as error:
            errors.append(error)

    with world.runner.access.turn(Event()):
        thread = Thread(target=late)
        thread.start()
        time.sleep(0.3)  # the job has found its models and waits for its turn
        (world.models / "checkpoints" / "gone.safetensors").unlink()
    thread.join()

    assert len(errors) == 1
    assert world.run()["images"] == plain["images"]


def test_img2img_takes_pictures(world: World) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "teal").save(buffer, "PNG")
    image = base64.b64encode(buffer.getvalue()).decode()

    answer = world.run(init_images=[f"data:image/png;base64,{image}"], denoising_strength=0.5)

    with Image.open(io.BytesIO(picture(answer))) as drawn:
        assert drawn.size == (64, 64)


def test_a_batch_has_a_seed_for_each_picture(world: World) -> None:
    answer = world.run(seed=-1, batch_size=2, n_iter=2)

    assert len(answer["images"]) == 4
    assert answer["seeds"] == [answer["seed"] + i for i in range(4)]
    assert answer["seed"] >= 0


def test_an_unknown_field_goes_through(world: World) -> None:
    answer = world.run(my_extension=1)

    assert world.sent()["my_extension"] == 1
    assert "my_extension" in answer["warnings"][0]


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        pytest.param({"kind": "fail", "status": 500}, BackendFailedError, id="500"),
        pytest.param({"kind": "oom"}, BackendOutOfMemoryError, id="out of memory"),
        pytest.param({"kind": "half"}, BackendCrashedError, id="half an answer"),
        pytest.param({"kind": "drop"}, BackendCrashedError, id="dropped"),
        pytest.param({"kind": "not_json"}, BackendFailedError, id="not JSON"),
    ],
)
def test_a_failure_of_a1111_is_typed_and_the_next_job_works(
    world: World, fault: dict[str, Any], error: type[Exception]
) -> None:
    faults = [{"path": "/sdapi/v1/txt2img", "times": 1, **fault}]
    world.webui.post("/simulator/faults", {"faults": faults})

    with pytest.raises(error):
        world.run()

    assert world.run()["images"]


def test_a_result_too_large_for_runpod_is_an_error(tmp_path: Path) -> None:
    write_models(tmp_path / "models")
    with running("webui", "--models-dir", tmp_path / "links") as webui:
        limits = OutputSettings(max_run_bytes=2000, ladder=("lossless_webp",))
        world = World(runner(settings(tmp_path, webui, output=limits)), webui, tmp_path)

        with pytest.raises(OutputTooLargeError):
            world.run()


def test_a_cancel_interrupts_a1111_and_frees_it(tmp_path: Path) -> None:
    write_models(tmp_path / "models")
    with running("webui", "--models-dir", tmp_path / "links", "--step-ms", 50) as webui:
        world = World(runner(settings(tmp_path, webui)), webui, tmp_path)
        cancelled = Event()
        webui.post("/simulator/faults", {"faults": [{"kind": "stall", "interruptible": True}]})

        with as_soon_as(lambda: has_struck(webui), cancelled.set), pytest.raises(JobCancelledError):
            world.run(steps=150, cancelled=cancelled)

        assert webui.get("/simulator/journal")["interrupts"] >= 1
        assert webui.get("/sdapi/v1/progress")["state"]["job"] == ""
        assert world.run()["images"]


def test_progress_is_told_while_a_job_runs(tmp_path: Path) -> None:
    write_models(tmp_path / "models")
    told: list[dict[str, Any]] = []
    with running("webui", "--models-dir", tmp_path / "links", "--step-ms", 50) as webui:
        made = runner(settings(tmp_path, webui))
        job = {"id": "j", "input": {"checkpoint": "a", **SMALL, "steps": 50}}

        def stand_still(after: int) -> None:
            fault = {"kind": "stall", "after": after}
            webui.post("/simulator/faults", {"clear": True, "faults": [fault]})

        def go_on() -> None:
            stand_still(20)
            until(lambda: told[-1].get("step", 0) > told[0]["step"])
            webui.post("/simulator/faults", {"clear": True})

        stand_still(10)
        with as_soon_as(lambda: any(entry["stage"] == "sampling" for entry in told), go_on):
            made.run(job, Event(), told.append)

    assert [entry["stage"] for entry in told] == ["sampling"] * len(told)
    assert len(told) >= 2
    assert told[0]["percent"] < told[-1]["percent"] <= 100
    assert told[-1]["steps"] == 50


def test_a_checkpoint_that_comes_later_is_refreshed_once(world: World) -> None:
    files.write_checkpoint(world.models / "checkpoints" / "later.safetensors", seed="later")
    time.sleep(LIST_IS_OLD_S)

    answer = world.run(checkpoint="later")
    before = world.webui.get("/simulator/journal")["refreshes"]
    world.run(checkpoint="later")

    assert json.loads(answer["info"])["sd_model_name"] == "later"
    assert world.webui.get("/simulator/journal")["refreshes"] == before


def test_refiner_and_hires_checkpoints_are_models_too(world: World) -> None:
    refined = world.run(steps=4, refiner_checkpoint="b", refiner_switch_at=0.5)
    hires = world.run(
        enable_hr=True, hr_scale=2, denoising_strength=0.5, hr_checkpoint_name="b", hr_prompt="x"
    )

    assert json.loads(refined["info"])["extra_generation_params"]["Refiner"].startswith("b [")
    assert world.sent()["hr_checkpoint_name"] == "b.safetensors"
    assert [model["name"] for model in hires["models"]] == ["a", "b"]
    with Image.open(io.BytesIO(picture(hires))) as drawn:
        assert drawn.size == (128, 128)


def test_a_lora_that_a_style_names_and_that_is_not_there_withholds_the_picture(
    tmp_path: Path,
) -> None:
    write_models(tmp_path / "models")
    links = tmp_path / "links"
    links.mkdir()
    (links / "styles.csv").write_text("name,prompt,negative_prompt\nbad,<lora:gone:1>,\n")
    with running("webui", "--models-dir", links) as webui:
        world = World(runner(settings(tmp_path, webui)), webui, tmp_path)

        with pytest.raises(WrongModelUsedError, match="`gone`"):
            world.run(styles=["bad"])


def test_after_a_stall_a1111_is_interrupted(tmp_path: Path) -> None:
    write_models(tmp_path / "models")
    with running("webui", "--models-dir", tmp_path / "links", "--step-ms", 50) as webui:
        configured = settings(tmp_path, webui)
        impatient = configured.webui.model_copy(update={"job_timeout_s": 0.5})
        world = World(runner(configured.model_copy(update={"webui": impatient})), webui, tmp_path)

        with pytest.raises(BackendStalledError):
            world.run(steps=150)

        assert webui.get("/simulator/journal")["interrupts"] == 1
