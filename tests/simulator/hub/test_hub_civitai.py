import hashlib
import json
from typing import Any

import pytest

from tests.simulator.hub.conftest import Client

DOWNLOAD = "/api/download/models/12345"


@pytest.fixture(autouse=True)
def version(client: Client) -> None:
    client.put("civitai/12345/style.safetensors", b"primary")
    client.put("civitai/12345/zz_style.pt", b"second")


def mark(client: Client, **marks: Any) -> None:
    client.put("civitai/12345/simulator.json", json.dumps(marks).encode())


def test_a_download_redirects_to_the_second_host(client: Client) -> None:
    first = client.get(DOWNLOAD)
    body = client.session.get(first.headers["Location"], timeout=30).content

    assert (first.status_code, first.headers["Cache-Control"]) == (307, "no-store")
    assert first.headers["Location"].startswith(client.site.links.base_url)
    assert body == b"primary"


@pytest.mark.parametrize(
    ("query", "body"),
    [
        ("fileId=1234500", b"primary"),
        ("fileId=1234501", b"second"),
        ("type=Model&format=PickleTensor", b"second"),
        ("format=SafeTensor&size=full&fp=fp16", b"primary"),
    ],
)
def test_the_query_picks_one_of_the_files(query: str, body: bytes, client: Client) -> None:
    assert client.get(f"{DOWNLOAD}?{query}", hops=True).content == body


@pytest.mark.parametrize("query", ["fileId=1", "size=pruned", "type=VAE", "fp=fp8"])
def test_a_query_that_fits_no_file_is_404(query: str, client: Client) -> None:
    assert client.get(f"{DOWNLOAD}?{query}").status_code == 404


@pytest.mark.parametrize("path", ["/api/download/models/1", "/api/download/models/../x"])
def test_an_unknown_version_is_404(path: str, client: Client) -> None:
    assert client.get(path).status_code == 404


def test_a_model_that_requires_login_wants_a_token(client: Client) -> None:
    mark(client, requires_token=True)
    good = {"Authorization": "Bearer simulated-token"}

    without, wrong = client.get(DOWNLOAD), client.get(f"{DOWNLOAD}?token=x")

    assert without.status_code == wrong.status_code == 401
    assert without.json()["error"] == "Unauthorized"
    assert "logged in" in without.json()["message"]
    assert client.get(DOWNLOAD, headers=good).status_code == 307
    assert client.get(f"{DOWNLOAD}?token=simulated-token").status_code == 307


def test_the_token_does_not_have_to_follow_the_redirect(client: Client) -> None:
    mark(client, requires_token=True)

    answer = client.get(DOWNLOAD, hops=True, headers={"Authorization": "Bearer simulated-token"})

    # requests drops the header because the port differs; the second host would answer 400 to it.
    assert answer.content == b"primary"


@pytest.mark.parametrize(("status", "key"), [(403, "deadline"), (404, "error"), (410, "message")])
def test_a_version_can_be_marked_as_refused(status: int, key: str, client: Client) -> None:
    mark(client, answer=status)

    answer = client.get(DOWNLOAD)

    assert answer.status_code == status
    assert key in answer.json()


def test_a_browser_is_sent_to_a_page_where_others_get_json(client: Client) -> None:
    mark(client, requires_token=True)

    answer = client.get(DOWNLOAD, hops=True, headers={"User-Agent": "Mozilla/5.0"})

    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/html")


def test_urllib_and_head_are_turned_away(client: Client) -> None:
    agent = {"User-Agent": "Python-urllib/3.11"}

    assert client.get(DOWNLOAD, headers=agent).status_code == 403
    assert client.session.head(client.url + DOWNLOAD, timeout=30).status_code == 401


def test_the_api_tells_size_and_digest_of_each_file(client: Client) -> None:
    mark(client, modelId=99, baseModel="SDXL 1.0", files={"zz_style.pt": {"type": "VAE"}})

    answer = client.get("/api/v1/model-versions/12345").json()

    primary, second = answer["files"]
    assert (answer["modelId"], answer["baseModel"]) == (99, "SDXL 1.0")
    assert primary["name"] == "style.safetensors"
    assert primary["hashes"]["SHA256"] == hashlib.sha256(b"primary").hexdigest().upper()
    assert primary["sizeKB"] == 7 / 1024
    assert (primary["primary"], second["primary"]) == (True, False)
    assert second["type"] == "VAE"
    assert "files" in answer
    assert (
        client.get(second["downloadUrl"].removeprefix(client.url), hops=True).content == b"second"
    )


def test_a_version_is_found_by_the_hash_of_one_of_its_files(client: Client) -> None:
    digest = hashlib.sha256(b"second").hexdigest()

    for wanted in (digest, digest.upper(), digest[:10]):
        assert client.get(f"/api/v1/model-versions/by-hash/{wanted}").json()["id"] == 12345
    assert client.get(f"/api/v1/model-versions/by-hash/{'0' * 64}").status_code == 404


def test_a_model_lists_its_versions_newest_first(client: Client) -> None:
    mark(client, modelId=99)
    client.put("civitai/12400/newer.safetensors", b"newer")
    client.put("civitai/12400/simulator.json", b'{"modelId": 99}')

    answer = client.get("/api/v1/models/99").json()

    assert answer["id"] == 99
    assert [version["id"] for version in answer["modelVersions"]] == [12400, 12345]
    assert client.get("/api/v1/models/1").status_code == 404
    assert client.get("/api/v1/model-versions/1").status_code == 404


def test_the_marks_themselves_are_not_served(client: Client) -> None:
    mark(client, requires_token=True)

    assert client.get("/civitai/12345/simulator.json").status_code == 404


def test_the_marks_of_one_file_are_fields_of_it(client: Client) -> None:
    mark(client, files={"zz_style.pt": {"pickleScanResult": "Danger"}})

    primary, second = client.get("/api/v1/model-versions/12345").json()["files"]

    assert (primary["pickleScanResult"], second["pickleScanResult"]) == ("Success", "Danger")


@pytest.mark.parametrize("mode", ["Archived", "TakenDown"])
def test_a_model_that_is_given_out_no_more_lists_no_files(mode: str, client: Client) -> None:
    mark(client, model={"type": "LORA", "mode": mode})

    answer = client.get("/api/v1/model-versions/12345").json()

    assert answer["files"] == []
    assert "downloadUrl" not in answer


def test_a_version_that_is_not_published_is_hidden(client: Client) -> None:
    mark(client, status="Draft", modelId=99)

    assert client.get("/api/v1/model-versions/12345").status_code == 404
    assert client.get("/api/v1/models/99").status_code == 404
