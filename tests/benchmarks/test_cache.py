import json
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from benchmarks.cache import Times, aims_of, hits_again, kept, registry_s, rows_of
from benchmarks.first_hit import hit_s
from benchmarks.stock import Stock, stocked
from model_cache.cache import ModelCache
from schemas.errors import SourceError
from schemas.model_ref import Kind, ModelRef
from tests.benchmarks.quick import QUICK_S

ROOT = Path(__file__).parent.parent.parent

TIMES = Times(
    hits={"by URL": [0.0004, 0.0006, 0.0011], "by name": [0.0002]},
    opened=[0.3],
    first_hits=[0.31],
    registry=[0.1],
    growth={10: [0.0004], 10_000: [0.0005]},
)


def ordered() -> random.Random:
    return random.Random(1)  # noqa: S311 - hides nothing


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Stock:
    return stocked(tmp_path_factory.mktemp("stock") / "volume", 20)


def test_a_stock_is_a_volume_of_verified_models_that_came_from_somewhere(stock: Stock) -> None:
    cache = ModelCache(stock.settings)

    found = {kind: cache.models(kind) for kind in (Kind.CHECKPOINT, Kind.LORA)}

    assert [len(found[kind]) for kind in found] == [2, 18]
    assert {model.name for models in found.values() for model in models} == {
        name for _, name in stock.names
    }
    for model in (*found[Kind.CHECKPOINT], *found[Kind.LORA]):
        cache.adopt(model, cancelled=threading.Event())
        assert model.source.endswith(f"/{model.name}.safetensors")
        assert model.sha256 is not None


def test_a_job_has_one_checkpoint_and_loras_each_of_them_another(stock: Stock) -> None:
    refs = stock.refs(10, ordered())

    assert [ref.kind for ref in refs] == [Kind.CHECKPOINT, *[Kind.LORA] * 10]
    assert len({ref.name for ref in refs}) == 11
    assert all(ref.url is not None for ref in refs)
    assert all(ref.url is None for ref in stock.refs(10, ordered(), by_url=False))


def test_a_model_that_is_not_there_ends_the_benchmark(stock: Stock, tmp_path: Path) -> None:
    empty = Stock(tmp_path, ())
    never = ModelRef(kind=Kind.LORA, url="http://127.0.0.1:1/x.safetensors", name="x")
    settings = empty.settings.model_copy(update={"allow_private_hosts": True, "max_download_s": 1})

    with pytest.raises(SourceError):
        hit_s(ModelCache(settings), [never])

    named_otherwise = stock.refs(1, ordered())[0].model_copy(update={"name": None})
    with pytest.raises(RuntimeError, match="was not on the volume"):
        hit_s(ModelCache(stock.settings), [named_otherwise])


def test_a_registry_that_lacks_a_model_ends_the_benchmark(stock: Stock) -> None:
    more = Stock(stock.volume, (*stock.names, (Kind.LORA, "another")))
    with kept(stock) as cache:
        assert registry_s(cache, stock) > 0

        with pytest.raises(RuntimeError, match="does not tell what is on the volume"):
            registry_s(cache, more)


def test_jobs_take_turns(stock: Stock) -> None:
    order = ordered()
    jobs = [stock.refs(3, order) for _ in range(2)]

    with kept(stock) as cache:
        assert len(hits_again(cache, jobs, 5)) == 5


def test_every_measurement_has_a_row() -> None:
    rows = rows_of(TIMES, 5000)

    assert [(row["what"], row["models"], row["runs"], row["p50_ms"]) for row in rows] == [
        ("hit of 11 models, by URL", 5000, 3, 0.6),
        ("hit of 11 models, by name", 5000, 1, 0.2),
        ("new process: volume opened", 5000, 1, 300.0),
        ("new process: first hit of 11", 5000, 1, 310.0),
        ("registry made anew", 5000, 1, 100.0),
        ("growth: hit of 10", 10, 1, 0.4),
        ("growth: hit of 10", 10_000, 1, 0.5),
    ]


def test_every_kind_of_hit_is_held_to_the_limit_and_growth_to_none() -> None:
    aims = {aim.aim: (round(aim.value, 3), aim.limit) for aim in aims_of(TIMES, 5000)}

    assert aims == {
        "hit p50 ms, 11 of 5000 models, by URL": (0.6, 1.0),
        "hit p50 ms, 11 of 5000 models, by name": (0.2, 1.0),
        "hit p50, 10000 models / 10 models": (1.25, 1.2),
    }


@pytest.mark.slow
def test_a_quick_run_ends_with_figures(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.cache", "--quick", "--folder", tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=QUICK_S,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["bench"], told["runs"], len(told["aims"])) == ("cache", 20, 4)
    assert [row["models"] for row in told["rows"]] == [40] * 6 + [10, 80]
    assert all(row["p99_ms"] >= row["p50_ms"] > 0 for row in told["rows"])
    assert list(tmp_path.iterdir()) == []
