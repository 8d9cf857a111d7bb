import email.utils
import hashlib

import pytest

from simulator.hub.files import Span, disposition, span
from tests.simulator.hub.conftest import Client

DATA = hashlib.shake_256(b"model").digest(2_500_000)
ETAG, MODIFIED = '"abc"', "Sat, 21 Nov 2026 05:00:00 GMT"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        pytest.param({}, Span(200, 0, 100, 100), id="none"),
        pytest.param({"Range": "bytes=0-0"}, Span(206, 0, 1, 100), id="probe"),
        pytest.param({"Range": "bytes=10-19"}, Span(206, 10, 20, 100), id="middle"),
        pytest.param({"Range": "bytes=90-"}, Span(206, 90, 100, 100), id="open end"),
        pytest.param({"Range": "bytes=-5"}, Span(206, 95, 100, 100), id="suffix"),
        pytest.param({"Range": "bytes=-500"}, Span(206, 0, 100, 100), id="suffix of more"),
        pytest.param({"Range": "bytes=90-500"}, Span(206, 90, 100, 100), id="end beyond"),
        pytest.param({"Range": "bytes=100-"}, Span(416, 0, 0, 100), id="start at the end"),
        pytest.param({"Range": "bytes=-0"}, Span(416, 0, 0, 100), id="last zero bytes"),
        pytest.param({"Range": "bytes=9-3"}, Span(200, 0, 100, 100), id="backwards"),
        pytest.param({"Range": "bytes=-"}, Span(200, 0, 100, 100), id="no numbers"),
        pytest.param({"Range": "bytes=0-1,5-6"}, Span(200, 0, 100, 100), id="two parts"),
        pytest.param({"Range": "items=0-1"}, Span(200, 0, 100, 100), id="another unit"),
        pytest.param({"Range": "bytes=1-", "If-Range": ETAG}, Span(206, 1, 100, 100), id="tag"),
        pytest.param(
            {"Range": "bytes=1-", "If-Range": '"x"'}, Span(200, 0, 100, 100), id="old tag"
        ),
        pytest.param(
            {"Range": "bytes=1-", "If-Range": MODIFIED}, Span(206, 1, 100, 100), id="date"
        ),
    ],
)
def test_a_range_is_answered_as_the_rfc_says(headers: dict[str, str], expected: Span) -> None:
    assert span("GET", headers, ETAG, MODIFIED, 100) == expected


def test_a_range_means_nothing_to_head() -> None:
    assert span("HEAD", {"Range": "bytes=0-0"}, ETAG, MODIFIED, 100).status == 200


def test_a_file_is_served_whole_with_its_validators_and_name(client: Client) -> None:
    path = client.put("a folder/mödel.safetensors", DATA)

    answer = client.get("/a folder/mödel.safetensors")

    assert answer.status_code == 200
    assert answer.content == DATA
    assert answer.headers["Content-Length"] == str(len(DATA))
    assert answer.headers["ETag"].startswith('"')
    modified = email.utils.parsedate_to_datetime(answer.headers["Last-Modified"])
    assert modified.timestamp() == int(path.stat().st_mtime)
    assert "filename*=UTF-8''m%C3%B6del.safetensors" in answer.headers["Content-Disposition"]


def test_a_quote_in_a_name_cannot_end_the_quoted_name() -> None:
    assert 'filename="a_b_.bin";' in disposition(None, 'a"b\\.bin')


def test_a_part_is_exactly_the_bytes_that_were_asked_for(client: Client) -> None:
    client.put("m.bin", DATA)

    answer = client.get("/m.bin", headers={"Range": "bytes=1048570-2097170"})

    assert answer.status_code == 206
    assert answer.content == DATA[1048570:2097171]
    assert answer.headers["Content-Range"] == f"bytes 1048570-2097170/{len(DATA)}"


def test_a_part_beyond_the_end_is_416_with_the_size(client: Client) -> None:
    client.put("m.bin", b"12345")

    answer = client.get("/m.bin", headers={"Range": "bytes=5-"})

    assert answer.status_code == 416
    assert answer.headers["Content-Range"] == "bytes */5"
    assert answer.content == b""


def test_a_replaced_file_has_another_etag_and_is_not_resumed(client: Client) -> None:
    client.put("m.bin", b"first")
    etag = client.get("/m.bin").headers["ETag"]
    client.put("m.bin", b"other bytes")

    answer = client.get("/m.bin", headers={"Range": "bytes=2-", "If-Range": etag})

    assert answer.status_code == 200
    assert answer.content == b"other bytes"


def test_head_tells_all_that_get_does_but_the_bytes(client: Client) -> None:
    client.put("m.bin", DATA)

    head = client.session.head(client.url + "/m.bin", timeout=30)
    get = client.get("/m.bin")

    same = ("ETag", "Content-Length", "Last-Modified", "Accept-Ranges", "Content-Disposition")
    assert [head.headers[name] for name in same] == [get.headers[name] for name in same]
    assert head.content == b""


@pytest.mark.parametrize(
    "path", ["/missing.bin", "/../outside.bin", "/%2e%2e/outside.bin", "/.hidden", "/folder", "/"]
)
def test_what_is_not_a_file_under_the_root_is_404(path: str, client: Client) -> None:
    client.put(".hidden", b"x")
    client.put("folder/inner.bin", b"x")
    outside = client.root.parent / "outside.bin"
    outside.write_bytes(b"x")

    # Sent as it stands: requests would tidy the path before sending it.
    assert client.get(path).status_code == 404


def test_another_method_than_get_and_head_is_405(client: Client) -> None:
    assert client.session.put(client.url + "/m.bin", data=b"x", timeout=30).status_code == 405


def test_a_redirect_leads_to_the_second_host_by_a_link_that_is_signed(client: Client) -> None:
    client.put("sub/m.bin", DATA)

    first = client.get("/redirect/sub/m.bin")
    second = client.session.get(first.headers["Location"], timeout=30)

    assert first.status_code == 302
    assert first.headers["Location"].startswith(client.site.links.base_url + "/signed/sub/m.bin?")
    assert second.content == DATA


def test_a_link_that_expired_or_was_changed_is_403(client: Client) -> None:
    client.put("m.bin", DATA)
    client.put("other.bin", DATA)
    good = client.get("/redirect/m.bin").headers["Location"]
    short = client.get("/redirect/m.bin?link-ttl-s=0").headers["Location"]

    def status(url: str) -> int:
        answer = client.session.get(url, timeout=30)
        return int(answer.status_code)

    assert status(good) == 200
    assert status(short) == 403
    assert status(good.replace("m.bin", "other.bin")) == 403
    assert status(good.partition("?")[0]) == 403
    assert status(good.replace("X-Expires=", "X-Expires=9")) == 403
    assert status(good.replace("X-Expires=", "X-Expires=soon")) == 403


def test_the_second_host_refuses_a_token(client: Client) -> None:
    client.put("m.bin", DATA)
    link = client.get("/redirect/m.bin").headers["Location"]

    answer = client.session.get(link, headers={"Authorization": "Bearer x"}, timeout=30)

    assert answer.status_code == 400


def test_the_journal_shows_a_file_fetched_once_in_whatever_pieces(client: Client) -> None:
    client.put("whole.bin", DATA)
    client.put("parts.bin", DATA)
    client.get("/whole.bin")
    half = len(DATA) // 2
    client.get("/parts.bin", headers={"Range": f"bytes=0-{half - 1}", "Authorization": "Bearer x"})
    client.get("/parts.bin", headers={"Range": f"bytes={half}-"})
    client.session.head(client.url + "/whole.bin", timeout=30)

    journal = client.journal()

    size = len(DATA)
    assert journal["files"] == {
        "whole.bin": {"size": size, "gets": 1, "whole": 1, "bytes": size, "copies": 1.0},
        "parts.bin": {"size": size, "gets": 2, "whole": 0, "bytes": size, "copies": 1.0},
    }
    part = journal["requests"][1]
    assert (part["host"], part["method"], part["path"]) == ("hub", "GET", "/parts.bin")
    assert (part["status"], part["bytes_sent"]) == (206, half)
    assert part["range"] == f"bytes=0-{half - 1}"
    assert [entry["authorization"] for entry in journal["requests"]] == [False, True, False, False]


def test_the_journal_shows_what_every_request_came_to(client: Client) -> None:
    client.put("m.bin", DATA)
    client.get("/missing.bin")
    client.get("/redirect/m.bin", hops=True)
    client.get("/m.bin?fault-status=503")
    client.session.put(client.url + "/m.bin", timeout=30)

    requests = client.journal()["requests"]

    assert [(entry["host"], entry["status"]) for entry in requests] == [
        ("hub", 404),
        ("hub", 302),
        ("cdn", 200),
        ("hub", 503),
        ("hub", 405),
    ]


def test_the_journal_can_be_emptied(client: Client) -> None:
    client.put("m.bin", DATA)
    client.get("/m.bin")

    client.session.post(client.url + "/simulator/reset-journal", timeout=30)

    assert client.journal() == {"requests": [], "files": {}}


def test_other_requests_go_on_while_a_file_is_sent_slowly(client: Client) -> None:
    client.put("slow.bin", DATA)
    client.put("quick.bin", b"x")
    with client.get("/slow.bin?fault-rate=20", stream=True) as slow:
        assert slow.raw.read(1) == DATA[:1]

        # The other takes a day.
        assert client.get("/quick.bin").content == b"x"


def test_digests_follow_the_bytes(client: Client) -> None:
    client.put("civitai/7/m.safetensors", b"one")
    first = client.get("/api/v1/model-versions/7").json()["files"][0]["hashes"]["SHA256"]
    client.put("civitai/7/m.safetensors", b"other")
    second = client.get("/api/v1/model-versions/7").json()["files"][0]["hashes"]["SHA256"]

    assert first.lower() == hashlib.sha256(b"one").hexdigest()
    assert second.lower() == hashlib.sha256(b"other").hexdigest()
