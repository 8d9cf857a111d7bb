import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.crowd import crowded
from benchmarks.engines import ENGINES, OURS, Engine, by_programs, environment, in_python
from benchmarks.fetchers import WAYS, Order
from benchmarks.file_server import Hosted, hosted, self_signed
from benchmarks.link import MIB, UNTHROTTLED
from simulator import models

SIZE = 3 * MIB + 1
ENVIRON = environment({"PATH": "/usr/local/bin:/usr/bin:/bin"})
HERE = [engine for engine in ENGINES if engine.is_here]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engines")


@pytest.fixture(scope="module")
def sha256(place: Path) -> str:
    return models.write_checkpoint(place / "files" / "m.safetensors", seed="m", size_bytes=SIZE)


@pytest.fixture(scope="module")
def host(place: Path, sha256: str) -> Iterator[Hosted]:
    assert sha256
    with hosted(place / "files", self_signed(place)) as served:
        yield served


@pytest.fixture
def by_tls(place: Path, sha256: str, host: Hosted, tmp_path: Path) -> Order:
    url = host.file_url(UNTHROTTLED, "m.safetensors", tls=True)
    return Order(url, tmp_path, sha256, authority=place / "certificate.pem")


@pytest.mark.parametrize("engine", [pytest.param(engine, id=engine.name) for engine in HERE])
def test_every_engine_brings_the_file_by_tls_and_tells_what_it_took(
    by_tls: Order, engine: Engine
) -> None:
    usage = engine.run(by_tls, ENVIRON)

    assert hashlib.sha256(usage.path.read_bytes()).hexdigest() == by_tls.sha256
    assert usage.path.is_relative_to(by_tls.folder)
    assert 0 < usage.s < 60
    assert 0 < usage.cpu_s < 60
    assert MIB < usage.peak_rss_bytes < 1 << 30


@pytest.mark.parametrize("engine", [pytest.param(engine, id=engine.name) for engine in HERE[::4]])
def test_an_engine_that_fails_ends_the_benchmark(
    by_tls: Order, engine: Engine, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RuntimeError, match="failed with"):
        engine.run(replace(by_tls, url=f"{by_tls.url}.gone"), ENVIRON)

    capfd.readouterr()


def test_a_way_that_cannot_be_prepared_ends_the_benchmark(
    by_tls: Order, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RuntimeError, match="'unheard-of' could not be prepared"):
        in_python("unheard-of")(by_tls, ENVIRON)

    assert "invalid choice" in capfd.readouterr().err


def test_programs_that_fail_say_why(by_tls: Order) -> None:
    run = by_programs(lambda _: [["sh", "-c", "echo out of paper; exit 3"]])

    with pytest.raises(RuntimeError, match="sh failed with 3: out of paper"):
        run(by_tls, ENVIRON)


def test_workers_that_want_one_model_at_once_cost_the_host_one_file(
    sha256: str, host: Hosted, tmp_path: Path
) -> None:
    order = Order(host.file_url(UNTHROTTLED, "m.safetensors"), tmp_path, sha256, authority=None)

    crowd = crowded(order, 3, host, ENVIRON)

    # On a busy machine what is left may be asked for once more, to be done sooner; never all of it.
    assert SIZE <= crowd.served_bytes < 2 * SIZE
    assert len(crowd.usages) == 3
    assert crowd.slowest_s == max(usage.s for usage in crowd.usages)


def test_an_engine_without_its_programs_is_not_here() -> None:
    run = in_python("store")

    assert not Engine("a", run, ("sh", "no-such-program")).is_here
    assert Engine("b", run, ("sh",)).is_here


def test_runs_get_the_memory_settings_of_the_worker_and_no_proxy() -> None:
    environ = environment({"PATH": "/bin", "NO_PROXY": ""})

    assert environ["PATH"] == "/bin"
    assert environ["NO_PROXY"] == "127.0.0.1"
    assert int(environ["MALLOC_TRIM_THRESHOLD_"]) > 0


def test_ours_is_one_of_the_engines_and_every_way_is_used() -> None:
    assert ENGINES[0].name == OURS
    assert not ENGINES[0].one_stream
    assert len([engine for engine in ENGINES if not engine.programs]) == len(WAYS)
