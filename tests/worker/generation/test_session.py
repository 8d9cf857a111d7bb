"""What our side of one A1111 process remembers, against a simulated one."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas.errors import BackendFailedError
from tests.conftest import Simulator, running
from worker.child.client import WebuiClient
from worker.child.links import LinkFolder
from worker.child.webui import Life
from worker.generation.payload import Chosen
from worker.generation.session import Session

pytestmark = pytest.mark.slow

FAILED = BackendFailedError("A1111 failed: OSError.", exception="OSError")


@pytest.fixture(scope="module")
def webui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    with running("webui", "--models-dir", tmp_path_factory.mktemp("models")) as started:
        yield started


@pytest.fixture
def session(webui: Simulator, tmp_path: Path) -> Session:
    life = Life(1, None, time.monotonic())
    return Session(WebuiClient(webui.url), LinkFolder(tmp_path), life)


def drawn(session: Session, chosen: Chosen) -> None:
    session.begin(chosen, None)
    session.end(chosen)


@pytest.mark.parametrize(
    ("after", "doubtful"),
    [
        pytest.param(Chosen("a"), False, id="the same models"),
        pytest.param(Chosen("b"), True, id="another checkpoint"),
        pytest.param(Chosen("a", vae="v.safetensors"), True, id="another VAE"),
        pytest.param(Chosen("a", refiner="b"), True, id="a refiner"),
        pytest.param(Chosen("a", hires="b"), True, id="a hires checkpoint"),
    ],
)
def test_a_failure_is_doubtful_if_a_model_was_loaded_for_it(
    session: Session, after: Chosen, *, doubtful: bool
) -> None:
    drawn(session, Chosen("a"))

    session.begin(after, None)

    assert session.is_doubtful(FAILED) is doubtful


def test_a_picture_of_nan_says_nothing_against_the_load(session: Session) -> None:
    session.begin(Chosen("a"), None)

    assert not session.is_doubtful(BackendFailedError("NaN.", exception="NansException"))
    assert session.is_doubtful(FAILED)


def test_checkpoints_are_counted_when_they_change(session: Session) -> None:
    for name in ("a", "a", "b", "b", "a"):
        drawn(session, Chosen(name))

    assert session.switches == 3
    assert not session.loads(Chosen("a"))
