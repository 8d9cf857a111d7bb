"""How long a failure is worth another try."""

import pytest

from model_cache.engine.answers import TryAgainError
from model_cache.engine.limits import MAX_RETRY_AFTER_S, Limits
from schemas.errors import SourceUnavailableError

LIMITS = Limits(stall_s=5)
AWAY = SourceUnavailableError("The host could not be reached.")
MISSING = SourceUnavailableError("The host answered 404.", status=404)


@pytest.mark.parametrize(
    ("failure", "tries"),
    [
        pytest.param(TryAgainError(AWAY), 5, id="away"),
        pytest.param(TryAgainError(AWAY, is_settled=True), 3, id="no such host"),
        pytest.param(TryAgainError(MISSING), 3, id="no such file"),
        pytest.param(TryAgainError(AWAY, MAX_RETRY_AFTER_S + 1), 1, id="asks for much patience"),
    ],
)
def test_some_failures_are_worth_more_tries_than_others(failure: TryAgainError, tries: int) -> None:
    pauses = [LIMITS.pause_s_after(failure, number) for number in range(1, tries)]

    assert pauses == sorted(pauses)
    assert all(0.5 * 2**place <= pause < 2**place for place, pause in enumerate(pauses))
    with pytest.raises(SourceUnavailableError):
        LIMITS.pause_s_after(failure, tries)


def test_a_host_that_says_how_long_it_is_busy_is_believed() -> None:
    assert LIMITS.pause_s_after(TryAgainError(AWAY, 7), 1) == 7
