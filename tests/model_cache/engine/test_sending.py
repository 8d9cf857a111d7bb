import gc
import threading
import weakref

import pytest
import requests

from model_cache.engine.sending import Sending
from schemas.errors import JobCancelledError


class Answer(requests.Response):
    """An answer that knows whether it was closed."""

    is_closed = False

    def close(self) -> None:
        self.is_closed = True


def anything() -> None:
    return


def over() -> None:
    raise JobCancelledError("Over.")


def test_an_answer_is_what_was_sent_for() -> None:
    sent = Answer()

    def send(method: str, *, timeout: float) -> requests.Response:
        assert (method, timeout) == ("GET", 1)
        return sent

    assert Sending(send, "GET", timeout=1).answer(anything) is sent
    assert not sent.is_closed


def test_what_sending_raises_is_raised_where_the_answer_is_waited_for() -> None:
    def send(what: str) -> requests.Response:
        raise ValueError(what)

    with pytest.raises(ValueError, match="broken"):
        Sending(send, "broken").answer(anything)


def test_an_answer_that_comes_when_nobody_waits_any_more_is_closed() -> None:
    may_end, sent = threading.Event(), Answer()

    def send() -> requests.Response:
        may_end.wait()
        return sent

    sending = Sending(send)
    with pytest.raises(JobCancelledError):
        sending.answer(over)
    assert not sent.is_closed

    may_end.set()
    sending._is_over.wait()

    assert sent.is_closed


def test_an_error_keeps_nothing_of_the_request() -> None:
    held = Answer()
    alive = weakref.ref(held)

    def send(_: requests.Response) -> requests.Response:
        raise ValueError

    gc.disable()
    try:
        with pytest.raises(ValueError):  # noqa: PT011 - raised above
            Sending(send, held).answer(anything)
        del held
        for thread in threading.enumerate():
            if thread.name == "fetch-send":
                thread.join()
        assert alive() is None
    finally:
        gc.enable()
