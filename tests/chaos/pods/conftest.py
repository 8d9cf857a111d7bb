"""Hosts with one volume: a MooseFS that each has mounted for itself, or a folder that each has bound.

On the folder, attributes of files are seen late, as clients of network file systems see them.
"""

import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.chaos import hosts, moosefs, relay
from tests.chaos.conftest import Chaos, World, make_world
from tests.chaos.hosts import Host

LATE_S = 1.0
"""As MooseFS has it: mount.moosefs(8), `mfsattrcacheto`."""


@dataclass(frozen=True)
class Volumes:
    """A file system that is at the same place on this machine and on each host."""

    kind: str
    place: Path
    mount: Callable[[Host], None]
    late_s: float
    """By how much attributes are made to be seen late."""
    locks: bool
    """What a host wrote that died then can be read two minutes later."""


@contextmanager
def a_folder(place: Path) -> Iterator[Volumes]:
    """Have a folder, bound on each host."""
    yield Volumes(
        "a folder",
        place,
        lambda host: host.run("mount", "--bind", place, place),
        LATE_S,
        locks=False,
    )


@contextmanager
def a_moosefs(place: Path) -> Iterator[Volumes]:
    """Have a MooseFS, mounted here and on each host."""
    numbers = itertools.count(1)
    with moosefs.running(place) as system:
        yield Volumes(
            "MooseFS", system.one, lambda host: system.join(host, next(numbers)), 0.0, locks=True
        )


@pytest.fixture(scope="module", params=[a_folder, a_moosefs], ids=["folder", "moosefs"])
def volumes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Volumes]:
    with request.param(tmp_path_factory.mktemp("volumes")) as made:
        yield made


@contextmanager
def a_host(name: str, volumes: Volumes) -> Iterator[Host]:
    """Have a host on which the volume is mounted."""
    with hosts.running(name) as host:
        volumes.mount(host)
        yield host


@pytest.fixture(scope="module")
def pods(volumes: Volumes) -> Iterator[list[Host]]:
    with ExitStack() as stack:
        yield [stack.enter_context(a_host(f"pod-{name}", volumes)) for name in "ab"]


@pytest.fixture
def chaos(chaos: Chaos, volumes: Volumes) -> Chaos:
    # A round takes longer here, and there are two kinds of volumes.
    return replace(chaos, factor=chaos.factor / 4, where=f" (hosts, {volumes.kind})")


@pytest.fixture
def world(tmp_path: Path, volumes: Volumes, pods: list[Host]) -> Iterator[World]:
    volume = volumes.place / tmp_path.name
    volume.mkdir()
    with make_world(tmp_path, volume) as made, reachable(made, pods):
        one_number(pods)
        homes = itertools.cycle([pod.inside for pod in pods])
        yield replace(made, homes=homes, order={"late_s": volumes.late_s})


def one_number(pods: list[Host]) -> None:
    """Let the next processes of all hosts have the same number."""
    for pod in pods:
        pod.run("sh", "-c", "echo 1000 > /proc/sys/kernel/ns_last_pid")


def reachable(world: World, pods: list[Host]) -> AbstractContextManager[None]:
    """Let workers on these hosts fetch models."""
    return relay.reachable([world.hub.url, world.hub.site.links.base_url], pods)


@contextmanager
def two_hosts(world: World, volumes: Volumes) -> Iterator[tuple[Host, Host]]:
    """Have two more, whose next processes have the same number."""
    with (
        a_host("pod-y", volumes) as one,
        a_host("pod-z", volumes) as other,
        reachable(world, [one, other]),
    ):
        one_number([one, other])
        yield one, other
