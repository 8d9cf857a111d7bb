from email.utils import formatdate

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from model_cache.engine import answers
from model_cache.engine.download import Download
from schemas.errors import ModelAccessDeniedError


def answer(status: int, **headers: str) -> requests.Response:
    response = requests.Response()
    response.status_code = status
    response.headers.update({name.replace("_", "-"): text for name, text in headers.items()})
    return response


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("", ""),
        ("attachment", ""),
        ('attachment; filename="a b.safetensors"', "a b.safetensors"),
        ("attachment; filename=a.safetensors", "a.safetensors"),
        ("attachment; filename=\"x\"; filename*=UTF-8''%E6%97%A5.safetensors", "日.safetensors"),
        ('attachment; filename="ünï.safetensors"'.encode().decode("latin-1"), "ünï.safetensors"),
        ('attachment; filename="\xfc.safetensors"', "ü.safetensors"),
        ('attachment; filename="../../x"', "../../x"),
    ],
)
def test_the_name_that_a_host_offers_is_read(header: str, name: str) -> None:
    assert answers.disposition_name(header) == name


@given(st.text(st.characters(max_codepoint=255)))
def test_any_disposition_gives_some_text(header: str) -> None:
    assert isinstance(answers.disposition_name(f"attachment; {header}"), str)


def test_without_a_disposition_the_url_names_the_file() -> None:
    url = "https://h/a/my%20model.safetensors?x=/y"

    assert answers.file_name(answer(200), url) == "my model.safetensors"


@pytest.mark.parametrize(
    ("status", "headers", "span"),
    [
        (200, {}, answers.Span(0, None, None)),
        (200, {"Content_Length": "5"}, answers.Span(0, 5, 5)),
        (200, {"Content_Length": "-5"}, answers.Span(0, None, None)),
        (200, {"Content_Length": "5, 5"}, answers.Span(0, None, None)),
        (206, {"Content_Range": "bytes 5-9/10"}, answers.Span(5, 10, 10)),
        (206, {"Content_Range": "bytes 5-9/10", "Content_Length": "5"}, answers.Span(5, 10, 10)),
        (206, {"Content_Range": "bytes 5-9/10", "Content_Length": "4"}, None),
        (206, {"Content_Range": "bytes 5-8/10"}, answers.Span(5, 9, 10)),
        (206, {"Content_Range": "bytes 5-10/10"}, None),
        (206, {"Content_Range": "bytes 5-9/*"}, None),
        (206, {"Content_Range": "bytes 9-5/6"}, None),
        (206, {}, None),
    ],
)
def test_a_span_is_believed_only_if_it_adds_up(
    status: int, headers: dict[str, str], span: answers.Span | None
) -> None:
    assert answers.span(answer(status, **headers)) == span


@pytest.mark.parametrize(
    ("etag", "usable"),
    [('"abc"', '"abc"'), ('W/"abc"', ""), ("abc", ""), ("", ""), ('"a"b"', "")],
)
def test_only_a_strong_etag_is_good_for_resuming(etag: str, usable: str) -> None:
    assert answers.strong_etag(answer(200, ETag=etag)) == usable


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ("7", 7, 7),
        (formatdate(4102444800, usegmt=True), 1e8, 1e10),
        (formatdate(0, usegmt=True), 0, 0),
    ],
)
def test_the_wait_that_a_host_asks_for_is_read(text: str, low: float, high: float) -> None:
    seconds = answers.retry_after_s(answer(429, Retry_After=text))

    assert seconds is not None
    assert low <= seconds <= high


def test_the_wait_is_read_where_hugging_face_tells_it() -> None:
    limit = '"resolvers";r=0;t=55'

    assert answers.retry_after_s(answer(429, RateLimit=limit)) == 55
    assert answers.retry_after_s(answer(503, RateLimit=limit)) is None
    assert answers.retry_after_s(answer(429, RateLimit=limit, Retry_After="3")) == 3


@pytest.mark.parametrize(
    ("source", "redirected"), [("civitai:version:5", False), ("https://h/m", True)]
)
def test_a_file_that_was_there_a_moment_ago_may_be_missing_in_passing(
    source: str, *, redirected: bool
) -> None:
    download = Download("https://h/m", source)

    with pytest.raises(answers.TryAgainError, match="404"):
        answers.require_file(answer(404, X_Error_Message="gone"), download, redirected=redirected)


@pytest.mark.parametrize("text", ["", "soon", "-3", "1.5", "9" * 30])
def test_a_wait_that_makes_no_sense_is_none(text: str) -> None:
    assert answers.retry_after_s(answer(429, Retry_After=text)) is None


def test_a_host_that_repeats_a_token_or_a_signature_is_not_quoted() -> None:
    said = "bad token-secret for https://h/m?sig=signed-secret &c.\r\n"
    download = Download("https://h/m?sig=signed-secret", "https://h/m", "Bearer token-secret")

    with pytest.raises(ModelAccessDeniedError, match=r'403: "bad … for https://h/m\?… &c"\.'):
        answers.require_file(answer(403, X_Error_Message=said), download)


def test_a_host_that_repeats_what_a_url_hides_is_not_quoted() -> None:
    said = "the token SECRET/TOK, or SECRET%2FTOK of MiB, has expired"
    download = Download("https://h/m?token=SECRET%2FTOK&size=MiB", "https://h/m?size=MiB")
    response = answer(403, X_Error_Message=f"{said}; REDIRECTED too")
    response.url = "https://cdn/m?sig=REDIRECTED"

    with pytest.raises(
        ModelAccessDeniedError, match=r'"the token …, or … of MiB, has expired; … too"'
    ):
        answers.require_file(response, download)
