import contextlib
import gzip
import hashlib
import http.client
import time
import urllib.parse
from typing import Any

import pytest
import requests

from tests.simulator.hub.conftest import Client

DATA = hashlib.shake_256(b"model").digest(300_000)


@pytest.fixture
def model(client: Client) -> str:
    client.put("m.bin", DATA)
    return "/m.bin"


def connected(client: Client) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(urllib.parse.urlsplit(client.url).netloc, timeout=30)


def raw(client: Client, path: str) -> tuple[http.client.HTTPResponse, bytes]:
    """Read what arrives, without a client library that judges it."""
    connection = connected(client)
    connection.request("GET", path)
    answer = connection.getresponse()
    try:
        body = answer.read()
    except http.client.IncompleteRead as error:
        body = error.partial
    connection.close()
    return answer, body


def rule(client: Client, **wish: Any) -> dict[str, Any]:
    answer = client.session.post(client.url + "/simulator/faults", json=wish, timeout=30)
    assert answer.status_code == 200, answer.text
    added: dict[str, Any] = answer.json()
    return added


@pytest.mark.parametrize(
    ("query", "status"), [("fault-status=404", 404), ("fault-status=503", 503)]
)
def test_a_status_can_be_asked_for(query: str, status: int, model: str, client: Client) -> None:
    answer = client.get(f"{model}?{query}")

    assert answer.status_code == status
    assert "error" in answer.json()


def test_too_many_requests_say_when_to_come_back(model: str, client: Client) -> None:
    answer = client.get(f"{model}?fault-status=429&fault-retry-after=2")

    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "2")


def test_a_login_page_can_come_with_status_200(model: str, client: Client) -> None:
    answer = client.get(f"{model}?fault-html=1")

    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/html")
    assert answer.text.startswith("<!DOCTYPE html>")


def test_a_json_error_can_come_with_status_200(model: str, client: Client) -> None:
    answer = client.get(f"{model}?fault-json-error=1")

    assert answer.status_code == 200
    assert answer.json()["error"]


def test_a_cut_answer_promised_more_than_it_sent(model: str, client: Client) -> None:
    answer, body = raw(client, f"{model}?fault-cut=100000")

    assert answer.getheader("Content-Length") == str(len(DATA))
    assert body == DATA[:100000]
    entry = client.journal()["requests"][0]
    assert (entry["bytes_sent"], entry["complete"]) == (100000, False)


def test_a_cut_beyond_the_end_cuts_nothing(model: str, client: Client) -> None:
    assert client.get(f"{model}?fault-cut=900000").content == DATA


def test_a_cut_cannot_be_seen_where_no_length_was_promised(model: str, client: Client) -> None:
    answer = client.get(f"{model}?fault-cut=100000&fault-no-length=1")

    assert "Content-Length" not in answer.headers
    assert "Transfer-Encoding" not in answer.headers
    assert answer.content == DATA[:100000]


def test_a_wrong_length_promises_bytes_that_never_come(model: str, client: Client) -> None:
    answer, body = raw(client, f"{model}?fault-length=10")

    assert answer.getheader("Content-Length") == str(len(DATA) + 10)
    assert body == DATA


def test_a_length_that_is_too_small_hides_the_end(model: str, client: Client) -> None:
    assert raw(client, f"{model}?fault-length=-10")[1] == DATA[:-10]


def test_an_answer_can_be_chunked(model: str, client: Client) -> None:
    answer = client.get(f"{model}?fault-chunked=1")

    assert answer.headers["Transfer-Encoding"] == "chunked"
    assert "Content-Length" not in answer.headers
    assert answer.content == DATA


def test_range_can_be_ignored(model: str, client: Client) -> None:
    answer = client.get(f"{model}?fault-no-range=1", headers={"Range": "bytes=5-9"})

    assert (answer.status_code, answer.headers["Accept-Ranges"]) == (200, "none")
    assert answer.content == DATA


def test_gzip_comes_though_nobody_asked_for_it(model: str, client: Client) -> None:
    answer, body = raw(client, f"{model}?fault-gzip=1")

    assert answer.getheader("Content-Encoding") == "gzip"
    assert gzip.decompress(body) == DATA


@pytest.mark.parametrize("header", [{}, {"Range": "bytes=200000-299999"}])
def test_one_byte_of_the_file_can_be_wrong(
    header: dict[str, str], model: str, client: Client
) -> None:
    start = 200000 if header else 0

    body = client.get(f"{model}?fault-flip=250000", headers=header).content

    wrong = [i + start for i, byte in enumerate(body) if byte != DATA[i + start]]
    assert wrong == [250000]


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("loop", "/m.bin?fault-redirect=loop"),
        ("file", "file:///"),
        ("private", "http://10."),
        ("metadata", "http://169.254.169.254/"),
        ("http://example.invalid/x", "http://example.invalid/x"),
    ],
)
def test_a_redirect_can_lead_where_it_must_not(
    name: str, start: str, model: str, client: Client
) -> None:
    answer = client.get(f"{model}?fault-redirect={name}")

    assert answer.status_code == 302
    assert answer.headers["Location"].startswith(start)


def test_a_loop_never_ends(model: str, client: Client) -> None:
    with pytest.raises(requests.TooManyRedirects):
        client.get(f"{model}?fault-redirect=loop", hops=True)


def test_a_connection_can_be_dropped_without_an_answer(model: str, client: Client) -> None:
    with pytest.raises(requests.ConnectionError):
        client.get(f"{model}?fault-drop=1")

    assert client.get(model).content == DATA


def test_an_answer_can_fall_silent(model: str, client: Client) -> None:
    connection = connected(client)
    with contextlib.closing(connection):
        connection.request("GET", f"{model}?fault-stall=1000")
        answer = connection.getresponse()
        assert answer.read(1000) == DATA[:1000]
        connection.sock.settimeout(0.3)
        with pytest.raises(TimeoutError):
            answer.read(1)

    assert client.get(model).content == DATA


def test_an_answer_can_be_slow(model: str, client: Client) -> None:
    start = time.monotonic()

    answer = client.get(f"{model}?fault-rate=1000000", headers={"Range": "bytes=0-199999"})

    assert answer.content == DATA[:200000]
    assert 0.15 < time.monotonic() - start < 15


def test_an_answer_can_be_late(model: str, client: Client) -> None:
    start = time.monotonic()

    assert client.get(f"{model}?fault-delay-s=0.2").content == DATA
    assert time.monotonic() - start >= 0.2


def test_etags_can_be_missing_weak_or_never_the_same(model: str, client: Client) -> None:
    assert "ETag" not in client.get(f"{model}?fault-etag=none").headers
    assert client.get(f"{model}?fault-etag=weak").headers["ETag"].startswith('W/"')
    changing = {client.get(f"{model}?fault-etag=changing").headers["ETag"] for _ in range(3)}
    assert len(changing) == 3


def test_the_offered_name_can_be_hostile(model: str, client: Client) -> None:
    answer = client.get(f"{model}?fault-filename=../../../evil.sh")

    assert answer.headers["Content-Disposition"] == 'attachment; filename="../../../evil.sh"'


def test_a_fault_in_the_query_of_a_redirect_spoils_the_transfer(model: str, client: Client) -> None:
    redirect = client.get(f"/redirect{model}?fault-flip=5")

    body = client.session.get(redirect.headers["Location"], timeout=30).content

    assert redirect.status_code == 302
    assert [i for i, byte in enumerate(body) if byte != DATA[i]] == [5]


def test_a_rule_strikes_as_often_as_it_says(model: str, client: Client) -> None:
    rule(client, path="/m*", status=500, times=2, skip=1)

    statuses = [client.get(model).status_code for _ in range(5)]

    assert statuses == [200, 500, 500, 200, 200]
    listed = client.get("/simulator/faults").json()
    assert [(r["path"], r["hits"]) for r in listed] == [("/m*", 2)]


def test_a_rule_can_be_for_one_host_and_one_method(model: str, client: Client) -> None:
    rule(client, host="cdn", method="GET", status=503, times=-1)

    link = client.get(f"/redirect{model}").headers["Location"]

    assert client.get(model).status_code == 200
    assert [client.session.get(link, timeout=30).status_code for _ in range(3)] == [503] * 3
    assert client.session.head(link, timeout=30).status_code == 200


def test_rules_can_be_taken_back(model: str, client: Client) -> None:
    rule(client, status=500, times=-1)
    client.session.delete(client.url + "/simulator/faults", timeout=30)

    assert client.get(model).status_code == 200


@pytest.mark.parametrize("wish", [{"statsu": 500}, {"times": 1, "kut": 3}, [], "x"])
def test_a_rule_that_cannot_be_meant_is_refused(wish: object, client: Client) -> None:
    answer = client.session.post(client.url + "/simulator/faults", json=wish, timeout=30)

    assert answer.status_code == 400
    assert client.site.faults.rules == []


@pytest.mark.parametrize("query", ["fault-kut=1", "fault-cut=soon"])
def test_a_misspelt_fault_is_an_error_and_not_a_good_answer(
    query: str, model: str, client: Client
) -> None:
    assert client.get(f"{model}?{query}").status_code == 400


@pytest.mark.parametrize(
    ("fault", "start", "end"),
    [("shift=100", 1100, 2100), ("short=10", 1000, 1010), ("long=50", 1000, 2050)],
)
def test_another_range_can_come_than_was_asked_for(
    fault: str, start: int, end: int, model: str, client: Client
) -> None:
    answer = client.get(f"{model}?fault-{fault}", headers={"Range": "bytes=1000-1999"})

    assert answer.status_code == 206
    assert answer.headers["Content-Range"] == f"bytes {start}-{end - 1}/{len(DATA)}"
    assert answer.content == DATA[start:end]


def test_more_can_come_than_was_said(model: str, client: Client) -> None:
    answer = client.get(f"{model}?fault-junk=7", headers={"Range": "bytes=0-9"})

    assert "Content-Length" not in answer.headers
    assert answer.content == DATA[:10] + bytes(7)


def test_a_host_can_allow_few_answers_at_a_time(model: str, client: Client) -> None:
    rule(client, stall=1000)

    with client.get(model, stream=True) as first:
        assert first.raw.read(1000) == DATA[:1000]
        assert client.get(f"{model}?fault-busy-above=1").status_code == 429
        assert client.get(f"{model}?fault-busy-above=2").status_code == 200
