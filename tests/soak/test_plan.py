"""The seed decides everything: jobs and faults."""

from itertools import islice
from pathlib import Path

import pytest

from simulator.hub.faults import Faults as HubFaults
from simulator.queue.faults import parse as queue_fault
from simulator.webui.faults import SETTINGS
from simulator.webui.faults import Faults as WebuiFaults
from tests.soak.plan import KINDS, Kind, strikes
from tests.soak.wishes import Stock, Wishes

STOCK = Stock("http://host", Path("hub"), 500)


def test_a_seed_gives_the_same_jobs_and_faults_again() -> None:
    one, other = (Wishes(5, STOCK) for _ in range(2))

    assert [one.wish(n).value for n in range(200)] == [other.wish(n).value for n in range(200)]
    assert list(islice(strikes(5, 3, 1.0), 100)) == list(islice(strikes(5, 3, 1.0), 100))


def test_another_seed_gives_others() -> None:
    assert Wishes(5, STOCK).wish(0).value != Wishes(6, STOCK).wish(0).value
    assert list(islice(strikes(5, 3, 1.0), 5)) != list(islice(strikes(6, 3, 1.0), 5))


def test_every_fault_comes_before_any_comes_again() -> None:
    coming = list(islice(strikes(1, 3, 1.5), 2 * len(KINDS)))

    for half in (coming[: len(KINDS)], coming[len(KINDS) :]):
        assert {strike.kind.name for strike in half} == {kind.name for kind in KINDS}
    assert [strike.at_s for strike in coming] == sorted(strike.at_s for strike in coming)
    assert coming[-1].at_s == pytest.approx(1.5 * len(coming), rel=0.2)
    assert {strike.slot for strike in coming} == {0, 1, 2}


def test_some_hundred_jobs_are_of_every_kind() -> None:
    wishes = [Wishes(1, STOCK).wish(n) for n in range(500)]

    assert len({wish.kind for wish in wishes}) == 15
    bad = [wish for wish in wishes if wish.right is None]
    assert 0.15 < len(bad) / len(wishes) < 0.35
    assert all(wish.codes for wish in bad)


@pytest.mark.parametrize("kind", [pytest.param(kind, id=kind.name) for kind in KINDS])
def test_a_fault_is_one_that_the_simulators_know(kind: Kind) -> None:
    if kind.what.keys() & {"kill", "signal"}:
        assert kind.at in {"webui", "worker", "hub"}
    elif kind.at == "webui":
        webui = WebuiFaults()
        webui.set(dict(kind.what))
        shown = webui.shown()
        assert shown["faults"] or any(shown[name] for name in SETTINGS)
    elif kind.at == "hub":
        assert HubFaults().add(kind.what).times > 0
    elif kind.at == "queue":
        assert queue_fault(dict(kind.what)).times > 0
    else:
        assert kind.at == "volume"
