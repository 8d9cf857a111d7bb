from model_cache.sharing.stillness import Stillness


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_what_is_seen_for_the_first_time_may_have_changed_just_now() -> None:
    assert Stillness(60).of("a", 1) == 0.0


def test_time_adds_up_while_the_state_is_the_same() -> None:
    clock = Clock()
    still = Stillness(60, clock)
    still.of("a", 1)
    clock.now += 20
    assert still.of("a", 1) == 20
    clock.now += 30

    assert still.of("a", 1) == 50
    assert still.of("b", 1) == 0


def test_a_change_begins_anew() -> None:
    clock = Clock()
    still = Stillness(60, clock)
    still.of("a", 1)
    clock.now += 20

    assert still.of("a", 2) == 0
    assert still.of("a", 1) == 0


def test_a_pause_of_the_whole_host_is_no_sign_of_death() -> None:
    clock = Clock()
    still = Stillness(5, clock)
    still.of("a", 1)
    clock.now += 3600

    assert still.of("a", 1) == 5


def test_what_is_not_kept_is_forgotten() -> None:
    clock = Clock()
    still = Stillness(60, clock)
    still.of("a", 1)
    still.of("b", 1)
    still.keep_only(["b", "c"])
    clock.now += 20

    assert (still.of("a", 1), still.of("b", 1)) == (0, 20)
