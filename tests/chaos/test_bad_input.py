"""Thousands of jobs drawn from the published schema: an answer, or a refusal that names its field."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Timer
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model_cache.cache import ModelCache
from schemas.errors import InvalidInputError, RequestError, WorkerError
from schemas.openapi import components
from schemas.request import Request, parse
from schemas.settings import CacheSettings, JobSettings, Settings, WebuiSettings
from simulator import models as files
from tests.chaos.conftest import Chaos
from tests.chaos.generated import JUNK, Drawing
from tests.conftest import running
from tests.worker.keeping import kept
from worker.child.client import WebuiClient
from worker.run import Runner

pytestmark = pytest.mark.slow

COMPONENTS = components()
INPUTS = [part["$ref"].rpartition("/")[2] for part in COMPONENTS["Input"]["anyOf"]]
LIMITS = JobSettings()
LONGEST_JOB_S = 60.0
SMALL = {"prompt": "a cat", "steps": 2, "width": 64, "height": 64, "seed": 1}
KNOWN = {**SMALL, "checkpoint": "a", "vae": "None"}
# So that many jobs reach A1111, and none takes long there.
USUAL = {
    "checkpoint": st.sampled_from(["a", {"name": "a"}]) | JUNK,
    "model": st.just("a"),
    "width": st.integers(64, 96),
    "height": st.integers(64, 96),
    "steps": st.integers(1, 3),
    "n_iter": st.integers(0, 2),
    "batch_size": st.integers(0, 2),
    "hr_second_pass_steps": st.integers(0, 3),
}


def draw_each(
    chaos: Chaos, full: int, drawn: st.SearchStrategy[Any], look: Callable[[Any], None]
) -> None:
    """Call `look` with values: the same ones each time in `make test`, others in `make chaos`."""
    settings(
        max_examples=chaos.count(full),
        derandomize=chaos.factor < 1,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )(given(drawn)(look))()


def require_told(error: WorkerError) -> None:
    """Require that a caller learns what is wrong, and where."""
    told = json.dumps(error.as_response(), allow_nan=False, ensure_ascii=False)
    assert len(told.encode()) < 100_000
    assert error.code != "INTERNAL"
    assert not error.refresh_worker
    if isinstance(error, RequestError):
        field = error.details["field"]
        assert isinstance(field, str)
        assert field


@pytest.mark.parametrize("how", ["right by the schema", "spoiled"])
@pytest.mark.parametrize(
    "names", [["txt2img"], ["img2img"], INPUTS], ids=["txt2img", "img2img", "any"]
)
def test_what_is_read_is_taken_or_refused_by_its_field(
    names: list[str], how: str, chaos: Chaos
) -> None:
    drawing = Drawing(COMPONENTS, spoiled=how == "spoiled")
    became = Counter[bool]()

    def read(value: Any) -> None:
        try:
            taken = isinstance(parse(value, LIMITS), Request)
        except InvalidInputError as error:
            require_told(error)
            taken = False
        became[taken] += 1

    draw_each(chaos, 10_000, st.one_of([drawing.of(COMPONENTS[name]) for name in names]), read)
    chaos.tell("inputs read", became.total(), 10_000)
    assert became[True] > 5
    assert became[False] > 5


@contextmanager
def worker(folder: Path) -> Iterator[Callable[[Any], Any]]:
    """A runner beside a simulated A1111; yields what does a job."""
    models = folder / "models"
    files.write_checkpoint(models / "checkpoints" / "a.safetensors", seed="a")
    files.write_lora(models / "loras" / "a.safetensors", seed="a")
    with running("webui", "--models-dir", folder / "links", "--controlnet") as webui:
        configured = Settings(
            cache=CacheSettings(
                volume=folder,
                hf_endpoint="http://127.0.0.1:1",
                civitai_endpoint="http://127.0.0.1:1",
            ),
            webui=WebuiSettings(port=int(webui.url.rpartition(":")[2]), links=folder / "links"),
        )
        client = WebuiClient(webui.url)
        runner = Runner(ModelCache(configured.cache), client, kept(client), configured)
        runner.show_models()

        def work(value: Any) -> Any:
            cancelled = Event()
            limit = Timer(LONGEST_JOB_S, cancelled.set)
            limit.start()
            try:
                return runner.run({"id": "j", "input": value}, cancelled, lambda _: None)
            finally:
                limit.cancel()

        yield work


def test_whatever_is_done_is_answered_or_refused_and_the_worker_goes_on(
    tmp_path: Path, chaos: Chaos
) -> None:
    became = Counter[str]()
    drawings = [Drawing(COMPONENTS, spoiled=spoiled, fixed=USUAL) for spoiled in (False, True)]
    drawn = [drawing.of(COMPONENTS[name]) for drawing in drawings for name in INPUTS]
    drawn += [drawing.of(COMPONENTS["txt2img"]) for drawing in drawings] * len(INPUTS)

    with worker(tmp_path) as work:
        before = work(KNOWN)

        def do(value: Any) -> None:
            try:
                json.dumps(work(value), allow_nan=False)
                became["answered"] += 1
            except WorkerError as error:
                require_told(error)
                became[error.code] += 1

        draw_each(chaos, 7_000, st.one_of(drawn), do)
        chaos.tell("jobs drawn from the schema", became.total(), 7_000)
        for code, number in became.items():
            chaos.tell(f"  {code}", number, 0)
        after = work(KNOWN)

    assert after["images"] == before["images"]
    assert became["answered"] > 5
    assert not became["JOB_CANCELLED"]
