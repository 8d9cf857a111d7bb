import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_cache.engine.connections import FIRST_WANTED, STEP_S, Connections, Ramp, Share


def test_every_fetch_has_one_connection_even_beyond_the_limit() -> None:
    connections = Connections(2)

    shares = [connections.join() for _ in range(3)]

    assert connections.count() == 3
    assert not any(share.more() for share in shares)


def test_one_fetch_alone_may_have_them_all() -> None:
    connections = Connections(4)
    share = connections.join()

    assert [share.more() for _ in range(4)] == [True, True, True, False]
    assert not share.wanted_back()


def test_who_holds_more_than_its_share_gives_to_who_has_less() -> None:
    connections = Connections(4)
    rich = connections.join()
    while rich.more():
        pass
    poor = connections.join()

    assert not poor.more()
    assert rich.wanted_back()
    rich.less()
    rich.less()
    assert poor.more()

    assert not rich.wanted_back()
    assert not poor.wanted_back()


def test_who_waits_no_more_is_given_nothing() -> None:
    connections = Connections(4)
    rich = connections.join()
    while rich.more():
        pass
    poor = connections.join()
    assert not poor.more()

    rich.less()
    poor.enough()

    assert connections.count() == 4
    assert not rich.wanted_back()


def test_a_fetch_that_wants_no_more_leaves_the_rest_to_others() -> None:
    connections = Connections(4)
    modest, busy = connections.join(), connections.join()

    assert [busy.more() for _ in range(3)] == [True, True, False]
    assert not busy.wanted_back()
    modest.leave()
    assert busy.more()


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["more", "less"])), max_size=60))
def test_the_limit_holds_whatever_fetches_do(steps: list[tuple[int, str]]) -> None:
    connections = Connections(6)
    shares: list[Share] = [connections.join() for _ in range(4)]
    held = [1] * 4

    for number, step in steps:
        if step == "more":
            held[number] += shares[number].more()
        elif held[number] > 1:
            shares[number].less()
            held[number] -= 1

        assert connections.count() == sum(held) <= 6


def ramped(rate_of: dict[int, float], seconds: float, most: int = 16) -> Ramp:
    """Return a ramp after `seconds` at a host that gives `rate_of[connections]`."""
    ramp = Ramp(most)
    for step in range(int(seconds / STEP_S)):
        ramp.step(rate_of[ramp.wanted], step * STEP_S)
    return ramp


def test_a_throttle_per_connection_is_answered_by_all_of_them_within_a_second() -> None:
    assert ramped({n: n * 20e6 for n in (4, 8, 16)}, 1).wanted == 16


def test_what_does_not_make_it_faster_is_given_up() -> None:
    assert ramped({4: 1e9, 8: 1e9, 16: 1e9}, 2).wanted == FIRST_WANTED


def test_what_did_not_help_is_tried_again_later() -> None:
    ramp = ramped({4: 1e9, 8: 1e9, 16: 1e9}, 2)

    for step in range(40):
        ramp.step(ramp.wanted * 1e9, 3 + step * STEP_S)

    assert ramp.wanted == 16


def test_a_refusal_halves_once_for_all_that_were_refused_together() -> None:
    ramp = ramped({n: n * 20e6 for n in (4, 8, 16)}, 1)

    for _ in range(6):
        ramp.refused(2.0)
    assert ramp.wanted == 8
    ramp.step(1e12, 3.0)
    assert ramp.wanted == 8
    ramp.refused(4.0)

    assert ramp.wanted == 4


def test_after_a_refusal_no_connection_is_made_for_as_long_as_the_host_asks() -> None:
    ramp = Ramp(16)
    assert ramp.may_hire(0.0)

    ramp.refused(1.0, 5.0)
    ramp.refused(1.0)

    assert not ramp.may_hire(5.9)
    assert ramp.may_hire(6.0)


@pytest.mark.parametrize("most", [1, 3])
def test_never_more_are_wanted_than_there_can_be(most: int) -> None:
    ramp = Ramp(most)

    for step in range(1, 50):
        ramp.step(step * 1e9, step)
        assert 1 <= ramp.wanted <= most
